"""The stand-in where PyTorch is not installed: a network of one hidden layer, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from casckpt.cli.demo import text

CONTEXT = 24
HIDDEN = 512
BATCH = 256
STEPS_PER_EPOCH = 12
RATE, BETA_1, BETA_2 = 1e-3, 0.9, 0.999

Floats = NDArray[np.float32]


class Network:
    """Predicts the next character from the 24 before it; trained with Adam."""

    def __init__(self) -> None:
        """Start from seed 0."""
        self.train_codes, self.validation_codes = text.split(text.library_text())
        random = np.random.default_rng(0)
        inputs = CONTEXT * text.VOCABULARY

        def weights(rows: int, columns: int) -> Floats:
            drawn = random.standard_normal((rows, columns)) * rows**-0.5
            return np.asarray(drawn, np.float32)

        self.model: dict[str, Floats] = {
            # A one-hot input makes the first layer a table: 24 places x 96 characters.
            "hidden.weight": weights(inputs, HIDDEN) * np.float32(CONTEXT**0.5),
            "hidden.bias": np.zeros(HIDDEN, np.float32),
            "head.weight": weights(HIDDEN, text.VOCABULARY),
            "head.bias": np.zeros(text.VOCABULARY, np.float32),
        }
        self.first = {name: np.zeros_like(value) for name, value in self.model.items()}
        self.second = {name: np.zeros_like(value) for name, value in self.model.items()}
        self.step = 0

    @property
    def parameter_count(self) -> int:
        """Number of weights."""
        return sum(value.size for value in self.model.values())

    def train_epoch(self, epoch: int) -> float:
        """Train one epoch and return its mean loss."""
        total = 0.0
        for step in range(STEPS_PER_EPOCH):
            before, after = text.windows(
                self.train_codes, CONTEXT, BATCH, epoch * STEPS_PER_EPOCH + step
            )
            loss, gradients = self._gradients(before, after[:, -1])
            self._adam(gradients)
            total += loss
        return total / STEPS_PER_EPOCH

    def validation_loss(self) -> float:
        """Return the mean loss over a fixed sample of the validation text."""
        before, after = text.windows(self.validation_codes, CONTEXT, 2048, 7)
        return self._forward(before, after[:, -1])[0]

    def state(self) -> dict[str, Any]:
        """Return everything that training needs to go on exactly."""
        return {
            "model": dict(self.model),
            "optimizer": {"first": dict(self.first), "second": dict(self.second)},
            "optimizer_step": self.step,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.model = dict(state["model"])
        self.first = dict(state["optimizer"]["first"])
        self.second = dict(state["optimizer"]["second"])
        self.step = state["optimizer_step"]

    def _forward(
        self, before: NDArray[np.int64], target: NDArray[np.int64]
    ) -> tuple[float, NDArray[np.int64], Floats, Floats]:
        rows = before + np.arange(CONTEXT) * text.VOCABULARY
        summed = self.model["hidden.weight"][rows].mean(axis=1) + self.model["hidden.bias"]
        hidden = np.maximum(summed, np.float32(0))
        logits = hidden @ self.model["head.weight"] + self.model["head.bias"]
        logits -= logits.max(axis=1, keepdims=True)
        shares = np.exp(logits)
        shares /= shares.sum(axis=1, keepdims=True)
        loss = -float(np.log(shares[np.arange(len(target)), target] + 1e-12).mean())
        return loss, rows, hidden, shares

    def _gradients(
        self, before: NDArray[np.int64], target: NDArray[np.int64]
    ) -> tuple[float, dict[str, Floats]]:
        loss, rows, hidden, shares = self._forward(before, target)
        error = shares
        error[np.arange(len(target)), target] -= 1
        error /= len(target)
        back = (error @ self.model["head.weight"].T) * (hidden > 0)
        table = np.zeros_like(self.model["hidden.weight"])
        np.add.at(table, rows, (back / CONTEXT)[:, None, :])
        return loss, {
            "hidden.weight": table,
            "hidden.bias": back.sum(axis=0),
            "head.weight": hidden.T @ error,
            "head.bias": error.sum(axis=0),
        }

    def _adam(self, gradients: dict[str, Floats]) -> None:
        # Kingma and Ba, "Adam: A Method for Stochastic Optimization" (2015), algorithm 1.
        self.step += 1
        for name, gradient in gradients.items():
            self.first[name] = (BETA_1 * self.first[name] + (1 - BETA_1) * gradient).astype("f4")
            self.second[name] = (
                BETA_2 * self.second[name] + (1 - BETA_2) * gradient * gradient
            ).astype("f4")
            first = self.first[name] / (1 - BETA_1**self.step)
            second = self.second[name] / (1 - BETA_2**self.step)
            change = RATE * first / (np.sqrt(second) + 1e-8)
            self.model[name] = (self.model[name] - change).astype(np.float32)
