"""Cutting blobs, and finding what each chunk may be coded against."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt.store import cutting, layout, records

KIB = 1024


def chunks(cuts: list[cutting.Cut]) -> list[tuple[bytes, int]]:
    return [(records.chunk_context().hash(cut.view), len(cut.view)) for cut in cuts]


def cut(data: bytes, base=(), edges=(), **how) -> list[cutting.Cut]:
    how = {"opaque": True, **how}
    cuts = list(cutting.cut(cutting.BlobSource([data], edges=edges, **how), base))
    assert b"".join(cut.view for cut in cuts) == data
    assert all(0 < len(cut.view) <= layout.CHUNK_MAX_BYTES for cut in cuts) or not data
    for one, (identity, _) in zip(cuts, chunks(cuts), strict=True):
        assert one.id in (None, identity)
    return cuts


class Booster:
    """Bytes that grow between a head and a tail, which change every time."""

    def __init__(self, seed: int, part_bytes: int = 4 * KIB) -> None:
        self.source = random.Random(seed)
        self.part_bytes = part_bytes
        self.parts: list[bytes] = []

    def grow(self, count: int) -> tuple[bytes, list[int]]:
        for _ in range(count):
            size = self.source.randrange(self.part_bytes // 2, 2 * self.part_bytes)
            self.parts.append(self.source.randbytes(size))
        head, tail = os.urandom(8 * len(self.parts)), os.urandom(300)
        edges = [len(head)]
        for part in self.parts:
            edges.append(edges[-1] + len(part))
        return head + b"".join(self.parts) + tail, edges


def test_what_has_grown_keeps_all_chunks_and_adds_one():
    booster = Booster(1)
    data, edges = booster.grow(10)
    before = cut(data, edges=edges)
    for _ in range(20):
        data, edges = booster.grow(10)
        known = dict(chunks(before))
        now = cut(data, chunks(before), edges)
        new = [one for one in now if one.id not in known]
        # The head, the tail and the new parts.
        assert len(new) == 3
        assert [len(one.view) for one in new] == [
            edges[0],
            edges[-1] - edges[-11],
            len(data) - edges[-1],
        ]
        assert all(one.base in known for one in new)
        assert all(one.base is None for one in now if one not in new)
        # The new parts are coded against the last ones, not against the tail behind those.
        assert known[new[1].base] > 10 * KIB
        before = now


def test_a_short_end_is_begun_again_until_it_is_worth_a_chunk():
    booster = Booster(2, part_bytes=KIB)
    base, sizes = (), []
    for _ in range(60):
        data, edges = booster.grow(1)
        cuts = cut(data, base, edges)
        base = chunks(cuts)
        sizes = [len(one.view) for one in cuts[1:-1]]
        assert all(size >= 16 * KIB for size in sizes[:-1])
    assert len(sizes) == sum(map(len, booster.parts)) // (16 * KIB) + 1


def test_parts_of_any_size_make_chunks_of_a_bounded_one():
    data = os.urandom(9 * layout.MIB)
    edges = [100, 5 * layout.MIB, 5 * layout.MIB + 10, 6 * layout.MIB]
    cuts = cut(data, edges=edges)
    assert max(len(one.view) for one in cuts) <= layout.MIB
    ends = {sum(len(one.view) for one in cuts[:count]) for count in range(len(cuts) + 1)}
    assert {100, 5 * layout.MIB, 6 * layout.MIB} <= ends


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_any_edges_and_any_base_give_the_bytes_back(data):
    blob = data.draw(st.binary(min_size=1, max_size=500)) * data.draw(st.integers(1, 300))
    places = st.lists(st.integers(0, len(blob)), max_size=20, unique=True).map(sorted)
    base = cut(blob, edges=data.draw(places))
    edited = blob[: data.draw(st.integers(0, len(blob)))] + data.draw(st.binary(max_size=50)) + blob
    edges = data.draw(st.lists(st.integers(0, len(edited)), max_size=20, unique=True).map(sorted))
    cut(edited, chunks(base), edges)


def test_an_edit_in_the_middle_is_coded_against_what_stood_there():
    data = os.urandom(500_000)
    before = cut(data)
    edited = data[:250_000] + b"more" + data[250_000:]
    now = cut(edited, chunks(before))
    known = dict(chunks(before))
    new = [index for index, one in enumerate(now) if one.id not in known]
    assert 1 <= len(new) <= 3
    for index in new:
        start = sum(len(one.view) for one in now[:index])
        base_at = [identity for identity, _ in chunks(before)].index(now[index].base)
        base_start = sum(len(one.view) for one in before[:base_at])
        assert abs(start - base_start) <= 64 * KIB


@pytest.mark.parametrize("length", [1, layout.MIB, layout.MIB + 1, 3 * layout.MIB])
def test_arrays_lie_on_the_grid(length):
    sizes = [len(one.view) for one in cut(bytes(length), opaque=False, item_size=4)]
    assert sizes[:-1] == [layout.GRID_BYTES] * (len(sizes) - 1)


def test_no_bytes_are_one_empty_chunk():
    for edges in ((), [0], [0, 0]):
        assert [bytes(one.view) for one in cut(b"", edges=edges)] == [b""]
