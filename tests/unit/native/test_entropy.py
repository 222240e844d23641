from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from casckpt import native
from casckpt.native import kernels, reference, reference_entropy

VECTORS = Path(__file__).resolve().parents[2] / "vectors" / "entropy.json"
ANY_KERNEL = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
LENGTHS = [1, 2, 31, 32, 33, 63, 64, 65, 100, 1000, 4096, 5003]


def drawn(length: int, skew: float, seed: int = 0, values: int = 256) -> bytes:
    """Return independent draws: the higher `skew`, the fewer values matter."""
    weights = [(i + 1) ** -skew for i in range(values)]
    return bytes(random.Random(f"{length}{skew}{seed}").choices(range(values), weights, k=length))


def decode(stream: bytes, length: int) -> bytes:
    out = bytearray(length)
    native.entropy_decode(stream, out)
    return bytes(out)


@pytest.mark.parametrize("skew", [0.0, 0.7, 1.5, 3.0, 6.0])
def test_streams_are_those_of_the_reference(skew, kernel):
    for length in LENGTHS:
        data = drawn(length, skew)
        stream = native.entropy_encode(data)
        bits, frequencies, head = reference_entropy.read_head(stream)
        assert stream[head:] == reference_entropy.entropy_encode(data, bits, frequencies), length
        assert reference_entropy.entropy_decode(stream, length) == data, length
        assert decode(stream, length) == data, length


def test_constant_and_two_valued_data_come_back(kernel):
    for data in (bytes(1000), b"\xff" * 77, b"\x00\x01" * 500, b"\x07" * 999 + b"\x09", b"a", b""):
        stream = native.entropy_encode(data)
        assert decode(stream, len(data)) == data
        assert reference_entropy.entropy_decode(stream, len(data)) == data


def test_every_share_of_the_commonest_value(kernel):
    # The number of bits, and with it the table's layout, changes at a half and at three quarters.
    for permille in (*range(440, 1001, 7), 499, 500, 501, 749, 750, 751, 998, 999):
        for others in (1, 2, 255):
            common = permille * 8
            rest = bytes(1 + i % others for i in range(8000 - common))
            data = bytearray(bytes(common) + rest)
            random.Random(permille).shuffle(data)
            stream = native.entropy_encode(data)
            assert decode(stream, len(data)) == data, (permille, others)
    assert reference_entropy.entropy_decode(stream, len(data)) == data


@ANY_KERNEL
@given(st.binary(max_size=3000))
def test_any_bytes_come_back(kernel, data):
    stream = native.entropy_encode(data)
    assert decode(stream, len(data)) == data


@ANY_KERNEL
@given(st.data())
def test_a_damaged_stream_is_refused_or_read_as_the_reference_reads_it(kernel, data):
    length = data.draw(st.integers(1, 400))
    stream = bytearray(native.entropy_encode(drawn(length, data.draw(st.floats(0, 6)))))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(stream) - 1))
        what = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if what == "flip":
            stream[at] ^= data.draw(st.integers(1, 255))
        elif what == "cut" and at > 0:
            del stream[at:]
        else:
            stream[at:at] = data.draw(st.binary(min_size=1, max_size=5))
    length += data.draw(st.integers(0, 40))
    try:
        expected = reference_entropy.entropy_decode(bytes(stream), length)
    except ValueError:
        with pytest.raises(ValueError, match="entropy"):
            decode(bytes(stream), length)
    else:
        assert decode(bytes(stream), length) == expected


@ANY_KERNEL
@given(st.binary(max_size=700), st.integers(0, 300))
def test_any_bytes_may_be_taken_for_a_stream(kernel, stream, length):
    guard = b"\xa5" * 64
    out = bytearray(guard + bytes(length) + guard)
    try:
        native.entropy_decode(stream, memoryview(out)[64 : 64 + length])
    except ValueError:
        pass
    else:
        assert reference_entropy.entropy_decode(stream, length) == out[64 : 64 + length]
    assert out[:64] == guard
    assert out[64 + length :] == guard


@pytest.mark.parametrize("skew", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0])
def test_streams_are_within_a_percent_of_the_entropy(skew):
    data = drawn(1 << 18, skew)
    entropy_bytes = native.entropy_bits(data) * len(data) / 8
    head_and_states = 513 + 128
    assert len(native.entropy_encode(data)) <= 1.01 * entropy_bytes + head_and_states


def test_shared_memory_is_refused():
    buffer = bytearray(2000)
    with pytest.raises(ValueError, match="share"):
        native.entropy_decode(memoryview(buffer)[:1000], memoryview(buffer)[500:1500])


def test_pinned_streams(kernel):
    vectors = json.loads(VECTORS.read_text(encoding="utf-8"))
    for case in vectors["cases"]:
        data = bytes.fromhex(case["data"]) * case["repeat"]
        stream = bytes.fromhex(case["stream"])
        assert native.entropy_encode(data) == stream
        assert decode(stream, len(data)) == data
        assert reference_entropy.entropy_decode(stream, len(data)) == data


@pytest.mark.parametrize("width", [2, 4, 8])
@pytest.mark.parametrize("predictor", ["none", "sub", "xor"])
def test_planes_are_joined_from_where_they_are(width, predictor, kernel):
    for length in (0, 1, width, 7 * width + 1, 4099, 100_003):
        src, base = (
            random.Random(length).randbytes(length),
            random.Random(-length).randbytes(length),
        )
        if predictor == "none":
            split = reference.split_planes(src, width, True)
        else:
            split_against = getattr(reference, f"{predictor}_split")
            split = split_against(src, base, width, True)
        count = length // width
        # Each plane is a copy of its own, in reverse order in memory.
        planes = [bytes(split[p * count : (p + 1) * count]) for p in reversed(range(width))][::-1]
        out, tail = bytearray(length), bytes(split[count * width :])
        if predictor == "none":
            native.join_planes_from(planes, tail, out, width, True)
        elif predictor == "sub":
            native.sub_join_from(planes, tail, base, out, width, True)
        else:
            native.xor_join_from(planes, tail, base, out, width, True)
        assert out == src


def test_planes_of_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="plane"):
        native.join_planes_from([bytes(4)] * 3, b"", bytearray(16), 4, True)
    with pytest.raises(ValueError, match="plane"):
        native.join_planes_from([bytes(3)] * 4, b"", bytearray(16), 4, True)
    with pytest.raises(ValueError, match="sizes"):
        native.join_planes_from([bytes(4)] * 4, b"x", bytearray(16), 4, True)
    out = bytearray(16)
    with pytest.raises(ValueError, match="share"):
        native.join_planes_from([memoryview(out)[:4]] * 4, b"", out, 4, True)


def test_equal_compares_content_and_length():
    assert native.equal(b"", b"")
    assert native.equal(b"ab" * 1000, bytearray(b"ab" * 1000))
    assert not native.equal(b"ab", b"ac")
    assert not native.equal(b"ab", b"abc")


@pytest.mark.parametrize("width", [2, 4, 8])
def test_chunks_come_back_and_say_what_became_of_their_planes(width, kernel):
    kind = {2: "<u2", 4: "<f4", 8: "<f8"}[width]
    numbers = np.random.default_rng(1).normal(0, 1, 50_000) * 1000
    old = numbers.astype(kind).tobytes() + b"x"
    new = (numbers + (numbers > 1500)).astype(kind).tobytes() + b"y"
    best = kernels.active()
    for base in (None, old):
        for predictor in ("sub", "xor"):
            out, scratch = bytearray(len(new) + 2048), bytearray(len(new))
            length, planes = native.encode_planes(
                new, base, width, out, scratch, predictor=predictor, keep_below=0.97
            )
            payload = bytes(out[:length])
            assert native.parse_planes(payload, len(new))[1] == [
                p._replace(bits=0.0, is_structured=False) for p in planes
            ]
            back = bytearray(len(new))
            native.decode_planes(payload, base, back, scratch)
            assert back == new
            assert length < len(new)
            kernels.use("portable")
            assert native.encode_planes(
                new, base, width, out, scratch, predictor=predictor, keep_below=0.97
            ) == (length, planes)
            assert out[:length] == payload
            kernels.use(best)


def test_planes_with_runs_or_repeats_are_called_structured():
    noise = drawn(1 << 17, 1.0)
    rows = b"".join(bytes(1500) if i % 8 else drawn(1500, 0.5, i) for i in range(88))[: 1 << 17]
    text = drawn(5000, 1.0) * 27
    for plane, structured in ((noise, False), (rows, True), (text[: 1 << 17], True)):
        chunk = bytearray(2 * len(plane))
        native.join_planes_from([plane, noise[: len(plane)]], b"", chunk, 2, True)
        out, scratch = bytearray(len(chunk) + 2048), bytearray(len(chunk))
        _, planes = native.encode_planes(chunk, None, 2, out, scratch)
        assert planes[0].is_structured == structured
        assert planes[0].bits == pytest.approx(shannon(plane), abs=0.5)


def test_planes_with_hardly_any_entropy_are_left_raw(kernel):
    mute = bytearray(1 << 17)
    mute[5000::2000] = drawn(len(mute[5000::2000]), 1.0)
    loud = drawn(1 << 17, 1.0)
    chunk = bytearray(2 << 17)
    native.join_planes_from([mute, loud], b"", chunk, 2, True)
    out, scratch = bytearray(len(chunk) + 2048), bytearray(len(chunk))
    length, planes = native.encode_planes(chunk, None, 2, out, scratch, leave_bits=0.2)
    assert planes[0].bits < 0.2 < planes[1].bits
    assert (planes[0].method, planes[0].length) == (native.PLANE_RAW, len(mute))
    assert planes[0].is_structured
    assert planes[1].method == native.PLANE_ENTROPY
    back = bytearray(len(chunk))
    native.decode_planes(bytes(out[:length]), None, back, scratch)
    assert back == chunk
    _, planes = native.encode_planes(chunk, None, 2, out, scratch, leave_bits=0.0)
    assert planes[0].method == native.PLANE_ENTROPY


def test_values_that_occur_only_where_none_was_counted_are_coded(kernel):
    """Frequencies are of a part of a long plane: what only the rest has must be found there."""
    length = (1 << 17) + 13
    common = bytes(16 + byte % 8 for byte in drawn(length, 1.0))
    places = random.Random(1)
    out, scratch = bytearray(2 * length + 2048), bytearray(2 * length)
    for value in range(256):
        plane = bytearray(common)
        for at in (places.randrange(length), length - 1 - value % 40):
            plane[at] = value
        chunk, back = bytearray(2 * length), bytearray(2 * length)
        native.join_planes_from([plane, plane[::-1]], b"", chunk, 2, True)
        used, planes = native.encode_planes(chunk, None, 2, out, scratch)
        assert [plane.method for plane in planes] == [native.PLANE_ENTROPY] * 2
        native.decode_planes(bytes(out[:used]), None, back, scratch)
        assert back == chunk, value


def shannon(data: bytes) -> float:
    return -sum(n / len(data) * math.log2(n / len(data)) for n in Counter(data).values())


@pytest.mark.parametrize("width", [2, 4, 8])
def test_estimates_are_the_entropy_of_the_planes(width, kernel):
    scratch = bytearray(native.SAMPLES_BYTES)
    for length in (0, 3, 4 * width, 5003, 65_536, 65_537, 1 << 20):
        src, base = drawn(length, 1.0, 1), drawn(length, 1.0, 2)
        planes, count = bytearray(length), length // width
        expected = []
        native.split_planes(src, planes, width, True)
        expected.append(mean_bits(planes, count, width))
        native.sub_split(src, base, planes, width, True)
        expected.append(mean_bits(planes, count, width))
        assert native.delta_estimate(src, base, width, scratch) == pytest.approx(expected, abs=0.05)
    with pytest.raises(ValueError, match="sizes"):
        native.delta_estimate(bytes(8), bytes(9), width, scratch)


def mean_bits(planes: bytearray, count: int, width: int) -> float:
    return sum(
        native.entropy_bits(planes[p * count : (p + 1) * count]) / width for p in range(width)
    )


def test_zstd_planes_are_the_callers():
    plane = bytes(100)
    payload = b"\x00\x82" + b"\x02\x03\x00\x00\x00zzz" + b"\x01\x01\x00\x00\x00\x07"
    out, scratch = bytearray(200), bytearray(200)
    with pytest.raises(ValueError, match="missing"):
        native.decode_planes(payload, None, out, scratch)
    with pytest.raises(ValueError, match="plane 0"):
        native.decode_planes(payload, None, out, scratch, {0: bytes(99)})
    native.decode_planes(payload, None, out, scratch, {0: plane})
    expected = bytearray(200)
    native.join_planes_from([plane, b"\x07" * 100], b"", expected, 2, True)
    assert out == expected
