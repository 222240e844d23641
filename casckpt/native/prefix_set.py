"""The set of reachable ids of gc mark: 64-bit prefixes of ids, 11 to 21 bytes of memory each.

Two ids that share a prefix count as one, so `in` may say yes for an id never added (chance below
1e-7 for a million ids against a million others); store/marking.py says what gc makes of that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casckpt.native._binding import check, ffi, lib, readable
from casckpt.native.hashing import ID_SIZE

if TYPE_CHECKING:
    from typing_extensions import Buffer

_SMALLEST_SLOTS = 16


class PrefixSet:
    """A growing set of id prefixes. Not safe for use by two threads while one adds.

    Args:
        capacity_hint: how many ids are expected; a good guess saves rehashing.
    """

    def __init__(self, capacity_hint: int = 0) -> None:
        self._slots_count = _slots_for(capacity_hint)
        self._table = ffi.new("uint64_t[]", self._slots_count + 1)
        self._used = ffi.new("uint64_t *")
        self._count = 0

    def __len__(self) -> int:
        """Return how many different prefixes were added."""
        return self._count

    def __contains__(self, id_: Buffer) -> bool:
        """Tell whether the prefix of one 32-byte id is in."""
        _check_single(id_)
        return self.contains_many(id_) == b"\x01"

    def add(self, id_: Buffer) -> bool:
        """Add one 32-byte id; return whether its prefix was new."""
        _check_single(id_)
        return self.add_many(id_) == 1

    def add_many(self, ids: Buffer) -> int:
        """Add ids, n * 32 bytes one after the other; return how many prefixes were new.

        Raises:
            ValueError: when the length is not a multiple of 32; nothing was added.
        """
        view = readable(ids)
        self._reserve(len(view) // ID_SIZE)
        added = ffi.new("uint64_t *")
        call = lib.cas_prefix_add
        status = call(self._table, self._slots_count, self._used, view, len(view), added)
        check(status, "add_many")
        self._count += added[0]
        return int(added[0])

    def contains_many(self, ids: Buffer) -> bytes:
        """Return one byte per id, 1 when its prefix is in, else 0.

        Raises:
            ValueError: when the length is not a multiple of 32.
        """
        view = readable(ids)
        out = ffi.new("uint8_t[]", len(view) // ID_SIZE)
        call = lib.cas_prefix_contains
        check(call(self._table, self._slots_count, view, len(view), out, len(out)), "contains_many")
        return bytes(ffi.buffer(out))

    def _reserve(self, count: int) -> None:
        """Grow so that `count` more prefixes fit."""
        wanted = _slots_for(self._used[0] + count)
        if wanted <= self._slots_count:
            return
        table = ffi.new("uint64_t[]", wanted + 1)
        check(lib.cas_prefix_rehash(self._table, self._slots_count, table, wanted), "rehash")
        self._table, self._slots_count = table, wanted


def _slots_for(count: int) -> int:
    """Return the smallest power of two of which `count` is at most 3/4."""
    slots = _SMALLEST_SLOTS
    while slots - slots // 4 < count:
        slots *= 2
    return slots


def _check_single(id_: Buffer) -> None:
    size = memoryview(id_).nbytes
    if size != ID_SIZE:
        raise ValueError(f"an id has {ID_SIZE} bytes, got {size}")
