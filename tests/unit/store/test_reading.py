from __future__ import annotations

import os
import random
import time

import pytest

from casckpt.errors import CasckptError, Corrupt, Deleted
from casckpt.store import (
    BlobRead,
    Repository,
    StoreOptions,
    codec,
    files,
    layout,
    lists,
    packs,
    records,
    rows,
)
from tests.unit.store.stores import MIB, check, find, flip, pack_files, read, save


def damage(repository, needle: bytes, within: int = 0) -> None:
    file, at = find(repository.path, needle)
    flip(file, at + within)


@pytest.mark.parametrize("opaque", [False, True])
def test_partial_reads_at_any_offset(repository, opaque):
    data = os.urandom(3 * MIB + 12_345)
    (info,) = save(repository, [data], opaque=opaque).infos
    source = random.Random(1)
    places = [(0, 0), (len(data), 0), (0, len(data)), (MIB - 1, 2), (MIB, MIB), (len(data) - 1, 1)]
    for _ in range(30):
        start = source.randrange(len(data))
        places.append((start, source.randrange(len(data) - start)))
    for start, length in places:
        assert read(repository, info, start, length) == data[start : start + length]


def test_a_blob_of_more_than_64_chunks_is_read_through_lists_of_lists(repository):
    source = random.Random(2)
    data = source.randbytes(MIB) * 3 + bytes(70 * MIB)
    (info,) = save(repository, [data]).infos
    assert read(repository, info) == data
    assert read(repository, info, 3 * MIB - 10, 20) == data[3 * MIB - 10 : 3 * MIB + 10]
    many = source.randbytes(5 * MIB)
    (opaque,) = save(repository, [many], opaque=True, step=2).infos
    assert read(repository, opaque) == many
    assert read(repository, opaque, 4_000_000, 999) == many[4_000_000:4_000_999]
    with repository._shared().environment.read() as tx:
        kinds = [value[0] for _, value in tx.scan("objects")]
    assert kinds.count(layout.TYPE_LIST) > 4


def test_many_blobs_at_once(repository):
    data = [os.urandom(n * 37) for n in range(700)]
    saved = save(repository, data)
    dests = [bytearray(len(piece)) for piece in data]
    repository.read_blobs(
        [
            BlobRead(info.id, info.length, 0, dest)
            for info, dest in zip(saved.infos, dests, strict=True)
        ]
    )
    assert dests == data


def test_asking_beyond_a_blob_is_refused(repository):
    (info,) = save(repository, [b"0123456789"]).infos
    for offset, length in ((5, 6), (11, 0), (-1, 2)):
        with pytest.raises(Corrupt, match="shorter"):
            repository.read_blobs([BlobRead(info.id, 10, offset, bytearray(length))])
    # A length that is not the blob's: what the manifest says and what is stored disagree.
    with pytest.raises(Corrupt):
        repository.read_blobs([BlobRead(info.id, 11, 0, bytearray(11))])


# ---- damage


def test_a_flipped_bit_names_the_blob_and_spares_the_others(repository):
    data = [os.urandom(100_000) for _ in range(4)]
    saved = save(repository, data)
    damage(repository, data[2][:64], 50)
    dests = [bytearray(100_000) for _ in data]
    with pytest.raises(Corrupt) as caught:
        repository.read_blobs(
            [
                BlobRead(info.id, info.length, 0, dest)
                for info, dest in zip(saved.infos, dests, strict=True)
            ]
        )
    assert caught.value.blob_ids == frozenset({saved.infos[2].id})
    assert caught.value.exit_code == 13
    for number in (0, 1, 3):
        assert dests[number] == data[number]
        assert read(repository, saved.infos[number]) == data[number]


def test_damage_in_one_chunk_leaves_partial_reads_of_the_others(repository):
    data = os.urandom(4 * MIB)
    (info,) = save(repository, [data]).infos
    damage(repository, data[2 * MIB : 2 * MIB + 64])
    assert read(repository, info, 0, 2 * MIB) == data[: 2 * MIB]
    assert read(repository, info, 3 * MIB, 100) == data[3 * MIB : 3 * MIB + 100]
    with pytest.raises(Corrupt) as caught:
        read(repository, info, 2 * MIB + 7, 1)
    assert caught.value.blob_ids == frozenset({info.id})


def test_every_byte_of_a_record_is_covered(repository):
    data = os.urandom(40)
    (info,) = save(repository, [data]).infos
    file, at = find(repository.path, data)
    for offset in range(at - 96, at + 40):
        flip(file, offset, 0x10)
        with pytest.raises(Corrupt):
            read(repository, info)
        flip(file, offset, 0x10)
    assert read(repository, info) == data


def test_an_encoded_chunk_that_is_damaged_is_corrupt_never_wrong(repository):
    data = (b"\x00\x00\x80\x3f\x00\x00\x00\x40" * 30_000)[:200_000]
    (info,) = save(repository, [data]).infos
    file = pack_files(repository.path)[-1]
    with repository._shared().environment.read() as tx:
        row = tx.object(info.id)
    assert row.encoding == layout.ENCODING_PLANES
    for within in range(row.stored):
        flip(file, row.offset + 96 + within)
        with pytest.raises(Corrupt):
            read(repository, info)
        flip(file, row.offset + 96 + within)
    assert read(repository, info) == data


def test_a_damaged_list_or_manifest_is_corrupt(repository):
    saved = save(repository, [os.urandom(2 * MIB)], body=b"a manifest that is easy to find")
    damage(repository, b"a manifest that is easy to find")
    with pytest.raises(Corrupt):
        repository.read_manifest(saved.manifest_id)
    with repository._shared().environment.read() as tx:
        row = tx.object(saved.infos[0].id)
    assert row.kind == layout.TYPE_LIST
    flip(pack_files(repository.path)[-1], row.offset + 96 + 64 + 3)
    with pytest.raises(Corrupt) as caught:
        read(repository, saved.infos[0])
    assert caught.value.blob_ids == frozenset({saved.infos[0].id})


def test_half_a_record_is_corrupt(repository):
    data = os.urandom(100_000)
    (info,) = save(repository, [data]).infos
    file, at = find(repository.path, data)
    os.truncate(file, at + 50_000)
    with pytest.raises(Corrupt):
        read(repository, info)


def test_a_missing_pack_is_named(path):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(1000)])
    (file,) = pack_files(path)
    file.unlink()
    with Repository.open(path) as repository:
        with pytest.raises(Corrupt, match=file.name):
            repository.read_manifest(saved.manifest_id)
        with pytest.raises(Corrupt, match=file.name) as caught:
            read(repository, saved.infos[0])
        assert caught.value.blob_ids == frozenset({saved.infos[0].id})


def test_another_stores_pack_under_the_name_is_not_read(path, make_store):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x" * 1000])
    other = make_store("other")
    with Repository.open(other) as repository:
        save(repository, [b"x" * 1000])
    (file,), (foreign,) = pack_files(path), pack_files(other)
    file.write_bytes(foreign.read_bytes())
    with Repository.open(path) as repository, pytest.raises(Corrupt):
        read(repository, saved.infos[0])


def test_a_bad_sector_is_damage_of_the_blobs_on_it(repository):
    import errno

    data = [os.urandom(1000), os.urandom(1000)]
    saved = save(repository, data)
    whole = os.preadv

    def bad_sector(descriptor, buffers, offset):
        result = whole(descriptor, buffers, offset)
        if bytes(buffers[0][:16]) == data[0][:16]:
            raise OSError(errno.EIO, "bad sector")
        return result

    os.preadv = bad_sector
    try:
        with pytest.raises(Corrupt) as caught:
            read(repository, saved.infos[0])
    finally:
        os.preadv = whole
    assert caught.value.blob_ids == frozenset({saved.infos[0].id})


def test_what_was_never_stored_is_deleted_not_corrupt(repository):
    with pytest.raises(Deleted):
        repository.read_manifest(bytes(32))
    with pytest.raises(Deleted):
        repository.read_blobs([BlobRead(bytes(32), 10, 0, bytearray(10))])
    with pytest.raises(Deleted):
        repository.read_blobs([BlobRead(bytes(32), 1 << 30, 0, bytearray(10))])


def test_an_object_of_another_kind_is_corrupt(repository):
    saved = save(repository, [b"chunk"])
    with pytest.raises(Corrupt, match="is a chunk"):
        repository.read_manifest(saved.infos[0].id)
    with pytest.raises(CasckptError):
        repository.read_blobs([BlobRead(saved.manifest_id, 5, 0, bytearray(5))])


def test_without_verify_encoded_chunks_are_still_decoded(repository):
    data = [bytes(100_000), os.urandom(100_000)]
    saved = save(repository, data)
    dests = [bytearray(100_000), bytearray(100_000)]
    repository.read_blobs(
        [
            BlobRead(info.id, info.length, 0, dest)
            for info, dest in zip(saved.infos, dests, strict=True)
        ],
        verify=False,
    )
    assert dests == data


def test_a_record_that_moved_meanwhile_is_found_at_its_new_place(repository, monkeypatch):
    """As when a collector copies a record and drops its pack between look-up and read."""
    data = os.urandom(1000)
    (info,) = save(repository, [data]).infos
    shared = repository._shared()
    shared.own.seal_all()
    pack, record = shared.own.append(
        layout.TYPE_CHUNK, layout.ENCODING_RAW, info.id, len(data), (), data
    )
    shared.own.sync([pack])
    whole = packs.PackFiles.borrow

    def moved(self, uuid):
        if uuid == pack.uuid:
            return whole(self, uuid)
        from dataclasses import replace

        def repoint(tx):
            row = replace(tx.object(info.id), pack=pack.number, offset=record.offset)
            tx.put("objects", info.id, row.encode())

        shared.writer.run(repoint, facts=False)
        raise FileNotFoundError

    monkeypatch.setattr(packs.PackFiles, "borrow", moved)
    assert read(repository, info) == data


def test_reading_needs_no_file_but_index_and_packs(path):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(1000)])
    with Repository.open(path, mode="r") as repository:
        opened: list[str] = []
        files.set_crash_hook(lambda name, where: opened.append(where) if name == "open" else None)
        check(repository, saved)
        assert {name.rsplit(".", 1)[1] for name in opened} == {"pack"}


def test_large_chunks_are_decoded_one_at_a_time_in_memory_that_is_not_kept(path, monkeypatch):
    monkeypatch.setattr(layout, "GRID_BYTES", 3 * MIB)
    data = [os.urandom(3 * MIB) for _ in range(4)]
    inside, most, decode = [], [], codec.decode_chunk

    def watched(*arguments) -> None:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.02)
        decode(*arguments)
        inside.pop()

    with Repository.open(path, options=StoreOptions(level="fast", workers=4)) as repository:
        save(repository, data)
        monkeypatch.setattr(codec, "decode_chunk", watched)
        assert repository.verify("bytes").damaged == ()
    assert len(most) == len(data)
    assert max(most) == 1
    one = codec.scratch("test", 3 * MIB)
    assert codec.scratch("test", 3 * MIB).obj is not one.obj


def test_large_chunks_are_restored_too(repository, monkeypatch):
    monkeypatch.setattr(layout, "GRID_BYTES", 3 * MIB)
    saved = save(repository, [os.urandom(3 * MIB), bytes(5 * MIB)], level="fast")
    check(repository, saved)


def test_lists_that_contradict_the_blob_or_have_no_end_are_corrupt(repository):
    """As a forged manifest or index may have them: the read ends, with words."""
    data = os.urandom(3 * MIB)
    (info,) = save(repository, [data]).infos
    for length in (info.length - 1, info.length + 1):
        with pytest.raises(Corrupt, match="its members have"):
            repository.read_blobs([BlobRead(info.id, length, 0, bytearray(length))])
    shared = repository._shared()
    body = lists.encode_list(2, [info.length])
    length, inner = info.length, info.id
    for _ in range(layout.LIST_MAX_LEVELS + 2):
        identity = records.object_id(layout.TYPE_LIST, (inner,), body)
        pack, record = shared.own.append(
            layout.TYPE_LIST, layout.ENCODING_RAW, identity, len(body), (inner,), body
        )
        shared.own.sync([pack])
        row = rows.ObjectRow(
            layout.TYPE_LIST,
            record.encoding,
            0,
            1,
            pack.number,
            record.offset,
            record.stored,
            len(body),
            b"",
        )
        shared.writer.run(
            lambda tx, key=identity, row=row: tx.put("objects", key, row.encode()), facts=False
        )
        inner = identity
    with pytest.raises(Corrupt, match="nested too deep"):
        repository.read_blobs([BlobRead(inner, length, 0, bytearray(length))])
