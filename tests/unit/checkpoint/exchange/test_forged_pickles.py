"""Pickles whose names are all allowed and whose contents are not, and rare ones that are sound."""

from __future__ import annotations

import argparse
import codecs
import copyreg
import datetime
import pathlib
import pickle
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest

from casckpt.checkpoint.exchange import machine, read_file
from casckpt.checkpoint.exchange.resolve import Resolver
from casckpt.errors import Corrupt, PickleRefused

RECONSTRUCT = np._core.multiarray._reconstruct
FROM_BUFFER = np._core.numeric._frombuffer
EMPTY = (np.ndarray, (0,), b"b")
BYTES = np.dtype("u1")


class Made:
    """Pickles as a call of `function` and a state that BUILD brings to what it returns."""

    def __init__(self, function, args=(), state=None):
        self.made = function, args, state

    def __reduce__(self):
        return self.made


def array(*state):
    return Made(RECONSTRUCT, EMPTY, (1, *state))


def dtype(text, *state):
    return Made(np.dtype, (text, False, True), state)


def read(tmp_path, value):
    data = value if isinstance(value, bytes) else pickle.dumps(value, 2)
    (tmp_path / "x.pkl").write_bytes(data)
    return read_file(tmp_path / "x.pkl")


def nested_dtype(depth: int) -> np.dtype:
    found = np.dtype("f4")
    for _ in range(depth):
        found = np.dtype([("a", found)])
    return found


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (Made(set, ([],), {"a": 1}), "the state of a set is no list"),
        (Made(argparse.Namespace, (), [1]), "the state of a Namespace is no dict"),
        (Made(bytearray, (b"x",), {"a": 1}), "a BytearrayNode takes no state"),
        (Made(deque, (5,)), "an argument is a int"),
        (Made(codecs.encode, ("x", "utf-8")), "an encoding other than latin1"),
        (Made(copyreg._reconstructor, (set, object, 5)), "something else than its class"),
        (Made(copyreg._reconstructor, (set, int, None)), "another base"),
        (Made(defaultdict, (np.ndarray,)), "whose factory is a function"),
        (Made(datetime.datetime, (bytes(10), 5)), "a date with a time zone"),
        (Made(datetime.date, (b"\x07",)), "a date of the wrong length"),
        (Made(np.dtype, ("magic",)), "a dtype of an unknown kind"),
        (Made(np.dtype, (BYTES,)), "a dtype of an unknown kind"),
        (Made(np.dtype, ("f4",), [1]), "no tuple of 8 or 9"),
        (dtype("V8", 3, "|", ("f8", (2,)), None, None, -1, -1, 0), "something else than dtypes"),
        (
            dtype("M8", 4, "<", None, None, None, -1, -1, 0, ({}, (b"eon", 1, 1, 1))),
            "a date of an unknown unit",
        ),
        (np.zeros(1, nested_dtype(20)), "a dtype nested more than 16 deep"),
        (Made(RECONSTRUCT, EMPTY), "an array without its bytes"),
        (Made(RECONSTRUCT, EMPTY, {"a": 1}), "the state of an array is no tuple of 5"),
        (array((1,), 5, False, b"x"), "an array without a dtype"),
        (array((1,), BYTES, False, 5), "an array without bytes"),
        (Made(FROM_BUFFER, (b"x", BYTES, (1,), "A")), "an array in no order"),
        (Made(np.random._pickle.__generator_ctor), "a generator without its state"),
        (np.random.SeedSequence(1), "a SeedSequence where a value is expected"),
        ({tuple((n,) * 20 for n in range(20)): 1}, "a key of more than 256 parts"),
        (b"S12\n.", "a string without quotes"),
        (b"ccollections\nOrderedDict\n]R.", "arguments that are no tuple"),
        (b"\x80\x02ccollections\nOrderedDict\n)}K\x01K\x02s\x92.", "keyword arguments"),
        (b"NP0\n.", "an object outside the pickle that is no storage"),
    ],
)
def test_contents_that_cannot_be_are_corrupt(tmp_path, value, why):
    with pytest.raises(Corrupt, match=why):
        read(tmp_path, value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"d": np.dtype("f4")}, "a numpy dtype as a value"),
        (array((1,), np.dtype("f8"), False, [1.0]), "an array of Python objects"),
        (Made(RECONSTRUCT, (np.memmap, (0,), b"b")), "a subclass of numpy.ndarray"),
    ],
)
def test_values_of_other_kinds_are_refused_by_name(tmp_path, value, name):
    with pytest.raises(PickleRefused, match=name):
        read(tmp_path, value)


def test_a_value_that_no_reader_knows_is_refused():
    with pytest.raises(PickleRefused, match="a range"):
        Resolver("x.pkl", 0, Counter())([range(3)])


def test_a_pickle_that_does_not_come_to_an_end_is_corrupt(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "OPERATIONS_MAX", 100)
    assert read(tmp_path, b"N0" * 49 + b"N.") is None
    with pytest.raises(Corrupt, match="more than 100 operations"):
        read(tmp_path, b"N0" * 50 + b"N.")


def test_objects_of_an_array_in_an_estimator_fill_its_shape(tmp_path):
    pytest.importorskip("sklearn")
    import casckpt.api  # noqa: F401 - names the readers of frameworks

    estimator = b"csklearn.linear_model._logistic\nLogisticRegression\n0"
    forged = array((3,), np.dtype("O"), False, [1])
    with pytest.raises(Corrupt, match="does not fit its 1 objects"):
        read(tmp_path, b"\x80\x02" + estimator + pickle.dumps(forged, 2)[2:])


# ---- rare, and sound


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"\x80\x02K\x01(0.", 1),
        (b"(ccollections\nOrderedDict\no.", OrderedDict()),
        (b"(icollections\nOrderedDict\n.", OrderedDict()),
        (b"\x80\x02U\x02\xff\xfe.", b"\xff\xfe"),
        (pickle.dumps(frozenset({2, 1}), 4), [1, 2]),
        (pickle.dumps(pathlib.PureWindowsPath("a\\b")), "a\\b"),
        # As Pythons before 3.8 write it.
        (pickle.dumps(Made(bytearray, ("a\xff", "latin-1")), 2), bytearray(b"a\xff")),
        (pickle.dumps(argparse.Namespace(a=1), 0), {"a": 1}),
    ],
)
def test_other_ways_of_writing_values_are_read(tmp_path, assert_same, data, value):
    assert_same(read(tmp_path, data), value)


def test_a_set_that_cannot_be_sorted_becomes_a_list(tmp_path):
    assert sorted(read(tmp_path, {1, "a", 2}), key=str) == [1, 2, "a"]


@pytest.mark.parametrize("value", [np.array([1, 2], "m8"), np.array(["NaT"], "M8")])
def test_spans_without_a_unit_are_read(tmp_path, assert_same, value):
    assert_same(read(tmp_path, value), value)


def test_dates_of_numpy_before_units_are_read(tmp_path):
    old = dtype("M8", 3, "<", None, None, None, -1, -1, 0)
    assert read(tmp_path, array((1,), old, False, bytes(8))).dtype == np.dtype("M8")


def test_arrays_of_extension_dtypes_are_read(tmp_path, assert_same):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    value = np.arange(4).astype(ml_dtypes.bfloat16)
    assert_same(read(tmp_path, value), value)


def test_a_bit_generator_becomes_its_state(tmp_path):
    bits = np.random.PCG64(1)
    assert read(tmp_path, bits) == bits.state


@pytest.mark.parametrize(
    ("state", "why"), [([1], "the state of a model is no dict"), ({"n": 1}, "was never fitted")]
)
def test_a_model_without_its_booster_is_corrupt(tmp_path, state, why):
    xgboost = pytest.importorskip("xgboost")
    import casckpt.api  # noqa: F401 - names the readers of frameworks

    with pytest.raises(Corrupt, match=why):
        read(tmp_path, Made(xgboost.XGBRegressor, (), state))
