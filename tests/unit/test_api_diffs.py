"""`Store.diff`, value by value: what counts as a difference, and how it reads."""

from __future__ import annotations

import dataclasses
import math
from collections import OrderedDict, namedtuple

import numpy as np
import pytest

Pair = namedtuple("Pair", ["x", "y"])
Empty = namedtuple("Empty", [])


@dataclasses.dataclass
class Record:
    x: int
    y: int


@dataclasses.dataclass
class Nothing:
    pass


def changes(store, before, after):
    """Return {path: (before, after, changed bytes)} of two states."""
    store.save("r", before)
    store.save("r", after)
    diff = store.diff("r@0", "r@1")
    assert (diff.added, diff.removed) == ((), ())
    return {one.path: (one.before, one.after, one.changed_bytes) for one in diff.changed}


ROWS = np.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (0.1, math.nan, ("0.1", "nan", 0)),
        (2**80, -1, (str(2**80), "-1", 0)),
        (1 + 2j, None, ("(1+2j)", "null", 0)),
        ("a" * 100, "b", ('"' + "a" * 56 + "...", '"b"', 0)),
        ((), 1, ("()", "1", 0)),
        ([], 1, ("[]", "1", 0)),
        ({}, 1, ("{}", "1", 0)),
        (OrderedDict(), 1, ("ordered {}", "1", 0)),
        (Empty(), 1, ("Empty()", "1", 0)),
        (Nothing(), Empty(), ("Nothing()", "Empty()", 0)),
        (ROWS, ROWS + 1, ("<f8 [2, 3]", "<f8 [2, 3]", 48)),
        (ROWS, ROWS.astype("f4"), ("<f8 [2, 3]", "<f4 [2, 3]", 24)),
        (ROWS, np.asfortranarray(ROWS), ("<f8 [2, 3]", "<f8 [2, 3] order F", 48)),
        (np.empty((0, 3)), np.empty((0, 4)), ("<f8 [0, 3]", "<f8 [0, 4]", 0)),
        (bytes(5000), ROWS, ("bytes", "<f8 [2, 3]", 48)),
    ],
)
def test_a_changed_value_is_shown_before_and_after(store, before, after, shown):
    state = {"same": np.ones(5), "a": before}
    assert changes(store, state, {**state, "a": after}) == {"a": shown}


def test_a_scalar_of_numpy_is_a_value(store):
    state = {"a": np.float32(1), "b": np.int8(2), "c": np.datetime64("2026-01-31")}
    after = {**state, "a": np.float32(0.5), "c": np.str_("x")}
    found = changes(store, state, after)
    assert {path: change[:2] for path, change in found.items()} == {
        "a": (repr(np.float32(1)), repr(np.float32(0.5))),
        "c": (repr(state["c"]), repr(np.str_("x"))),
    }


def test_a_dtype_is_shown_by_its_name(store):
    torch = pytest.importorskip("torch")
    found = changes(store, {"a": torch.float32}, {"a": torch.bfloat16})
    assert found["a"][:2] == ("torch.dtype float32", "torch.dtype bfloat16")


def test_containers_of_other_kinds_are_told_once(store):
    before = {"pair": Pair(1, 2), "list": [1, 2], "dict": {"a": 1}, "keys": {1: 0}}
    after = {"pair": Record(1, 2), "list": (1, 2), "dict": OrderedDict(a=1), "keys": {"1": 0}}
    found = changes(store, before, after)
    kinds = {path: (was.split()[0], now.split()[0]) for path, (was, now, _) in found.items()}
    assert kinds == {
        "pair": ("namedtuple", "dataclass"),
        "list": ("list", "tuple"),
        "dict": ("dict", "ordered"),
        "keys": ("dict", "dict"),
    }


def test_keys_that_read_alike_are_two_paths(store):
    assert changes(store, {1: "a", "1": "b"}, {1: "a", "1": "c"}) == {"1'": ('"b"', '"c"', 0)}


def test_sharing_memory_is_no_difference_but_what_it_shows_is(store):
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    state = {"w": base, "same": base, "rows": base[1:], "flag": base.clone()}
    store.save("tied", state)
    store.save("loose", {**state, "same": base.clone()})
    assert store.diff("tied", "loose").same_state
    found = changes(
        store, state, {**state, "rows": base[:, 1:][1:], "flag": torch.nn.Parameter(base.clone())}
    )
    assert {path: (was, now) for path, (was, now, _) in found.items()} == {
        "rows": ("float32 [2, 4] stride [4, 1] at 16", "float32 [2, 3] stride [4, 1] at 20"),
        "flag": ("float32 [3, 4]", "float32 [3, 4] parameter requires_grad"),
    }


def test_the_parts_of_a_sparse_tensor_are_compared(store):
    torch = pytest.importorskip("torch")
    before = {"s": torch.eye(3).to_sparse()}
    assert list(changes(store, before, {"s": (torch.eye(3) * 2).to_sparse()})) == ["s.1"]


def test_metrics_that_are_no_numbers_are_equal(store):
    store.save("r", {"a": 1}, metrics={"loss": math.nan, "acc": 1.0, "old": 0.5})
    store.save("r", {"a": 1}, metrics={"loss": math.nan, "acc": math.nan})
    metrics = store.diff("r@0", "r@1").metrics
    assert metrics.keys() == {"acc", "old"}
    assert metrics["old"] == (0.5, None)
    assert metrics["acc"][0] == 1.0
    assert math.isnan(metrics["acc"][1])
