"""A small character-level transformer in PyTorch, with its optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from casckpt.cli.demo import text

CONTEXT = 64
WIDTH = 256
HEADS = 4
LAYERS = 3
BATCH = 8
STEPS_PER_EPOCH = 8
"""Eight steps of 512 characters take about 1.3 s on two cores."""


class Transformer(nn.Module):
    """Predicts the next character from the 64 before it."""

    def __init__(self) -> None:
        """Make the layers with PyTorch's initial weights."""
        super().__init__()
        self.characters = nn.Embedding(text.VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.1, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, text.VOCABULARY)
        mask = nn.Transformer.generate_square_subsequent_mask(CONTEXT)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, characters: torch.Tensor) -> torch.Tensor:
        """Return logits of shape (batch, context, vocabulary) for codes (batch, context)."""
        hidden = self.characters(characters) + self.positions.weight
        hidden = self.layers(hidden, mask=self.mask, is_causal=True)
        logits: torch.Tensor = self.head(self.norm(hidden))
        return logits


class Network:
    """The transformer, its optimizer and its data: what a training script keeps together."""

    def __init__(self) -> None:
        """Start from seed 0."""
        torch.manual_seed(0)
        self.train_codes, self.validation_codes = text.split(text.library_text())
        self.model = Transformer()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train_epoch(self, epoch: int) -> float:
        """Train one epoch and return its mean loss."""
        self.model.train()
        total = 0.0
        for step in range(STEPS_PER_EPOCH):
            seed = epoch * STEPS_PER_EPOCH + step
            loss = self._loss(*text.windows(self.train_codes, CONTEXT, BATCH, seed))
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item()
        return total / STEPS_PER_EPOCH

    def validation_loss(self) -> float:
        """Return the mean loss over a fixed sample of the validation text."""
        self.model.eval()
        with torch.no_grad():
            return self._loss(*text.windows(self.validation_codes, CONTEXT, 32, 7)).item()

    def state(self) -> dict[str, Any]:
        """Return everything that training needs to go on exactly."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])

    def _loss(self, characters: Any, following: Any) -> torch.Tensor:
        logits = self.model(torch.from_numpy(characters))
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(following).flatten()
        )
