"""Mark: which objects the roots reach, and how many bytes of each pack that is (protocol, GC 2).

Headers are enough: refs are never compressed, so a record type that this version does not know is
followed like any other. Ids are kept as 64-bit prefixes in a C set. Of two ids with one prefix the
second counts as seen: garbage stays a little longer, or, where it is a list or a delta that was
not seen, what it names is freed. Of stores with a million of each that happens to one in ten
million; longer prefixes would double the memory that 30 million ids take.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from casckpt.errors import Corrupt
from casckpt.native import PrefixSet
from casckpt.store import files, layout, packs, records, rows
from casckpt.store.findings import reason
from casckpt.store.index_writer import read_roots
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

_Found = tuple[bytes, rows.ObjectRow, rows.PackRow]
_BATCH = 2000
# A scan gives the gate back after this many rows, so that saves in this process go on.
_SCAN_ROWS = 20_000


@dataclass
class Mark:
    """What the roots reach, as of `root_seq`. `known` are the packs registered when it began."""

    root_seq: int
    known: frozenset[int]
    reached: PrefixSet = field(default_factory=PrefixSet)
    live_bytes: dict[int, int] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Bytes of records that something reaches."""
        return sum(self.live_bytes.values())


def roots(tx: Transaction, without: Collection[tuple[str, int]] = frozenset()) -> Iterator[bytes]:
    """Yield every id that a row of a root table names; `without` are checkpoints left out."""
    for table in sorted(layout.ROOT_TABLES):
        for key, value in tx.scan(table):
            row = rows.Row.decode(value)
            if not row.is_root:
                continue
            if without and table == "checkpoints":
                found = rows.decode_checkpoint(key, value)
                if (found.run, found.seq) in without:
                    continue
            yield from row.roots


def check_roots(tx: Transaction) -> None:
    """Raise Corrupt if rows of the root tables are missing or changed."""
    count = total = 0
    for table in layout.ROOT_TABLES:
        for key, value in tx.scan(table):
            if rows.Row.decode(value).is_root:
                count += 1
                total += records.row_hash(table, key, value)
    if (count, total % 2**128) != read_roots(tx):
        raise Corrupt(
            "the index has lost checkpoints",
            "the checksum of its root rows does not fit; nothing is freed",
            "run `casckpt repair --rebuild-index`",
        )


def mark(shared: SharedStore, *, without: Collection[tuple[str, int]] = frozenset()) -> Mark:
    """Return what the roots reach.

    Raises Corrupt if anything that is reached cannot be read: then nothing may be freed.
    """
    with shared.environment.read() as tx:
        check_roots(tx)
        result = Mark(
            tx.number("root_seq"),
            frozenset(rows.read_u64(key) for key, _ in tx.scan("packs")),
        )
        first = list(roots(tx, without))
    extend(shared, result, first)
    result.live_bytes = live_bytes(shared, result.reached)
    return result


def extend(shared: SharedStore, result: Mark, ids: Iterable[bytes]) -> None:
    """Add what `ids` reach to `result.reached` (not to its bytes).

    Depth first, in batches: what waits at each level is one batch of rows, so that memory grows
    with the depth of lists and chains, and with no number of checkpoints or chunks.
    """
    levels = [_batches(ids)]
    while levels:
        batch = next(levels[-1], None)
        if batch is None:
            levels.pop()
        elif further := _look_up(shared, result, batch):
            levels.append(_batches(_names(shared, further)))


def _batches(ids: Iterable[bytes]) -> Iterator[list[bytes]]:
    source = iter(ids)
    while batch := list(itertools.islice(source, _BATCH)):
        yield batch


def _names(shared: SharedStore, found: list[_Found]) -> Iterator[bytes]:
    """Yield the ids that objects name: bases and refs."""
    while found:
        identity, row, pack = found.pop()
        if row.base:
            yield row.base
        if row.kind != layout.TYPE_CHUNK:
            yield from _refs(shared, identity, row, pack)


def _look_up(shared: SharedStore, result: Mark, batch: list[bytes]) -> list[_Found]:
    """Add a batch to what is reached; return what of it was new and names further objects."""
    flags = result.reached.contains_many(b"".join(batch))
    fresh = [
        identity
        for identity, known in zip(batch, flags, strict=True)
        if not known and result.reached.add(identity)
    ]
    if not fresh:
        return []
    with shared.environment.read() as tx:
        rows_found = [(identity, tx.object(identity)) for identity in fresh]
        uuids = {row.pack: tx.pack(row.pack) for _, row in rows_found if row is not None}
    further: list[_Found] = []
    for identity, row in rows_found:
        if row is not None and row.pack == layout.LOST:
            continue  # a leaf: what it named, if it was no chunk, nobody can say
        pack = None if row is None else uuids[row.pack]
        if row is None or pack is None or pack.state == rows.DROPPED:
            raise Corrupt(
                f"object {identity.hex()[:10]} is missing",
                "a checkpoint needs it; nothing is freed",
            )
        if row.base or row.kind != layout.TYPE_CHUNK:
            further.append((identity, row, pack))
    return further


def _refs(
    shared: SharedStore, identity: bytes, row: rows.ObjectRow, pack: rows.PackRow
) -> tuple[bytes, ...]:
    try:
        with shared.packs.borrow(pack.uuid) as file:
            record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
    except files.DAMAGE as exc:
        raise Corrupt(
            f"object {identity.hex()[:10]} cannot be read", f"{reason(exc)}; nothing is freed"
        ) from exc
    if record.id != identity:
        raise Corrupt(f"object {identity.hex()[:10]} is not where it should be", "nothing is freed")
    return record.refs


def scan_objects(shared: SharedStore) -> Iterator[list[tuple[bytes, rows.ObjectRow]]]:
    """Yield all rows of `objects` in batches, each read in a transaction of its own."""
    start = b""
    while True:
        batch: list[tuple[bytes, rows.ObjectRow]] = []
        with shared.environment.read() as tx:
            for key, value in tx.scan("objects", start=start):
                batch.append((key, rows.ObjectRow.decode(value)))
                if len(batch) == _SCAN_ROWS:
                    break
        if batch:
            yield batch
        if len(batch) < _SCAN_ROWS:
            return
        start = batch[-1][0] + b"\0"


def live_bytes(shared: SharedStore, reached: PrefixSet) -> dict[int, int]:
    """Return the bytes of reached records by pack number."""
    live: dict[int, int] = {}
    for batch in scan_objects(shared):
        flags = reached.contains_many(b"".join(identity for identity, _ in batch))
        for (_, row), flag in zip(batch, flags, strict=True):
            if flag and row.pack != layout.LOST:
                live[row.pack] = live.get(row.pack, 0) + row.total_bytes
    return live


def reach_within(shared: SharedStore, tx: Transaction, result: Mark) -> set[int]:
    """Return the packs that roots newer than the mark reach, looked up inside a transaction."""
    kept: set[int] = set()
    frontier = [identity for identity in roots(tx) if identity not in result.reached]
    while frontier:
        identity = frontier.pop()
        row = tx.object(identity)
        pack = None if row is None else tx.pack(row.pack)
        if row is None or pack is None or not result.reached.add(identity):
            continue
        kept.add(row.pack)
        if row.base:
            frontier.append(row.base)
        if row.kind != layout.TYPE_CHUNK:
            frontier.extend(_refs(shared, identity, row, pack))
    return kept
