"""Packs checked against the index: headers, rows that point at them, and every byte if asked."""

from __future__ import annotations

import contextlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from casckpt.errors import CasckptError, Corrupt, NewerFormat
from casckpt.store import codec, facts, files, layout, lists, packs, records, rows
from casckpt.store.effort import Effort, Throttle
from casckpt.store.findings import CUT_OFF, HEADER, WHOLE_PACK, Findings, reason
from casckpt.store.packs import pack_path
from casckpt.store.reading import Reader
from casckpt.store.records import Record
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction
from casckpt.store.workers import Workers

# Records handed to a worker at a time, fewer at a low rate, and units under way: 64 MiB of payload
# at most.
_UNIT_BYTES = 4 * layout.MIB
_UNIT_RECORDS = 1000
_UNITS_MAX = 16
_SCAN_ROWS = 20_000

Outcome = tuple[int, list[tuple[Record, str]]]


@dataclass(frozen=True, slots=True)
class _Pack:
    number: int
    row: rows.PackRow
    path: Path


@dataclass(frozen=True, slots=True)
class _Unit:
    """Records of a pack that a worker checks: where the last ends, and what of them is due."""

    pack: _Pack
    end: int
    due_bytes: int
    work: Future[Outcome]


class PackCheck:
    """One pass over all registered packs, then over the rows that name places in them."""

    def __init__(
        self, shared: SharedStore, pool: Workers, found: Findings, effort: Effort | None
    ) -> None:
        """Make a check; without `effort` headers are read and no payload."""
        self._shared = shared
        self._pool = pool
        self._found = found
        self._effort = effort
        self._throttle = Throttle(effort.max_rate if effort else None)
        self._journal = effort.journal if effort else None
        self._reader = Reader(shared, pool)
        # Rows of `objects` whose place was seen to hold their record, by pack
        self._matched: Counter[int] = Counter()
        self._under_way: deque[_Unit] = deque()
        self._hurt: set[int] = set()
        self._checked = self._done = self._total = 0
        self._progress: Callable[[int, int], None] = lambda done, total: None

    def run(self, registered: dict[int, rows.PackRow], progress: Callable[[int, int], None]) -> int:
        """Add what is wrong to the findings; return the bytes of records read and checked.

        Progress is of what has to be read: neither what was whole before, nor what is left out.
        """
        self._progress = progress
        chosen = [
            _Pack(number, row, pack_path(self._shared.path, row.uuid))
            for number, row in registered.items()
            if row.state != rows.DROPPED
        ]
        self._total = sum(self._share(pack.row.size - self._peek(pack)) for pack in chosen)
        progress(0, self._total)
        try:
            for pack in chosen:
                self._check_pack(pack)
                if self._effort is None:
                    self._advance(pack.row.size)
            while self._under_way:
                self._collect()
        except BaseException:
            if self._journal is not None:
                self._journal.save()
            raise
        finally:
            for unit in self._under_way:
                unit.work.cancel()
        self._check_rows()
        if self._journal is not None:
            self._journal.finish()
        progress(self._total, self._total)
        return self._checked

    def _peek(self, pack: _Pack) -> int:
        return self._journal.peek(pack.row.uuid) if self._journal is not None else 0

    def _share(self, count: int) -> int:
        """Return how many of so many bytes are likely to be read."""
        return max(count, 0) if self._effort is None else int(max(count, 0) * self._effort.sample)

    def _advance(self, count: int) -> None:
        self._done = min(self._done + count, self._total)
        self._progress(self._done, self._total)

    # ---- one pack

    def _check_pack(self, pack: _Pack) -> None:
        # A row comes before its file: a pack that holds nothing may not be there yet, or may have
        # been given up while its header was written.
        empty = pack.row.size <= layout.PACK_HEADER_BYTES
        try:
            descriptor = files.open_file(pack.path, os.O_RDONLY)
        except FileNotFoundError:
            if not empty:
                self._found.pack(pack.number, WHOLE_PACK, pack.path.name, "the file is missing")
            return
        except files.DAMAGE as exc:
            self._found.pack(pack.number, WHOLE_PACK, pack.path.name, reason(exc))
            return
        try:
            if empty:
                return
            length = os.fstat(descriptor).st_size
            self._check_pack_header(pack, descriptor)
            if length < pack.row.size:
                message = f"cut off at {length} of {pack.row.size} bytes"
                self._found.pack(pack.number, CUT_OFF, pack.path.name, message)
            self._check_records(pack, descriptor)
        except files.DAMAGE as exc:
            self._found.pack(pack.number, WHOLE_PACK, pack.path.name, reason(exc))
        finally:
            files.close_file(descriptor)

    def _check_pack_header(self, pack: _Pack, descriptor: int) -> None:
        store = self._shared.format.uuid
        session, wrong = packs.read_pack_header(descriptor, pack.path, pack.row.uuid, store)
        if wrong:
            self._found.pack(pack.number, HEADER, pack.path.name, wrong)
        elif session != pack.row.session:
            raise Corrupt("another pack", "its header names another session")

    def _check_records(self, pack: _Pack, descriptor: int) -> None:
        whole = self._journal.end(pack.row.uuid) if self._journal is not None else 0
        for unit in self._units(pack, descriptor):
            self._match(pack, unit)
            if self._effort is None:
                continue
            due = [record for record in unit if record.offset >= whole]
            chosen = [record for record in due if self._effort.takes()]
            self._throttle.wait(sum(record.total_bytes for record in chosen), self._look_up)
            work = self._pool.submit(self._check_unit, pack, chosen)
            due_bytes = self._share(sum(record.total_bytes for record in due))
            end = unit[-1].offset + unit[-1].total_bytes
            self._under_way.append(_Unit(pack, end, due_bytes, work))
            self._collect_done()
            while len(self._under_way) >= _UNITS_MAX:
                self._collect()

    def _units(self, pack: _Pack, descriptor: int) -> Iterator[list[Record]]:
        """Yield the records below the registered end; note the gaps between them."""
        problems: list[tuple[int, str]] = []
        unit: list[Record] = []
        size = 0
        most = self._throttle.portion(_UNIT_BYTES)
        registered = pack.row.size
        scan = packs.scan_pack(
            descriptor, pack.path, pack.row.uuid, end=registered, problems=problems
        )
        for record in scan:
            unit.append(record)
            size += record.total_bytes
            if size >= most or len(unit) >= _UNIT_RECORDS:
                yield unit
                unit, size = [], 0
        if unit:
            yield unit
        for offset, message in problems:
            self._found.record(pack.number, offset, pack.path.name, b"", message)

    def _match(self, pack: _Pack, unit: list[Record]) -> None:
        """Compare headers with the rows that name their places."""
        with self._shared.environment.read() as tx:
            found = [(record, _row_of(tx, record.id)) for record in unit]
        for record, row in found:
            if row is not None and (row.pack, row.offset) == (pack.number, record.offset):
                self._matched[pack.number] += 1
                if not _fits(record, row):
                    self._add(pack, record, "its row in the index says something else")

    def _add(self, pack: _Pack, record: Record, message: str) -> None:
        self._found.record(pack.number, record.offset, pack.path.name, record.id, message)

    # ---- every byte

    def _look_up(self) -> None:
        """Take in what is done, and show that it goes on, while the rate allows no more."""
        self._collect_done()
        self._progress(self._done, self._total)

    def _collect_done(self) -> None:
        while self._under_way and self._under_way[0].work.done():
            self._collect()

    def _collect(self) -> None:
        unit = self._under_way.popleft()
        checked, bad = unit.work.result()
        for record, message in bad:
            self._add(unit.pack, record, message)
        self._checked += checked
        self._advance(unit.due_bytes)
        if bad:
            self._hurt.add(unit.pack.number)
        self._note_whole(unit)

    def _note_whole(self, unit: _Unit) -> None:
        """Remember how far a pack was read, up to what is damaged: units come in their order."""
        if self._journal is None or unit.pack.number in self._hurt:
            return
        # A sample says nothing of the rest, and what was left out as whole was so to its end.
        is_all = self._effort is not None and self._effort.sample >= 1
        if is_all and unit.end > self._journal.peek(unit.pack.row.uuid):
            self._journal.note(unit.pack.row.uuid, unit.end)

    def _check_unit(self, pack: _Pack, unit: list[Record]) -> Outcome:
        """Return the bytes of a unit, and what is damaged of it. Runs on a worker."""
        bad: list[tuple[Record, str]] = []
        for record in unit:
            try:
                with self._shared.packs.borrow(pack.row.uuid) as file:
                    payload = packs.read_payload(file.descriptor, file.path, record)
                self._check_payload(record, payload)
            except NewerFormat:
                continue  # its payload check holds; what it means is for a newer version
            except files.DAMAGE as exc:
                bad.append((record, reason(exc)))
        return sum(record.total_bytes for record in unit), bad

    def _check_payload(self, record: Record, payload: bytes) -> None:
        if record.kind == layout.TYPE_CHUNK:
            self._check_chunk(record, payload)
        elif record.kind in layout.TYPE_NAMES:
            body = codec.decode_body(record.encoding, payload, record.logical)
            if records.object_id(record.kind, record.refs, body) != record.id:
                raise Corrupt("damaged record", "its bytes have another id")
            if record.kind == layout.TYPE_LIST:
                lists.decode_list(body, len(record.refs))
            elif record.kind == layout.TYPE_FACT:
                facts.decode_fact(body)
            elif record.kind == layout.TYPE_SNAPSHOT:
                facts.decode_snapshot(body)

    def _check_chunk(self, record: Record, payload: bytes) -> None:
        base: memoryview | None = None
        if record.refs:
            try:
                base = self._reader.read_base(record.refs[0])
            except files.DAMAGE:
                # The base is its own finding, and what needs both is found by the closure.
                return
        large = codec.is_large(max(record.logical, 0 if base is None else len(base)))
        with self._shared.large_chunk if large else contextlib.nullcontext():
            decoded = codec.scratch("verified", record.logical)
            codec.decode_chunk(record.encoding, payload, decoded, base)
            if records.chunk_context().hash(decoded) != record.id:
                raise Corrupt("damaged record", "its bytes have another id")

    # ---- rows

    def _check_rows(self) -> None:
        """Find the rows that name no record: those of packs where fewer matched than there are."""
        named: Counter[int] = Counter()
        for batch in self._object_rows():
            named.update(row.pack for _, row in batch)
        with self._shared.environment.read() as tx:
            present = {number: tx.pack(number) for number in named}
        # A row whose pack is dropped or unknown does not exist.
        doubtful = {
            number: row
            for number, row in present.items()
            if row is not None
            and row.state != rows.DROPPED
            and self._matched[number] < named[number]
        }
        if not doubtful:
            return
        for batch in self._object_rows():
            for identity, row in batch:
                if row.pack in doubtful:
                    self._check_row(identity, row)

    def _object_rows(self) -> Iterator[list[tuple[bytes, rows.ObjectRow]]]:
        """Yield the rows of `objects` in batches, each read in a transaction of its own."""
        start = b""
        while True:
            batch: list[tuple[bytes, rows.ObjectRow]] = []
            last = start
            count = 0
            with self._shared.environment.read() as tx:
                for key, value in tx.scan("objects", start=start):
                    last = key
                    count += 1
                    try:
                        if len(key) != 32:
                            raise Corrupt("damaged index", "an objects key of another length")
                        batch.append((key, rows.ObjectRow.decode(value)))
                    except Corrupt as exc:
                        self._found.index(self._shared.index.name, exc.why, key)
                    if count == _SCAN_ROWS:
                        break
            yield batch
            if count < _SCAN_ROWS:
                return
            start = last + b"\0"

    def _check_row(self, identity: bytes, row: rows.ObjectRow) -> None:
        for _ in range(2):
            with self._shared.environment.read() as tx:
                again = tx.object(identity)
                pack = None if again is None else tx.pack(again.pack)
            if again is None or pack is None or pack.state == rows.DROPPED:
                return
            row = again
        assert pack is not None
        if (row.pack, WHOLE_PACK) in self._found.by_key:
            return
        path = pack_path(self._shared.path, pack.uuid)
        try:
            with self._shared.packs.borrow(pack.uuid) as file:
                record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
            if record.id != identity or not _fits(record, row):
                raise Corrupt("bad row", "its row in the index says something else")
            if row.offset + row.total_bytes > pack.size:
                raise Corrupt("bad row", "it lies past the registered end of its pack")
        except files.DAMAGE as exc:
            self._found.record(row.pack, row.offset, path.name, identity, reason(exc))


def _row_of(tx: Transaction, identity: bytes) -> rows.ObjectRow | None:
    """Return the row of an object; None if it cannot be read, which `_object_rows` reports."""
    try:
        return tx.object(identity)
    except Corrupt:
        return None


def _fits(record: Record, row: rows.ObjectRow) -> bool:
    """Tell whether a row says what the header at its place says."""
    return (row.kind, row.encoding, row.ref_count, row.stored, row.logical, row.base) == (
        record.kind,
        record.encoding,
        len(record.refs),
        record.stored,
        record.logical,
        record.base,
    )


def torn_bytes(path: Path, row: rows.PackRow) -> int:
    """Return the bytes of a pack past its registered end, its footer left out."""
    try:
        descriptor = files.open_file(path, os.O_RDONLY)
    except (FileNotFoundError, CasckptError):
        return 0
    try:
        past = max(os.fstat(descriptor).st_size - row.size, 0)
        if past == records.FOOTER_BYTES:
            tail = files.read_at(descriptor, past, row.size, path)
            return 0 if tail.startswith(layout.FOOTER_MAGIC) else past
        return past
    finally:
        files.close_file(descriptor)
