"""What a row of the campaign is given: what is left to do, how long, and where to put counts."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tests.crash.ledger import Ledger
from tests.crash.points import Lab

_SAVE_EVERY_S = 20.0


@dataclass
class Job:
    """One run of a row.

    The work of a row is made of named, numbered units: the seed of a draw, or the place of a point
    in a fixed order. Which are done is kept in the ledger, so that the next run goes on with the
    others. A unit that was broken off is not counted. `jobs` is how many of them may run at a time.
    """

    lab: Lab
    ledger: Ledger
    unit: str
    span: range | None = None
    deadline: float | None = None
    limit: int | None = None
    keep: bool = True
    enough: int | None = None
    jobs: int = 1
    bad: int = 0
    _saved: float = 0.0

    def turns(self, totals: Mapping[str, int | None]) -> Iterator[tuple[str, int]]:
        """Yield units that are not done, one of each name by turns; None means without end."""
        for units in self.batches(totals, 1):
            yield units[0]

    def batches(
        self, totals: Mapping[str, int | None], size: int
    ) -> Iterator[list[tuple[str, int]]]:
        """Yield them as `turns` does, so many at a time; done when the next are due."""
        todo = [self._numbers(name, total) for name, total in totals.items()]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*todo))
        due = (unit for unit in turns if unit is not None)
        while not self.over() and (units := list(itertools.islice(due, size))):
            yield units
            for unit in units:
                self._done(*unit)

    def _numbers(self, name: str, total: int | None) -> Iterator[tuple[str, int]]:
        span: Iterable[int] = itertools.count() if self.span is None else self.span
        done = self.ledger.cursor.get(name, [])
        for number in span:
            if total is not None and number >= total:
                return
            if not any(low <= number < high for low, high in done):
                yield name, number

    def _done(self, name: str, number: int) -> None:
        ranges = self.ledger.cursor.setdefault(name, [])
        for entry in ranges:
            if entry[1] == number:
                entry[1] = number + 1
                break
        else:
            ranges.append([number, number + 1])
        if self.keep and time.monotonic() - self._saved > _SAVE_EVERY_S:
            self.ledger.save()
            self._saved = time.monotonic()

    def done(self, name: str) -> Iterator[int]:
        """Yield the numbers of a name that earlier runs have done."""
        for low, high in self.ledger.cursor.get(name, []):
            yield from range(low, high)

    def over(self) -> bool:
        """Tell whether the time is over, or the figure reached."""
        limits = [limit for limit in (self.limit, self.enough) if limit is not None]
        if any(self.ledger.counts.get(self.unit, 0) >= limit for limit in limits):
            return True
        return self.deadline is not None and time.monotonic() > self.deadline

    def count(self, number: int = 1, name: str = "") -> None:
        """Add to the figure of the row, or to another count with a name."""
        self.ledger.count(name or self.unit, number)

    def found(self, replay: str, said: str) -> None:
        """Note a finding, and print the line that repeats it."""
        self.bad += 1
        self.ledger.bad(replay, said)
        sys.stdout.write(f"BAD {said}\n    replay: python -m tests.crash.campaign {replay}\n")
        sys.stdout.flush()

    def skipped(self, what: str, why: str) -> None:
        """Say what of the row cannot be done here."""
        self.ledger.cursor.setdefault("skipped", {})[what] = why
        sys.stdout.write(f"SKIPPED: {what} ({why})\n")
