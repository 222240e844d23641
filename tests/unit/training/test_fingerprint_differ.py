"""Different things of one kind have different fingerprints, the same thing has one."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import datetime
import enum
import operator
import re
import subprocess
import sys
import types

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest


class Permission(enum.IntFlag):
    READ = 1
    WRITE = 2


class Settings(dict):
    pass


class Kept:
    def __init__(self, rate):
        self.rate = rate

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@dataclasses.dataclass
class Scale:
    by: float

    def __call__(self, x):
        return x * self.by


def with_attribute(number):
    made = Settings(a=1)
    made.number = number
    return made


def enum_of(number):
    return enum.Enum("Mode", {"FAST": number}).FAST


def masked(mask, **named):
    return np.ma.array([1, 2, 3], mask=mask, **named)


STRINGS = np.dtypes.StringDType() if hasattr(np.dtypes, "StringDType") else np.dtype("U40")
ONE, TWO = lambda x: x + 10, lambda x: x * 10
# fmt: off
CUT_OFF = [
    lambda x: x
        + 10,
    lambda x: x
        * 10,
]
# fmt: on

DIFFERENT = {
    "masks": (masked([1, 0, 0]), masked([0, 1, 0]), masked(False)),
    "what a mask fills in": (masked([1, 0, 0]), masked([1, 0, 0], fill_value=7)),
    "long patterns": (re.compile("a" * 300), re.compile("a" * 301), re.compile("a" * 300, re.I)),
    "enum values": (enum_of(1), enum_of(2)),
    "flags without a name": (Permission(8), Permission(16), Permission(0)),
    "order of an OrderedDict": (
        collections.OrderedDict([(1, 1), (2, 2)]),
        collections.OrderedDict([(2, 2), (1, 1)]),
    ),
    "attributes of a dict": (with_attribute(1), with_attribute(2)),
    "what a defaultdict makes": (collections.defaultdict(int), collections.defaultdict(list)),
    "lambdas of one line": (ONE, TWO),
    "lambdas of many lines": tuple(CUT_OFF),
    "methods of built-ins": (",".join, ";".join),
    "methods of ufuncs": (np.add.reduce, np.multiply.reduce),
    "operators of numbers": ((5).__add__, (6).__add__),
    "slices of arrays": (slice(np.arange(2000)), slice(np.arange(2000) * 2)),
    "settings beside a state": (Kept(1), Kept(2)),
    "namespaces": (argparse.Namespace(a=1), argparse.Namespace(a=2), types.SimpleNamespace(a=1)),
    "ufuncs": (np.add, np.multiply),
    "strings of any length": (np.array(["a" * 40], STRINGS), np.array(["b" * 40], STRINGS)),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_they_differ(name):
    values = DIFFERENT[name]
    found = [casckpt.fingerprint(value) for value in values]
    assert len(set(found)) == len(values)
    assert found == [casckpt.fingerprint(value) for value in values]


def test_equal_ones_have_one_fingerprint():
    same = casckpt.fingerprint
    assert same(masked(False)) == same(masked([0, 0, 0]))
    assert same(re.compile("a" * 300)) == same(re.compile("a" * 300))
    assert same(Kept(1)) == same(Kept(1)) != same(Kept((1,)))
    assert same(np.array(["a" * 40], STRINGS)) == same(np.array(["a" * 40], STRINGS))


def test_a_time_zone_that_does_not_say_what_it_is_is_refused():
    class Zone(datetime.tzinfo):
        pass

    with pytest.raises(BadRequest, match="Zone"):
        casckpt.fingerprint(Zone())
    with pytest.raises(BadRequest, match="datetime"):
        casckpt.fingerprint(datetime.datetime(2024, 1, 1, tzinfo=Zone()))


def test_an_operator_made_of_a_function_is_refused():
    with pytest.raises(BadRequest, match="ufunc"):
        casckpt.fingerprint(np.frompyfunc(ONE, 1, 1))
    with pytest.raises(BadRequest, match="itemgetter"):
        casckpt.fingerprint(operator.itemgetter(1))


def test_the_code_of_a_dataclass_that_is_called_counts(monkeypatch):
    first = casckpt.fingerprint(Scale(2.0))
    assert first == casckpt.fingerprint(Scale(2.0)) != casckpt.fingerprint(Scale(3.0))
    monkeypatch.setattr(Scale, "__call__", lambda self, x: x / self.by)
    assert first != casckpt.fingerprint(Scale(2.0))


def test_attributes_of_a_dataclass_that_are_no_fields_count():
    def scale(**more):
        made = Scale(2.0)
        vars(made).update(more)
        return casckpt.fingerprint(made)

    assert len({scale(), scale(unit="m"), scale(unit="km")}) == 3
    assert scale(unit="m", client=object()) == scale(client=object(), unit="m")


# ---- tables


def tables():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2]})

    def category(names, ordered=False):
        return pandas.Series(pandas.Categorical(["a", "b"], categories=names, ordered=ordered))

    def of_pairs(name):
        index = pandas.MultiIndex.from_tuples([(1, 2)], names=[name, "b"])
        return pandas.DataFrame({"v": [1]}, index=index)

    def every(freq):
        return pandas.Series([1], index=pandas.date_range("2024-01-31", periods=1, freq=freq))

    noted = frame.copy()
    noted.attrs["unit"] = "m"
    return [
        frame, frame.rename_axis("x"), frame.rename_axis("y"), frame.rename_axis(columns="x"),
        noted,
        category(["a", "b"]), category(["b", "a"]), category(["a", "b", "c"]),
        category(["a", "b"], ordered=True), category(["a", "b"]).to_frame(),
        category(["b", "a"]).to_frame(), of_pairs("a"), of_pairs("c"), every("D"), every("ME"),
        pandas.DataFrame([[1]], columns=pandas.CategoricalIndex(["a"])),
        pandas.DataFrame([[1]], columns=pandas.CategoricalIndex(["a"], ["b", "a"])),
        pandas.DataFrame([[1]], columns=["a"]),
        pandas.Series([1], index=pandas.CategoricalIndex(["a"], ["a", "b"])),
        pandas.Series([1], index=pandas.CategoricalIndex(["a"], ["b", "a"])),
    ]  # fmt: skip


def test_tables_count_with_their_categories_and_names():
    found = [casckpt.fingerprint(table) for table in tables()]
    assert len(set(found)) == len(found)
    assert found == [casckpt.fingerprint(table) for table in tables()]


# ---- modules of torch

MODULES = """
import casckpt, functools, torch
from torch import nn
from types import SimpleNamespace

def ones(module):
    for parameter in module.parameters():
        nn.init.ones_(parameter)
    return module

def with_buffer(number):
    module = nn.Module()
    module.register_buffer("b", torch.tensor(number), persistent=False)
    return module

class Own(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self._scale = settings

class Same(Own):
    def forward(self, x):
        return x

class Minus(Own):
    def forward(self, x):
        return -x

def linear(*more):
    return ones(nn.Sequential(nn.Linear(2, 2), *more))

def scheduler(factor):
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)

relu = nn.ReLU()
encoder = functools.partial(nn.TransformerEncoderLayer, 4, 2, 4)
modules = [
    nn.MSELoss(), nn.L1Loss(), nn.L1Loss(reduction="sum"), nn.AvgPool2d(2), nn.AvgPool2d(4),
    nn.Dropout(0.1), nn.Dropout(0.9), linear(nn.ReLU()), linear(nn.Tanh()), linear(relu, relu),
    linear(nn.Conv2d(1, 1, 3, stride=1)), linear(nn.Conv2d(1, 1, 3, stride=2)),
    with_buffer(1.0), with_buffer(2.0), ones(encoder(activation=torch.tanh)),
    ones(encoder(activation=torch.sigmoid)), Own(by=1), Own(by=2), Own(by=torch.ones(1)),
    Own(by=SimpleNamespace(a=1)), Same(), Minus(),
    scheduler(lambda n: n), scheduler(lambda n: n * 2),
    torch.fx.symbolic_trace(nn.ReLU()), torch.fx.symbolic_trace(nn.Tanh()),
]
found = [casckpt.fingerprint(module) for module in modules]
for module in modules:
    if isinstance(module, nn.Module):
        module.eval()
assert found == [casckpt.fingerprint(module) for module in modules]
"""


def test_modules_count_with_their_classes_and_settings_in_every_process(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "modules.py").write_text(MODULES + "print(*found)")
    found = [
        subprocess.run(
            [sys.executable, str(tmp_path / "modules.py")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert len(found[0]) == len(set(found[0])) > 20
