"""Guards: what counts as changed, and what is done about it."""

from __future__ import annotations

import argparse
import ast
import copy
import dataclasses
import enum
import functools
import logging
import os
import types
from pathlib import Path

import numpy as np
import pytest

from casckpt import State
from casckpt.errors import BadRequest, ConfigMismatch
from casckpt.training import guards
from casckpt.training.lines import read_record


class Color(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Optimizer:
    lr: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)


@dataclasses.dataclass
class Config:
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    path: Path = Path("a/b")
    color: Color = Color.RED


@pytest.mark.parametrize(
    ("config", "flat"),
    [
        ({"a": {"b": 1, "c": {}}, "d": None}, {"a.b": 1, "a.c": {}, "d": None}),
        (Config(), {"optimizer.lr": 0.1, "optimizer.betas": [0.9, 0.99], "path": os.fspath("a/b"),
                    "color": "Color.RED"}),
        (argparse.Namespace(lr=1, sub=argparse.Namespace(x=2)), {"lr": 1, "sub.x": 2}),
        (types.SimpleNamespace(act=len), {"act": "builtins.len"}),
        ({"layers": [{"n": 1}, {"n": 2}]}, {"layers.0.n": 1, "layers.1.n": 2}),
        ({"s": {3, 1}, "b": b"\x01"}, {"s": [1, 3], "b": "01"}),
    ],
)  # fmt: skip
def test_flat_config(config, flat):
    assert guards.flat_config(config) == flat


def test_numpy_numbers_are_numbers():
    np = pytest.importorskip("numpy")
    assert guards.flat_config({"lr": np.float32(0.5), "n": np.int64(3)}) == {"lr": 0.5, "n": 3}


@pytest.mark.parametrize("config", [3, "lr=1", [1, 2], len, Config])
def test_what_is_no_config(config):
    with pytest.raises(BadRequest):
        guards.flat_config(config)


def differences(old, new, policy="raise", group="config"):
    found = guards.compare({group: old}, {group: new}, policy)
    return [(one.field, one.old, one.new, one.action) for one in found]


def test_every_field_that_differs_is_there():
    assert differences({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "d": 4}) == [
        ("b", 2, 3, "raise"),
        ("c", 3, guards.NOTHING, "raise"),
        ("d", guards.NOTHING, 4, "raise"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [(1, True, False), (1, 1.0, False), (float("nan"), float("nan"), True), ([1], [1], True)],
)
def test_equal_is_equal_to_the_type(old, new, same):
    assert (differences({"a": old}, {"a": new}) == []) is same


def test_the_first_pattern_that_matches_decides():
    policy = {"data.*": "allow", "opt.lr": "warn", "opt.*": "restart"}
    assert differences({"opt.lr": 1, "opt.x": 1, "z": 1}, {"opt.lr": 2, "opt.x": 2, "z": 2},
                       policy) == [("opt.lr", 1, 2, "warn"), ("opt.x", 1, 2, "restart"),
                                   ("z", 1, 2, "raise")]  # fmt: skip
    assert differences({"train": "a"}, {"train": "b"}, policy, "data") == [
        ("data.train", "a", "b", "allow")
    ]


def test_a_name_means_what_is_below_it_too():
    policy = {"data": "allow", "opt": "warn", "env": "raise"}
    assert differences({"train": "a"}, {"train": "b"}, policy, "data")[0][3] == "allow"
    assert differences({"": "a"}, {"": "b"}, policy, "data")[0][3] == "allow"
    assert differences({"python": "3.11"}, {"python": "3.12"}, policy, "env")[0][3] == "raise"
    assert [one[3] for one in differences(
        {"opt.lr": 1, "optimizer": 1}, {"opt.lr": 2, "optimizer": 2}, policy
    )] == ["warn", "raise"]  # fmt: skip


def test_the_environment_warns_unless_told():
    old, new = {"python": "3.11", "torch": "2"}, {"python": "3.12", "numpy": "2"}
    assert differences(old, new, "raise", "env") == [("env.python", "3.11", "3.12", "warn")]
    assert differences(old, new, "allow", "env")[0][3] == "allow"
    assert differences(old, new, {"env.python": "raise"}, "env")[0][3] == "raise"


@pytest.mark.parametrize("policy", ["never", {"a": "maybe"}, None, 3])
def test_a_policy_that_is_none(store, name, policy):
    with pytest.raises(BadRequest):
        store.run(name, on_mismatch=policy)


# ---- through the public Store


def test_a_changed_setting_is_refused_with_every_field(train, store, name):
    train(2, run={"config": {"lr": 0.1, "seed": 1}})
    with pytest.raises(ConfigMismatch) as caught:
        train(3, run={"config": {"lr": 0.2, "seed": 2}})
    assert caught.value.differences == [("lr", 0.1, 0.2), ("seed", 1, 2)]
    assert "lr: 0.1 -> 0.2; seed: 1 -> 2" in str(caught.value)
    assert caught.value.exit_code == 2
    assert train.steps == [2]


@pytest.mark.parametrize("count", [1, 5, 12])
def test_what_the_refusal_says_to_pass_goes_on(train, store, name, count):
    train(2, run={"config": dict.fromkeys("abcdefghijkl"[:count], 1)})
    other = dict.fromkeys("abcdefghijkl"[:count], 2)
    with pytest.raises(ConfigMismatch) as caught:
        train(3, run={"config": other})
    hint = str(caught.value).partition("on_mismatch=")[2].partition(", or resume")[0]
    train(3, run={"config": other, "on_mismatch": ast.literal_eval(hint)})
    assert train.steps == [2, 3]


def test_a_finished_run_is_compared_too(train, name):
    train(2, run={"config": {"lr": 0.1}})
    with pytest.raises(ConfigMismatch):
        train(2, run={"config": {"lr": 0.2}})


def test_allowed_is_recorded_and_quiet(train, caplog):
    caplog.set_level(logging.WARNING)
    train(2, run={"config": {"seed": 1}})
    train(3, run={"config": {"seed": 2}, "on_mismatch": {"seed": "allow"}})
    assert caplog.text == ""
    train(4, run={"config": {"seed": 2}})
    assert train.seen == [4]


def test_warn_names_old_and_new(train, caplog, name):
    caplog.set_level(logging.WARNING)
    train(2, run={"data": {"train": "aa", "test": "bb"}})
    train(3, run={"data": {"train": "aa", "test": "cc"}, "on_mismatch": "warn"})
    assert f"{name}: changed since: data.test: 'bb' -> 'cc'" in caplog.text
    assert train.seen == [3]


class Descent:
    """What an optimizer of torch looks like."""

    def __init__(self, lr):
        self.param_groups = [{"params": [object()], "lr": lr, "betas": (0.9, 0.99)}]

    def state_dict(self):
        return {"lr": self.param_groups[0]["lr"]}

    def load_state_dict(self, state):
        self.param_groups[0]["lr"] = state["lr"]


def test_saved_values_of_an_optimizer_win_and_that_is_said(store, name, caplog):
    caplog.set_level(logging.INFO)

    def script(lr, total):
        optimizer = Descent(lr)
        with store.run(name, config={"lr": lr}, on_mismatch="allow") as run:
            list(run.epochs(total, State(optimizer=optimizer)))
        return optimizer.param_groups[0]["lr"]

    assert script(0.1, 1) == 0.1
    assert script(0.1, 2) == 0.1
    assert "wins" not in caplog.text
    assert script(0.5, 3) == 0.1
    assert f"{name}: what was saved wins: optimizer.lr is 0.1, not 0.5; to change it" in caplog.text


def test_restart_opens_a_new_line(train, store, name):
    train(2, run={"config": {"seed": 1}})
    train(2, run={"config": {"seed": 2}, "on_mismatch": {"seed": "restart"}})
    assert train.seen == [1, 2]
    assert store.run(name).line == 1
    train(3, run={"config": {"seed": 2}})
    assert train.seen == [3]


def test_a_group_that_is_not_given_is_not_compared(train):
    train(1, run={"config": {"lr": 1}})
    train(2)
    with pytest.raises(ConfigMismatch):
        train(3, run={"config": {"lr": 2}})


def test_a_branch_is_compared_with_what_it_came_from(train, store, name):
    train(3, run={"config": {"lr": 1}})
    other = type(train)(store, f"{name}-other")
    with pytest.raises(ConfigMismatch):
        other(4, run={"config": {"lr": 2}, "resume": name})


def test_the_world_size_is_no_matter_of_the_machine():
    one, four = (guards.settings(None, None, size) for size in (1, 4))
    for policy, action in (("raise", "raise"), ({}, "raise"), ({"env.*": "warn"}, "warn")):
        differences = guards.compare(one, four, policy)
        assert [(str(found), found.action) for found in differences] == [
            ("env.world_size: 1 -> 4", action)
        ]


class Parameter:
    def __init__(self, *shape):
        self.shape, self.dtype = shape, "torch.float32"


class Module:
    """Something with parameters, as far as a guard looks."""

    def __init__(self, width):
        self.width, self.value = width, 0

    def named_parameters(self):
        yield "weight", Parameter(self.width, 2)

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def script(store, name, width, save_every=3, **run):
    model = Module(width)
    with store.run(name, **run) as opened:
        for _ in opened.epochs(3, {"model": model}, save_every=save_every):
            model.value += 1
    return model.value, opened.line


def test_the_structure_of_a_model(store, name):
    assert script(store, name, 3) == (3, 0)
    with pytest.raises(ConfigMismatch, match="float32 3x2' -> 'float32 4x2'") as caught:
        script(store, name, 4)
    assert caught.value.differences[0][0] == "model.model.weight"
    assert script(store, name, 4, on_mismatch={"model*": "allow"}) == (3, 0)
    assert script(store, name, 5, on_mismatch="restart") == (3, 1)


def test_a_model_that_is_refused_moves_no_line(store, name):
    assert script(store, name, 3, save_every=1) == (3, 0)
    with pytest.raises(ConfigMismatch):
        script(store, name, 4, resume=f"{name}@2")
    assert set(read_record(store._repository, name).lines) == {0}
    assert script(store, name, 3) == (3, 0)
    assert script(store, name, 3, resume=f"{name}@1") == (3, 1)
    with pytest.raises(ConfigMismatch):
        script(store, name, 4, resume=f"{name}~0@3")
    record = read_record(store._repository, name)
    assert (record.current, set(record.lines)) == (1, {0, 1})
    assert script(store, name, 3) == (3, 1)


def scale(x, by=1):
    return x * by


@pytest.mark.parametrize("where", ["config", "data"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(5000.0), np.arange(5000.0) + (np.arange(5000) == 2500)),
        (np.array([0.123456789]), np.array([0.123456788])),
        (np.arange(6), np.arange(6).reshape(2, 3)),
        (functools.partial(scale, by=1), functools.partial(scale, by=2)),
    ],
)
def test_arrays_and_partials_count_by_what_they_hold(store, name, where, one, other):
    def begin(value):
        given = {where: {"v": value}}
        with store.run(name, on_mismatch="raise", **given) as run:
            return list(run.epochs(2, {"n": 0}))

    assert begin(one) == [1, 2]
    assert begin(copy.deepcopy(one)) == []
    with pytest.raises(ConfigMismatch):
        begin(other)
