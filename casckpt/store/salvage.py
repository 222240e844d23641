"""What packs alone tell: every whole record, and which facts and snapshots there are.

Nothing here trusts an index. A record counts if its header fits its place and its payload fits its
check; a pack counts unless it names another store or another file (docs/format.md, section 12).
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from casckpt.errors import Corrupt, NewerFormat, NoStore
from casckpt.store import codec, facts, files, layout, packs, records, rows
from casckpt.store.facts import Change
from casckpt.store.findings import reason
from casckpt.store.packs import PackFiles
from casckpt.store.records import Record

# What is on the disk, and will be the next time too. Any other error (too many open files, no
# permission) ends the rebuild: an index without that pack would have lost what is in it.
_DAMAGE = (Corrupt, NewerFormat, NoStore, ValueError)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands."""

    pack: bytes
    offset: int


@dataclass(slots=True)
class SalvagedPack:
    """A pack of this store: `size` ends its last whole record, `highest_fact` is its newest seq."""

    number: int
    uuid: bytes
    session: bytes
    size: int = layout.PACK_HEADER_BYTES
    highest_fact: int = 0

    def row(self) -> rows.PackRow:
        """Return its row: live, and sealed, since its session is over."""
        return rows.PackRow(
            self.uuid,
            self.session,
            sealed=True,
            size=self.size,
            highest_fact=self.highest_fact,
        )


def store_of_packs(store: Path) -> bytes | None:
    """Return the uuid of the store that the packs in a folder say they are of; None if none does.

    Raises Corrupt if they are of several stores.
    """
    found: Counter[bytes] = Counter()
    for path in packs.pack_files(store):
        with contextlib.suppress(*_DAMAGE):
            found[_read_header(path)[1]] += 1
    if len(found) > 1:
        counts = ", ".join(f"{count} of {uuid.hex()[:8]}" for uuid, count in found.most_common())
        raise Corrupt(
            f"{store} holds packs of {len(found)} stores",
            f"{layout.FORMAT_FILE}, which says whose it is, is lost; there are {counts}",
            "move those of the other stores away",
        )
    return next(iter(found), None)


def _read_header(path: Path) -> tuple[bytes, bytes, bytes]:
    """Return the (pack, store, session) uuids of a pack."""
    descriptor = files.open_file(path, os.O_RDONLY)
    try:
        return records.decode_pack_header(
            files.read_at(descriptor, layout.PACK_HEADER_BYTES, 0, path)
        )
    finally:
        files.close_file(descriptor)


class Salvage:
    """One pass over all packs of a store. Not thread safe."""

    def __init__(
        self, store: Path, store_uuid: bytes, progress: Callable[[int, int], None]
    ) -> None:
        self._store = store
        self._store_uuid = store_uuid
        self._progress = progress
        self._files = PackFiles(store, store_uuid)
        self._parts: dict[tuple[int, int], dict[int, tuple[Place, bool]]] = {}
        self._facts: dict[int, Place] = {}
        self.packs: list[SalvagedPack] = []
        self.named: set[bytes] = set()
        """Ids that a root row of any fact or snapshot names, whatever became of the row."""
        self.newest_seq = 0
        self.unreadable: list[str] = []

    def close(self) -> None:
        """Close the packs."""
        self._files.close()

    # ---- the pass

    def scan(self) -> Iterator[tuple[SalvagedPack, Record]]:
        """Yield every whole record of an object; facts and snapshots are noted on the way.

        Raises Corrupt if the folder of packs is missing: an empty index would look like a store
        without checkpoints.
        """
        if not files.is_there(self._store / layout.PACKS_FOLDER):
            raise Corrupt(
                f"the store at {self._store} has no packs",
                f"the folder {layout.PACKS_FOLDER} is missing",
                "put it back; without packs there is nothing to rebuild from",
            )
        paths = packs.pack_files(self._store)
        sizes = [path.lstat().st_size for path in paths]
        done, total = 0, sum(sizes)
        self._progress(0, total)
        for path, size in zip(paths, sizes, strict=True):
            try:
                yield from self._scan_pack(path)
            except _DAMAGE as exc:
                self.unreadable.append(f"{path.name}: {reason(exc)}")
            done += size
            self._progress(done, total)

    def _scan_pack(self, path: Path) -> Iterator[tuple[SalvagedPack, Record]]:
        descriptor = files.open_file(path, os.O_RDONLY)
        try:
            uuid = packs.uuid_in_name(path)
            session, wrong = packs.read_pack_header(descriptor, path, uuid, self._store_uuid)
            if wrong:
                if next(packs.scan_pack(descriptor, path, uuid), None) is None:
                    raise Corrupt("no pack", f"{wrong}, and no record in it is whole")
                self.unreadable.append(f"{path.name}: {wrong}")
            pack = SalvagedPack(len(self.packs) + 1, uuid, session)
            self.packs.append(pack)
            problems: list[tuple[int, str]] = []
            for record in packs.scan_pack(descriptor, path, uuid, problems=problems):
                try:
                    payload = packs.read_payload(descriptor, path, record)
                    pack.size = record.offset + record.total_bytes
                    self._note(pack, record, payload)
                except _DAMAGE as exc:
                    self.unreadable.append(f"{path.name} at {record.offset}: {reason(exc)}")
                    continue
                if record.kind not in (layout.TYPE_FACT, layout.TYPE_SNAPSHOT):
                    yield pack, record
        finally:
            files.close_file(descriptor)
        # What stands after the last whole record was never registered: no damage, a torn end.
        self.unreadable += [
            f"{path.name} at {offset}: {message}"
            for offset, message in problems
            if offset < pack.size
        ]

    def _note(self, pack: SalvagedPack, record: Record, payload: bytes) -> None:
        if record.kind not in (layout.TYPE_FACT, layout.TYPE_SNAPSHOT):
            return
        body = codec.decode_body(record.encoding, payload, record.logical)
        # Else it would have its number, and be refused where it is read again.
        _check_id(record, body)
        place = Place(pack.uuid, record.offset)
        if record.kind == layout.TYPE_FACT:
            fact = facts.decode_fact(body)
            seq, changes = fact.seq, fact.changes
            # A collector copies facts and keeps their seq: equal ones count once.
            self._facts.setdefault(seq, place)
        else:
            part = facts.decode_snapshot(body)
            seq, changes = part.seq, part.rows
            whole = self._parts.setdefault((part.seq, part.written_at_ns), {})
            whole.setdefault(part.part, (place, part.last))
        pack.highest_fact = max(pack.highest_fact, seq)
        self.newest_seq = max(self.newest_seq, seq)
        for table, _, value in changes:
            if table in layout.ROOT_TABLES and value is not None:
                with contextlib.suppress(Corrupt):
                    self.named.update(rows.Row.decode(value).roots)

    # ---- facts and snapshots

    def newest_snapshot(self) -> tuple[int, list[Place]]:
        """Return (seq, parts in order) of the newest whole snapshot; (0, []) if there is none."""
        for (seq, _), parts in sorted(self._parts.items(), reverse=True):
            last = max(parts)
            if parts[last][1] and len(parts) == last + 1:
                return seq, [parts[number][0] for number in range(last + 1)]
        return 0, []

    def facts_above(self, floor: int) -> Iterator[tuple[int, Place]]:
        """Yield (seq, place) of the facts above `floor`, in order."""
        for seq in sorted(self._facts):
            if seq > floor:
                yield seq, self._facts[seq]

    def gaps_above(self, floor: int) -> tuple[tuple[int, int], ...]:
        """Return the (first, last) runs of seqs above `floor` that no fact has."""
        gaps = []
        expected = floor + 1
        for seq in [*(seq for seq, _ in self.facts_above(floor)), self.newest_seq + 1]:
            if seq > expected:
                gaps.append((expected, seq - 1))
            expected = max(expected, seq + 1)
        return tuple(gaps)

    # ---- reading again

    def changes_at(self, place: Place) -> tuple[Change, ...]:
        """Return the row changes of the fact or snapshot part at a place."""
        record, body = self.body_at(place)
        if record.kind == layout.TYPE_FACT:
            return facts.decode_fact(body).changes
        return facts.decode_snapshot(body).rows

    def body_at(self, place: Place) -> tuple[Record, bytes]:
        """Return header and body of the record at a place, checked against its id."""
        with self._files.borrow(place.pack) as file:
            record = packs.read_header(file.descriptor, file.path, place.pack, place.offset)
            payload = packs.read_payload(file.descriptor, file.path, record)
        body = codec.decode_body(record.encoding, payload, record.logical)
        _check_id(record, body)
        return record, body


def _check_id(record: Record, body: bytes) -> None:
    if records.object_id(record.kind, record.refs, body) != record.id:
        raise Corrupt("damaged record", f"the bytes at offset {record.offset} have another id")
