"""What a check found, by place, so that one damage is one finding however often it is met."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from casckpt.errors import CasckptError
from casckpt.store.sharing import SharedStore

Key = tuple[int, int] | bytes
"""Pack number and offset; or the id of an object that has no place."""

WHOLE_PACK: Final = -1
"""Instead of an offset: nothing of the pack can be read."""

CUT_OFF: Final = -2
"""Instead of an offset: the file ends before its registered end."""

HEADER: Final = -3
"""Instead of an offset: the header of the pack is damaged, and no record for that."""

INDEX: Final = -1
"""Instead of a pack number: the index."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong at one place; see `verification.Damage`."""

    pack: str
    offset: int
    id: bytes
    kind: str
    message: str


class Findings:
    """Findings by key; the first at a place stays, and learns the id if a later one knows it."""

    def __init__(self) -> None:
        self.by_key: dict[Key, Finding] = {}

    def record(self, number: int, offset: int, pack: str, identity: bytes, message: str) -> Key:
        """Add a damaged record, or a place without one, and return its key."""
        key = (number, offset)
        self._add(key, Finding(pack, offset, identity, "record", message))
        return key

    def pack(self, number: int, kind: int, pack: str, message: str) -> None:
        """Add what is wrong with a whole pack; `kind` is WHOLE_PACK, CUT_OFF or HEADER."""
        self._add((number, kind), Finding(pack, 0, b"", "pack", message))

    def index(self, name: str, message: str, identity: bytes = b"") -> None:
        """Add what is wrong with a row of the index; with an id, of the object's own row."""
        self._add(
            identity or (INDEX, len(self.by_key)), Finding(name, 0, identity, "index", message)
        )

    def missing(self, identity: bytes) -> None:
        """Add an object that is needed and that no pack holds."""
        message = "something needs it, and no pack holds it"
        self._add(identity, Finding("", 0, identity, "missing", message))

    def _add(self, key: Key, finding: Finding) -> None:
        before = self.by_key.setdefault(key, finding)
        if finding.id and not before.id:
            self.by_key[key] = replace(before, id=finding.id)

    def places(self) -> set[tuple[int, int]]:
        """Return where nothing can be read: pack number, and offset or WHOLE_PACK."""
        return {key for key in self.by_key if isinstance(key, tuple) and key[0] != INDEX}

    def forget_dropped(self, shared: SharedStore) -> None:
        """Forget findings in packs that a collector has dropped since."""
        numbers = {key[0] for key in self.by_key if isinstance(key, tuple) and key[0] != INDEX}
        gone = shared.dropped(numbers)
        for key in [key for key in self.by_key if isinstance(key, tuple) and key[0] in gone]:
            del self.by_key[key]


def reason(error: Exception) -> str:
    """Return one line that says why something cannot be read."""
    if isinstance(error, CasckptError):
        return error.why or error.what
    if isinstance(error, FileNotFoundError):
        return "its pack file is missing"
    return str(error)
