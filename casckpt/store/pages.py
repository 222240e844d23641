"""Check the pages of an index file as bytes: each has one use, and keys are in order.

LMDB trusts its file. A damaged page or free list makes it abort, read past its map, or hand out a
page that is in use; reading all rows notices none of that in the free list, nor a key out of order,
which reading on finds and looking up misses. So before an index is used, the child process that
walks it looks at its pages first (lmdb 0.9, mdb.c: MDB_page, MDB_node,
MDB_db, MDB_meta; the free list is a table of page numbers by transaction).
"""

from __future__ import annotations

import mmap
import operator
import struct
from pathlib import Path
from typing import Final

from casckpt.errors import Corrupt

_PAGE = struct.Struct("<QHHHH")
_NODE = struct.Struct("<HHHH")
_META = struct.Struct("<IIQQ")
_TABLE = struct.Struct("<IHHQQQQQ")
_TAIL = struct.Struct("<QQ")
_MAGIC: Final = 0xBEEFC0DE
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG_DATA, _SUB_TABLE, _DUPLICATES = 1, 2, 4
_NO_PAGE: Final = 2**64 - 1
_NAMES_PER_LIST_MAX: Final = 1 << 24
_UNWRITTEN_MAX: Final = 1 << 16


def check_pages(data_file: Path) -> None:
    """Raise Corrupt if a page has two uses or breaks its bounds; call it while nobody writes.

    Memory: one byte a page; time: about a second for a million rows.
    """
    with data_file.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        try:
            _Census(raw).run()
        except (struct.error, IndexError) as exc:
            raise Corrupt("damaged index", f"a page is cut off ({exc})") from exc


class _Census:
    """One count of all pages that the newest transaction can reach."""

    def __init__(self, raw: mmap.mmap) -> None:
        self._raw = raw
        newest = max((self._meta(offset) for offset in self._metas()), default=None)
        if newest is None:
            raise Corrupt("damaged index", "neither of its two heads is whole")
        self._newest, self._size, last, self._free_root, self._main_root = newest
        self._count = last + 1
        # Pages that were taken and given back in one transaction may end the file unwritten.
        if not 2 <= self._count <= 2 * (len(raw) // self._size) + _UNWRITTEN_MAX:
            raise Corrupt("damaged index", f"it should have {self._count} pages and is cut off")
        # Pages 0 and 1 are the heads.
        self._seen = bytearray(b"\1\1" + bytes(self._count - 2))

    def _metas(self) -> list[int]:
        # The second head is one page in; the size of a page is in the first, or is the usual one.
        sizes = {4096, 8192, 16384, 32768, 65536}
        found = []
        for offset in (0, *sorted(sizes)):
            if len(self._raw) >= offset + 160:
                magic, version, _, _ = _META.unpack_from(self._raw, offset + _PAGE.size)
                if magic == _MAGIC and version == 1:
                    found.append(offset)
        return found[:2]

    def _meta(self, offset: int) -> tuple[int, int, int, int, int]:
        """Return (transaction, page size, last page, root of the free list, root of tables)."""
        at = offset + _PAGE.size + _META.size
        free = _TABLE.unpack_from(self._raw, at)
        main = _TABLE.unpack_from(self._raw, at + _TABLE.size)
        last, transaction = _TAIL.unpack_from(self._raw, at + 2 * _TABLE.size)
        size = int(free[0])
        if size not in (4096, 8192, 16384, 32768, 65536):
            raise Corrupt("damaged index", f"pages of {size} bytes")
        return transaction, size, last, int(free[-1]), int(main[-1])

    def _order_is_plain(self, at: int) -> None:
        """Refuse a table that says its keys are ordered otherwise than by their bytes."""
        if flags := int(_TABLE.unpack_from(self._raw, at)[1]):
            raise Corrupt("damaged index", f"a table of another order (flags {flags})")

    def run(self) -> None:
        self._lists: list[tuple[int, int]] = []
        self._transactions: list[int] = []
        self._tree(self._free_root, free=True)
        self._tree(self._main_root, free=False)
        # LMDB takes the lists in order, and stops the process where one claims to be newer.
        order = self._transactions
        if order != sorted(set(order)) or (order and order[-1] > self._newest):
            raise Corrupt("damaged index", "the lists of free pages are out of order")
        for at, length in self._lists:
            self._free_list(at, length)
        # A page that is neither is lost space, and no harm.

    def _take(self, page: int, what: str) -> None:
        if not 2 <= page < self._count:
            raise Corrupt("damaged index", f"{what} page {page} of {self._count}")
        if self._seen[page]:
            raise Corrupt("damaged index", f"{what} page {page}, which has another use too")
        self._seen[page] = 1

    def _tree(self, root: int, *, free: bool) -> None:
        """Take every page below a root, in order; of the free list, note what is in it."""
        waiting: list[tuple[int, bytes, bytes | None]] = []
        if root != _NO_PAGE:
            waiting.append((root, b"", None))
        while waiting:
            page, least, beyond = waiting.pop()
            self._take(page, "a table has")
            start = page * self._size
            number, _, flags, lower, upper = _PAGE.unpack_from(self._raw, start)
            if number != page or flags & 0x0F not in (_BRANCH, _LEAF):
                raise Corrupt("damaged index", f"page {page} is something else")
            if not _PAGE.size <= lower <= upper <= self._size or lower % 2:
                raise Corrupt("damaged index", f"page {page} has impossible bounds")
            count = (lower - _PAGE.size) // 2
            below: list[int] = []
            keys: list[bytes] = []
            for offset in struct.unpack_from(f"<{count}H", self._raw, start + _PAGE.size):
                if not upper <= offset <= self._size - _NODE.size:
                    raise Corrupt("damaged index", f"an entry of page {page} is outside it")
                low, high, node_flags, key = _NODE.unpack_from(self._raw, start + offset)
                end = offset + _NODE.size + key
                keys.append(self._raw[start + offset + _NODE.size : start + end])
                if flags & _BRANCH:
                    below.append(low | high << 16 | node_flags << 32)
                else:
                    if free:
                        self._note_transaction(start + offset + _NODE.size, key)
                    end = self._leaf(start, end, low | high << 16, node_flags, below, free)
                if end > self._size:
                    raise Corrupt("damaged index", f"an entry of page {page} runs out of it")
            if flags & _BRANCH and not below:
                raise Corrupt("damaged index", f"page {page} leads nowhere")
            if flags & _BRANCH:
                # The first key of a branch is empty: what is below it has no other lower bound.
                keys[:1] = [least]
            if not free:
                _check_order(page, keys, least, beyond)
            if flags & _BRANCH:
                bounds = zip(keys, [*keys[1:], beyond], strict=True)
                between = [(*one, *ends) for one, ends in zip(zip(below), bounds, strict=True)]
                waiting += reversed(between)
            else:
                waiting += [(one, b"", None) for one in reversed(below)]

    def _note_transaction(self, at: int, length: int) -> None:
        if length != 8:
            raise Corrupt("damaged index", "a list of free pages has no number")
        self._transactions += struct.unpack_from("<Q", self._raw, at)

    def _leaf(
        self, start: int, at: int, length: int, flags: int, below: list[int], free: bool
    ) -> int:
        """Take what a value outside its page or a table needs; return where the entry ends."""
        if flags & _BIG_DATA:
            (first,) = struct.unpack_from("<Q", self._raw, start + at)
            self._overflow(first, length)
            if free:
                self._lists.append((first * self._size + _PAGE.size, length))
            return at + 8
        if flags & _DUPLICATES:
            raise Corrupt("damaged index", "a table with several values for a key")
        if free:
            self._lists.append((start + at, length))
        elif flags & _SUB_TABLE:
            self._order_is_plain(start + at)
            root = int(_TABLE.unpack_from(self._raw, start + at)[-1])
            if root != _NO_PAGE:
                below.append(root)
        return at + length

    def _overflow(self, first: int, length: int) -> None:
        """Take the pages of a value that has pages of its own."""
        pages = -(-(_PAGE.size + length) // self._size)
        self._take(first, "a value has")
        number, _, flags, low, high = _PAGE.unpack_from(self._raw, first * self._size)
        if number != first or not flags & _OVERFLOW or low | high << 16 != pages:
            raise Corrupt("damaged index", f"page {first} does not begin a long value")
        for page in range(first + 1, first + pages):
            self._take(page, "a value has")

    def _free_list(self, at: int, length: int) -> None:
        (count,) = struct.unpack_from("<Q", self._raw, at)
        if count > _NAMES_PER_LIST_MAX or 8 + 8 * count > length:
            raise Corrupt("damaged index", f"a free list of {count} pages in {length} bytes")
        above = self._count
        for page in struct.unpack_from(f"<{count}Q", self._raw, at + 8):
            if page >= above:
                raise Corrupt("damaged index", "a free list is out of order")
            above = page
            self._take(page, "the free list has")


def _check_order(page: int, keys: list[bytes], least: bytes, beyond: bytes | None) -> None:
    """Raise Corrupt unless keys rise within what the pages above say of this one."""
    rises = all(map(operator.lt, keys, keys[1:]))
    if not rises or (keys and (keys[0] < least or (beyond is not None and keys[-1] >= beyond))):
        raise Corrupt("damaged index", f"the keys of page {page} are out of order")
