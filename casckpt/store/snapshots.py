"""Keeping facts alive when the packs they are in go: copies, and snapshots (protocol, GC 4)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator
from dataclasses import replace

from casckpt.errors import Corrupt
from casckpt.store import codec, facts, layout, packs, records, rows
from casckpt.store.pack_writer import PackWriter
from casckpt.store.records import Buffer
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

_PACK_NUMBER_BYTES = 8


def snapshot_packs(tx: Transaction) -> frozenset[int]:
    """Return the numbers of the packs that hold the newest whole snapshot."""
    value = tx.get("meta", b"snapshot_packs") or b""
    return frozenset(
        rows.read_u64(value[at : at + _PACK_NUMBER_BYTES])
        for at in range(0, len(value), _PACK_NUMBER_BYTES)
    )


def needed_bytes(shared: SharedStore, numbers: Collection[int]) -> dict[int, int]:
    """Return what of some packs would have to be copied, besides objects, before they may go.

    That is their part of the newest snapshot, and facts above it; a pack without any is left out.
    """
    with shared.environment.read() as tx:
        floor, keep = tx.number("snapshot_seq"), snapshot_packs(tx)
        sources = [(number, row) for number in numbers if (row := tx.pack(number)) is not None]
    found: dict[int, int] = {}
    for number, row in sources:
        if number in keep or row.highest_fact > floor:
            # Damaged, or never made: then nothing of it can be copied.
            with contextlib.suppress(Corrupt, FileNotFoundError):
                size = sum(record.total_bytes for record, _, _ in _needed(shared, row.uuid, floor))
                if size:
                    found[number] = size
    return found


def _needed(
    shared: SharedStore, uuid: bytes, floor: int
) -> Iterator[tuple[records.Record, Buffer, int]]:
    """Yield (record, payload, seq) of the parts of the snapshot of `floor` and the facts above."""
    with shared.packs.borrow(uuid) as file:
        for record in packs.scan_pack(file.descriptor, file.path, uuid):
            if record.kind in (layout.TYPE_FACT, layout.TYPE_SNAPSHOT):
                payload = packs.read_payload(file.descriptor, file.path, record)
                body = codec.decode_body(record.encoding, payload, record.logical)
                is_fact = record.kind == layout.TYPE_FACT
                seq = facts.decode_fact(body).seq if is_fact else facts.decode_snapshot(body).seq
                if seq > floor or (seq == floor and not is_fact):
                    yield record, payload, seq


def facts_outweigh(shared: SharedStore) -> bool:
    """Tell whether more facts were written since the newest snapshot than rows are left."""
    with shared.environment.read() as tx:
        since = tx.number("seq") - tx.number("snapshot_seq")
        kept = sum(tx.count(table) for table in facts.FACT_TABLES)
    return since > max(kept, 1000)


def write_snapshot(shared: SharedStore) -> None:
    """Write all rows that facts carry as a new snapshot; facts up to its seq are dead then."""
    with shared.environment.read() as tx:
        seq = tx.number("seq")
        kept = [(table, key, value) for table in facts.FACT_TABLES for key, value in tx.scan(table)]
    written: dict[int, PackWriter] = {}
    for body in facts.encode_snapshot(seq, time.time_ns(), kept):
        encoded = codec.encode_body(body)
        identity = records.object_id(layout.TYPE_SNAPSHOT, (), body)
        pack, _ = shared.own.append(
            layout.TYPE_SNAPSHOT, encoded.encoding, identity, len(body), (), encoded.payload
        )
        written[pack.number] = pack
    # ORDER: durable before the index says that older facts may go
    shared.own.sync(written.values())

    def register(tx: Transaction) -> None:
        for number, pack in written.items():
            row = tx.pack(number)
            if row is None or row.state == rows.DROPPED:
                return
            changed = replace(
                row, size=max(row.size, pack.synced), highest_fact=max(row.highest_fact, seq)
            )
            tx.put("packs", rows.pack_key(number), changed.encode())
        tx.set_number("snapshot_seq", seq)
        tx.put("meta", b"snapshot_packs", b"".join(rows.u64(number) for number in sorted(written)))

    shared.writer.run(register, facts=False)


def copy_facts(shared: SharedStore, numbers: Collection[int]) -> None:
    """Copy the facts above the newest snapshot out of packs that are to go, keeping their seq."""
    with shared.environment.read() as tx:
        floor = tx.number("snapshot_seq")
        sources = [row for number in numbers if (row := tx.pack(number)) is not None]
    written: dict[int, PackWriter] = {}
    highest = 0
    for source in sources:
        if source.highest_fact <= floor:
            continue
        for record, payload, seq in _needed(shared, source.uuid, floor):
            if record.kind == layout.TYPE_FACT:
                pack, _ = shared.own.append(
                    layout.TYPE_FACT, record.encoding, record.id, record.logical, (), payload
                )
                written[pack.number] = pack
                highest = max(highest, seq)
    if not written:
        return
    shared.own.sync(written.values())

    def register(tx: Transaction) -> None:
        for number, pack in written.items():
            row = tx.pack(number)
            if row is not None and row.state != rows.DROPPED:
                changed = replace(
                    row,
                    size=max(row.size, pack.synced),
                    highest_fact=max(row.highest_fact, highest),
                )
                tx.put("packs", rows.pack_key(number), changed.encode())

    shared.writer.run(register, facts=False)
