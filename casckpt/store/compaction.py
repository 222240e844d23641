"""Compaction: copy what is still needed out of packs that are mostly dead (protocol, GC 3).

Also how a row comes to name another record of its object, whoever wrote that: `publish`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from casckpt.errors import Corrupt
from casckpt.store import files, layout, packs, records, rows, snapshots
from casckpt.store.collectors import check_run
from casckpt.store.commits import keep_usable, set_live
from casckpt.store.marking import Mark, scan_objects
from casckpt.store.own_packs import seal_bytes
from casckpt.store.pack_writer import PackWriter
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

# A pack is worth rewriting when a quarter of it is dead; small ones are merged when many.
DEAD_SHARE = 0.25
# When chunks were coded anew, copying the rest costs little beside that, and the bytes are wanted.
THOROUGH_DEAD_SHARE = 0.03
SMALL_BYTES = 4 * layout.MIB
SMALL_COUNT = 16
# What else a collection writes: its transactions, facts, and what packs reserve past their end
_SPARE_BYTES = layout.MIB


@dataclass(frozen=True, slots=True)
class Move:
    """A record that stands for another of the same id: the row it had, and where the new one is."""

    old: rows.ObjectRow
    writer: PackWriter
    record: records.Record


def is_worn(size: int, live: int, dead_share: float = DEAD_SHARE) -> bool:
    """Tell whether a pack of which `live` bytes are needed is dead enough, perhaps all of it."""
    return size - live >= dead_share * size


def held_bytes(
    shared: SharedStore,
    registered: Mapping[int, rows.PackRow],
    mark: Mark,
    dead_share: float = DEAD_SHARE,
) -> dict[int, int]:
    """Return what facts and snapshots need of the packs that are worn but for these.

    They would be copied when the pack goes. A pack of nothing else is not dead: it would be written
    anew at every collection, for nothing.
    """
    worn = [
        number
        for number, row in registered.items()
        if is_worn(row.size, mark.live_bytes.get(number, 0), dead_share)
    ]
    return snapshots.needed_bytes(shared, worn)


def choose(
    candidates: dict[int, rows.PackRow],
    mark: Mark,
    held: Mapping[int, int],
    dead_share: float = DEAD_SHARE,
    small_bytes: int = SMALL_BYTES,
) -> set[int]:
    """Return the numbers of the packs to rewrite, of those that nobody appends to.

    `held` says what is needed of a pack besides objects, see `held_bytes`; `small_bytes` below
    which size a pack is small, see `small`.
    """
    chosen = set()
    small = set()
    for number, row in candidates.items():
        live = mark.live_bytes.get(number, 0)
        if live > 0 and is_worn(row.size, live + held.get(number, 0), dead_share):
            chosen.add(number)
        if live > 0 and row.size < small_bytes:
            small.add(number)
    return chosen | (small if len(small) >= SMALL_COUNT else set())


def small(path: Path) -> int:
    """Return below which size packs are merged: not as large as little room lets them become."""
    largest = seal_bytes(path)
    return SMALL_BYTES if largest == layout.PACK_SEAL_BYTES else min(SMALL_BYTES, largest // 16)


def room(path: Path) -> int:
    """Return the bytes that may be copied: of what is free, as many as packs can be made for."""
    inodes = max(files.free_inodes(path) - layout.RESERVE_COLLECT_FILES, 0)
    return min(files.free_bytes(path), inodes * layout.PACK_SEAL_BYTES)


def superfluous(
    without_objects: Mapping[int, rows.PackRow], held: Mapping[int, int], snapshot: Collection[int]
) -> set[int]:
    """Return which packs without live objects are to go, once their facts are elsewhere.

    Those that are worn, and all the small ones that hold little but facts if they are many: each
    process that changes but a row leaves one. Not those of the newest snapshot, which would have
    to be written anew.
    """
    worn = {n for n, row in without_objects.items() if is_worn(row.size, held.get(n, 0))}
    small = {n for n, row in without_objects.items() if row.size < SMALL_BYTES}
    small -= worn.union(snapshot)
    return worn | (small if len(small) >= SMALL_COUNT else set())


def fitting(chosen: set[int], mark: Mark, free_bytes: int) -> set[int]:
    """Return those of the packs whose copies fit on the disk, the emptiest first.

    A full disk must not be made fuller by copies that cannot be finished.
    """
    left = free_bytes - _SPARE_BYTES
    fit = set()
    for number in sorted(chosen, key=lambda number: mark.live_bytes.get(number, 0)):
        left -= mark.live_bytes.get(number, 0)
        if left < 0:
            break
        fit.add(number)
    return fit


def compact(shared: SharedStore, run: bytes, mark: Mark, numbers: set[int]) -> int:
    """Move the reached records of `numbers` into packs of this session; return their bytes.

    `mark` is kept true: what moved counts where it is now.

    Each record is checked as it is read; a record that fails leaves its pack where it is.
    """
    total = 0
    for batch in _batches(shared, mark, numbers):
        copies = (_copy(shared, identity, row, uuid) for identity, row, uuid in batch)
        for move in publish(shared, run, [copy for copy in copies if copy is not None]):
            size = move.old.total_bytes
            source, target = move.old.pack, move.writer.number
            mark.live_bytes[source] = mark.live_bytes.get(source, 0) - size
            mark.live_bytes[target] = mark.live_bytes.get(target, 0) + size
            total += size
    return total


def publish(
    shared: SharedStore, run: bytes, moves: Sequence[Move], longest: int = layout.CHAIN_MAX_LINKS
) -> list[Move]:
    """Flush records that stand for others, and let the rows name them; return what was moved.

    At most `ONE_TRANSACTION_ROWS` moves: it is one transaction, all of it or nothing after a
    crash. Moves are carried out in order, so that one may rely on those before it.
    """
    if not moves:
        return []
    written = {move.writer.number: move.writer for move in moves}
    # ORDER: the copies are durable before a row names them
    shared.own.sync(written.values())
    files.crash_point("compacted records durable")
    return shared.writer.run(
        partial(_repoint, run=run, moves=moves, written=written, longest=longest),
        row_count=len(moves),
        facts=False,
    )


def _batches(
    shared: SharedStore, mark: Mark, numbers: set[int]
) -> Iterator[list[tuple[bytes, rows.ObjectRow, bytes]]]:
    with shared.environment.read() as tx:
        uuids = {number: pack.uuid for number in numbers if (pack := tx.pack(number)) is not None}
    batch: list[tuple[bytes, rows.ObjectRow, bytes]] = []
    size = 0
    for scanned in scan_objects(shared):
        flags = mark.reached.contains_many(b"".join(identity for identity, _ in scanned))
        for (identity, row), flag in zip(scanned, flags, strict=True):
            if flag and row.pack in uuids:
                batch.append((identity, row, uuids[row.pack]))
                size += row.total_bytes
                if len(batch) == layout.ONE_TRANSACTION_ROWS or size >= layout.PACK_SEAL_BYTES:
                    yield batch
                    batch, size = [], 0
    if batch:
        yield batch


def _copy(shared: SharedStore, identity: bytes, row: rows.ObjectRow, uuid: bytes) -> Move | None:
    try:
        with shared.packs.borrow(uuid) as file:
            record = packs.read_header(file.descriptor, file.path, uuid, row.offset)
            payload = packs.read_payload(file.descriptor, file.path, record)
    except (Corrupt, FileNotFoundError):
        return None
    if record.id != identity:
        return None
    return Move(
        row,
        *shared.own.append(
            record.kind, record.encoding, identity, record.logical, record.refs, payload
        ),
    )


def _repoint(
    tx: Transaction,
    run: bytes,
    moves: Sequence[Move],
    written: dict[int, PackWriter],
    longest: int,
) -> list[Move]:
    """Let rows name the new records, where they still name the old place; return those moves."""
    from casckpt.store.own_packs import register_ends

    check_run(tx, run)
    for number in written:
        pack = tx.pack(number)
        if pack is None or pack.state == rows.DROPPED:
            return []
        set_live(tx, number, pack)
    register_ends(tx, written.values())
    done = []
    saved_bytes, left_bases = 0, False
    for move in moves:
        record, old = move.record, move.old
        now = tx.object(record.id)
        if now is None or (now.pack, now.offset) != (old.pack, old.offset):
            continue
        base = record.base
        depth = 0
        if base and base == old.base and tx.is_lost(base):
            # Its bytes are not to be had until the base is back; until then it moves as it is.
            depth = now.depth
        elif base:
            # The chain below must be there, not lead back here, and stay.
            below = tx.chain(base)
            if below is None or any(link == record.id for link, _, _ in below):
                continue
            depth = len(below)
            if (base != old.base and depth > longest) or not keep_usable(tx, base):
                continue
        row = rows.ObjectRow.of(record, move.writer.number, depth)
        tx.put("objects", record.id, row.encode())
        done.append(move)
        saved_bytes += now.total_bytes - row.total_bytes
        left_bases |= bool(now.base) and now.base != base
    # A kill may end this run here: the next one must know why less is needed than was marked.
    if saved_bytes:
        tx.set_number("marked_bytes", max(tx.number("marked_bytes") - saved_bytes, 0))
    if left_bases:
        # Whether anything else needs those, and what they rest on, only a mark can say.
        tx.set_number("removed_roots", tx.number("removed_roots") + 1)
    return done
