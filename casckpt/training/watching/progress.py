"""How far the parts of a run are, for those who look from outside."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from casckpt.errors import BadRequest
from casckpt.store import rows
from casckpt.training.lines import now_text, scope

if TYPE_CHECKING:
    from casckpt.store import Repository
    from casckpt.store.commits import RowWrite

_RECENT: Final = 21
"""Units whose median tells what the next ones take: enough to pass over one slow save."""

_MARK: Final = b"p\0"
_SAVES_MARK: Final = b"v\0"
_TEXT_MAX: Final = 300


@dataclass(frozen=True)
class Progress:
    """How far one part of a run is.

    Attributes:
        part: "epochs", "steps", or the name of a stage.
        done: units that are done, all sessions.
        total: how many there are to be; None if nobody knows.
        unit_s: seconds a unit takes lately; None before the first.
        updated: when this was noted, RFC 3339.
    """

    part: str
    done: int
    total: int | None = None
    unit_s: float | None = None
    updated: str = ""

    @property
    def ratio(self) -> float | None:
        """Share that is done, from 0 to 1."""
        if self.total is None:
            return None
        return 1.0 if self.total == 0 else min(1.0, self.done / self.total)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the part is done, if its units go on as lately."""
        if self.total is None or self.unit_s is None:
            return None
        return max(0, self.total - self.done) * self.unit_s

    def bar(self, width: int = 20) -> str:
        """Return the progress as text of `width` characters.

        Raises:
            BadRequest: if the width is below 1.
        """
        if width < 1:
            raise BadRequest(f"a bar of {width} characters", "it has 1 or more")
        filled = int((self.ratio or 0.0) * width)
        return "#" * filled + "-" * (width - filled)


@dataclass(frozen=True)
class Saves:
    """How saving goes in the session at work, for those who must notice when it stops.

    Attributes:
        count: saves that became durable.
        gap_s: seconds between two of them lately; None before the second.
        at: when the last one became durable, RFC 3339.
        failed: what the last attempt failed with; empty if it did not.
        failed_at: when.
    """

    count: int = 0
    gap_s: float | None = None
    at: str = ""
    failed: str = ""
    failed_at: str = ""


class Tracker:
    """Keeps the progress of a run's parts until it is written. Thread safe."""

    def __init__(self, run: str, line: int) -> None:
        """Track the parts of one line."""
        self._prefix = scope(run, line) + _MARK
        self._lock = threading.Lock()
        self._parts: dict[str, Progress] = {}
        self._dirty: set[str] = set()
        self._recent: dict[str, deque[float]] = {}
        self._last: dict[str, tuple[int, float]] = {}
        self._saves_key = scope(run, line) + _SAVES_MARK
        self._saves = Saves()
        self._saves_dirty = False
        self._saved_s: deque[float] = deque(maxlen=_RECENT)

    def note(self, part: str, done: int, total: int | None) -> None:
        """Note how far a part is."""
        now_s = time.monotonic()
        with self._lock:
            before = self._last.get(part)
            self._last[part] = (done, now_s)
            recent = self._recent.setdefault(part, deque(maxlen=_RECENT))
            if before is not None and done > before[0]:
                recent.append((now_s - before[1]) / (done - before[0]))
            unit_s = statistics.median(recent) if recent else None
            self._parts[part] = Progress(part, done, total, unit_s, now_text())
            self._dirty.add(part)

    def note_save(self) -> None:
        """Note that a save is durable."""
        with self._lock:
            self._saved_s.append(time.monotonic())
            times = list(self._saved_s)
            gaps = [after - before for before, after in pairwise(times)]
            gap_s = statistics.median(gaps) if gaps else None
            self._saves = Saves(self._saves.count + 1, gap_s, now_text())
            self._saves_dirty = True

    def note_failure(self, text: str) -> None:
        """Note that a save failed and training goes on without it."""
        with self._lock:
            self._saves = replace(self._saves, failed=text[:_TEXT_MAX], failed_at=now_text())
            self._saves_dirty = True

    def take(self) -> list[RowWrite]:
        """Return the rows to write for what has changed."""
        from casckpt.store.commits import RowWrite

        with self._lock:
            changed = [self._parts[part] for part in sorted(self._dirty)]
            self._dirty.clear()
            saves, self._saves_dirty = self._saves if self._saves_dirty else None, False
        writes = [
            RowWrite("progress", self._prefix + rows.name_part(one.part), _encode(one))
            for one in changed
        ]
        if saves is not None:
            writes.append(RowWrite("progress", self._saves_key, _encode(saves)))
        return writes

    def current(self) -> tuple[Progress, ...]:
        """Return the parts as they are now."""
        with self._lock:
            return tuple(self._parts.values())


def read(repository: Repository, run: str, line: int) -> tuple[Progress, ...]:
    """Return the parts of a line as they were last written."""
    found = []
    for _, row in repository.rows("progress", scope(run, line) + _MARK):
        one = _decode(row.payload)
        if one is not None:
            found.append(one)
    return tuple(found)


def read_saves(repository: Repository, run: str, line: int) -> Saves:
    """Return how saving goes on a line, as it was last written."""
    row = repository.row("progress", scope(run, line) + _SAVES_MARK)
    if row is None:
        return Saves()
    try:
        document: dict[str, Any] = json.loads(row.payload)
        return Saves(**document) if document.pop("version") == 1 else Saves()
    except (ValueError, TypeError, KeyError, RecursionError):
        return Saves()


def _encode(one: Progress | Saves) -> bytes:
    document = {"version": 1, **one.__dict__}
    return json.dumps(document, separators=(",", ":")).encode()


def _decode(payload: bytes) -> Progress | None:
    """Return a row's progress; None for one of a newer casckpt, which only display misses."""
    try:
        document: dict[str, Any] = json.loads(payload)
        if document.pop("version") != 1:
            return None
        return Progress(**document)
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
