from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt import native
from casckpt.errors import Corrupt, NewerFormat
from casckpt.store import layout, records

PACK = bytes(range(16))
KINDS = st.sampled_from([*sorted(layout.TYPE_NAMES), 77])


def header(offset: int = 80, refs: tuple[bytes, ...] = (b"r" * 32,), **changes: int) -> bytes:
    fields = {"kind": layout.TYPE_MANIFEST, "encoding": 1, "logical": 1000, "stored": 500} | changes
    return records.encode_header(
        PACK,
        offset,
        fields["kind"],
        fields["encoding"],
        b"i" * 32,
        fields["logical"],
        refs,
        fields["stored"],
        b"c" * 16,
    )


@given(
    KINDS,
    st.integers(0, 255),
    st.integers(0, 2**40),
    st.integers(0, layout.CHUNK_MAX_BYTES),
    st.integers(0, layout.CHUNK_MAX_BYTES),
    st.lists(st.binary(min_size=32, max_size=32), max_size=5),
)
def test_header_round_trip(kind, encoding, offset, logical, stored, refs):
    refs = refs[:1] if kind == layout.TYPE_CHUNK else refs
    data = header(offset, tuple(refs), kind=kind, encoding=encoding, logical=logical, stored=stored)
    record = records.decode_header(data, PACK, offset)
    assert (record.kind, record.encoding, record.logical, record.stored) == (
        kind,
        encoding,
        logical,
        stored,
    )
    assert (record.id, record.refs, record.payload_check) == (b"i" * 32, tuple(refs), b"c" * 16)
    assert record.header_bytes == len(data) == records.header_length(data)
    assert record.total_bytes == len(data) + stored


def test_every_flipped_bit_of_a_header_is_noticed():
    data = header()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            records.decode_header(damaged, PACK, 80)


def test_a_header_is_valid_only_where_it_was_written():
    data = header(80)
    with pytest.raises(Corrupt):
        records.decode_header(data, PACK, 81)
    with pytest.raises(Corrupt):
        records.decode_header(data, os.urandom(16), 80)


@pytest.mark.parametrize("length", [0, 8, 79, 80, 111, 127])
def test_a_cut_header_is_corrupt(length):
    with pytest.raises(Corrupt):
        records.decode_header(header()[:length], PACK, 80)


def test_lengths_beyond_the_format_are_refused():
    with pytest.raises(Corrupt, match="beyond"):
        records.decode_header(
            header(kind=layout.TYPE_CHUNK, logical=layout.CHUNK_MAX_BYTES + 1), PACK, 80
        )
    with pytest.raises(Corrupt, match="beyond"):
        records.decode_header(header(stored=layout.BODY_MAX_BYTES + 5000), PACK, 80)
    too_many = bytearray(header())
    too_many[12:16] = (layout.REFS_MAX + 1).to_bytes(4, "little")
    with pytest.raises(Corrupt, match="refs"):
        records.header_length(too_many)


def test_a_newer_record_version_is_no_damage():
    data = bytearray(header())
    data[8] = 2
    head = bytes(data[:-16])
    key = PACK + (80).to_bytes(8, "little") + bytes(8)
    from casckpt import native

    with pytest.raises(NewerFormat):
        records.decode_header(head + native.keyed(key, head, out_len=16), PACK, 80)


@settings(max_examples=200)
@given(st.binary(max_size=400))
def test_any_bytes_are_no_header(data):
    with pytest.raises(Corrupt):
        records.decode_header(data, PACK, 0)
    with pytest.raises(Corrupt):
        records.decode_header(layout.RECORD_MAGIC + data, PACK, 0)


@pytest.mark.parametrize("encoding", [layout.ENCODING_RAW, layout.ENCODING_PLANES])
@pytest.mark.parametrize("plain_check", [True, False])
def test_payload_check_sees_every_flipped_bit(encoding, plain_check):
    payload = os.urandom(40)
    identity = records.object_id(layout.TYPE_CHUNK, (), payload)
    check = records.check_of(layout.TYPE_CHUNK, encoding, identity, payload)
    if plain_check:
        check = records.payload_check(payload)  # valid for raw chunks too
    data = records.encode_header(PACK, 80, layout.TYPE_CHUNK, encoding, identity, 40, (), 40, check)
    record = records.decode_header(data, PACK, 80)
    records.check_payload(record, payload)
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt, match="chunk"):
            records.check_payload(record, damaged)
    with pytest.raises(Corrupt):
        records.check_payload(record, payload[:-1])


def test_pack_header_round_trip_and_damage():
    data = records.encode_pack_header(b"p" * 16, b"s" * 16, b"e" * 16)
    assert len(data) == layout.PACK_HEADER_BYTES
    assert records.decode_pack_header(data) == (b"p" * 16, b"s" * 16, b"e" * 16)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            records.decode_pack_header(damaged)
    with pytest.raises(Corrupt):
        records.decode_pack_header(data[:79])


def test_ids_differ_by_kind_and_by_refs():
    body = b"the same bytes"
    kinds = [layout.TYPE_LIST, layout.TYPE_MANIFEST, layout.TYPE_FACT, layout.TYPE_SNAPSHOT]
    ids = {records.object_id(kind, (), body) for kind in [layout.TYPE_CHUNK, *kinds]}
    assert len(ids) == 5
    assert records.object_id(layout.TYPE_LIST, (b"r" * 32,), body) not in ids
    # How a chunk is stored is not what it is: its base is left out of its id.
    chunk = records.object_id(layout.TYPE_CHUNK, (), body)
    assert records.object_id(layout.TYPE_CHUNK, (b"b" * 32,), body) == chunk
    # Refs and body are told apart by the count in front.
    joined = records.object_id(layout.TYPE_LIST, (), b"r" * 32 + body)
    assert records.object_id(layout.TYPE_LIST, (b"r" * 32,), body) != joined


def test_a_chunk_has_one_base_at_most():
    for count in (0, 1):
        data = header(kind=layout.TYPE_CHUNK, refs=(b"r" * 32,) * count)
        assert len(records.decode_header(data, PACK, 80).refs) == count
    with pytest.raises(Corrupt, match="bases"):
        records.decode_header(header(kind=layout.TYPE_CHUNK, refs=(b"r" * 32,) * 2), PACK, 80)


@given(st.lists(st.tuples(st.binary(max_size=60), st.binary(max_size=90)), max_size=8))
def test_the_hashes_of_rows_add_up_in_one_call(pairs):
    one_by_one = sum(records.row_hash("cache", key, value) for key, value in pairs)
    assert records.row_hash_sum("cache", pairs) == one_by_one


def test_a_whole_pack_header_of_something_else_or_of_a_newer_version():
    """The check holds, so these bytes are what somebody wrote."""

    def forged(at: int, value: bytes) -> bytes:
        head = bytearray(records.encode_pack_header(b"p" * 16, b"s" * 16, b"e" * 16)[:64])
        head[at : at + len(value)] = value
        return bytes(head) + native.blake3(head, out_len=16)

    magic = len(layout.PACK_MAGIC)
    with pytest.raises(Corrupt, match="bad pack header\nthe magic bytes are missing"):
        records.decode_pack_header(forged(0, b"X"))
    with pytest.raises(NewerFormat, match="a pack of a newer version"):
        records.decode_pack_header(forged(magic, bytes([layout.FORMAT_VERSION + 1])))
