"""Policies: which checkpoints of a line are worth keeping, and why.

A policy is a frozen value with one method. It sees one line of one run at a time, oldest first,
so `KeepLast(3)` keeps three of each line. `A | B` keeps what either keeps, `A & B` what both do.
What no policy may drop (the newest, tagged, pinned, branch points) is decided in `retention.py`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import Mode, check_mode, rank
from casckpt.errors import BadRequest

Reasons = dict[int, tuple[str, ...]]
"""Position in the line to the reasons for keeping what is there."""

_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])\Z")


class Policy(ABC):
    """Chooses what to keep of one line."""

    @abstractmethod
    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return which to keep, with reasons.

        Args:
            line: checkpoints of one line, oldest first.
            ages_s: age of each in seconds, never negative.
        """

    def keep_at_any_size(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> set[int]:
        """Return which of what it keeps no limit of bytes may drop; none, unless overridden.

        Args:
            line: checkpoints of one line, oldest first.
            ages_s: age of each in seconds, never negative.
        """
        return set()

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics that it goes by."""
        return ()

    def __or__(self, other: Policy) -> Policy:
        """Return the policy that keeps what either keeps."""
        return KeepAny(self, other) if isinstance(other, Policy) else NotImplemented

    def __and__(self, other: Policy) -> Policy:
        """Return the policy that keeps what both keep."""
        return KeepBoth(self, other) if isinstance(other, Policy) else NotImplemented


@dataclass(frozen=True)
class KeepLast(Policy):
    """Keep the newest `count` of each line."""

    count: int

    def __post_init__(self) -> None:
        """Refuse what is no count."""
        _check_count("KeepLast", self.count)

    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return the last `count`."""
        first = max(0, len(line) - self.count)
        return dict.fromkeys(range(first, len(line)), (f"last {self.count}",))

    def __str__(self) -> str:
        """Return the policy as people read it."""
        return f"last {self.count}"


@dataclass(frozen=True)
class KeepBest(Policy):
    """Keep the `n` best of each line by a metric; NaN and infinities are never best."""

    metric: str
    mode: Mode | None = None
    n: int = 1

    def __post_init__(self) -> None:
        """Refuse a missing mode: which end is best is never guessed."""
        check_mode(self.mode, self.metric)
        _check_count("KeepBest", self.n)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metric."""
        return (self.metric,)

    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return the `n` with the best finite values."""
        where = {id(checkpoint): at for at, checkpoint in enumerate(line)}
        best = rank(line, self.metric, check_mode(self.mode))[: self.n]
        return {where[id(checkpoint)]: (str(self),) for _, checkpoint in best}

    def keep_at_any_size(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> set[int]:
        """Return all of them: what is best says nothing of how old it is."""
        return set(self.keep(line, ages_s))

    def __str__(self) -> str:
        """Return the policy as people read it."""
        return f"best {self.n} {self.metric}" if self.n > 1 else f"best {self.metric}"


@dataclass(frozen=True)
class KeepEvery(Policy):
    """Keep checkpoints at boundaries of steps that `steps` divides."""

    steps: int

    def __post_init__(self) -> None:
        """Refuse what is no distance."""
        _check_count("KeepEvery", self.steps)

    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return those at multiples of `steps`."""
        return {
            at: (str(self),)
            for at, checkpoint in enumerate(line)
            if checkpoint.step % self.steps == 0 and checkpoint.batch == 0
        }

    def __str__(self) -> str:
        """Return the policy as people read it."""
        return f"every {self.steps}"


@dataclass(frozen=True)
class KeepNewerThan(Policy):
    """Keep what is younger than a duration.

    Args:
        duration: a timedelta, seconds, or text such as "7d", "12h", "30m".
    """

    duration: timedelta | float | str

    def __post_init__(self) -> None:
        """Refuse what is no duration."""
        parse_duration(self.duration)

    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return those younger than the duration."""
        limit_s = parse_duration(self.duration)
        return {at: (str(self),) for at, age_s in enumerate(ages_s) if age_s < limit_s}

    def __str__(self) -> str:
        """Return the policy as people read it."""
        return f"newer than {_duration_text(parse_duration(self.duration))}"


@dataclass(frozen=True)
class KeepAny(Policy):
    """Keep what either policy keeps."""

    first: Policy
    second: Policy

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of both."""
        return (*self.first.metrics, *self.second.metrics)

    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return the union, with the reasons of both."""
        kept = dict(self.first.keep(line, ages_s))
        for at, reasons in self.second.keep(line, ages_s).items():
            kept[at] = joined(kept.get(at, ()), reasons)
        return kept

    def keep_at_any_size(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> set[int]:
        """Return what either keeps at any size."""
        return self.first.keep_at_any_size(line, ages_s) | self.second.keep_at_any_size(
            line, ages_s
        )

    def __str__(self) -> str:
        """Return the policy as people read it."""
        return f"{self.first} or {self.second}"


@dataclass(frozen=True)
class KeepBoth(Policy):
    """Keep what both policies keep."""

    first: Policy
    second: Policy

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of both."""
        return (*self.first.metrics, *self.second.metrics)

    def keep(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> Reasons:
        """Return the intersection, with the reasons of both."""
        kept = self.first.keep(line, ages_s)
        also = self.second.keep(line, ages_s)
        return {at: joined(kept[at], also[at]) for at in kept if at in also}

    def keep_at_any_size(self, line: Sequence[Checkpoint], ages_s: Sequence[float]) -> set[int]:
        """Return what both keep, and one of them at any size."""
        either = self.first.keep_at_any_size(line, ages_s)
        either |= self.second.keep_at_any_size(line, ages_s)
        return either & self.keep(line, ages_s).keys()

    def __str__(self) -> str:
        """Return the policy as people read it."""
        return f"({self.first}) and ({self.second})"


def check_policy(policy: Policy | None) -> None:
    """Raise BadRequest for what is neither a policy nor None."""
    if not isinstance(policy, Policy | None):
        raise BadRequest(
            f"{policy!r:.60} is no policy",
            "policies are KeepLast, KeepBest, KeepEvery, KeepNewerThan, joined by | and &",
            "pass KeepLast(3), or KeepLast(3) | KeepEvery(10)",
        )


def parse_duration(duration: timedelta | float | str) -> float:
    """Return a duration in seconds.

    Args:
        duration: a timedelta, seconds, or a number with a unit: s, m, h, d or w.

    Raises:
        BadRequest: if it is none of these, or negative.
    """
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, str):
        found = _DURATION.match(duration.strip())
        seconds = float(found[1]) * _UNIT_S[found[2]] if found else -1.0
    elif isinstance(duration, int | float) and not isinstance(duration, bool):
        seconds = float(duration)
    else:
        seconds = -1.0
    if not seconds >= 0:
        raise BadRequest(
            f"bad duration {duration!r}",
            "a duration is a number with a unit: s, m, h, d or w",
            "write 7d, 12h or 30m",
        )
    return seconds


def _duration_text(seconds: float) -> str:
    for unit in ("d", "h", "m"):
        if seconds and seconds % _UNIT_S[unit] == 0:
            return f"{seconds / _UNIT_S[unit]:.0f}{unit}"
    return f"{seconds:g}s"


def joined(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Return two lists of reasons as one, each reason once."""
    return first + tuple(reason for reason in second if reason not in first)


def _check_count(name: str, count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise BadRequest(
            f"{name}({count!r})", "the number is an integer from 1 on", f"write {name}(3)"
        )
