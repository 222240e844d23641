"""Records that move to other packs: which rows follow, and what stays where it is."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from casckpt.store import Repository, codec, collectors, compaction, layout, records, rows
from casckpt.store.packs import pack_path
from tests.unit.store.stores import MIB, check, flip, read, save


@pytest.fixture
def half_dead(path):
    """Return (path, a checkpoint, the pack where only its first blob is alive, offsets there)."""
    data, dead = os.urandom(5000), os.urandom(MIB)
    with Repository.open(path) as repository:
        gone = save(repository, [data, dead], run="gone")
    with Repository.open(path) as repository:
        # Its own pack is mostly alive, and is not rewritten.
        kept = save(repository, [data, os.urandom(MIB)], run="kept")
        repository.bury([("gone", gone.seq, b"\x01payload")])
        with repository._shared().environment.read() as tx:
            pack = pack_path(path, tx.pack(tx.object(kept.infos[0].id).pack).uuid)
            places = [tx.object(info.id).offset for info in gone.infos]
    return path, kept, pack, places


def test_a_record_that_cannot_be_read_stays_in_its_pack(half_dead):
    path, kept, pack, (offset, _) = half_dead
    flip(pack, offset + records.OVERHEAD_BYTES + 9)
    with Repository.open(path) as repository:
        repository.gc(now=True)
        assert pack.exists()
        (damage,) = repository.verify("bytes").damaged
        assert (damage.pack, damage.id) == (pack.name, kept.infos[0].id)
    flip(pack, offset + records.OVERHEAD_BYTES + 9)
    with Repository.open(path) as repository:
        check(repository, kept)
        assert repository.gc(now=True).freed_bytes > MIB
        assert not pack.exists()
        check(repository, kept)


def test_a_row_that_names_another_record_is_not_followed(half_dead):
    path, kept, pack, (offset, dead) = half_dead
    identity = kept.infos[0].id

    def name(place: int):
        def change(tx) -> None:
            tx.put("objects", identity, replace(tx.object(identity), offset=place).encode())

        return change

    with Repository.open(path) as repository:
        writer = repository._shared().writer
        writer.run(name(dead), facts=False)
        repository.gc(now=True)
        assert pack.exists()
        with repository._shared().environment.read() as tx:
            assert tx.object(identity).offset == dead
        writer.run(name(offset), facts=False)
        check(repository, kept)
        repository.gc(now=True)
        assert not pack.exists()
        check(repository, kept)


@pytest.mark.parametrize(
    ("case", "moves"),
    [
        ("all as it was", True),
        ("the base is gone", False),
        ("the base rests on it", False),
        ("the chain is too long", False),
        ("the row has moved", False),
        ("the row is gone", False),
        ("the new pack was dropped", False),
        ("the new pack is gone", False),
    ],
)
def test_a_row_names_the_new_record_only_if_nothing_came_between(repository, case, moves):
    one = os.urandom(40_000)
    two = bytearray(one)
    two[::1000] = bytes(len(two[::1000]))
    saved = save(repository, [one, bytes(two)])
    base, identity = (info.id for info in saved.infos)
    shared = repository._shared()
    run = collectors.begin_run(shared)
    encoded = codec.encode_chunk(two, 4, "balanced", one)
    assert encoded.uses_base
    with shared.environment.read() as tx:
        old, below = tx.object(identity), tx.object(base)
    pack, record = shared.own.append(
        layout.TYPE_CHUNK, encoded.encoding, identity, len(two), (base,), encoded.payload
    )
    move = compaction.Move(old, pack, record)

    def come_between(tx) -> None:
        if case == "the base is gone":
            tx.delete("objects", base)
        elif case == "the base rests on it":
            tx.put("objects", base, replace(below, base=identity, depth=1).encode())
        elif case == "the row has moved":
            tx.put("objects", identity, replace(old, offset=old.offset + 1).encode())
        elif case == "the row is gone":
            tx.delete("objects", identity)
        elif case == "the new pack was dropped":
            dropped = replace(tx.pack(pack.number), state=rows.DROPPED)
            tx.put("packs", rows.pack_key(pack.number), dropped.encode())
        elif case == "the new pack is gone":
            tx.delete("packs", rows.pack_key(pack.number))

    shared.writer.run(come_between, facts=False)
    with shared.environment.read() as tx:
        before = tx.get("objects", identity)
    longest = 0 if case == "the chain is too long" else layout.CHAIN_MAX_LINKS
    done = compaction.publish(shared, run, [move], longest)
    assert done == ([move] if moves else [])
    with shared.environment.read() as tx:
        after = tx.object(identity)
        if moves:
            assert (after.pack, after.offset) == (pack.number, record.offset)
            assert (after.base, after.depth) == (base, 1)
        else:
            assert tx.get("objects", identity) == before
    if moves or case == "the chain is too long":
        assert read(repository, saved.infos[1]) == two
