"""Rebuild: a new index from the packs alone, beside the old one (docs/format.md, section 12).

Nothing is deleted and no pack is changed. Until CURRENT names the new index the old one is the
store's, so a kill at any moment leaves one of the two, whole.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from casckpt.errors import CasckptError, Corrupt, NoStore, StoreBusy
from casckpt.ids import ABBREVIATION
from casckpt.store import (
    creation,
    file_systems,
    files,
    layout,
    lock_files,
    opening,
    rows,
    writer_lock,
)
from casckpt.store.commits import CommitRequest
from casckpt.store.environment import Environment
from casckpt.store.facts import Change
from casckpt.store.index_writer import add_to_roots
from casckpt.store.records import Record
from casckpt.store.salvage import Place, Salvage, store_of_packs
from casckpt.store.transactions import Transaction

Recover = Callable[[bytes, bytes], CommitRequest | None]
_ROW_HEADED = frozenset({"checkpoints", "runs", "history", "progress", "cache"})
_SCAN_ROWS = 20_000
# A recovered row's payload is the floor above's, which fills an empty one from the manifest.
_RECOVERED_RUN = "recovered"
# LMDB's limit (lmdb.h, mdb_env_get_maxkeysize)
_KEY_MAX_BYTES = 511


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What a rebuild found.

    Attributes:
        index: name of the new index.
        described: format.json was lost or damaged, and was made anew from the packs.
        packs: packs that were read.
        objects: chunks, lists and manifests that the index names now.
        checkpoints: rows of checkpoints, removed ones left out.
        recovered: hex ids of whole manifests that no fact named, and that got a row.
        gaps: (first, last) numbers of transactions whose facts are lost.
        unreadable: what was left out, by pack and offset, with the reason.
    """

    index: str
    described: bool
    packs: int
    objects: int
    checkpoints: int
    recovered: tuple[str, ...]
    gaps: tuple[tuple[int, int], ...]
    unreadable: tuple[str, ...]


def rebuild(
    path: Path,
    progress: Callable[[int, int], None] | None = None,
    recover: Recover | None = None,
) -> RebuildReport:
    """Make a new index from the packs of the store at `path`, and make it the store's.

    A kill at any moment leaves the store as it was, or rebuilt; both can be rebuilt again.
    Afterwards gc frees nothing until the rebuild is accepted.

    Args:
        path: the store.
        progress: called with (bytes read, bytes in all).
        recover: given (id, body) of a whole manifest that no fact names, returns where it goes,
            or None if it gets no row. No function: run `recovered/ID`, step 0.

    Raises:
        NoStore: format.json is missing or damaged, and no pack says whose store it was.
        NewerFormat: the store needs a newer casckpt.
        StoreBusy: somebody has the store open.
        Corrupt: the folder of packs is missing, or format.json is and the packs are of several
            stores.
        NoSpace: the disk is full; the store is as it was.
    """
    described = _describe(path)
    store = opening.read_format(path)
    opening.require_features(store.write, layout.WRITE_FEATURES, "rebuild the index")
    file_systems.refuse_remote(path)
    with _alone(path), _nobody_writes(path):
        # ORDER: a folder of its own first, never one that is there: it may be half built
        number = creation.create_index(path, store.uuid)
        salvage = Salvage(path, store.uuid, progress or _ignore)
        environment = Environment(path / f"{layout.INDEX_PREFIX}{number}", readonly=False)
        try:
            report = _Rebuild(environment, salvage, recover).run(described)
        finally:
            environment.close()
            salvage.close()
        files.sync_folder(environment.path)
        files.sync_folder(path)
        files.crash_point("index rebuilt", environment.path)
        creation.set_current(path, number)
    return report


def _ignore(done: int, total: int) -> None:
    """Show nothing."""


def _describe(path: Path) -> bool:
    """Make a lost or damaged format.json anew, if packs say whose it was; tell whether it was."""
    try:
        opening.read_format(path)
    except NoStore:
        store_uuid = store_of_packs(path)
        if store_uuid is None:
            raise
    else:
        return False
    with _alone(path):
        creation.write_format(path, store_uuid)
    return True


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    descriptor = lock_files.open_to_lock(path / layout.LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        if not files.try_lock(descriptor, exclusive=True):
            raise StoreBusy(
                f"cannot rebuild the index of {path}",
                "the store is open, in this process or another",
                "close it everywhere, then run it again",
            )
        yield
    finally:
        lock_files.close_lock(descriptor)


@contextlib.contextmanager
def _nobody_writes(path: Path) -> Iterator[None]:
    """Keep out who has the store open by a lock file that was removed and made anew since.

    What such a process commits while packs are read would be acknowledged, and in no index. It
    finds the new index in the place of its own afterwards, and says so.
    """
    lock = writer_lock.WriterLock(path)
    try:
        with lock.held(f"cannot rebuild the index of {path}", writer_lock.OPEN_WAIT_S):
            yield
    finally:
        lock.close()


class _Rebuild:
    """One rebuild, into an empty index that nobody else has open."""

    def __init__(self, environment: Environment, salvage: Salvage, recover: Recover | None) -> None:
        self._environment = environment
        self._salvage = salvage
        self._recover = recover
        self._waiting: list[Change] = []
        self._waiting_bytes = 0
        self._whole: dict[bytes, bool] = {}

    def run(self, described: bool) -> RebuildReport:
        """Fill the index and return what was found."""
        self._index_objects()
        floor, parts = self._salvage.newest_snapshot()
        self._index_rows(floor, parts)
        recovered = self._recover_manifests()
        self._set_numbers(floor, parts)
        with self._environment.read() as tx:
            objects = tx.count("objects")
            kept = sum(rows.Row.decode(value).is_root for _, value in tx.scan("checkpoints"))
        return RebuildReport(
            self._environment.path.name,
            described,
            len(self._salvage.packs),
            objects,
            kept,
            tuple(identity.hex() for identity in recovered),
            self._salvage.gaps_above(floor),
            tuple(self._salvage.unreadable),
        )

    # ---- batches of at most 2,000 rows

    def _put(self, table: str, key: bytes, value: bytes | None) -> None:
        self._waiting.append((table, key, value))
        self._waiting_bytes += len(key) + len(value or b"")
        if (
            len(self._waiting) >= layout.TRANSACTION_MAX_ROWS
            or self._waiting_bytes >= layout.TRANSACTION_MAX_BYTES
        ):
            self._flush()

    def _flush(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if waiting:
            files.crash_point("rebuild", self._environment.path)
            self._environment.write(lambda tx: _apply(tx, waiting))

    # ---- objects

    def _index_objects(self) -> None:
        """Index every record in decode order: whole ones, then those whose base is indexed.

        So no chain of bases can meet itself, whichever copies of a chunk there are.
        """
        on_bases: dict[bytes, list[tuple[int, Record]]] = defaultdict(list)
        for pack, record in self._salvage.scan():
            if record.base:
                on_bases[record.base].append((pack.number, record))
            else:
                self._put("objects", record.id, rows.ObjectRow.of(record, pack.number, 0).encode())
        for pack in self._salvage.packs:
            self._put("packs", rows.pack_key(pack.number), pack.row().encode())
        self._flush()
        if on_bases:
            self._index_deltas(on_bases)

    def _index_deltas(self, on_bases: dict[bytes, list[tuple[int, Record]]]) -> None:
        known: dict[bytes, rows.ObjectRow] = {}
        ids = on_bases.keys() | {record.id for found in on_bases.values() for _, record in found}
        with self._environment.read() as tx:
            for identity in ids:
                if (row := tx.object(identity)) is not None:
                    known[identity] = row
        # Breadth first: of several deltas of a chunk the one with the shortest chain is taken.
        ready = deque(identity for identity in on_bases if identity in known)
        while ready:
            base = ready.popleft()
            below = known[base]
            for number, record in on_bases.pop(base, ()):
                depth = below.depth + 1
                if (
                    record.id in known
                    or below.kind != layout.TYPE_CHUNK
                    or not _fits(below, record)
                    or depth >= layout.CHAIN_MAX_LINKS
                ):
                    continue
                row = known[record.id] = rows.ObjectRow.of(record, number, depth)
                self._put("objects", record.id, row.encode())
                ready.append(record.id)
        self._flush()

    # ---- rows

    def _index_rows(self, floor: int, parts: list[Place]) -> None:
        """Apply the newest whole snapshot, then the facts above it in order."""
        places = [*parts, *(place for _, place in self._salvage.facts_above(floor))]
        for place in places:
            for table, key, value in self._salvage.changes_at(place):
                try:
                    _check_row(table, key, value)
                except Corrupt as exc:
                    self._salvage.unreadable.append(f"a row of {table}: {exc.why}")
                    continue
                self._put(table, key, value)
        self._flush()
        self._name_what_is_live()

    def _name_what_is_live(self) -> None:
        """Have `steps` name the live checkpoint of each place, whatever rows there were."""
        with self._environment.read() as tx:
            decoded = (rows.decode_checkpoint(*pair) for pair in tx.scan("checkpoints"))
            live = {
                rows.step_key(row.run, row.line, row.step, row.batch): rows.u64(row.seq)
                for row in decoded
                if row.state == "live"
            }
            wrong = [(key, seq) for key, seq in live.items() if tx.get("steps", key) != seq]
        for key, seq in wrong:
            self._put("steps", key, seq)
        self._flush()

    # ---- manifests without a fact

    def _recover_manifests(self) -> list[bytes]:
        """Give every whole manifest that no fact names a row: its commit may have been the last."""
        found = [
            (identity, row)
            for identity, row in self._manifests()
            if identity not in self._salvage.named and self._is_whole(identity, 0)
        ]
        recovered = []
        for start in range(0, len(found), layout.ONE_TRANSACTION_ROWS):
            batch = found[start : start + layout.ONE_TRANSACTION_ROWS]
            asked = [self._request(identity, row) for identity, row in batch]
            requests = [request for request in asked if request is not None]
            files.crash_point("rebuild", self._environment.path)
            self._environment.write(partial(self._insert, requests=requests))
            recovered += [request.manifest_id for request in requests]
        return recovered

    def _manifests(self) -> Iterator[tuple[bytes, rows.ObjectRow]]:
        start = b""
        while True:
            with self._environment.read() as tx:
                batch = []
                for key, value in tx.scan("objects", start=start):
                    batch.append((key, rows.ObjectRow.decode(value)))
                    if len(batch) == _SCAN_ROWS:
                        break
            yield from ((key, row) for key, row in batch if row.kind == layout.TYPE_MANIFEST)
            if len(batch) < _SCAN_ROWS:
                return
            start = batch[-1][0] + b"\0"

    def _is_whole(self, identity: bytes, depth: int) -> bool:
        """Tell whether an object and everything below it is indexed."""
        if identity in self._whole:
            return self._whole[identity]
        with self._environment.read() as tx:
            chain = tx.chain(identity)
        whole = chain is not None and depth <= layout.LIST_MAX_LEVELS + 2
        if whole and chain is not None and chain[0][1].kind != layout.TYPE_CHUNK:
            _, row, pack = chain[0]
            try:
                record, _ = self._salvage.body_at(Place(pack.uuid, row.offset))
                whole = all(self._is_whole(ref, depth + 1) for ref in record.refs)
            except CasckptError:
                whole = False
        self._whole[identity] = whole
        return whole

    def _request(self, identity: bytes, row: rows.ObjectRow) -> CommitRequest | None:
        if self._recover is not None:
            with self._environment.read() as tx:
                pack = tx.pack(row.pack)
            assert pack is not None
            with contextlib.suppress(CasckptError):
                _, body = self._salvage.body_at(Place(pack.uuid, row.offset))
                return self._recover(identity, body)
        return recovered_request(identity)

    def _insert(self, tx: Transaction, requests: list[CommitRequest]) -> None:
        for request in requests:
            run = request.run
            step = rows.step_key(run, request.line, request.step, request.batch)
            if tx.get("steps", step) is not None:
                # A save that was killed and made again: what was acknowledged keeps the place.
                run = f"{_RECOVERED_RUN}/{request.manifest_id.hex()[:ABBREVIATION]}"
                step = rows.step_key(run, request.line, request.step, request.batch)
            # As for jobs that share a transaction: the seq is free in the run, and leaves no gap.
            seq = self._salvage.newest_seq + 1
            while tx.get("checkpoints", rows.checkpoint_key(run, seq)) is not None:
                seq += 1
            row = rows.encode_checkpoint(
                run,
                request.line,
                request.step,
                request.batch,
                request.manifest_id,
                request.payload,
            )
            tx.put("checkpoints", rows.checkpoint_key(run, seq), row.encode())
            tx.put("steps", step, rows.u64(seq))
        add_to_roots(tx, tx.roots_count, tx.roots_sum)

    # ---- numbers

    def _set_numbers(self, floor: int, parts: list[Place]) -> None:
        number_of = {pack.uuid: pack.number for pack in self._salvage.packs}
        holding = sorted({number_of[place.pack] for place in parts})

        def set_all(tx: Transaction) -> None:
            tx.set_number("seq", self._salvage.newest_seq)
            tx.set_number("root_seq", self._salvage.newest_seq)
            tx.set_number("next_pack", len(self._salvage.packs) + 1)
            tx.set_number("snapshot_seq", floor)
            tx.put("meta", b"snapshot_packs", b"".join(rows.u64(number) for number in holding))
            # A lost tail leaves no gap: a person has to look before anything may be freed.
            tx.set_number("rebuilt", 1)

        files.crash_point("rebuild", self._environment.path)
        self._environment.write(set_all)


def recovered_request(identity: bytes) -> CommitRequest:
    """Return where a manifest goes of which nothing else is known."""
    name = f"{_RECOVERED_RUN}/{identity.hex()[:ABBREVIATION]}"
    return CommitRequest(name, 0, 0, 0, identity, b"", None)


def _apply(tx: Transaction, changes: list[Change]) -> None:
    for table, key, value in changes:
        if value is None:
            tx.delete(table, key)
        elif table != "objects" or tx.get(table, key) is None:
            tx.put(table, key, value)
    if tx.roots_count or tx.roots_sum:
        add_to_roots(tx, tx.roots_count, tx.roots_sum)


def _fits(below: rows.ObjectRow, record: Record) -> bool:
    """Tell whether a record may be decoded with what a row names: numbers need as many of them."""
    is_dictionary = record.encoding == layout.ENCODING_DICTIONARY
    return is_dictionary or below.logical == record.logical


def _check_row(table: str, key: bytes, value: bytes | None) -> None:
    """Raise Corrupt if a row of a fact is none that the index could hold."""
    if not 1 <= len(key) <= _KEY_MAX_BYTES:
        raise Corrupt("damaged fact", f"a key of {len(key)} bytes")
    if value is None:
        return
    if table in _ROW_HEADED:
        rows.Row.decode(value)
    if table == "checkpoints":
        rows.decode_checkpoint(key, value)
    if table == "steps":
        rows.read_u64(value)
