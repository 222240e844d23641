"""What a state tree cannot hold, and what a saved one may not ask for."""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import inspect
import logging
import sys
import types
from collections import Counter, OrderedDict, UserList, namedtuple

import numpy as np
import pytest

from casckpt.checkpoint import leaves
from casckpt.checkpoint.leaves import Pickled, RestoreOptions
from casckpt.checkpoint.tree import KEY_MAX, flatten
from casckpt.checkpoint.tree_build import Builder
from casckpt.checkpoint.tree_paths import ABSENT, PATH_MAX
from casckpt.errors import BadLeaf, MissingExtra


@dataclasses.dataclass
class Bare:
    first: int
    second: int


class Mine(dict):
    pass


@dataclasses.dataclass
class Several(list):
    first: int


@dataclasses.dataclass
class Failure(Exception):
    code: int


@dataclasses.dataclass
class Slotted:
    __slots__ = ("first",)
    first: int


class Wider(Slotted):
    __slots__ = ("__second",)

    def fill(self):
        self.__second = 2
        return self


class Located(namedtuple("_Located", "x y")):
    @functools.cached_property
    def distance(self):
        return self.x + self.y


@dataclasses.dataclass
class Settings:
    width: int

    @functools.cached_property
    def area(self):
        return self.width**2


def unset():
    record = Bare(1, 2)
    del record.second
    return record


def with_attributes():
    state = OrderedDict(a=1)
    state.note = "not in the items"
    return state


def with_another(record):
    record.note = "not a field"
    return record


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (
            with_another(Bare(1, 2)),
            "s: .*Bare cannot.*\n.*attributes that are not its fields: note",
        ),
        (with_another(Located(1, 2)), "s: .*Located cannot.*\n.*not its fields: note"),
        (Several(1), "s: .*Several cannot be stored"),
        (Failure(1), "s: .*Failure cannot be stored"),
        (Wider(1).fill(), "s: .*Wider cannot.*\n.*not its fields: _Wider__second"),
        (unset(), "its field second is not set"),
        (with_attributes(), "it has attributes: note"),
        (with_another(Counter(a=1)), "s: .*Counter cannot.*\n.*it has attributes: note"),
        (Mine(a=1), "it is a dict of a class of its own"),
        ({"k" * (KEY_MAX + 1): 1}, f"a dict key of {KEY_MAX + 1} characters at s"),
        ({b"k" * (KEY_MAX + 1): 1}, f"a dict key of {KEY_MAX + 1} characters at s"),
        ({"k" * PATH_MAX: np.ones(1)}, f"a path of {PATH_MAX + 2} characters: s.kkk"),
        (Pickled(lambda: 0), "s: function cannot be pickled"),
    ],
)
def test_what_a_tree_cannot_hold_says_why(value, why):
    with pytest.raises(BadLeaf, match=why):
        flatten({"s": value})


@pytest.mark.parametrize(("record", "name"), [(Located(1, 2), "distance"), (Settings(3), "area")])
def test_what_a_cached_property_has_computed_is_no_reason_to_refuse(record, name):
    before = getattr(record, name)
    assert name in vars(record)
    back = Builder(lambda index: None, 0, RestoreOptions()).build(flatten(record).tree)
    assert type(back) is type(record)
    assert name not in vars(back)
    assert back == record
    assert getattr(back, name) == before


def test_a_record_of_a_class_that_cannot_be_made_comes_back_by_its_fields(caplog):
    node = {"D": [__name__, "Failure"], "f": ["code"], "v": [3]}
    back = Builder(lambda index: None, 0, RestoreOptions()).build(node)
    assert back.code == 3
    assert "a namedtuple of that name" in caplog.text


def test_a_call_from_too_deep_says_so():
    state = 1
    for _ in range(100):
        state = [state]

    def down(count):
        return flatten(state) if not count else down(count - 1)

    with pytest.raises(BadLeaf, match="nested too deeply for this call"):
        down(sys.getrecursionlimit() - len(inspect.stack()) - 60)
    assert flatten(state).leaves == []


@pytest.mark.parametrize("name", ["Gone", "function.<locals>.Gone"])
def test_a_record_of_an_unknown_class_has_its_name(name):
    back = Builder(lambda index: None, 0, RestoreOptions()).build(
        {"n": ["nowhere", name], "f": ["x"], "v": [1]}
    )
    assert type(back).__name__ == "Gone"


@pytest.mark.parametrize("name", ["two words", "class", ""])
def test_a_class_name_that_is_no_name_gets_a_plain_one(name, caplog):
    with caplog.at_level(logging.WARNING, "casckpt"):
        back = Builder(lambda index: None, 0, RestoreOptions()).build(
            {"D": ["nowhere", name], "f": ["x", "class"], "v": [1, 2]}
        )
    assert type(back).__name__ == "Restored"
    assert back == (1, 2)
    assert "not loaded in this program" in caplog.text


def test_what_was_not_selected_has_a_name():
    assert repr(ABSENT) == "ABSENT"


@pytest.fixture
def lazily(monkeypatch, tmp_path):
    """Register an adapter whose module has the given text."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(leaves, "_lazy", dict(leaves._lazy))

    def register(root, text):
        (tmp_path / f"{root}_adapter.py").write_text(text)
        leaves.register_lazy(root, f"{root}_adapter")

    yield register
    leaves._root_of_type.clear()


def test_an_extension_of_no_adapter_names_its_root():
    node = {"x": ["nobody", "thing"], "a": None, "v": []}
    with pytest.raises(MissingExtra, match="values of nobody, which this casckpt does not know"):
        Builder(lambda index: None, 0, RestoreOptions()).build(node)


def test_a_library_that_is_not_installed_is_told_from_one_that_is_broken(lazily):
    lazily("notthere", "import notthere")
    with pytest.raises(MissingExtra, match="needs notthere, which is not installed"):
        leaves.handler("notthere")
    lazily("broken", "import a_part_of_broken_that_is_missing")
    with pytest.raises(ModuleNotFoundError, match="a_part_of_broken_that_is_missing"):
        leaves.handler("broken")


class Colour(enum.Enum):
    RED = 1


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        ({1, 2}, "sorted(it)"),
        (UserList([1]), "list(it)"),
        (frozenset("a"), "sorted(it)"),
        (range(3), "list(it)"),
        (Colour.RED, "its value"),
        (argparse.Namespace(lr=1), "vars(it)"),
        (types.SimpleNamespace(lr=1), "vars(it)"),
    ],
)
def test_what_scripts_often_have_is_told_what_to_save_in_its_place(value, plain):
    with pytest.raises(BadLeaf) as caught:
        flatten({"x": value})
    assert caught.value.hint == f"save {plain} in its place, or wrap it in casckpt.Pickled(...)"
