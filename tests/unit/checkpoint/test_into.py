"""Restoring into a tree that is there: what is filled, what does not fit, what fits in part."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import numpy as np
import pytest

from casckpt.errors import TreeMismatch
from casckpt.training.state import State
from tests.suites.memory_repository import Saved
from tests.unit.checkpoint.test_tree import ARRAYS, Best, Frozen, Point


class Pair(NamedTuple):
    x: object
    y: object


@dataclasses.dataclass
class Record:
    x: object


class Holder:
    def __init__(self, values):
        self.values = values

    def state_dict(self):
        return {"values": self.values}

    def load_state_dict(self, state):
        self.values = state["values"]


ARRAY = np.arange(4, dtype="<f4")


@pytest.mark.parametrize(
    ("saved", "target", "why"),
    [
        (5, np.zeros(2), "a plain value in the checkpoint, numpy.ndarray in into"),
        (5, [1], "a plain value in the checkpoint, list in into"),
        ("x" * 5000, np.zeros(2), "a plain value in the checkpoint, numpy.ndarray in into"),
        (np.float32(1), np.zeros(()), "a plain value in the checkpoint, numpy.ndarray in into"),
        (np.ones(2), 5, "array (2,) in the checkpoint, int in into"),
        ([1], 5, "a list in the checkpoint, int in into"),
        ([1, 2], {"x": 1}, "a list in the checkpoint, dict in into"),
        ({"x": 1}, [1], "a dict in the checkpoint, list in into"),
        ((1,), {"x": 1}, "a tuple in the checkpoint, dict in into"),
        (Pair(1, 2), {"x": 1}, "a namedtuple in the checkpoint, dict in into"),
        (Record(1), [1], "a dataclass in the checkpoint, list in into"),
    ],
)
def test_a_part_of_another_kind_is_refused_by_path(saved, target, why):
    with pytest.raises(TreeMismatch, match=re.escape(f"a: {why}")) as caught:
        Saved({"a": saved}).restore(into={"a": target})
    assert caught.value.wrong == [f"a: {why}"]


def test_values_that_are_stored_as_leaves_take_the_place_of_plain_ones():
    saved = Saved({"s": "x" * 5000, "f": np.float32(2), "b": np.str_("y" * 2000)})
    back = saved.restore(into={"s": "", "f": 0.0, "b": ""})
    assert back == {"s": "x" * 5000, "f": np.float32(2), "b": "y" * 2000}
    assert type(back["f"]) is np.float32


def test_a_key_that_no_checkpoint_has_is_missing():
    with pytest.raises(TreeMismatch) as caught:
        Saved({"a": 1}).restore(into={"a": 1, frozenset(): 2})
    assert caught.value.missing == ["frozenset()"]


def test_a_tuple_whose_arrays_were_filled_stays_the_same_object():
    into = {"t": (np.zeros(2), Pair(np.zeros(1), None))}
    held = into["t"]
    back = Saved({"t": (np.ones(2), Pair(np.ones(1), None))}).restore(into=into)
    assert back["t"] is held
    assert held[0].tolist() == [1, 1]
    assert held[1].x.tolist() == [1]


# ---- a part of it


def test_only_leaves_alone_what_it_does_not_select_whatever_it_is():
    saved = Saved({"list": [1], "none": {"x": np.ones(1)}, "h": Holder([1]), "o": np.ones(2)})
    holder = Holder([7])
    into = {"list": {"x": 1}, "none": None, "h": holder, "o": np.zeros(2)}
    back = saved.restore(into=into, only="o")
    assert back["o"].tolist() == [1, 1]
    assert back["list"] == {"x": 1}
    assert back["none"] is None
    assert holder.values == [7]


@pytest.mark.parametrize(
    ("saved", "target", "only", "extra", "wrong"),
    [
        ({"x": np.ones(1), "y": 2}, None, "a.x", ["a"], []),
        ([1, 2], {"x": 1}, "a.0", [], ["a: a list in the checkpoint, dict in into"]),
        (Holder([1]), Holder([7]), "a.values", [],
         ["a: an object takes its state whole, and only= selects a part"]),
    ],
)  # fmt: skip
def test_a_part_that_has_no_place_in_into_is_refused(saved, target, only, extra, wrong):
    into = {"a": target}
    with pytest.raises(TreeMismatch) as caught:
        Saved({"a": saved}).restore(into=into, only=only)
    assert (caught.value.extra, caught.value.wrong) == (extra, wrong)
    assert into == {"a": target}


def test_only_fills_the_parts_of_a_state_that_it_names():
    saved = Saved({"s": State(a=np.ones(2), b=5, c={"x": 1}).state_dict()})
    state = State(a=np.zeros(2), b=0, d="own")
    a = state.a
    saved.restore(into={"s": state}, only=["s.a", "s.c.x"])
    assert state.a is a
    assert a.tolist() == [1, 1]
    assert state.b == 0
    assert state.c == {"x": 1}
    assert state.d == "own"


def test_the_parts_of_a_state_keep_what_others_may_hold():
    held = State(
        array=np.ones(2),
        losses=[3.0, 2.0],
        counts={"a": 1, "b": 2},
        mixed={"w": np.ones(1), "n": 5},
        empty={"x": np.ones(1)},
        none=(1, 2),
        best=0.5,
        kind=[1],
    )
    saved = Saved({"s": held.state_dict()})
    state = State(
        array=np.zeros(2),
        losses=[9.0],
        counts={"c": 3},
        mixed={"w": np.zeros(1), "n": 0},
        empty={},
        none=None,
        best=0.0,
        kind=(7, 8),
    )
    before = state.state_dict()
    saved.restore(into={"s": state})
    for name in ("array", "losses", "counts", "mixed", "empty"):
        assert getattr(state, name) is before[name], name
    assert state.array.tolist() == [1, 1]
    assert state.losses == [3.0, 2.0]
    assert state.counts == {"a": 1, "b": 2}
    assert before["mixed"] == {"w": np.ones(1), "n": 5}
    assert state.empty["x"].tolist() == [1]
    assert (state.none, state.best, state.kind) == ((1, 2), 0.5, [1])


def test_a_part_that_the_checkpoint_lacks_is_missing():
    with pytest.raises(TreeMismatch) as caught:
        Saved({"s": {"a": 1}}).restore(into={"s": State(a=0, b=0)})
    assert caught.value.missing == ["s.b"]


@pytest.mark.parametrize("into", [{}, {"a": {}}])
def test_an_empty_dict_takes_all_there_is(into):
    saved = Saved({"a": {"x": [1, {"y": 2}], 3: "z"}})
    held = dict(into)
    assert saved.restore(into=into) is into
    assert into == {"a": {"x": [1, {"y": 2}], 3: "z"}}
    assert all(into[key] is part for key, part in held.items())


@pytest.mark.parametrize("saved", [[ARRAY, ARRAY * 2], {"a": ARRAY, "b": [ARRAY]}])
def test_what_is_empty_takes_arrays_too(saved):
    into = {"seen": type(saved)(), "w": ARRAY.copy()}
    held = into["seen"]
    Saved({"seen": saved, "w": ARRAY}).restore(into=into)
    assert into["seen"] is held
    assert str(into["seen"]) == str(saved)


def test_a_list_of_arrays_that_is_not_empty_is_no_place_for_more():
    with pytest.raises(TreeMismatch, match="extra"):
        Saved({"seen": [ARRAY, ARRAY]}).restore(into={"seen": [ARRAY]})


def test_a_state_takes_named_parts_only():
    with pytest.raises(TreeMismatch, match="s: no state of named parts in the checkpoint"):
        Saved({"s": [1]}).restore(into={"s": State(a=1)})


# ---- torch


def test_a_module_takes_a_state_without_metadata_and_refuses_a_plain_value():
    torch = pytest.importorskip("torch")
    module = torch.nn.Linear(2, 1)
    weight = module.weight
    saved = Saved({"m": {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}})
    saved.restore(into={"m": module})
    assert module.weight is weight
    assert weight.tolist() == [[1, 1]]
    with pytest.raises(TreeMismatch, match=r"m: a plain value in the checkpoint, torch.nn.*Linear"):
        Saved({"m": 5}).restore(into={"m": module})


def test_a_module_whose_state_is_itself_is_the_fault_of_into():
    torch = pytest.importorskip("torch")

    class Endless(torch.nn.Module):
        def state_dict(self):
            return self

    with pytest.raises(TreeMismatch, match="m: objects nested too deeply in into"):
        Saved({"m": {"x": 1}}).restore(into={"m": Endless()})


def test_a_module_whose_parts_are_compiled_takes_a_state_by_bare_names():
    torch = pytest.importorskip("torch")
    from casckpt.adapters.torch_state import BareModule

    class Compiled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self._orig_mod = torch.nn.Linear(2, 1)

    module = torch.nn.Sequential(Compiled())
    weight = module[0]._orig_mod.weight
    plain = torch.nn.Sequential(torch.nn.Linear(2, 1))
    Saved({"m": plain}).restore(into={"m": BareModule(module)})
    assert torch.equal(weight, plain[0].weight)
    saved = Saved({"m": {"0.weight": torch.zeros(1, 2)}})
    with pytest.raises(TreeMismatch) as caught:
        saved.restore(into={"m": BareModule(module)})
    assert caught.value.missing == ["m.0.bias"]
    saved.restore(into={"m": BareModule(module)}, strict=False)
    assert weight.tolist() == [[0, 0]]
    assert torch.equal(module[0]._orig_mod.bias, plain[0].bias)


def group(*numbers):
    return {"params": list(numbers), "lr": 0.1}


@pytest.mark.parametrize(
    ("plain", "why"),
    [
        (5, "something else in the checkpoint, an optimizer in into"),
        ({"state": {}, "param_groups": 5}, "something else in the checkpoint"),
        ({"state": {}, "param_groups": [5]}, "something else in the checkpoint"),
        ({"state": {}, "param_groups": [group(0), group(1)]},
         "2 parameter groups in the checkpoint, 1 in into"),
        ({"state": {}, "param_groups": [group(0)]},
         "group 0: 1 parameters in the checkpoint, 2 in into"),
        ({"state": {}, "param_groups": [{"params": 5}]},
         "group 0: 0 parameters in the checkpoint, 2 in into"),
        ({"state": {1: {"exp_avg": np.ones(3)}}, "param_groups": [group(0, 1)]},
         "state.1.exp_avg: shape (3,) in the checkpoint, (1,) in into"),
    ],
)  # fmt: skip
def test_an_optimizer_is_told_what_it_cannot_take(plain, why):
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.Adam(torch.nn.Linear(2, 1).parameters())
    before = optimizer.state_dict()
    with pytest.raises(TreeMismatch, match=re.escape(f"o: {why}")):
        Saved({"o": plain}).restore(into={"o": optimizer})
    assert optimizer.state_dict() == before


def test_into_keeps_storage_and_objects():
    saved = Saved(
        {"w": np.arange(3), "f": ARRAYS["fortran"], "t": (1, np.ones(2)), "n": 7, "l": [1, 2]}
    )
    into = {"w": np.zeros(3, int), "f": np.zeros((3, 4)), "t": (0, np.zeros(2)), "n": 0, "l": []}
    w, f, inner = into["w"], into["f"], into["t"][1]
    back = saved.restore(into=into)
    assert back is into
    assert back["w"] is w
    assert w.tolist() == [0, 1, 2]
    assert back["f"] is f
    assert np.array_equal(f, ARRAYS["fortran"])
    assert back["t"][0] == 1
    assert back["t"][1] is inner
    assert inner.tolist() == [1, 1]
    assert back["n"] == 7
    assert back["l"] == [1, 2]


def test_into_that_does_not_fit_is_refused_whole_and_untouched():
    saved = Saved({"a": np.ones(3), "b": np.ones(3), "c": np.ones(3), "d": 1, "k": np.ones(1)})
    into = {"a": np.zeros(3), "b": np.zeros(4), "c": np.zeros(3, np.float32), "e": 1, "k": {"x": 1}}
    with pytest.raises(TreeMismatch) as caught:
        saved.restore(into=into)
    error = caught.value
    assert error.missing == ["e"]
    assert error.extra == ["d"]
    assert len(error.shape) == 1
    assert error.shape[0].startswith("b: shape")
    assert error.dtype[0].startswith("c: dtype")
    assert any(text.startswith("k:") for text in error.wrong)
    assert into["a"].tolist() == [0, 0, 0]
    assert saved.repo.bytes_read == 0


def test_into_not_strict_takes_what_both_have_and_logs_the_rest(caplog):
    saved = Saved({"a": np.ones(3), "b": np.ones(3), "d": 1})
    into = {"a": np.zeros(3), "b": np.zeros(4), "e": 1}
    back = saved.restore(into=into, strict=False)
    assert back["a"].tolist() == [1, 1, 1]
    assert back["b"].tolist() == [0, 0, 0, 0]
    assert back["e"] == 1
    assert "d" not in back
    assert "b: shape" in caplog.text


def test_into_with_records_uses_its_types():
    saved = Saved({"p": Point(1, np.ones(2)), "b": Best(0.5, [1]), "f": Frozen(1, 2)})
    best, frozen = Best(0.0), Frozen(0, 0)
    back = saved.restore(into={"p": Point(0, np.zeros(2)), "b": best, "f": frozen})
    assert type(back["p"]) is Point
    assert back["p"].x == 1
    assert back["b"] is best
    assert best == Best(0.5, [1])
    assert back["f"] == Frozen(1, 2)
    assert frozen == Frozen(0, 0)


def test_none_in_into_takes_whatever_was_saved():
    back = Saved({"best": {"w": np.arange(2)}, "n": 1}).restore(into={"best": None, "n": None})
    assert back["best"]["w"].tolist() == [0, 1]
    assert back["n"] == 1


def test_each_array_of_into_gets_its_value_whatever_is_tied():
    array = np.arange(4.0)
    into = {"a": np.zeros(4), "b": np.zeros(4)}
    back = Saved({"a": array, "b": array}).restore(into=into)
    assert back["a"].tolist() == back["b"].tolist() == [0, 1, 2, 3]
    assert not np.shares_memory(back["a"], back["b"])
    tied = np.zeros(4)
    back = Saved({"a": array, "b": array + 1}).restore(into={"a": tied, "b": tied})
    assert back["b"].tolist() == [1, 2, 3, 4]


def test_read_only_and_broadcast_arrays_of_into_are_refused():
    saved = Saved({"a": np.ones((2, 2))})
    locked = np.zeros((2, 2))
    locked.flags.writeable = False
    with pytest.raises(TreeMismatch, match="read-only"):
        saved.restore(into={"a": locked})


def test_into_with_strides_is_copied_into():
    whole = np.zeros((4, 4))
    Saved({"a": np.ones((4, 2))}).restore(into={"a": whole[:, ::2]})
    assert whole.sum() == 8
    assert whole[:, 1].sum() == 0


def test_into_and_only_touch_what_is_selected():
    saved = Saved({"a": np.ones(2), "b": np.ones(3), "h": Holder([1])})
    into = {"a": np.zeros(2), "b": np.zeros(9), "other": 1}
    back = saved.restore(into=into, only="a")
    assert back["a"].tolist() == [1, 1]
    with pytest.raises(TreeMismatch, match="other"):
        saved.restore(into=into, only="*")


@pytest.mark.parametrize(
    ("saved", "target", "hint"),
    [
        ({"module.w": ARRAY}, {"w": ARRAY}, "DataParallel"),
        ({"w": ARRAY}, {"module.w": ARRAY}, "model.module"),
        ({"w": ARRAY}, {"w": ARRAY.astype("<f2")}, "convert"),
        ({"w": ARRAY}, {"v": ARRAY}, "leave `into` out"),
    ],
)
def test_what_shares_no_array_is_refused_even_if_parts_would_do(saved, target, hint):
    saved = Saved({"model": saved, "epoch": 3})
    target = {"model": target, "epoch": 0}
    for strict in (True, False):
        with pytest.raises(TreeMismatch) as caught:
            saved.restore(into=target, strict=strict)
        assert (hint in caught.value.hint) or (strict and "strict=False" in caught.value.hint)
    assert target["epoch"] == 0


def test_an_object_that_is_filled_is_enough():
    saved = Saved({"model": ARRAY, "optimizer": {"values": ARRAY}})
    target = {"model": ARRAY.astype("<f2"), "optimizer": Holder(np.zeros(4, "<f4"))}
    saved.restore(into=target, strict=False)
    assert (target["optimizer"].values == ARRAY).all()


def test_an_empty_array_shares_no_memory():
    empty = np.empty_like(np.zeros((0, 2)))
    assert Saved({"a": np.zeros((0, 2))}).restore(into={"a": empty})["a"] is empty


def test_plain_values_are_taken_where_there_are_no_arrays():
    target = {"a": 0, "c": 3}
    Saved({"a": 1, "b": 2}).restore(into=target, strict=False)
    assert target["a"] == 1
