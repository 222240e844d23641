from __future__ import annotations

import mmap
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casckpt import native
from casckpt.native import reference

WIDTHS = pytest.mark.parametrize("width", [2, 4, 8])
ROTATE = pytest.mark.parametrize("rotate", [False, True])
LENGTHS = [*range(70), 127, 128, 255, 256, 257, 511, 1000, 1023, 1024, 4099]
ANY_KERNEL = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def data_of(length: int, seed: str = "") -> bytes:
    return random.Random(f"{length}{seed}").randbytes(length)


@WIDTHS
@ROTATE
def test_planes_equal_reference_and_come_back(width, rotate, kernel):
    for length in LENGTHS:
        src, out, back = data_of(length), bytearray(length), bytearray(length)
        native.split_planes(src, out, width, rotate)
        assert out == reference.split_planes(src, width, rotate), length
        native.join_planes(out, back, width, rotate)
        assert back == src, length


@WIDTHS
@ROTATE
def test_differences_equal_reference_and_come_back(width, rotate, kernel):
    for length in LENGTHS:
        src, base = data_of(length), data_of(length, "base")
        out, back = bytearray(length), bytearray(length)
        native.sub_split(src, base, out, width, rotate)
        assert out == reference.sub_split(src, base, width, rotate), length
        native.sub_join(out, base, back, width, rotate)
        assert back == src, length
        native.xor_split(src, base, out, width, rotate)
        assert out == reference.xor_split(src, base, width, rotate), length
        native.xor_join(out, base, back, width, rotate)
        assert back == src, length


@ANY_KERNEL
@given(pairs=st.binary(max_size=600), width=st.sampled_from([2, 4, 8]), rotate=st.booleans())
def test_any_bytes_come_back(pairs, width, rotate, kernel):
    half = len(pairs) // 2
    src, base = pairs[:half], pairs[half : 2 * half]
    out, back = bytearray(half), bytearray(half)
    native.sub_split(src, base, out, width, rotate)
    native.sub_join(out, base, back, width, rotate)
    assert back == src
    native.xor_split(src, base, out, width, rotate)
    native.xor_join(out, base, back, width, rotate)
    assert back == src


def test_large_unaligned_buffers(kernel):
    raw, other = data_of(1_000_003), data_of(1_000_003, "other")
    for shift in (0, 1, 3, 7):
        src, base = memoryview(raw)[shift:], memoryview(other)[shift:]
        out, back = bytearray(len(src)), bytearray(len(src))
        for width in (2, 4, 8):
            native.sub_split(src, base, out, width, True)
            native.sub_join(out, base, back, width, True)
            assert back == src


@WIDTHS
@pytest.mark.parametrize("spare", [0, 1])
def test_any_alignment_gives_the_same_bytes_and_nothing_beside_them(width, spare, kernel):
    length = 33 * width + spare
    raw, other = data_of(length + 32), data_of(length + 32, "other")
    for shift in range(33):
        src, base = raw[shift : shift + length], memoryview(other)[32 - shift :][:length]
        out, back = bytearray(b"\xaa" * (length + 64)), bytearray(b"\xaa" * (length + 64))
        placed, returned = memoryview(out)[shift:][:length], memoryview(back)[shift:][:length]
        native.sub_split(memoryview(raw)[shift:][:length], base, placed, width, True)
        assert placed == reference.sub_split(src, bytes(base), width, True), shift
        native.sub_join(placed, base, returned, width, True)
        assert returned == src, shift
        for buffer in (out, back):
            assert buffer[:shift] + buffer[shift + length :] == b"\xaa" * 64, shift


def test_rotation_makes_the_exponent_one_plane():
    # fp32: the top plane after rotation is the biased exponent, 127 for numbers in [1, 2), whatever
    # the sign.
    numbers = np.array([1.0, -1.5, 1.25, -1.75], dtype=np.float32)
    out = bytearray(16)
    native.split_planes(numbers, out, 4, True)
    assert out[:4] == bytes([127] * 4)


def test_small_differences_have_zero_top_planes():
    base = np.arange(1000, dtype=np.uint32) * 4099
    src = base + np.where(np.arange(1000) % 2, 3, 0).astype(np.uint32) - np.uint32(1)
    out = bytearray(4000)
    native.sub_split(src, base, out, 4, False)
    assert not any(out[:3000])


def test_special_numbers_come_back():
    src = np.array([np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 3.4e38], dtype=np.float32)
    base = src[::-1].copy()
    out, back = bytearray(32), np.zeros(8, dtype=np.float32)
    native.sub_split(src, base, out, 4, True)
    native.sub_join(out, base, back, 4, True)
    assert back.tobytes() == src.tobytes()


@pytest.mark.parametrize("width", [0, 1, 3, 16, -2])
def test_other_widths_are_refused(width):
    with pytest.raises(ValueError, match="width"):
        native.split_planes(bytes(16), bytearray(16), width, False)


def test_wrong_sizes_are_refused_and_nothing_is_written():
    out = bytearray(b"\xaa" * 15)
    with pytest.raises(ValueError, match="sizes"):
        native.split_planes(bytes(16), out, 4, False)
    with pytest.raises(ValueError, match="sizes"):
        native.sub_split(bytes(15), bytes(14), out, 4, False)
    assert out == b"\xaa" * 15


def test_shared_memory_is_refused():
    buffer = bytearray(64)
    with pytest.raises(ValueError, match="share"):
        native.split_planes(memoryview(buffer)[:32], memoryview(buffer)[16:48], 4, False)
    with pytest.raises(ValueError, match="share"):
        native.sub_split(bytes(64), buffer, buffer, 4, False)
    with pytest.raises(ValueError, match="share"):
        native.copy(buffer, buffer)


def test_read_only_destination_is_refused():
    with pytest.raises((ValueError, BufferError)):
        native.split_planes(bytes(16), bytes(16), 4, False)


@given(st.binary(max_size=3000))
@settings(deadline=None)
def test_statistics_equal_reference(data):
    assert native.histogram(data) == reference.histogram(data)
    assert native.is_constant(data) == reference.is_constant(data)
    assert native.entropy_bits(data) == pytest.approx(reference.entropy_bits(data), abs=1e-9)


def test_statistics_of_known_data():
    assert native.entropy_bits(bytes(range(256)) * 10) == pytest.approx(8.0)
    assert native.entropy_bits(b"") == 0.0
    assert native.entropy_bits(bytes(1000)) == 0.0
    assert native.is_constant(b"a" * 100_000)
    assert not native.is_constant(b"a" * 99_999 + b"b")
    assert not native.is_constant(b"b" + b"a" * 99_999)


def test_counts_of_more_bytes_than_a_round_of_32_bit_counters():
    length = (1 << 30) + 3
    # Never written to: all of it is one page of zeros.
    with mmap.mmap(-1, length, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ) as zeros:
        counts = native.histogram(zeros)
    assert counts[0] == length
    assert sum(counts) == length


def test_plane_histograms():
    out = bytearray(17)
    native.split_planes(bytes(range(17)), out, 4, False)
    first, *_, last = native.plane_histograms(out, 4, 4)
    assert [value for value in range(256) if first[value]] == [3, 7, 11, 15]
    assert [value for value in range(256) if last[value]] == [0, 4, 8, 12]
    with pytest.raises(ValueError, match="do not hold"):
        native.plane_histograms(out, 5, 4)


def test_copy_copies_and_refuses_another_length():
    dst = np.zeros(1000, dtype=np.float64)
    src = np.arange(1000, dtype=np.float64)
    native.copy(dst, src)
    assert (dst == src).all()
    with pytest.raises(ValueError, match="sizes"):
        native.copy(bytearray(3), b"1234")
