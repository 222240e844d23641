from __future__ import annotations

import json
import pickle
import random
import struct
from array import array
from pathlib import Path

import blake3 as independent
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casckpt import native
from casckpt.native import reference

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "blake3.json").read_text())
# Around each place where the tree or the vector width changes: blocks, chunks, groups of 4/8/16/256
# chunks.
EDGES = sorted(
    {
        max(0, count * 1024 + delta)
        for count in (
            0,
            1,
            2,
            3,
            4,
            5,
            7,
            8,
            9,
            15,
            16,
            17,
            31,
            33,
            64,
            65,
            255,
            256,
            257,
            512,
            769,
            1024,
        )
        for delta in (-1024, -65, -64, -1, 0, 1, 63, 64, 65)
    }
)
CONTEXT = native.IdContext("casckpt test ids")


def random_bytes(length: int, seed: int = 0) -> bytes:
    return random.Random(f"{length} {seed}").randbytes(length)


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: str(case["input_len"]))
def test_published_vectors(case, kernel):
    data = bytes(i % 251 for i in range(case["input_len"]))
    key, context = VECTORS["key"].encode(), VECTORS["context_string"]
    assert native.blake3(data, out_len=131).hex() == case["hash"]
    assert native.keyed(key, data, 131).hex() == case["keyed_hash"]
    assert native.derive_key(context, data, 131).hex() == case["derive_key"]
    for length in (0, 1, 31, 32, 33, 64, 65, 128):
        assert native.blake3(data, out_len=length).hex() == case["hash"][: 2 * length]


@pytest.mark.parametrize("length", [0, 1, 64, 65, 1024, 1025, 3073, 8192])
def test_reference_matches_vectors(length):
    case = next(case for case in VECTORS["cases"] if case["input_len"] == length)
    data = bytes(i % 251 for i in range(length))
    assert reference.blake3(data, 131).hex() == case["hash"]
    assert reference.keyed(VECTORS["key"].encode(), data, 131).hex() == case["keyed_hash"]
    assert reference.derive_key(VECTORS["context_string"], data, 131).hex() == case["derive_key"]


def test_agrees_with_independent_package_at_every_edge(kernel):
    for length in EDGES:
        data = random_bytes(length)
        assert native.blake3(data) == independent.blake3(data).digest(), length


def test_agrees_with_independent_package_at_random_lengths(kernel):
    lengths = random.Random(7)
    for _ in range(60):
        data = random_bytes(lengths.randrange(3_000_000 if _ % 10 == 0 else 40_000))
        assert native.blake3(data) == independent.blake3(data).digest(), len(data)


def test_unaligned_input(kernel):
    data = random_bytes(70_000)
    for shift in range(1, 17):
        view = memoryview(data)[shift:]
        assert native.blake3(view) == independent.blake3(view).digest()


@pytest.mark.parametrize("seed", range(12))
def test_streaming_is_the_same_whatever_the_pieces(seed, kernel):
    pieces = random.Random(seed)
    data = random_bytes(pieces.choice([3000, 65_536, 262_144, 786_432, 1_000_003]), seed)
    hasher, at = native.Hasher(), 0
    while at < len(data):
        size = pieces.choice([0, 1, 63, 64, 65, 1023, 1024, 1025, 4096, 65_536, 262_144])
        hasher.update(data[at : at + size])
        at = min(at + size, len(data))
        if pieces.random() < 0.05:
            assert hasher.digest() == independent.blake3(data[:at]).digest()
    assert hasher.digest(100) == independent.blake3(data).digest(100)


@given(st.binary(max_size=3000), st.integers(0, 200))
@settings(max_examples=60, deadline=None)
def test_hash_equals_reference(data, out_len):
    assert native.blake3(data, out_len=out_len) == reference.blake3(data, out_len)


def test_hasher_modes():
    key = bytes(range(32))
    assert native.Hasher(key=key).update(b"ab").digest() == native.keyed(key, b"ab")
    assert native.Hasher(context="c").update(b"ab").digest() == native.derive_key("c", b"ab")
    assert independent.blake3(b"ab", derive_key_context="c").digest() == native.derive_key(
        "c", b"ab"
    )
    with pytest.raises(ValueError, match="not both"):
        native.Hasher(key=key, context="c")
    with pytest.raises(ValueError, match="32 bytes"):
        native.Hasher(key=b"short")
    with pytest.raises(ValueError, match="negative"):
        native.blake3(b"", out_len=-1)


def test_hashing_a_grid_is_hashing_each_piece(kernel):
    data = random_bytes(200_001)
    for piece in (1000, 1024, 1025, 4096, 5000, 65_536, 65_537, 100_000, 200_001, 300_000):
        expected = [data[at : at + piece] for at in range(0, len(data), piece)]
        assert CONTEXT.hash_grid(data, piece) == b"".join(map(CONTEXT.hash, expected))
    assert CONTEXT.hash_grid(b"", 4096) == b""
    with pytest.raises(ValueError, match="positive"):
        CONTEXT.hash_grid(data, 0)


def test_many_small_and_large_inputs_in_one_call(kernel):
    sizes = random.Random(5)
    for _ in range(12):
        inputs = [
            random_bytes(
                sizes.choice(
                    [
                        0,
                        1,
                        64,
                        1000,
                        1024,
                        1025,
                        2048,
                        3000,
                        8000,
                        33_000,
                        65_536,
                        65_537,
                        90_000,
                        sizes.randrange(20_000),
                    ]
                )
            )
            for _ in range(sizes.randrange(60))
        ]
        expected = [
            independent.blake3(data, derive_key_context=CONTEXT.context).digest() for data in inputs
        ]
        assert CONTEXT.hash_many(inputs) == expected
        ends = [sum(map(len, inputs[: i + 1])) for i in range(len(inputs))]
        joined = b"".join(inputs)
        assert CONTEXT.hash_pieces(joined, ends) == b"".join(expected)
        assert CONTEXT.hash_pieces(joined, np.array(ends, dtype=np.uint64)) == b"".join(expected)
        assert CONTEXT.hash_parts(*inputs) == CONTEXT.hash(joined)


def test_pieces_outside_the_data_are_refused():
    for ends in ([5, 4], [11], [0, 3, 2]):
        with pytest.raises(ValueError, match="sizes"):
            CONTEXT.hash_pieces(bytes(10), ends)
    with pytest.raises(ValueError, match="64-bit"):
        CONTEXT.hash_pieces(bytes(10), b"1234567")
    assert CONTEXT.hash_pieces(bytes(10), array("Q", [10])) == CONTEXT.hash(bytes(10))


def test_context_pickles_and_separates():
    assert pickle.loads(pickle.dumps(CONTEXT)).hash(b"x") == CONTEXT.hash(b"x")
    assert native.IdContext("other").hash(b"x") != CONTEXT.hash(b"x")


@pytest.mark.parametrize(
    "make",
    [
        bytes,
        bytearray,
        memoryview,
        lambda raw: np.frombuffer(raw, np.float32),
        lambda raw: array("d", struct.unpack("<8d", raw)),
    ],
)
def test_any_contiguous_buffer(make):
    raw = random_bytes(64)
    assert native.blake3(make(raw)) == independent.blake3(raw).digest()


def test_buffers_that_cannot_be_read_are_refused():
    with pytest.raises((ValueError, BufferError)):
        native.blake3(np.zeros((4, 4))[:, ::2])
    with pytest.raises(TypeError):
        native.blake3("text")  # type: ignore[arg-type]


@pytest.mark.parametrize("length", [0, 1, 131_071, 131_072, 131_073, 400_000])
def test_equal_and_hash(length, kernel):
    a = random_bytes(length)
    assert native.equal_and_hash(CONTEXT, a, bytearray(a)) == (True, CONTEXT.hash(a))
    assert native.equal_and_hash(CONTEXT, a, a + b"x") == (False, CONTEXT.hash(a))
    for at in {0, length // 2, length - 1} if length else ():
        other = bytearray(a)
        other[at] ^= 1
        assert native.equal_and_hash(CONTEXT, a, other) == (False, CONTEXT.hash(a))


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(sizes=st.lists(st.integers(0, 70_000), max_size=40))
def test_pieces_of_any_sizes(sizes, kernel):
    data = random_bytes(sum(sizes))
    ends, total, expected = [], 0, []
    for size in sizes:
        expected.append(CONTEXT.hash(data[total : total + size]))
        total += size
        ends.append(total)
    assert CONTEXT.hash_pieces(data, ends) == b"".join(expected)
