from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casckpt.errors import Corrupt
from casckpt.store import layout, lists, records


class Memory:
    """Keeps lists by id, as a store would."""

    def __init__(self) -> None:
        self.lists: dict[bytes, tuple[tuple[bytes, ...], bytes]] = {}

    def put(self, refs, body):
        identity = records.object_id(layout.TYPE_LIST, tuple(refs), body)
        self.lists[identity] = (tuple(refs), body)
        return identity

    def leaves(self, identity, length, depth=0):
        if identity not in self.lists:
            return [(identity, length)]
        refs, body = self.lists[identity]
        members = lists.decode_list(body, len(refs))
        assert sum(members.lengths) == length
        assert len(refs) <= layout.LIST_MAX_MEMBERS
        found = []
        for ref, size in zip(refs, members.lengths, strict=True):
            assert (ref in self.lists) == (members.level > 1)
            found += self.leaves(ref, size, depth + 1)
        return found


def ids(count: int, seed: int = 0) -> list[bytes]:
    source = random.Random(seed)
    return [source.randbytes(32) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 500, 4097, 20_000])
def test_build_names_every_chunk_in_order(count):
    memory = Memory()
    chunks = ids(count)
    lengths = [1 + index % 7 for index in range(count)]
    root = lists.build(chunks, lengths, memory.put)
    assert memory.leaves(root, sum(lengths)) == list(zip(chunks, lengths, strict=True))
    assert (root == chunks[0]) == (count == 1)


def test_a_blob_that_grew_or_changed_shares_almost_all_lists():
    chunks = ids(20_000)
    before, grown, changed = Memory(), Memory(), Memory()
    lists.build(chunks, [1] * len(chunks), before.put)
    more = chunks + ids(100, seed=1)
    lists.build(more, [1] * len(more), grown.put)
    other = [*chunks[:7000], os.urandom(32), *chunks[7000:]]
    lists.build(other, [1] * len(other), changed.put)
    for memory in (grown, changed):
        new = memory.lists.keys() - before.lists.keys()
        assert len(new) < 20
        assert len(memory.lists) > 500


def test_identical_chunks_still_end_lists():
    # No id of these ends a list by chance: the limit of 64 members does.
    same = [b"\xff" * 32] * 1000
    memory = Memory()
    root = lists.build(same, [5] * 1000, memory.put)
    assert len(memory.leaves(root, 5000)) == 1000


@given(st.integers(1, 8), st.lists(st.integers(0, 2**40), min_size=1, max_size=64))
def test_encoding_round_trip(level, lengths):
    if level == 1:
        lengths = [length % (layout.CHUNK_MAX_BYTES + 1) for length in lengths]
    body = lists.encode_list(level, lengths)
    members = lists.decode_list(body, len(lengths))
    assert (members.level, members.lengths) == (level, tuple(lengths))


@pytest.mark.parametrize(
    ("body", "refs"),
    [
        (b"", 0),
        (b"\x01\x00\x00\x00", 0),
        (lists.encode_list(1, []), 0),
        (lists.encode_list(0, [1]), 1),
        (lists.encode_list(9, [1]), 1),
        (lists.encode_list(1, [1, 2]), 1),
        (lists.encode_list(1, [1]) + b"x", 1),
        (lists.encode_list(1, [1])[:-1], 1),
        (lists.encode_list(1, [1] * 65), 65),
        (lists.encode_list(2, [2**62, 2**62]), 2),
    ],
)
def test_lists_beyond_the_format_are_corrupt(body, refs):
    with pytest.raises(Corrupt):
        lists.decode_list(body, refs)


def test_a_chunk_longer_than_chunks_can_be_is_corrupt():
    with pytest.raises(Corrupt):
        lists.decode_list(lists.encode_list(1, [layout.CHUNK_MAX_BYTES + 1]), 1)


@given(st.binary(max_size=200), st.integers(0, 70))
def test_any_bytes_decode_or_are_corrupt(body, refs):
    try:
        members = lists.decode_list(body, refs)
    except Corrupt:
        return
    assert len(members.lengths) == refs
