from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from casckpt import native


def ids_of(count: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(32) for _ in range(count)]


@given(st.lists(st.lists(st.integers(0, 300), max_size=50), max_size=10))
@settings(deadline=None)
def test_agrees_with_a_set(batches):
    mine, model = native.PrefixSet(), set()
    for batch in batches:
        ids = [number.to_bytes(8, "little") + bytes(24) for number in batch]  # 0 is a prefix too
        assert mine.add_many(b"".join(ids)) == len(set(ids) - model)
        model |= set(ids)
        assert len(mine) == len(model)
    everything = [number.to_bytes(8, "little") + bytes(24) for number in range(301)]
    assert list(mine.contains_many(b"".join(everything))) == [id_ in model for id_ in everything]


def test_grows_far_beyond_its_hint():
    ids = ids_of(50_000)
    mine = native.PrefixSet(10)
    for at in range(0, len(ids), 777):
        mine.add_many(b"".join(ids[at : at + 777]))
    assert len(mine) == 50_000
    assert mine.contains_many(b"".join(ids)) == b"\x01" * 50_000
    assert mine.contains_many(b"".join(ids_of(1000, 1))) == bytes(1000)


def test_hint_saves_growing_and_repeats_do_not_grow():
    mine = native.PrefixSet(1000)
    blob = b"".join(ids_of(1000))
    assert mine.add_many(blob) == 1000
    assert mine.add_many(blob) == 0


def test_single_ids():
    mine, (one, two) = native.PrefixSet(), ids_of(2)
    assert mine.add(one)
    assert not mine.add(one)
    assert one in mine
    assert two not in mine
    assert bytes(32) not in mine
    assert mine.add(bytes(32))
    assert bytes(32) in mine
    assert len(mine) == 2


def test_colliding_slots_are_probed():
    # Same low bits, so all want the same slot.
    ids = [(7 + (number << 40)).to_bytes(8, "little") + bytes(24) for number in range(2000)]
    mine = native.PrefixSet()
    assert mine.add_many(b"".join(ids)) == 2000
    assert mine.contains_many(b"".join(ids)) == b"\x01" * 2000


@pytest.mark.parametrize("size", [1, 31, 33, 63])
def test_broken_lengths_are_refused(size):
    mine = native.PrefixSet()
    for call in (mine.add_many, mine.contains_many, mine.add, mine.__contains__):
        with pytest.raises(ValueError):
            call(bytes(size))
    assert len(mine) == 0
