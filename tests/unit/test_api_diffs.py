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


def test_containers_whose_paths_read_alike_are_two(store):
    store.save("r", {1: [0], "1": (0,)})
    store.save("r", {1: (0,), "1": (0,)})
    diff = store.diff("r@0", "r@1")
    assert not diff.same_state
    assert [(one.before, one.after) for one in diff.changed] == [("list", "tuple")]


def test_integers_of_more_digits_than_python_writes_are_shown_by_both_ends(store):
    ((before, after, _),) = changes(store, 10**5000, 10**5000 + 1).values()
    assert before.startswith("0x")
    assert (before[-4:], after[-4:]) == ("0000", "0001")
    store.save("r", -(10**5000))
    (change,) = store.diff("r@1", "r@2").changed
    assert change.after.startswith("-0x")


def test_keys_that_read_alike_are_two_paths(store):
    assert changes(store, {1: "a", "1": "b"}, {1: "a", "1": "c"}) == {"1'": ('"b"', '"c"', 0)}


@pytest.mark.parametrize("large", [False, True])
def test_memory_that_is_shared_no_more_is_a_difference(store, large):
    torch = pytest.importorskip("torch")
    base = torch.arange(40_000.0 if large else 12.0).reshape(2, -1)
    size = list(base.shape)
    tied = {"a": base, "b": base, "rows": base[1:], "other": base.clone()}
    found = changes(store, tied, {**tied, "b": base.clone()})
    assert found == {"b": (f"float32 {size} shared with a", f"float32 {size}", 0)}
    store.save("tied", tied)
    found = store.diff("r@1", "tied")
    assert [change.path for change in found.changed] == ["b"]
    assert not found.same_state
    # Views, too, of another memory with the same in it; and one of a view.
    moved = {**tied, "rows": tied["other"][1:]}
    assert [one.path for one in _changed(store, "views", tied, moved)] == ["rows"]
    rows = base[1:]
    twice = {"a": base, "rows": rows, "same": rows}
    (one,) = _changed(store, "twice", twice, {**twice, "same": rows.clone()})
    assert one.before.startswith(f"float32 [1, {size[1]}] stride")
    # The order of keys says nothing of what is shared.
    shuffled = _changed(store, "order", tied, dict(reversed(tied.items())))
    assert [one.path for one in shuffled] == [""]


def test_arrays_of_numpy_that_are_one_are_told_from_two(store):
    found = changes(store, {"a": ROWS, "b": ROWS}, {"a": ROWS, "b": ROWS.copy()})
    assert found == {"b": ("<f8 [2, 3] shared with a", "<f8 [2, 3]", 0)}


def test_the_metadata_of_a_state_dict_is_compared(store):
    torch = pytest.importorskip("torch")
    state = torch.nn.BatchNorm1d(4).state_dict()
    store.save("with", {"m": state})
    store.save("without", {"m": OrderedDict(state)})
    found = store.diff("with", "without")
    assert [(one.path, one.before) for one in found.removed] == [("m._metadata..version", "2")]
    assert not found.same_state
    other = torch.nn.BatchNorm1d(4).state_dict()
    other.update(state)
    other._metadata[""]["version"] = 1
    store.save("other", {"m": other})
    assert [one.path for one in store.diff("with", "other").changed] == ["m._metadata..version"]


def _changed(store, run, before, after):
    store.save(run, before)
    store.save(run, after)
    return store.diff(f"{run}@0", f"{run}@1").changed


def test_what_a_tensor_shows_of_its_memory_is_compared(store):
    torch = pytest.importorskip("torch")
    base = torch.arange(12.0).reshape(3, 4)
    state = {"w": base, "same": base, "rows": base[1:], "flag": base.clone()}
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
