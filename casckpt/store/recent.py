"""The bytes of the chunks that this process stored last, at hand for the deltas of the next save.

To read a base costs as much as to code against it: a chain of records to decode, and a hash. What
a save has just proved to be on disk is kept instead, as far as the memory goes; beyond that, and in
a new process, bases are read from the store.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from casckpt.store import layout

# Chunks that as many saves in a row did not touch belong to a run that ended, or to a failed save.
_KEPT_SAVES = 4
# Memory between two chunks: each worker fills some and frees some, and fresh pages cost much.
_SPARE_BYTES = 16 * layout.MIB


class RecentChunks:
    """Chunks by id, as many bytes of them as the last save allowed. Thread safe.

    Saves walk a state in the same order every time, so when the memory is full the new chunk is
    left out, not the oldest: the part of the state that is kept stays the same.
    """

    def __init__(self) -> None:
        self._limit = 0
        self._held = 0
        self._save = 0
        self._lock = threading.Lock()
        self._chunks: OrderedDict[bytes, tuple[bytearray, int]] = OrderedDict()
        self._spare: dict[int, list[bytearray]] = {}
        self._spare_bytes = 0

    def begin_save(self, limit_bytes: int) -> None:
        """Count a save, and let it fill that much memory."""
        with self._lock:
            self._save += 1
            self._limit = limit_bytes

    def take(self, identity: bytes, length: int) -> bytearray | None:
        """Hand over a chunk of `length` bytes if it is here; it is not any more then."""
        with self._lock:
            found = self._chunks.get(identity)
            if found is None or len(found[0]) != length:
                return None
            del self._chunks[identity]
            self._held -= length
            return found[0]

    def keep(self, identity: bytes) -> None:
        """Note that a save met a chunk unchanged: the next one may want it."""
        with self._lock:
            found = self._chunks.get(identity)
            if found is not None:
                self._chunks[identity] = (found[0], self._save)
                self._chunks.move_to_end(identity)

    def room(self, length: int) -> bytearray:
        """Return memory of `length` bytes for a chunk that is to be put; what is in it is old."""
        with self._lock:
            if spare := self._spare.get(length):
                self._spare_bytes -= length
                return spare.pop()
        return bytearray(length)

    def give_back(self, memory: bytearray) -> None:
        """Let memory that was taken or had as room be used again."""
        with self._lock:
            if self._spare_bytes + len(memory) > _SPARE_BYTES:
                self._spare.clear()
                self._spare_bytes = 0
            self._spare.setdefault(len(memory), []).append(memory)
            self._spare_bytes += len(memory)

    def put(self, identity: bytes, memory: bytearray) -> None:
        """Keep a chunk, if there is room; `memory` belongs to this from now on."""
        with self._lock:
            self._make_room(len(memory))
            if identity not in self._chunks and self._held + len(memory) <= self._limit:
                self._chunks[identity] = (memory, self._save)
                self._held += len(memory)
                return
        self.give_back(memory)

    def _make_room(self, length: int) -> None:
        while self._chunks and self._held + length > self._limit:
            identity, (memory, save) = next(iter(self._chunks.items()))
            if save + _KEPT_SAVES > self._save:
                return
            del self._chunks[identity]
            self._held -= len(memory)
