"""What is best so far, and for how long nothing has become better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from casckpt.checkpoint.refs import Mode, check_mode
from casckpt.errors import BadRequest


@dataclass
class Monitor:
    """The metric that decides, and how it went.

    Attributes:
        metric: its name; empty if nothing decides.
        mode: which end is best.
        patience: logged epochs without an improvement after which training ends; None: never.
        min_delta: what counts as an improvement for patience.
        best: the best finite value; None before the first.
        best_at: the epoch, or step, of it.
        reference: the value that patience compares with.
        bad: logged epochs since that improved.
    """

    metric: str = ""
    mode: Mode = "min"
    patience: int | None = None
    min_delta: float = 0.0
    best: float | None = None
    best_at: int = 0
    reference: float | None = None
    bad: int = 0

    @staticmethod
    def of(
        metric: str | None, mode: str | None, patience: int | None = None, min_delta: float = 0.0
    ) -> Monitor:
        """Return a monitor for what a loop was asked.

        Raises:
            BadRequest: patience without a metric, or no sensible numbers.
            BadRef: a metric without a mode.
        """
        if metric is None:
            if patience is not None or mode is not None:
                raise BadRequest(
                    "patience and mode need a metric",
                    "monitor= is not given",
                    'pass monitor="val_loss", mode="min"',
                )
            return Monitor()
        if patience is not None and (isinstance(patience, bool) or patience < 1):
            raise BadRequest(f"patience={patience!r}", "it is a number of epochs from 1 on")
        if not min_delta >= 0:
            raise BadRequest(f"min_delta={min_delta!r}", "it is 0 or more")
        return Monitor(metric, check_mode(mode, metric), patience, float(min_delta))

    def load(self, saved: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint keeps; another metric or mode begins anew."""
        if saved.get("metric") != self.metric or saved.get("mode") != self.mode:
            return
        self.best, self.best_at = saved["best"], saved["best_at"]
        self.reference, self.bad = saved["reference"], saved["bad"]

    def saved(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; patience and min_delta may change between sessions."""
        return {
            "metric": self.metric,
            "mode": self.mode,
            "best": self.best,
            "best_at": self.best_at,
            "reference": self.reference,
            "bad": self.bad,
        }

    def update(self, row: Mapping[str, float], at: int) -> bool:
        """Take note of a row; return whether it is the best so far.

        A row without the metric counts for nothing. NaN and infinities are never best, and they
        wear patience down.
        """
        value = row.get(self.metric) if self.metric else None
        if value is None:
            return False
        if self._improves(value, self.reference, self.min_delta):
            self.reference, self.bad = value, 0
        else:
            self.bad += 1
        if not self._improves(value, self.best, 0.0):
            return False
        self.best, self.best_at = value, at
        return True

    @property
    def is_fed(self) -> bool:
        """Whether a row had the metric, be it NaN."""
        return self.best is not None or self.bad > 0

    @property
    def is_exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad >= self.patience

    def __str__(self) -> str:
        """Return the best so far as people read it; empty if there is none."""
        if self.best is None:
            return ""
        return f"best {self.metric} {self.best:.6g} at {self.best_at}"

    def _improves(self, value: float, than: float | None, by: float) -> bool:
        if not math.isfinite(value):
            return False
        if than is None:
            return True
        return value < than - by if self.mode == "min" else value > than + by
