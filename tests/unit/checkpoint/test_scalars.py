"""Scalars of a state tree: bits that survive, and nodes that no save writes."""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.scalars import INT_MAX_BITS, KEY_DEPTH_MAX, KEY_INT_MAX_BITS
from casckpt.checkpoint.tree import flatten
from casckpt.checkpoint.tree_build import Builder
from casckpt.errors import BadLeaf, Corrupt
from tests.suites.memory_repository import Saved


def build(node):
    return Builder(lambda index: None, 0, RestoreOptions()).build(node)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({"i": 5}, "a big integer that is not signed hex"),
        ({"i": "FF" * 10}, "a big integer that is not signed hex"),
        ({"i": "0" + "f" * 20}, "a big integer that is not signed hex"),
        ({"i": "f" * (2**20 + 1)}, "a big integer that is not signed hex"),
        ({"i": "ff"}, "a small integer written as a big one"),
        ({"i": "-1fffffffffffff"}, "a small integer written as a big one"),
        ({"f": "00"}, "a float of the wrong length"),
        ({"f": "7FF8000000000000"}, "a float that is not lower-case hex"),
        ({"c": "00" * 8}, "a complex of the wrong length"),
        ({"s": "ff"}, "a string that is not UTF-8"),
        ({"s": "a"}, "a string that is not lower-case hex"),
        ({"b": "0"}, "bytes that is not lower-case hex"),
        ({"B": None}, "a bytearray that is not lower-case hex"),
        ({"p": "x"}, "a path that is not a kind and a text"),
        ({"p": ["posix"]}, "a path that is not a kind and a text"),
        ({"p": ["zip", "x"]}, "a path of an unknown kind"),
        ({"p": [["posix"], "x"]}, "a path of an unknown kind"),
        ({"p": ["posix", 5]}, "a path that is no string"),
        ({"p": ["posix", {"s": "2f", "b": "00"}]}, "a path that is no string"),
    ],
)
def test_a_scalar_that_no_save_writes_is_corrupt(node, why):
    with pytest.raises(Corrupt, match=re.escape(why)):
        build(node)


LONGEST = (1 << INT_MAX_BITS) - 1
LONGEST_KEY = (1 << KEY_INT_MAX_BITS) - 1


def test_the_longest_integers_come_back():
    state = {"n": -LONGEST, "l": [LONGEST], LONGEST_KEY: [1], (1, (-LONGEST_KEY,)): [2]}
    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        saved = Saved(state)
        assert saved.restore() == state
        assert saved.restore(only=["n", "l"]) == {"n": -LONGEST, "l": [LONGEST]}
    finally:
        sys.set_int_max_str_digits(digits)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    ("put", "longest", "path"),
    [
        (lambda n: {"s": {"n": n}}, LONGEST, "s.n"),
        (lambda n: {"s": [1, n]}, LONGEST, "s.1"),
        (lambda n: {"s": {n: [1]}}, LONGEST_KEY, "s"),
        (lambda n: {"s": {("k", (1, n)): [1]}}, LONGEST_KEY, "s"),
    ],
    ids=["value", "item", "key", "in a key"],
)
def test_an_integer_that_no_restore_takes_is_refused_by_path(put, longest, path, sign):
    with pytest.raises(BadLeaf, match=rf"\b{re.escape(path)}\b") as caught:
        flatten(put(sign * (longest + 1)))
    assert f"the limit is {longest.bit_length()}" in caught.value.why


def nested_key(depth):
    return {"t": [nested_key(depth - 1)]} if depth else 1


@pytest.mark.parametrize(
    "key",
    [[1], {}, {"i": "f" * 20, "f": "00" * 8}, {"c": "00" * 16}, {"B": "00"}, {"t": 5},
     nested_key(KEY_DEPTH_MAX + 1)],
)  # fmt: skip
def test_a_key_that_no_save_writes_is_corrupt(key):
    with pytest.raises(Corrupt, match="a dict key of a kind that cannot be one"):
        build({"d": [key], "v": [1]})


def test_the_deepest_allowed_key_comes_back():
    key = 1
    for _ in range(KEY_DEPTH_MAX):
        key = (key,)
    assert Saved({key: 0}).restore() == {key: 0}
    with pytest.raises(BadLeaf, match="a dict key of type tuple"):
        flatten({(key,): 0})


def test_a_path_that_is_not_unicode_comes_back():
    path = pathlib.PurePosixPath("/a/\udcff")
    assert Saved([path]).restore() == [path]


def test_a_path_of_the_other_system_is_a_path_of_this_one():
    foreign = "posix" if sys.platform == "win32" else "windows"
    assert build({"p": [foreign, "c:/x"]}) == pathlib.Path("c:/x")


def test_a_path_of_a_class_of_its_own_is_refused():
    class Mine(pathlib.PurePosixPath):
        pass

    with pytest.raises(BadLeaf, match="Mine cannot be stored"):
        flatten([Mine("/a")])
