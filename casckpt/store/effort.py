"""How hard verify works: how fast it reads, which part of it, and where it was stopped before."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from casckpt.errors import BadRequest
from casckpt.hostnotes import read_note, write_note

_VERSION: Final = 1
# Long enough to cost nothing, short enough that a kill loses little.
_SAVE_EVERY_S: Final = 5.0
# What a rate allows in this time is asked for at once, and so often a caller that waits looks up.
_PORTION_S: Final = 0.25


class Throttle:
    """Holds its caller back so that what it asks for stays below a rate. One thread's."""

    def __init__(self, bytes_per_s: float | None) -> None:
        self._rate = bytes_per_s
        self._due_s = 0.0

    def portion(self, most: int) -> int:
        """Return how many bytes to ask for at a time, `most` at most: no more comes in a burst."""
        return most if self._rate is None else min(most, int(self._rate * _PORTION_S))

    def wait(self, byte_count: int, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Return when `byte_count` more bytes may be read; call `meanwhile` until then."""
        if self._rate is None:
            return
        while (left_s := self._due_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _PORTION_S))
            meanwhile()
        # What was not used is not saved up: a disk that others need is not read in bursts.
        self._due_s = max(self._due_s, time.monotonic()) + byte_count / self._rate


class Journal:
    """Which packs a verify has read and found whole, up to which byte; for the next one to go on.

    It is no part of the store, which verify does not change: one small file of the user's, at a
    path that the caller names. Losing it costs time and nothing else, so it is not flushed.
    """

    def __init__(self, path: Path, store_uuid: bytes, *, resume: bool) -> None:
        self._path = path
        self._store = store_uuid.hex()
        self._saved_s = time.monotonic()
        self._ends: dict[str, int] = self._load() if resume else {}

    def _load(self) -> dict[str, int]:
        try:
            document = read_note(self._path)
            if document["version"] != _VERSION or document["store"] != self._store:
                return {}
            return {str(name): int(end) for name, end in document["packs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    def end(self, pack: bytes) -> int:
        """Return the byte up to which a pack was found whole before; 0 for none of it."""
        return self.peek(pack)

    def peek(self, pack: bytes) -> int:
        """Return what `end` will, before the pack's turn has come."""
        return self._ends.get(pack.hex(), 0)

    def note(self, pack: bytes, end: int) -> None:
        """Remember that a pack is whole up to a byte."""
        self._ends[pack.hex()] = end
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file; what cannot be written is checked again the next time."""
        self._saved_s = time.monotonic()
        document = {"version": _VERSION, "store": self._store, "packs": self._ends}
        write_note(self._path, document)

    def finish(self) -> None:
        """Remove the file: all was read."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Effort:
    """How a verify at level bytes works.

    Attributes:
        sample: share of the records that are read, above 0, at most 1; chosen at random each time.
        max_rate: bytes read a second, at most; None for no limit.
        journal: where it was stopped before; None to begin anew and leave no trace.
    """

    sample: float = 1.0
    max_rate: float | None = None
    journal: Journal | None = None
    chance: random.Random = field(default_factory=random.SystemRandom)

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if not _is_number(self.sample) or not 0 < self.sample <= 1:
            raise BadRequest(f"bad sample {self.sample!r}", "", "give a share above 0, at most 1")
        if self.max_rate is not None and not (_is_number(self.max_rate) and self.max_rate > 0):
            raise BadRequest(f"bad max_rate {self.max_rate!r}", "", "give bytes a second above 0")

    def takes(self) -> bool:
        """Tell whether the next record is one of the sample."""
        return self.sample >= 1 or self.chance.random() < self.sample


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
