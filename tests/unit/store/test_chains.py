"""The plan of base edges: what may stand on what."""

from __future__ import annotations

from casckpt.store.chains import Chains
from casckpt.store.columns import base_of


def _chains(longest: int, **edges: str) -> Chains:
    chains = Chains(longest)
    for name, base in edges.items():
        assert chains.move(name.encode(), base.encode())
    return chains


def test_a_chain_may_be_turned_round_from_its_root():
    chains = _chains(3, b="a", c="b")
    assert not chains.fits(b"b", b"c")  # c still stands on it
    assert chains.move(b"c", b"")
    assert chains.move(b"b", b"c")
    assert chains.move(b"a", b"b")
    assert [chains.depth(name) for name in (b"a", b"b", b"c")] == [2, 1, 0]


def test_nothing_may_stand_on_itself():
    chains = _chains(3, b="a")
    assert not chains.move(b"a", b"a")
    assert not chains.move(b"a", b"b")
    assert chains.depth(b"a") == 0


def test_no_chain_becomes_too_long_neither_its_own_nor_one_above():
    chains = _chains(3, c="b", d="c", y="x")
    assert chains.depth(b"d") == 2
    assert not chains.move(b"b", b"y")  # d would have 4 links below it
    assert chains.move(b"b", b"x")
    assert chains.depth(b"d") == 3
    assert not chains.move(b"e", b"d")


def test_a_plan_can_be_taken_back():
    chains = _chains(3, b="a")
    assert chains.move(b"b", b"c")
    chains.put_back(b"b", b"a")
    assert chains.move(b"c", b"b")
    assert chains.depth(b"c") == 2


def test_a_base_is_left_by_the_last_that_stands_on_it():
    chains = _chains(3, b="a", c="a", d="x", x="a")
    needed = {b"b", b"c", b"d"}
    assert chains.move(b"b", b"")
    assert not chains.is_left(b"a", {b"b"}, needed)  # c stands on it, and d over x
    assert chains.move(b"c", b"")
    assert not chains.is_left(b"a", {b"b"}, needed)
    assert chains.move(b"d", b"c")
    assert not chains.is_left(b"a", {b"b"}, needed)  # c and d may still be put back
    assert not chains.is_left(b"a", {b"c"}, needed)
    chains.settle([b"b"], [])
    assert chains.is_left(b"a", {b"c", b"d"}, needed)
    chains.put_back(b"c", b"a")
    chains.settle([b"d"], [])
    assert not chains.is_left(b"a", {b"d"}, needed)
    assert chains.is_left(b"x", (), needed)
    chains.settle([], [b"x"])
    assert not chains.is_left(b"x", (), needed)  # it goes once
    assert not chains.is_left(b"a", (), needed - {b"c"})  # d stands on it, over c
    assert chains.is_left(b"a", (), {b"b"})


def test_columns_have_short_chains_and_near_bases():
    for count in (2, 14, 100, 1000, 10_000):
        depths, distances = [0], []
        for index in range(1, count):
            base = base_of(count, index)
            assert 0 <= base < index
            depths.append(depths[base] + 1)
            distances.append(index - base)
        assert max(depths) <= 5 * (1 + len(str(count)) * 1.4)
        # Five of six stand on their neighbour, five of the other six are six away, and so on.
        assert distances.count(1) >= 5 / 6 * len(distances) - 1
