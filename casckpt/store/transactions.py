"""A transaction over the tables of the index: rows, numbers, chains, and what it has changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, cast

from casckpt.store import layout, records, rows

if TYPE_CHECKING:
    import lmdb

Chain = list[tuple[bytes, rows.ObjectRow, rows.PackRow]]
"""An object and what it rests on, down to its keyframe: id, row, and the row of its pack."""


class Transaction:
    """A read or write transaction over the index tables.

    A write transaction keeps the changes to every table but `objects`, `packs` and `meta` in
    `changes`, and the change of the roots checksum; `IndexWriter` turns them into a fact. It also
    counts the rows that keep an object no more, `removed_roots`.
    """

    def __init__(self, handle: lmdb.Transaction, tables: dict[str, lmdb._Database]) -> None:
        self._handle = handle
        self._tables = tables
        self.changes: list[tuple[str, bytes, bytes | None]] = []
        self.roots_count = 0
        self.roots_sum = 0
        self.removed_roots = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        # Bytes, not memoryviews: every transaction here is begun with buffers=False.
        return cast("bytes | None", self._handle.get(key, db=self._tables[table]))

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Insert or replace a row."""
        self._note(table, key, value)
        self._handle.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        """Remove a row; not an error if there is none."""
        self._note(table, key, None)
        self._handle.delete(key, db=self._tables[table])

    def insert(self, table: str, pairs: Iterable[tuple[bytes, bytes]]) -> list[bool]:
        """Put live rows of a root table where there are none; return which were put.

        One call into LMDB a row and one hash call for all: stages write thousands a second.
        """
        assert table in layout.ROOT_TABLES, f"rows of {table} are not counted"
        database, changes, put = self._tables[table], self.changes, self._handle.put
        taken, new = [], []
        for pair in pairs:
            key, value = pair
            is_free = put(key, value, overwrite=False, db=database)
            taken.append(is_free)
            if is_free:
                changes.append((table, key, value))
                new.append(pair)
        self.roots_count += len(new)
        self.roots_sum += records.row_hash_sum(table, new)
        return taken

    def _note(self, table: str, key: bytes, value: bytes | None) -> None:
        if table in ("objects", "packs", "meta"):
            return
        self.changes.append((table, key, value))
        if table in layout.ROOT_TABLES:
            old = self.get(table, key)
            if old is not None and rows.is_root(old):
                self.roots_count -= 1
                self.roots_sum -= records.row_hash(table, key, old)
                if not rows.kept_ids(old) <= rows.kept_ids(value):
                    self.removed_roots += 1
            if value is not None and rows.is_root(value):
                self.roots_count += 1
                self.roots_sum += records.row_hash(table, key, value)

    def scan(
        self, table: str, prefix: bytes = b"", start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of all keys with `prefix`, in order, from `start` on."""
        with self._handle.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(prefix if start is None else start):
                return
            pairs = cast("Iterator[tuple[bytes, bytes]]", iter(cursor))
            if not prefix:
                yield from pairs
                return
            for key, value in pairs:
                if not key.startswith(prefix):
                    return
                yield key, value

    def last(self, table: str, prefix: bytes) -> tuple[bytes, bytes] | None:
        """Return the last row whose key has `prefix`."""
        with self._handle.cursor(db=self._tables[table]) as cursor:
            beyond = cursor.set_range(prefix + b"\xff" * 24)
            found = cursor.prev() if beyond else cursor.last()
            if found:
                key, value = cast("tuple[bytes, bytes]", cursor.item())
                if key.startswith(prefix):
                    return key, value
        return None

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        entries: int = self._handle.stat(self._tables[table])["entries"]
        return entries

    # ---- numbers in `meta`

    def number(self, name: str) -> int:
        """Return a number of `meta`, 0 if it was never set."""
        return rows.read_u64(self.get("meta", name.encode()))

    def set_number(self, name: str, value: int) -> None:
        """Set a number of `meta`."""
        self.put("meta", name.encode(), rows.u64(value))

    def object(self, identity: bytes) -> rows.ObjectRow | None:
        """Return the row of an object, whatever the state of its pack."""
        value = self.get("objects", identity)
        return None if value is None else rows.ObjectRow.decode(value)

    def pack(self, number: int) -> rows.PackRow | None:
        """Return the row of a pack."""
        value = self.get("packs", rows.pack_key(number))
        return None if value is None else rows.PackRow.decode(value)

    def chain(self, identity: bytes) -> Chain | None:
        """Return the links from an object down to its keyframe, or None if one is not usable.

        A link is usable if its row's pack is live or condemned (protocol, SAVE 2). A chain that
        meets itself or is longer than the format allows is not usable.
        """
        links: Chain = []
        seen: set[bytes] = set()
        while identity:
            row = self.object(identity)
            pack = None if row is None else self.pack(row.pack)
            if row is None or pack is None or pack.state == rows.DROPPED or identity in seen:
                return None
            if len(links) >= layout.CHAIN_MAX_LINKS:
                return None
            links.append((identity, row, pack))
            seen.add(identity)
            identity = row.base
        return links

    def is_lost(self, identity: bytes) -> bool:
        """Tell whether an object, or one that it rests on, is one that repair found no copy of."""
        for _ in range(layout.CHAIN_MAX_LINKS):
            row = self.object(identity)
            if row is None or row.pack == layout.LOST:
                return row is not None
            identity = row.base
            if not identity:
                return False
        return False
