from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt import native
from casckpt.native import chunking, kernels, reference

GOLDEN = json.loads((Path(__file__).parents[2] / "vectors" / "cut_points.json").read_text())
SMALL = {"min_bytes": 64, "avg_bytes": 256, "max_bytes": 1024}
STREAMS = {
    "xof": native.derive_key("casckpt golden cut points", b"", 1 << 20),
    "text": b"".join(
        b"line %d of a file that repeats itself a little\n" % (i * i % 977) for i in range(8000)
    ),
    "zeros": bytes(200_000),
}


def stream(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


@cache
def reference_cuts(data: bytes, least: int, mean: int, most: int) -> list[int]:
    return reference.cut_points(data, min_bytes=least, avg_bytes=mean, max_bytes=most)


@pytest.mark.parametrize(
    "case", GOLDEN["cuts"], ids=lambda case: f"{case['stream']}-{case['avg_bytes']}"
)
def test_golden_cut_points_never_change(case, kernel):
    sizes = {name: case[name] for name in ("min_bytes", "avg_bytes", "max_bytes")}
    assert native.cut_points(STREAMS[case["stream"]], **sizes) == case["ends"]


def test_gear_table_is_derived_as_written():
    table = chunking.gear_table()
    assert table == reference.gear_table()
    assert [f"{word:016x}" for word in table[:4]] == GOLDEN["gear_first"]
    assert f"{table[-1]:016x}" == GOLDEN["gear_last"]


@pytest.mark.parametrize(
    "sizes",
    [
        (64, 256, 1024),
        (100, 512, 2000),
        (256, 256, 256),
        (65, 256, 300),
        (64, 1024, 4096),
        (2048, 2048, 30_000),
        (64, 8192, 9000),
        (64, 1 << 40, 1 << 41),
    ],
)
def test_cuts_equal_reference(sizes, kernel):
    names = dict(zip(("min_bytes", "avg_bytes", "max_bytes"), sizes, strict=True))
    for data in (stream(1, 12_000), bytes(3000), b"abcd" * 1500, stream(2, 63), b""):
        assert native.cut_points(data, **names) == reference_cuts(data, *sizes)


@given(st.binary(max_size=4000), st.lists(st.integers(0, 900), max_size=12))
@settings(max_examples=150, deadline=None)
def test_cuts_do_not_depend_on_the_pieces(data, sizes):
    whole = native.cut_points(data, **SMALL)
    chunker, ends, at = chunking.Chunker(64, 256, 1024), [], 0
    for size in [*sizes, len(data)]:
        ends += chunker.feed(data[at : at + size])
        at = min(at + size, len(data))
    assert ends + chunker.finish() == whole


@pytest.mark.parametrize("sizes", [(64, 1024, 8192), (4096, 4096, 100_000), (64, 16_384, 65_536)])
def test_kernels_cut_alike_wherever_the_input_begins_and_ends(sizes, kernel):
    names = dict(zip(("min_bytes", "avg_bytes", "max_bytes"), sizes, strict=True))
    data = stream(7, 300_000)
    for first in range(0, 40_000, 613):
        piece = memoryview(data)[first : len(data) - 3 * first]
        kernels.use("portable")
        expected = native.cut_points(piece, **names)
        kernels.use(kernel)
        assert native.cut_points(piece, **names) == expected, first


@pytest.mark.parametrize("piece", [1, 7, 64, 255, 4096])
def test_cuts_of_a_long_stream_fed_in_pieces(piece):
    data = stream(3, 60_000)
    chunker, ends = chunking.Chunker(64, 256, 1024), []
    for at in range(0, len(data), piece):
        ends += chunker.feed(data[at : at + piece])
    assert ends + chunker.finish() == native.cut_points(data, **SMALL)


def test_sizes_are_kept():
    ends = native.cut_points(stream(4, 2_000_000), min_bytes=2048, avg_bytes=8192, max_bytes=32_768)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert ends[-1] == 2_000_000
    assert all(2048 <= length <= 32_768 for length in lengths[:-1])
    assert 7000 < sum(lengths) / len(lengths) < 12_000
    assert sum(length == 32_768 for length in lengths) <= len(lengths) // 100


def test_no_data_has_no_chunks():
    assert native.cut_points(b"", **SMALL) == []
    assert chunking.Chunker(64, 256, 1024).finish() == []


@pytest.mark.parametrize("edit", [1, 17, 1000])
def test_an_insertion_moves_only_its_neighbourhood(edit):
    data = stream(5, 400_000)
    changed = data[:200_000] + stream(6, edit) + data[200_000:]
    sizes = {"min_bytes": 2048, "avg_bytes": 8192, "max_bytes": 32_768}

    def chunks(raw):
        ends = native.cut_points(raw, **sizes)
        return [raw[a:b] for a, b in zip([0, *ends], ends, strict=False)]

    kept = set(chunks(data))
    assert sum(len(chunk) for chunk in chunks(changed) if chunk not in kept) < 80_000


@pytest.mark.parametrize("value", range(256))
def test_constant_bytes_do_not_cut_early(value):
    # A table in which some byte's fixed point passes the test would cut runs of it at every
    # minimum.
    data = bytes([value]) * 70_000
    assert native.cut_points(data, min_bytes=2048, avg_bytes=8192, max_bytes=32_768) == [
        32_768,
        65_536,
        70_000,
    ]


@pytest.mark.parametrize(
    "sizes",
    [
        (63, 256, 1024),
        (64, 300, 1024),
        (64, 128, 1024),
        (512, 256, 1024),
        (64, 256, 255),
        (-1, 256, 1024),
        (64, 256, 2**62),
    ],
)
def test_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match="chunk sizes"):
        chunking.Chunker(*sizes)
