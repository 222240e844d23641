"""Repair: put damaged objects back from other copies, and set aside what is damaged.

A repair is a collector (docs/protocol.md, GC 0). It deletes no file: a pack with damage in it gives
up its whole records to new packs, and moves to `quarantine/`. What no copy has becomes a row that
says so, `lost`: a miss for a save, which then stores the same bytes anew, and a leaf for a mark,
so that gc goes on. A kill at any moment leaves a store that the next repair finishes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from casckpt.errors import Corrupt
from casckpt.store import (
    creation,
    files,
    layout,
    marking,
    packs,
    records,
    rows,
    snapshots,
    verification,
)
from casckpt.store.collectors import begin_run, check_run, gc_lock, open_packs
from casckpt.store.commits import set_live
from casckpt.store.copies import Copies, Copy
from casckpt.store.own_packs import register_ends
from casckpt.store.pack_writer import PackWriter
from casckpt.store.packs import pack_path
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction
from casckpt.store.verification import VerifyReport
from casckpt.store.workers import Workers

Progress = Callable[[int, int], None]
_NOBODY = rows.ObjectRow(layout.TYPE_CHUNK, layout.ENCODING_RAW, 0, 0, layout.LOST, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        refilled: ids of objects that were put back from a copy.
        lost: ids of objects that something needs and no copy has.
        quarantined: names of the packs that were set aside.
        busy: names of damaged packs that a live session appends to, and that stay for now.
        verified: what is left, as verify at level refs sees it.
    """

    refilled: tuple[bytes, ...]
    lost: tuple[bytes, ...]
    quarantined: tuple[str, ...]
    busy: tuple[str, ...]
    verified: VerifyReport


def repair(
    shared: SharedStore,
    pool: Workers,
    other: SharedStore | None = None,
    progress: Progress | None = None,
) -> RepairReport:
    """Repair a store beside savers and readers.

    Args:
        shared: the open store.
        pool: runs the checks.
        other: another open store to take copies from.
        progress: called with (bytes checked, bytes in all).

    Raises:
        StoreBusy: another collector is at work.
        Corrupt: the index itself is damaged; only a rebuild helps then.
        PermissionRefused, OperationFailed: something cannot be looked at; nothing is called lost.
        NoSpace: there is no room for the copies; what was done until then holds.
    """
    shared.require_collect_features("repair")
    with gc_lock(shared):
        try:
            return _Repair(shared, pool, other).run(progress)
        finally:
            creation.make_ballast(shared.path)


class _Repair:
    """One repair."""

    def __init__(self, shared: SharedStore, pool: Workers, other: SharedStore | None) -> None:
        self._shared = shared
        self._pool = pool
        self._copies = Copies(shared, pool, other)
        self._run = b""
        self._bad: dict[bytes, rows.ObjectRow] = {}
        """Rows whose record cannot be read, by id."""
        self._refilled: dict[bytes, None] = {}

    def run(self, progress: Progress | None) -> RepairReport:
        _refuse_missing_folder(self._shared)
        self._run = begin_run(self._shared)
        report = verification.verify(self._shared, self._pool, "bytes", progress)
        _refuse_damaged_index(report)
        hurt = self._hurt_packs(report)
        places = {(one.pack, one.offset) for one in report.damaged if one.kind == "record"}
        self._bad = {
            identity: row
            for identity, row in self._rows_in(hurt)
            if (pack_path(self._shared.path, hurt[row.pack].uuid).name, row.offset) in places
            or self._read(row) is None
        }
        tried: set[bytes] = set()
        while True:
            # A list that is put back may name what is missing too.
            wanted = self._wanted(report) - tried
            if not wanted:
                break
            tried |= wanted
            self._copies.look_for(wanted)
            self._refill(wanted)
            report = verification.verify(self._shared, self._pool, "refs")
        # ORDER: packs are aside before a row of what was in them goes. A pack that no row names is
        # one that the next collection deletes, and this repair may end here
        quarantined, busy = self._set_aside(hurt)
        self._lose(tried)
        lost = self._forget_needless()
        verified = verification.verify(self._shared, self._pool, "refs")
        return RepairReport(tuple(self._refilled), lost, quarantined, busy, verified)

    # ---- what is damaged

    def _hurt_packs(self, report: VerifyReport) -> dict[int, rows.PackRow]:
        """Return the packs with findings, by number."""
        names = {one.pack for one in report.damaged if one.kind in ("record", "pack")}
        with self._shared.environment.read() as tx:
            known = {rows.read_u64(key): rows.PackRow.decode(v) for key, v in tx.scan("packs")}
        return {
            number: row
            for number, row in known.items()
            if pack_path(self._shared.path, row.uuid).name in names
        }

    def _rows_in(self, numbers: Collection[int]) -> Iterator[tuple[bytes, rows.ObjectRow]]:
        if numbers:
            for batch in marking.scan_objects(self._shared):
                yield from (found for found in batch if found[1].pack in numbers)

    def _read(self, row: rows.ObjectRow) -> tuple[records.Record, bytes] | None:
        """Return header and payload of the record that a row names, None if either is damaged."""
        with self._shared.environment.read() as tx:
            pack = tx.pack(row.pack)
        if pack is None:
            return None
        try:
            with self._shared.packs.borrow(pack.uuid) as file:
                record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
                return record, packs.read_payload(file.descriptor, file.path, record)
        except files.DAMAGE:
            return None

    def _wanted(self, report: VerifyReport) -> set[bytes]:
        """Return the ids to be put back: what cannot be read, and what is nowhere."""
        missing = {one.id for one in report.damaged if one.kind == "missing"}
        with self._shared.environment.read() as tx:
            links = {link for identity in missing if (link := _broken_link(tx, identity))}
        return (self._bad.keys() | missing | links) - self._refilled.keys()

    # ---- putting back

    def _refill(self, wanted: Iterable[bytes]) -> None:
        """Append what has a copy, and let its row name that."""
        batch: list[tuple[bytes, Copy, PackWriter, records.Record]] = []
        size = 0
        for identity in sorted(wanted):
            copy = self._copies.find(identity)
            if copy is None:
                continue
            pack, record = self._shared.own.append(
                copy.kind, copy.encoding, identity, copy.logical, copy.refs, copy.payload
            )
            batch.append((identity, copy, pack, record))
            size += record.total_bytes
            if len(batch) == layout.ONE_TRANSACTION_ROWS or size >= layout.PACK_SEAL_BYTES:
                self._register(batch)
                batch, size = [], 0
        self._register(batch)

    def _register(self, batch: Sequence[tuple[bytes, Copy, PackWriter, records.Record]]) -> None:
        changed = {
            identity: rows.ObjectRow(
                copy.kind,
                copy.encoding,
                0,
                len(copy.refs),
                pack.number,
                record.offset,
                record.stored,
                copy.logical,
            )
            for identity, copy, pack, record in batch
        }
        self._put(changed, {pack.number: pack for _, _, pack, _ in batch}, {})
        self._refilled.update(dict.fromkeys(changed))
        for identity in changed:
            self._bad.pop(identity, None)

    def _put(
        self,
        changed: dict[bytes, rows.ObjectRow],
        written: dict[int, PackWriter],
        before: dict[bytes, rows.ObjectRow],
    ) -> None:
        """Set rows whose records are in our packs; one with a row `before` only if it still is."""
        if not changed:
            return
        # ORDER: the copies are durable before a row names them
        self._shared.own.sync(written.values())
        files.crash_point("repaired records durable")

        def put(tx: Transaction) -> None:
            check_run(tx, self._run)
            for number in written:
                pack = tx.pack(number)
                if pack is None or pack.state == rows.DROPPED:
                    raise Corrupt("a pack of this repair is gone", "another collector took it")
                set_live(tx, number, pack)
            register_ends(tx, written.values())
            for identity, row in changed.items():
                if identity not in before or tx.object(identity) == before[identity]:
                    tx.put("objects", identity, row.encode())

        self._shared.writer.run(put, row_count=len(changed), facts=False)

    # ---- what no copy has

    def _lose(self, tried: Collection[bytes]) -> None:
        """Let the rows of what could not be put back say so."""
        ids = sorted(set(tried) - self._refilled.keys())

        def lose(tx: Transaction, batch: list[bytes]) -> None:
            check_run(tx, self._run)
            for identity in batch:
                row = tx.object(identity)
                # One that only rests on something lost is whole itself, and one that a save has
                # stored anew meanwhile stands elsewhere.
                is_bad = row is not None and row == self._bad.get(identity)
                if is_bad or _broken_link(tx, identity) == identity:
                    gone = _NOBODY if row is None else replace(_NOBODY, kind=row.kind)
                    gone = gone if row is None else replace(gone, logical=row.logical)
                    tx.put("objects", identity, gone.encode())
            # Saves under way look again at all that they found, and gc knows why there is less.
            tx.set_number("gc_epoch", tx.number("gc_epoch") + 1)
            tx.set_number("removed_roots", tx.number("removed_roots") + 1)

        for start in range(0, len(ids), layout.ONE_TRANSACTION_ROWS):
            batch = ids[start : start + layout.ONE_TRANSACTION_ROWS]
            self._shared.writer.run(partial(lose, batch=batch), row_count=len(batch), facts=False)

    def _forget_needless(self) -> tuple[bytes, ...]:
        """Remove the rows of lost objects that nothing needs; return the others."""
        try:
            mark = marking.mark(self._shared)
        except Corrupt:
            return ()  # another collector's business by now; the next repair looks again
        lost = [identity for identity, _ in self._rows_in({layout.LOST})]
        needless = [identity for identity in lost if identity not in mark.reached]

        def forget(tx: Transaction, batch: list[bytes]) -> None:
            check_run(tx, self._run)
            for identity in batch:
                row = tx.object(identity)
                if row is not None and row.pack == layout.LOST:
                    tx.delete("objects", identity)

        for start in range(0, len(needless), layout.ONE_TRANSACTION_ROWS):
            batch = needless[start : start + layout.ONE_TRANSACTION_ROWS]
            self._shared.writer.run(partial(forget, batch=batch), row_count=len(batch), facts=False)
        return tuple(identity for identity in lost if identity in mark.reached)

    # ---- setting aside

    def _set_aside(self, hurt: dict[int, rows.PackRow]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Move the packs with damage out of the way; return their names, and those left."""
        with self._shared.environment.read() as tx:
            now = {number: row for number in hurt if (row := tx.pack(number)) is not None}
        busy = open_packs(self._shared, now)
        free = {number: row for number, row in now.items() if number not in busy}
        if free:
            self._evacuate(free)
            # The facts in them are read no more: the index still knows all they said.
            snapshots.write_snapshot(self._shared)
        names = []
        still = {row.pack for id_, row in self._rows_in(free) if row != self._bad.get(id_)}
        for number, row in free.items():
            if number not in still and self._drop(number, row):
                names.append(pack_path(self._shared.path, row.uuid).name)
        left = [pack_path(self._shared.path, now[number].uuid).name for number in busy | still]
        return tuple(sorted(names)), tuple(sorted(left))

    def _evacuate(self, numbers: Collection[int]) -> None:
        """Copy every whole record that a row names out of these packs."""
        changed: dict[bytes, rows.ObjectRow] = {}
        before: dict[bytes, rows.ObjectRow] = {}
        written: dict[int, PackWriter] = {}
        size = 0
        for identity, row in self._rows_in(numbers):
            found = self._read(row)
            if found is None or found[0].id != identity:
                continue
            record, payload = found
            pack, copy = self._shared.own.append(
                record.kind, record.encoding, identity, record.logical, record.refs, payload
            )
            before[identity], written[pack.number] = row, pack
            changed[identity] = replace(row, pack=pack.number, offset=copy.offset)
            size += copy.total_bytes
            if len(changed) == layout.ONE_TRANSACTION_ROWS or size >= layout.PACK_SEAL_BYTES:
                self._put(changed, written, before)
                changed, before, written, size = {}, {}, {}, 0
        self._put(changed, written, before)

    def _drop(self, number: int, row: rows.PackRow) -> bool:
        """Take a pack out of the store, of which rows name damage only; its file is kept."""
        path = pack_path(self._shared.path, row.uuid)
        aside = self._shared.path / layout.QUARANTINE_FOLDER
        files.make_folder(aside, exist_ok=True)
        existed = files.is_there(path)
        if existed:
            # ORDER: the file first. A pack whose file is missing is damage that the next repair
            # clears; a row that is gone would leave the file for a foreign pack
            files.rename(path, aside / path.name)
            files.sync_folder(aside)
            files.sync_folder(path.parent)
        files.crash_point("pack set aside", path)

        def forget(tx: Transaction) -> None:
            check_run(tx, self._run)
            tx.delete("packs", rows.pack_key(number))
            tx.set_number("gc_epoch", tx.number("gc_epoch") + 1)

        self._shared.writer.run(forget, facts=False)
        return existed


def _refuse_missing_folder(shared: SharedStore) -> None:
    """Raise Corrupt if all packs are away: rather moved, or on a disk that is not mounted."""
    if not files.is_there(shared.path / layout.PACKS_FOLDER):
        raise Corrupt(
            f"the store at {shared.path} has no packs",
            f"the folder {layout.PACKS_FOLDER} is missing",
            "put it back; if it is lost for good, make it, empty, for `casckpt repair` to go on",
        )


def _refuse_damaged_index(report: VerifyReport) -> None:
    damage = next((one for one in report.damaged if one.kind == "index"), None)
    if damage is not None:
        raise Corrupt(
            "the index is damaged",
            damage.message,
            "run `casckpt repair --rebuild-index`; the packs still hold everything",
        )


def _broken_link(tx: Transaction, identity: bytes) -> bytes | None:
    """Return the first link of an object's chain that has no place, or None if all have one."""
    seen: set[bytes] = set()
    while identity and identity not in seen:
        seen.add(identity)
        row = tx.object(identity)
        pack = None if row is None else tx.pack(row.pack)
        if row is None or pack is None or pack.state == rows.DROPPED:
            return identity
        identity = row.base
    return None
