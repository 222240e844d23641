from __future__ import annotations

import contextlib
import os
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt import native
from casckpt.errors import Corrupt, NewerFormat
from casckpt.store import codec, layout

ITEM_SIZES = (1, 2, 4, 8, 16)


def round_trip(data: bytes, item_size: int, level: str, base: bytes | None = None) -> codec.Encoded:
    encoded = codec.encode_chunk(data, item_size, level, base)
    assert len(encoded.payload) <= len(data)
    out = bytearray(len(data))
    codec.decode_chunk(
        encoded.encoding,
        bytes(encoded.payload),
        memoryview(out),
        base if encoded.uses_base else None,
    )
    assert out == data
    return encoded


@pytest.mark.parametrize("level", codec.LEVELS)
@pytest.mark.parametrize("item_size", ITEM_SIZES)
@pytest.mark.parametrize("length", [0, 1, 3, 7, 15, 16, 17, 4096, 100_003])
def test_round_trip_of_every_item_size_level_and_kind_of_bytes(level, item_size, length):
    weights = np.random.default_rng(length).normal(0, 0.02, length // 4 + 1).astype("<f4")
    for data in (bytes(length), os.urandom(length), weights.tobytes()[:length], b"ab" * length):
        round_trip(data[:length], item_size, level)


@pytest.mark.parametrize(
    ("bits", "item_size"),
    [
        (struct.pack("<I", 0x7FC00001), 4),
        (struct.pack("<I", 0xFF800001), 4),
        (struct.pack("<I", 0x80000000), 4),
        (struct.pack("<Q", 0xFFF8DEADBEEF0001), 8),
        (struct.pack("<H", 0x7FC1), 2),
        (struct.pack("<H", 0xFFFF), 2),
    ],
)
def test_nan_payloads_and_signed_zeros_come_back_bit_for_bit(bits, item_size):
    noise = os.urandom(item_size * 3)
    for level in codec.LEVELS:
        round_trip(bits * 5000 + noise + bits * 5000, item_size, level)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=3000), st.sampled_from(ITEM_SIZES), st.sampled_from(codec.LEVELS))
def test_round_trip_of_any_bytes(data, item_size, level):
    round_trip(data, item_size, level)


@pytest.mark.parametrize("item_size", [2, 4, 8])
def test_a_near_base_makes_a_chunk_small(item_size):
    kind = {2: "<u2", 4: "<f4", 8: "<f8"}[item_size]
    old = (np.random.default_rng(1).normal(0, 1, 50_000) * 1000).astype(kind)
    new = old.copy()
    new[::100] = new[::100] + 1
    plain = round_trip(new.tobytes(), item_size, "balanced")
    encoded = round_trip(new.tobytes(), item_size, "balanced", old.tobytes())
    assert encoded.uses_base
    assert len(encoded.payload) < len(plain.payload) / 3
    with pytest.raises(Corrupt, match="base"):
        codec.decode_chunk(
            encoded.encoding, encoded.payload, memoryview(bytearray(len(old) * item_size))
        )
    with pytest.raises(Corrupt, match="base"):
        codec.decode_chunk(
            encoded.encoding,
            encoded.payload,
            memoryview(bytearray(len(old) * item_size)),
            old.tobytes()[:-1],
        )


def test_weights_take_planes_and_noise_stays_raw():
    weights = np.random.default_rng(0).normal(0, 0.02, 250_000).astype("<f4").tobytes()
    assert round_trip(weights, 4, "balanced").encoding == layout.ENCODING_PLANES
    assert len(round_trip(weights, 4, "balanced").payload) < 0.9 * len(weights)
    assert round_trip(os.urandom(1 << 20), 4, "balanced").encoding == layout.ENCODING_RAW
    assert round_trip(b"text " * 5000, 1, "balanced").encoding == layout.ENCODING_ZSTD


def methods(encoded: codec.Encoded, length: int) -> list[int]:
    assert encoded.encoding == layout.ENCODING_PLANES
    return [plane.method for plane in native.parse_planes(encoded.payload, length)[1]]


def test_each_plane_gets_the_method_that_suits_it():
    count = 100_000
    numbers = np.random.default_rng(2)
    weights = abs(numbers.normal(0, 0.02, count)).astype("<f4")
    weights.view("<u4")[:] &= 0xFFFFFF80  # with the sign, this is the lowest plane
    data = weights.tobytes()
    for level in ("balanced", "small"):
        encoded = round_trip(data, 4, level)
        assert methods(encoded, len(data))[0] == native.PLANE_ENTROPY
        assert methods(encoded, len(data))[2:] == [native.PLANE_RAW, native.PLANE_CONSTANT]
    # Rows of zeros between rows of noise: the order matters, which zstd can use.
    rows = numbers.normal(0, 0.02, (100, 1000)).astype("<f4")
    rows[np.arange(100) % 10 != 0] = 0
    encoded = round_trip(rows.tobytes(), 4, "balanced")
    assert set(methods(encoded, rows.nbytes)) == {native.PLANE_ZSTD}
    assert len(encoded.payload) < 0.12 * rows.nbytes


def test_planes_in_which_hardly_anything_changes_are_left_to_zstd():
    random = np.random.default_rng(5)
    old = random.integers(0, 2**32, 1 << 16, dtype=np.uint32)
    new = old + random.integers(0, 3000, len(old), dtype=np.uint32)
    new[::400] += random.integers(0, 1 << 24, len(new[::400]), dtype=np.uint32)
    new[::40] += random.integers(0, 1 << 10, len(new[::40]), dtype=np.uint32) << 14
    sizes = {}
    for level in ("balanced", "small"):
        encoded = codec.encode_chunk(new.tobytes(), 4, level, old.tobytes())
        sizes[level] = len(encoded.payload)
        back = memoryview(bytearray(new.nbytes))
        codec.decode_chunk(encoded.encoding, encoded.payload, back, old.tobytes())
        assert back == new.tobytes()
        assert methods(encoded, new.nbytes)[2] == native.PLANE_ENTROPY
        if level == "balanced":
            assert methods(encoded, new.nbytes)[0] == native.PLANE_ZSTD
    assert sizes["small"] <= sizes["balanced"] < 1.03 * sizes["small"]


def test_level_fast_writes_bytes_as_they_are():
    data = (np.arange(100_000) % 7 + 0.5).astype("<f4").tobytes()
    for base in (None, data):
        encoded = codec.encode_chunk(data, 4, "fast", base)
        assert (encoded.encoding, encoded.uses_base) == (layout.ENCODING_RAW, False)
        assert encoded.payload is data


def test_coded_planes_are_close_to_their_entropy():
    weights = np.random.default_rng(3).normal(0, 0.02, 262_144).astype("<f4")
    old, new = weights.tobytes(), (weights + weights * np.float32(1e-5)).tobytes()
    planes = bytearray(len(new))
    native.sub_split(new, old, planes, 4, True)
    count = len(new) // 4
    limit = sum(native.entropy_bits(planes[p * count : (p + 1) * count]) for p in range(4)) / 32
    encoded = round_trip(new, 4, "balanced", old)
    assert len(encoded.payload) < 1.01 * limit * len(new) + 2000


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 255), st.integers(0, 2))
def test_damaged_entropy_streams_are_corrupt_or_newer_and_write_nowhere_else(where, bits, cut):
    weights = np.random.default_rng(4).normal(0, 0.02, 4000).astype("<f4").tobytes()
    encoded = codec.encode_chunk(weights, 4, "balanced")
    assert native.PLANE_ENTROPY in methods(encoded, len(weights))
    payload = bytearray(encoded.payload)
    payload[where % len(payload)] ^= bits
    decode_guarded(encoded.encoding, bytes(payload[: len(payload) - cut]), len(weights), None)


def decode_guarded(encoding: int, payload: bytes, length: int, base: bytes | None) -> None:
    """Decode into the middle of a buffer; whatever happens, its edges stay as they were."""
    guard = b"\xa5" * 64
    buffer = bytearray(guard + bytes(length) + guard)
    with contextlib.suppress(Corrupt, NewerFormat):
        codec.decode_chunk(encoding, payload, memoryview(buffer)[64 : 64 + length], base)
    assert buffer[:64] == guard
    assert buffer[64 + length :] == guard


@settings(max_examples=400, deadline=None)
@given(
    st.integers(0, 5),
    st.binary(max_size=200),
    st.integers(0, 300),
    st.none() | st.binary(max_size=300),
)
def test_hostile_payloads_are_corrupt_or_newer_and_write_nowhere_else(
    encoding, payload, length, base
):
    decode_guarded(encoding, payload, length, base)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_planes_are_corrupt_or_newer_and_write_nowhere_else(data):
    item_size = data.draw(st.sampled_from([2, 4, 8]))
    length = data.draw(st.integers(4 * item_size, 600))
    source = (b"\x01\x02\x03\x00" * 200)[:length]
    base = source if data.draw(st.booleans()) else None
    encoded = codec.encode_chunk(source, item_size, "balanced", base)
    payload = bytearray(encoded.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(payload) - 1, 0)))
        what = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if what == "flip" and payload:
            payload[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut":
            del payload[at:]
        else:
            payload[at:at] = data.draw(st.binary(max_size=9))
    decode_guarded(encoded.encoding, bytes(payload), length, base)


def test_a_zstd_frame_of_another_length_is_refused_before_it_is_unpacked():
    import zstandard

    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    with pytest.raises(Corrupt, match="another length"):
        codec.decode_chunk(layout.ENCODING_ZSTD, bomb, memoryview(bytearray(100)))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100))
    with pytest.raises(Corrupt):
        codec.decode_chunk(layout.ENCODING_ZSTD, unsized, memoryview(bytearray(100)))


def test_what_a_newer_version_wrote_is_named_so():
    out = memoryview(bytearray(16))
    for encoding, payload in ((9, b""), (layout.ENCODING_PLANES, b"\x09\x84" + bytes(40))):
        with pytest.raises(NewerFormat):
            codec.decode_chunk(encoding, payload, out)
    with pytest.raises(NewerFormat):
        codec.decode_body(layout.ENCODING_PLANES, b"", 0)
    method = b"\x00\x84" + struct.pack("<BI", 7, 0) * 4
    with pytest.raises(NewerFormat):
        codec.decode_chunk(layout.ENCODING_PLANES, method, out)


@given(st.binary(max_size=2000))
def test_bodies_round_trip(body):
    for data in (body, body * 5):
        encoded = codec.encode_body(data)
        assert codec.decode_body(encoded.encoding, encoded.payload, len(data)) == data
        with pytest.raises(Corrupt):
            codec.decode_body(encoded.encoding, encoded.payload, len(data) + 1)


def test_pieces_tell_whether_zstd_may_win():
    draw = np.random.default_rng(3)
    independent = memoryview(np.minimum(draw.geometric(0.7, 500_000), 255).astype(np.uint8))
    rows = np.repeat(draw.geometric(0.7, (2000, 25)).astype(np.uint8), 10, axis=0)
    repeated = memoryview(rows.reshape(-1))
    for plane, wins in ((independent, False), (repeated, True)):
        counts = np.bincount(plane) / len(plane)
        entropy = -sum(share * np.log2(share) for share in counts if share) / 8
        packed = codec._compressor("plane").compress(plane)
        assert (len(packed) < entropy * len(plane)) == wins
        assert codec._may_win(plane, entropy) == wins
        # Too short for pieces to take less time than the whole.
        assert codec._may_win(plane[: 60 << 10], entropy)


def test_a_body_that_swells_beyond_measure_is_refused_and_never_written():
    bomb = bytes(64 * layout.MIB)
    assert codec.encode_body(bomb).encoding == layout.ENCODING_RAW
    packed = zstandard.compress(bomb)
    with pytest.raises(Corrupt, match="swell"):
        codec.decode_body(layout.ENCODING_ZSTD, packed, len(bomb))


@pytest.mark.parametrize("with_base", [False, True])
def test_chunks_longer_than_any_that_is_cut_come_back(with_base):
    draw = np.random.default_rng(1)
    steps = np.repeat(draw.normal(0, 1, 800).astype("<f4"), 1000)
    base = (steps + np.float32(1e-3)).tobytes() if with_base else None
    assert codec.is_large(steps.nbytes)
    encoded = round_trip(steps.tobytes(), 4, "small", base)
    _, infos = native.parse_planes(encoded.payload, steps.nbytes)
    assert any(info.method == native.PLANE_ZSTD for info in infos)
