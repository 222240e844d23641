"""Which chunk stands on which: the base edges of all rows, to plan moves that keep chains short.

A move changes the length of every chain above it, and the index has edges downwards only. So who
moves chunks to other bases reads all edges first. What saves add meanwhile is not in here; each
such chain was short when it was made, so it grows by one move at the most before the next reading.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Set
from typing import Self

from casckpt.native import PrefixSet
from casckpt.store.marking import scan_objects
from casckpt.store.sharing import SharedStore


class Chains:
    """The edges, with the moves that are planned. Thread safe.

    `longest` is how many links may lie below a chunk after a move. A planned move can be taken back
    until it is settled.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._lock = threading.Lock()
        self._base: dict[bytes, bytes] = {}
        self._above: dict[bytes, list[bytes]] = {}
        # Where planned moves led away from, until they are settled or taken back.
        self._origin: dict[bytes, bytes] = {}
        self._leaving: dict[bytes, set[bytes]] = {}
        self._gone: set[bytes] = set()

    @classmethod
    def read(cls, shared: SharedStore, longest: int) -> Self:
        """Return the edges of all rows of an index, whether anything reaches them or not."""
        found = cls(longest)
        for batch in scan_objects(shared):
            for identity, row in batch:
                if row.base:
                    found._put(identity, row.base)
        return found

    def move(self, identity: bytes, base: bytes) -> bool:
        """Plan that a chunk stands on `base`, nothing if empty; False if that must not be.

        It must not if the base stands on the chunk, or if a chain became too long: its own, or
        one above it.
        """
        with self._lock:
            if base and not self._may(identity, base):
                return False
            old = self._base.get(identity, b"")
            if old and identity not in self._origin:
                self._origin[identity] = old
                self._leaving.setdefault(old, set()).add(identity)
            self._put(identity, base)
            return True

    def fits(self, identity: bytes, base: bytes) -> bool:
        """Tell whether `move` would plan this now."""
        with self._lock:
            return self._may(identity, base)

    def _may(self, identity: bytes, base: bytes) -> bool:
        below = self._below(base, identity)
        return below is not None and below + 1 + self._height(identity) <= self._longest

    def put_back(self, identity: bytes, base: bytes) -> None:
        """Take a planned move back: the chunk stands on `base` as before."""
        with self._lock:
            self._settle(identity)
            self._put(identity, base)

    def settle(self, moved: Iterable[bytes], left: Iterable[bytes]) -> None:
        """Note that planned moves will not be taken back, and what `is_left` said of bases."""
        with self._lock:
            for identity in moved:
                self._settle(identity)
            self._gone.update(left)

    def is_left(
        self, base: bytes, moved: Collection[bytes], needed: PrefixSet | Set[bytes]
    ) -> bool:
        """Tell whether nothing that is needed stands on `base` any more, however many links above.

        The planned moves of `moved` count as done; those of others may still be taken back. So of
        several who leave a base, the last to settle is told that it is left, and nobody after it.
        """
        with self._lock:
            if base in self._gone:
                return False
            waiting, seen = [base], {base}
            while waiting:
                link = waiting.pop()
                above = self._leaving.get(link, set()).difference(moved)
                above.update(self._above.get(link, ()))
                if any(one in needed for one in above):
                    return False
                waiting += above - seen
                seen |= above
            return True

    def _settle(self, identity: bytes) -> None:
        old = self._origin.pop(identity, None)
        if old is not None:
            leaving = self._leaving[old]
            leaving.remove(identity)
            if not leaving:
                del self._leaving[old]

    def depth(self, identity: bytes) -> int:
        """Return how many links lie below a chunk."""
        with self._lock:
            return self._below(identity, b"") or 0

    def _put(self, identity: bytes, base: bytes) -> None:
        old = self._base.pop(identity, None)
        if old is not None:
            above = self._above[old]
            above.remove(identity)
            if not above:
                del self._above[old]
        if base:
            self._base[identity] = base
            self._above.setdefault(base, []).append(identity)

    def _below(self, identity: bytes, stranger: bytes) -> int | None:
        """Return the links below a chunk; None if it stands on `stranger`, or on itself."""
        count = 0
        link = identity
        while link in self._base:
            if link == stranger or count > len(self._base):
                return None
            link, count = self._base[link], count + 1
        return None if link == stranger else count

    def _height(self, identity: bytes) -> int:
        """Return the links of the longest chain above a chunk, as far as it matters."""
        level, height = self._above.get(identity, []), 0
        while level and height <= self._longest:
            height += 1
            level = [above for link in level for above in self._above.get(link, ())]
        return height
