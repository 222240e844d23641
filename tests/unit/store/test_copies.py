"""Copies: what repair takes for an object that is damaged, and what it leaves alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from casckpt.store import Repository, codec, layout, lists, packs, records
from tests.unit.store.stores import MIB, check, find, flip, pack_files, save
from tests.unit.store.test_repairing import repair, verify


@pytest.fixture
def stored(path):
    """Return (path, checkpoint with a chunk and a list of three)."""
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(100_000), os.urandom(3 * MIB)], body=b"a manifest")
    return path, saved


def uuid_of(path: Path) -> bytes:
    with Repository.open(path, mode="r") as repository:
        return repository.uuid


def set_aside(path: Path, forged: list[tuple[int, int, bytes, int, tuple[bytes, ...], bytes]]):
    """Put a pack with these (kind, encoding, id, logical, refs, payload) where repair looks."""
    pack = os.urandom(16)
    out = bytearray(records.encode_pack_header(pack, uuid_of(path), os.urandom(16)))
    for kind, encoding, identity, logical, refs, payload in forged:
        out += records.encode_header(
            pack, len(out), kind, encoding, identity, logical, refs, len(payload),
            records.payload_check(payload),
        )  # fmt: skip
        out += payload
    (path / "quarantine" / f"{pack.hex()}.pack").write_bytes(out)


def damage(path: Path, identity: bytes) -> tuple[records.Record, bytes]:
    """Damage the record of an object; return what it was."""
    with Repository.open(path) as repository:
        shared = repository._shared()
        with shared.environment.read() as tx:
            row = tx.object(identity)
            uuid = tx.pack(row.pack).uuid
        with shared.packs.borrow(uuid) as file:
            record = packs.read_header(file.descriptor, file.path, uuid, row.offset)
            payload = packs.read_payload(file.descriptor, file.path, record)
    flip(packs.pack_path(path, uuid), row.offset + record.header_bytes)
    return record, payload


def wanted(saved, kind: str) -> bytes:
    return {
        "manifest": saved.manifest_id,
        "list": saved.infos[1].id,
        "chunk": saved.infos[0].id,
    }[kind]


@pytest.mark.parametrize("kind", ["chunk", "list", "manifest"])
def test_a_record_set_aside_is_a_copy_if_its_bytes_have_the_id(stored, kind):
    path, saved = stored
    identity = wanted(saved, kind)
    record, payload = damage(path, identity)
    set_aside(
        path,
        [(record.kind, record.encoding, identity, record.logical, record.refs, payload)],
    )
    report = repair(path)
    assert (report.refilled, report.lost) == ((identity,), ())
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        check(repository, saved)


@pytest.mark.parametrize("kind", ["chunk", "list", "manifest"])
def test_a_record_whose_bytes_have_another_id_is_no_copy(stored, kind):
    path, saved = stored
    identity = wanted(saved, kind)
    record, payload = damage(path, identity)
    other = {
        "chunk": bytes(len(payload)),
        "list": lists.encode_list(1, [MIB, MIB, MIB - 1]),
        "manifest": b"b manifest",
    }[kind]
    set_aside(
        path,
        [(record.kind, layout.ENCODING_RAW, identity, len(other), record.refs, other)],
    )
    report = repair(path)
    assert (report.refilled, report.lost) == ((), (identity,))


@pytest.mark.parametrize("what", ["of another store", "under another name", "noise"])
def test_packs_that_are_none_of_this_store_give_no_copies(stored, what):
    path, saved = stored
    identity = saved.infos[0].id
    (pack,) = pack_files(path)
    aside = path / "quarantine"
    if what == "under another name":
        shutil.copy(pack, aside / f"{os.urandom(16).hex()}.pack")
    elif what == "noise":
        (aside / f"{os.urandom(16).hex()}.pack").write_bytes(os.urandom(10_000))
    else:
        source = path.with_name("foreign")
        Repository.init(source)
        with Repository.open(source) as repository:
            save(repository, saved.data)
        (foreign,) = pack_files(source)
        shutil.copy(foreign, aside)
    flip(*find(path, saved.data[0][:64]))
    report = repair(path)
    assert (report.refilled, report.lost) == ((), (identity,))


def deltas_of_each_other() -> tuple[list[bytes], list[bytes], list[codec.Encoded]]:
    """Return two chunks, their ids, and each coded as a difference to the other."""
    one = b"1" + os.urandom(39_999)  # not 0: both are looked for by how they begin
    two = bytearray(one)
    two[::1000] = bytes(len(two[::1000]))
    data = [one, bytes(two)]
    ids = [records.object_id(layout.TYPE_CHUNK, (), piece) for piece in data]
    encoded = []
    for chunk, base in (data, data[::-1]):
        made = codec.encode_chunk(chunk, 4, "balanced", base)
        assert made.uses_base
        encoded.append(codec.Encoded(made.encoding, bytes(made.payload), True))
    return data, ids, encoded


@pytest.mark.parametrize("whole", [None, "one", "neither"])
def test_copies_that_rest_on_each_other_help_only_where_one_is_whole(path, whole):
    data, ids, encoded = deltas_of_each_other()
    with Repository.open(path) as repository:
        saved = save(repository, data)
    for piece in data[:1] if whole == "one" else data:
        flip(*find(path, piece[:64]))
    forged = [
        (layout.TYPE_CHUNK, made.encoding, identity, 40_000, (base,), bytes(made.payload))
        for made, identity, base in zip(encoded, ids, ids[::-1], strict=True)
    ]
    # Of "neither" one delta is there, and its base is nowhere.
    set_aside(path, forged[:1] if whole == "neither" else forged)
    report = repair(path)
    if whole == "one":
        assert (report.refilled, report.lost) == ((ids[0],), ())
        with Repository.open(path) as repository:
            check(repository, saved)
    else:
        assert report.refilled == ()
        assert set(report.lost) == set(ids)


def test_a_damaged_row_of_another_store_hides_only_what_it_names(stored, make_store):
    path, saved = stored
    source = make_store("source")
    with Repository.open(source) as repository:
        save(repository, saved.data)
        repository._shared().writer.run(
            lambda tx: tx.put("objects", saved.infos[0].id, b"short"), facts=False
        )
        for piece in saved.data:
            flip(*find(path, piece[:64]))
        with Repository.open(path) as damaged:
            report = damaged.repair(repository)
    assert report.lost == (saved.infos[0].id,)
    assert len(report.refilled) == 1


@pytest.mark.parametrize("had", [False, True])
def test_another_store_that_lacks_it_too_is_no_help(stored, make_store, had):
    path, saved = stored
    source = make_store("source")
    with Repository.open(source) as repository:
        save(repository, saved.data if had else [b"something else"])
    if had:
        flip(*find(source, saved.data[0][:64]))
        assert repair(source).lost == (saved.infos[0].id,)
    flip(*find(path, saved.data[0][:64]))
    report = repair(path, source)
    assert (report.refilled, report.lost) == ((), (saved.infos[0].id,))
