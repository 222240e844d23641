"""How often to save: by count, by time, or by the share of time that saving may take."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Final

from casckpt.errors import BadRequest

OVERHEAD_MAX: Final = 0.5
"""More than half of the time spent on saving is a mistake, not a wish."""

_COST_MIN_S: Final = 0.001
_INTERVAL_MAX_S: Final = 3600.0
"""Cap of an interval that is computed: nobody wants to lose more than an hour to a fast guess."""

FAILURE_S: Final = 86_400.0
"""Mean time between failures that an interval reckons with: machines that vanish do once a day."""


@dataclass(frozen=True)
class Every:
    """A distance between saves; exactly one of these.

    Args:
        epochs: save after so many epochs.
        steps: save after so many optimizer steps.
        seconds: save at the first boundary after so many seconds.
        overhead: save as often as this share of the time allows, from 0 to 0.5, by the measured
            time that a save makes training wait; not more often than pays for machines that fail
            once a day (Young's interval), and at least once an hour.
    """

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None
    overhead: float | None = None

    def __post_init__(self) -> None:
        """Refuse anything but one sensible distance."""
        given = [(one.name, getattr(self, one.name)) for one in fields(self)]
        given = [(name, value) for name, value in given if value is not None]
        if len(given) != 1:
            raise BadRequest(
                f"Every with {len(given)} distances",
                "it takes exactly one",
                "pass one of epochs, steps, seconds, overhead",
            )
        name, value = given[0]
        whole = name in ("epochs", "steps")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise BadRequest(
                f"Every({name}={value!r})", "it is a whole number" if whole else "it is a number"
            )
        if not value > 0 or not math.isfinite(value):
            raise BadRequest(f"Every({name}={value!r})", "a distance is larger than 0")
        if name == "overhead" and value > OVERHEAD_MAX:
            raise BadRequest(f"Every(overhead={value!r})", f"at most {OVERHEAD_MAX}")

    @staticmethod
    def of(value: Every | int | None, unit: str) -> Every | None:
        """Return what `save_every=` was given, a plain number counting epochs or steps.

        Raises:
            BadRequest: it is no distance.
        """
        if value is None or isinstance(value, Every):
            return value
        return Every(epochs=value) if unit == "epoch" else Every(steps=value)


@dataclass
class Since:
    """What has happened since the last save that counts as `every`.

    Attributes:
        epochs: epochs that ended.
        steps: optimizer steps.
        saved_at_s: when it was, on the monotonic clock.
        cost_s: how long a save makes training wait, as measured lately.
    """

    epochs: int = 0
    steps: int = 0
    saved_at_s: float = 0.0
    cost_s: float = 0.0

    def is_due(self, every: Every, now_s: float, *, epoch: int | None = None) -> bool:
        """Return whether it is time.

        Args:
            every: the distance.
            now_s: the monotonic clock.
            epoch: the epoch that ends here, whose multiples count; None inside one.
        """
        if every.epochs is not None:
            return epoch is not None and epoch % every.epochs == 0
        if every.steps is not None:
            return self.steps >= every.steps
        if every.seconds is not None:
            return now_s - self.saved_at_s >= every.seconds
        assert every.overhead is not None
        return now_s - self.saved_at_s >= interval_s(self.cost_s, every.overhead)

    def measured(self, cost_s: float) -> None:
        """Take note of what a save has cost; one slow save does not decide alone."""
        self.cost_s = cost_s if not self.cost_s else (self.cost_s + cost_s) / 2

    def saved(self, now_s: float) -> None:
        """Begin to count anew."""
        self.epochs = self.steps = 0
        self.saved_at_s = now_s


def interval_s(cost_s: float, overhead: float) -> float:
    """Return the distance between saves, from what one costs and the share they may take.

    Young's optimum, sqrt(2 * cost * mean time between failures), balances saving against work that
    is done again (Young 1974; Daly 2006 refines it by less than the failure rate is known). More
    often than that costs more than it saves, whatever the share allows.

    Args:
        cost_s: seconds that a save makes training wait.
        overhead: the share of time that saves may take.
    """
    cost_s = max(cost_s, _COST_MIN_S)
    return min(max(cost_s / overhead, math.sqrt(2 * cost_s * FAILURE_S)), _INTERVAL_MAX_S)
