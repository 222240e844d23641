"""`casckpt verify --older-than`: read in turns what no such verify has read for long.

When a pack was read is kept in a small file of the user's, as for `verify --resume`: verify changes
nothing in a store. Losing the file costs time and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from casckpt.hostnotes import read_note, state_folder, write_note
from casckpt.store.effort import Effort, Journal

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.checks import VerifyResult

_VERSION = 1
_SAVE_EVERY_S = 5.0


class Turns(Journal):
    """Which packs were found whole, up to which byte, and when the oldest part of that was read."""

    def __init__(self, path: Path, store_uuid: bytes, older_than_s: float) -> None:
        super().__init__(path, store_uuid, resume=False)
        self._due_before_s = time.time() - older_than_s
        self._read: dict[str, tuple[int, float]] = self._load_turns()
        self._skipped: set[str] = set()
        self._asked: set[str] = set()

    def _load_turns(self) -> dict[str, tuple[int, float]]:
        try:
            document = read_note(self._path)
            if document["version"] != _VERSION or document["store"] != self._store:
                return {}
            return {str(k): (int(end), float(at)) for k, (end, at) in document["read"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}

    def end(self, pack: bytes) -> int:
        """Return the byte up to which a pack was read lately and found whole."""
        name = pack.hex()
        self._asked.add(name)
        end = self.peek(pack)
        if end:
            self._skipped.add(name)
        else:
            # Until it is found whole again: what is damaged stays due.
            self._read.pop(name, None)
        return end

    def peek(self, pack: bytes) -> int:
        """Return what `end` will, before the pack's turn has come."""
        end, at_s = self._read.get(pack.hex(), (0, 0.0))
        # A clock that was set back must not keep a pack from its turn.
        return end if self._due_before_s < at_s <= time.time() else 0

    def note(self, pack: bytes, end: int) -> None:
        """Remember that a pack is whole up to a byte; what was left out keeps its age."""
        name = pack.hex()
        at_s = self._read[name][1] if name in self._skipped else time.time()
        self._read[name] = (end, at_s)
        if time.monotonic() - self._saved_s > _SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file."""
        self._saved_s = time.monotonic()
        document = {"version": _VERSION, "store": self._store, "read": self._read}
        write_note(self._path, document)

    def finish(self) -> None:
        """Write the file, without the packs that are gone."""
        self._read = {name: read for name, read in self._read.items() if name in self._asked}
        self.save()


def verify(
    store: Store,
    older_than_s: float,
    max_rate: float | None,
    progress: Callable[[int, int], None] | None,
) -> VerifyResult:
    """Verify a store, and read those records that were not read for so long."""
    from casckpt.checkpoint.checks import result_of

    repository = store._repository
    uuid = repository.uuid
    turns = Turns(state_folder("verify") / f"{uuid.hex()}.turns.json", uuid, older_than_s)
    report = repository.verify("bytes", progress, Effort(max_rate=max_rate, journal=turns))
    return result_of(store._catalog, "bytes", report)
