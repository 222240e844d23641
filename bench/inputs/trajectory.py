"""Train a small real transformer and keep its checkpoints: the input of most benchmarks.

The recipe is fixed so that results can be compared over time and between machines: a byte-level
transformer (d = 384, 6 layers, 6 heads, context 64, batch 8, 10.9 M parameters) reads the standard
library's own sources, under AdamW with a cosine schedule over 400 steps. It is trained once in fp32
and once with parameters and optimizer state in pure bf16. A checkpoint holds the model, the
optimizer, the scheduler, the step and the random generators. Late steps 200, 201, 202 lie one step
apart on purpose: what a save-every-step user sees.

The bytes depend on the machine (threads, kernels, Python's version), the ratios hardly do.
"""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAVED_STEPS = (0, 20, 40, 60, 80, 100, 150, 200, 201, 202, 250, 300, 350, 400)
QUICK_STEPS = (0, 10, 20, 21, 30, 40)
VOCABULARY = 256


@dataclass(frozen=True)
class Recipe:
    """One way to train; `name` is also the folder in the cache."""

    name: str
    dtype: torch.dtype
    learning_rate: float
    width: int = 384
    layers: int = 6
    heads: int = 6
    context: int = 64
    batch: int = 8
    saved_steps: tuple[int, ...] = SAVED_STEPS

    @property
    def total_steps(self) -> int:
        """The last step, where the cosine schedule ends."""
        return self.saved_steps[-1]


FP32 = Recipe("fp32", torch.float32, 3e-4)
BF16 = Recipe("bf16", torch.bfloat16, 1e-4)
QUICK_FP32 = Recipe("quick-fp32", torch.float32, 3e-4, layers=2, saved_steps=QUICK_STEPS)
QUICK_BF16 = Recipe("quick-bf16", torch.bfloat16, 1e-4, layers=2, saved_steps=QUICK_STEPS)


class Linear(nn.Linear):
    """A matrix product accumulated in fp32 and rounded once, as bf16 hardware does it.

    Processors without bf16 instructions run torch's own bf16 product 14 times slower (8.2 s a
    step instead of 0.6 s); parameters, gradients and optimizer state stay pure bf16 either way.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (..., in) to (..., out) in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.float()
        product: torch.Tensor = nn.functional.linear(x.float(), self.weight.float(), bias)
        return product.to(x.dtype)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        """Make one block of the given width."""
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.up = Linear(width, 4 * width)
        self.down = Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (batch, time, width) to the same shape."""
        batch, time, width = x.shape
        qkv = self.qkv(self.norm_attention(x))
        qkv = qkv.view(batch, time, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), is_causal=True
        ).to(x.dtype)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(nn.functional.gelu(self.up(self.norm_mlp(x))))


class Transformer(nn.Module):
    """Byte-level language model."""

    def __init__(self, recipe: Recipe) -> None:
        """Make the model of a recipe, in its dtype."""
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, recipe.width)
        self.positions = nn.Embedding(recipe.context, recipe.width)
        self.blocks = nn.ModuleList(Block(recipe.width, recipe.heads) for _ in range(recipe.layers))
        self.norm = nn.LayerNorm(recipe.width)
        self.head = Linear(recipe.width, VOCABULARY, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.to(recipe.dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits (batch, time, 256) for byte values (batch, time)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions)
        for block in self.blocks:
            x = block(x)
        logits: torch.Tensor = self.head(self.norm(x))
        return logits


def read_corpus(limit_bytes: int = 8 << 20) -> torch.Tensor:
    """Return the top-level sources of the standard library, in order of name, as byte values."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = bytearray()
    for path in sorted(folder.glob("*.py")) + sorted(folder.glob("[a-z]*/*.py")):
        if "packages" not in path.parent.name:
            text += path.read_bytes()
        if len(text) > limit_bytes:
            break
    return torch.frombuffer(text, dtype=torch.uint8).clone()


def train(recipe: Recipe, save: Callable[[int, dict[str, Any]], None]) -> float:
    """Train by the recipe and hand each state to `save`, which must not keep it.

    Returns: the loss of the last batch, in nats per byte.
    """
    torch.manual_seed(0)
    random.seed(0)
    corpus = read_corpus()
    sampler = torch.Generator().manual_seed(1)
    model = Transformer(recipe)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.total_steps)
    loss = torch.zeros(())
    for step in range(recipe.total_steps + 1):
        if step in recipe.saved_steps:
            save(step, _state(model, optimizer, scheduler, sampler, step))
        if step == recipe.total_steps:
            break
        high = len(corpus) - recipe.context - 1
        starts = torch.randint(high, (recipe.batch, 1), generator=sampler)
        window = corpus[starts + torch.arange(recipe.context + 1)].long()
        logits = model(window[:, :-1]).float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        scheduler.step()
    return float(loss.detach())


def _state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    sampler: torch.Generator,
    step: int,
) -> dict[str, Any]:
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "step": step,
        "rng": {
            "torch": torch.get_rng_state(),
            "sampler": sampler.get_state(),
            "python": random.getstate(),
        },
    }


def ensure(recipe: Recipe, cache: Path) -> list[Path]:
    """Return the recipe's checkpoints as torch files, training first if one is missing.

    A crash midway leaves finished files only; the next call trains again from the start.
    """
    folder = cache / f"trajectory-{recipe.name}"
    paths = [folder / f"step-{step:04d}.pt" for step in recipe.saved_steps]
    if all(path.exists() for path in paths):
        return paths
    folder.mkdir(parents=True, exist_ok=True)

    def save(step: int, state: dict[str, Any]) -> None:
        path = folder / f"step-{step:04d}.pt"
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.rename(path)

    train(recipe, save)
    return paths


def load(path: Path) -> dict[str, Any]:
    """Return one cached state. The file is this benchmark's own, so its tuples may be pickled."""
    state: dict[str, Any] = torch.load(path, weights_only=False)
    return state


def states(recipe: Recipe, cache: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (step, state) in order of training, one in memory at a time."""
    for step, path in zip(recipe.saved_steps, ensure(recipe, cache), strict=True):
        yield step, load(path)
