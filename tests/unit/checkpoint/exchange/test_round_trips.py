"""What is written comes back exactly, and other programs can read it. Without torch."""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict, namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from casckpt.checkpoint.exchange import is_known, read_file, read_tree, write_file, write_tree
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.manifest import Manifest
from casckpt.errors import BadLeaf, BadRequest, MissingExtra, NoSpace, OperationFailed

Point = namedtuple("Point", ["x", "y"])


@dataclass
class Settings:
    rate: float
    name: str


class Outer:
    @dataclass
    class Inner:
        rate: float


ARRAYS = {
    "float32": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(24).reshape(2, 3, 4)),
    "permuted": np.arange(24.0).reshape(2, 3, 4).transpose(1, 2, 0),
    "strided": np.arange(20)[::2],
    "big_endian": np.arange(3, dtype=">i4"),
    "half": np.arange(3, dtype=np.float16),
    "complex": np.array([1 + 2j, complex(math.nan, -0.0)]),
    "complex_fortran": np.asfortranarray(np.arange(6).reshape(2, 3) * 1j),
    "bool": np.array([[True, False]]),
    "text": np.array(["ab", "ü"]),
    "bytes": np.array([b"ab", b"c"]),
    "date": np.array(["2024-01-01", "NaT"], "M8[D]"),
    "structured": np.array([(1.5, [1, 2])], [("a", "<f4"), ("b", ">i2", (2,))]),
    "empty": np.empty((0, 3)),
    "zero_dim": np.array(3.5),
    "uint64": np.array([2**64 - 1], np.uint64),
}

VALUES = {
    "ints": [0, -1, 2**53, -(2**200)],
    "floats": [0.1, -0.0, math.inf, -math.inf, math.nan, 1.0, 1e300, 5e-324],
    "odd_nan": struct.unpack("<d", struct.pack("<Q", 0x7FF8000000000001))[0],
    "texts": ["", "NaN", "Infinity", "$str", "ü\n", "\ud800", "x" * 5000],
    "bytes": [b"", b"\x00\xff" * 3, bytes(5000), bytearray(b"ab")],
    "none": [None, True, False],
    "complex": [1 - 2j, complex(math.nan, 1)],
    "tuples": (1, (2.0, ()), [3]),
    "keys": {1: "a", 2.5: "b", None: "c", True and "t": "d", (1, "x"): "e", b"k": "f"},
    "dollar": {"$array": 1},
    "ordered": OrderedDict(b=1, a=2),
    "counter": Counter("abba"),
    "default": defaultdict(list, {"a": [1]}),
    "path": Path("a/b"),
    "point": Point(1, np.float32(2)),
    "settings": Settings(0.1, "n"),
    "scalars": [np.float64(0.1), np.int8(-3), np.bool_(True), np.float32("nan"), np.str_("s")],
    "dotted": {"a.b": {"c": np.ones(1)}, "a": {"b.c": np.zeros(1)}},
    "climbing": {"../../x": np.ones(2), "/abs": np.zeros(2)},
}


def everything() -> dict[str, object]:
    return {"arrays": ARRAYS, "values": VALUES, "shared": [ARRAYS["float32"]] * 2}


@pytest.mark.parametrize("format", ["safetensors", "npz", "json"])
def test_every_format_with_a_description_gives_the_tree_back(tmp_path, assert_same, format):
    path = tmp_path / f"state.{format}"
    assert write_file(everything(), path) == format
    assert_same(everything(), read_file(path))


def test_a_folder_gives_the_tree_back_exactly(tmp_path, assert_same):
    write_tree(everything(), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "state.safetensors",
        "tree.json",
    ]
    state = read_tree(tmp_path / "out", RestoreOptions())
    assert_same(everything(), state)
    assert state["shared"][0] is state["shared"][1]
    assert state["arrays"]["fortran"].flags.f_contiguous
    assert_same(state, read_file(tmp_path / "out"))


@pytest.mark.parametrize("format", ["safetensors", "npz"])
@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_extension_dtypes_come_back(tmp_path, assert_same, name, format):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    state = {"w": np.arange(6).astype(getattr(ml_dtypes, name)).reshape(2, 3)}
    write_file(state, tmp_path / f"x.{format}")
    assert_same(state, read_file(tmp_path / f"x.{format}"))


@pytest.mark.parametrize("state", [np.arange(3), 5, "text", None, [1, 2], b"x" * 5000])
@pytest.mark.parametrize("format", ["safetensors", "npz", "json"])
def test_the_root_may_be_any_value(tmp_path, assert_same, state, format):
    write_file(state, tmp_path / "x", format=format)
    assert_same(state, read_file(tmp_path / "x"))


# ---- other programs read what is written, and are read


def test_numpy_reads_npz(tmp_path):
    write_file(everything(), tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
        for name in ("float32", "fortran", "permuted", "strided", "complex", "bool", "empty"):
            np.testing.assert_array_equal(found[f"arrays.{name}"], ARRAYS[name])
        np.testing.assert_array_equal(found["shared.1"], ARRAYS["float32"])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz_of_numpy_is_read(tmp_path, assert_same, save):
    save(tmp_path / "x.npz", **ARRAYS)
    assert_same(ARRAYS, read_file(tmp_path / "x.npz"))


def test_npy_is_read_and_writable(tmp_path):
    np.save(tmp_path / "x.npy", ARRAYS["fortran"])
    array = read_file(tmp_path / "x.npy")
    np.testing.assert_array_equal(array, ARRAYS["fortran"])
    array[:] = 0


def test_safetensors_reads_what_is_written(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    write_file(everything(), tmp_path / "x.safetensors")
    found = safetensors.load_file(tmp_path / "x.safetensors")
    for name in ("float32", "fortran", "permuted", "strided", "half", "bool", "empty", "zero_dim"):
        np.testing.assert_array_equal(found[f"arrays.{name}"], ARRAYS[name])


def test_safetensors_of_the_reference_writer_is_read(tmp_path, assert_same):
    safetensors = pytest.importorskip("safetensors.numpy")
    plain = {name: np.ascontiguousarray(ARRAYS[name]) for name in ("float32", "half", "empty")}
    safetensors.save_file(plain, tmp_path / "x.safetensors", {"format": "np", "note": "hello"})
    assert_same(dict(sorted(plain.items())), read_file(tmp_path / "x.safetensors"))


def test_a_class_inside_a_class_is_found_again_in_json(tmp_path):
    path = tmp_path / "x.json"
    write_file({"a": Outer.Inner(0.2)}, path)
    assert read_file(path)["a"] == Outer.Inner(0.2)


def test_a_class_named_as_before_is_found_in_json(tmp_path):
    path = tmp_path / "x.json"
    write_file({"a": Settings(0.1, "n")}, path)
    path.write_text(path.read_text().replace(f"{__name__}:Settings", f"{__name__}.Settings"))
    assert f"{__name__}.Settings" in path.read_text()
    assert read_file(path)["a"] == Settings(0.1, "n")


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_are_read(tmp_path, assert_same, protocol):
    import pickle

    state = {"arrays": ARRAYS, "values": {**VALUES, "point": None, "settings": None}}
    state["values"]["scalars"] = VALUES["scalars"][:4]
    if protocol == 0:
        del state["values"]["odd_nan"]  # It writes floats as decimal text.
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(state, protocol))
    assert_same(state, read_file(path))


def test_what_a_tree_does_not_have_becomes_the_nearest_thing(tmp_path, caplog):
    import argparse
    import datetime
    import pickle
    from collections import deque

    state = {
        "set": {3, 1, 2},
        "deque": deque([1, 2], 5),
        "args": argparse.Namespace(lr=0.1, name="x"),
        "when": datetime.datetime(2024, 5, 6, 7, 8, 9),
    }
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(state))
    with caplog.at_level("INFO"):
        found = read_file(path)
    assert found == {
        "set": [1, 2, 3],
        "deque": [1, 2],
        "args": {"lr": 0.1, "name": "x"},
        "when": "2024-05-06T07:08:09",
    }
    assert "a set became a list" in caplog.text


def test_a_date_of_python_2_that_reads_as_text_is_a_date(tmp_path):
    state = b"\x07\x6c\x01\x02\x03\x04\x05\x00\xc3\xa9"  # 0xc3a9 microseconds, or an accent
    (tmp_path / "x.pkl").write_bytes(b"\x80\x02cdatetime\ndatetime\nU\x0a" + state + b"\x85R.")
    assert read_file(tmp_path / "x.pkl") == "1900-01-02T03:04:05.050089"


def test_json_is_readable(tmp_path):
    state = {"lr": 0.1, "loss": math.nan, "w": np.array([[1, 2.5]]), "name": "x", "n": 3}
    about = Manifest("bpm/nn", 0, 7, 0, "2024-01-01T00:00:00.000000Z", None, (), metrics={"a": 1.5})
    write_file(state, tmp_path / "x.json", about=about)
    document = json.loads((tmp_path / "x.json").read_text())
    assert document["state"] == {
        "lr": 0.1,
        "loss": "NaN",
        "w": {"$array": "<f8", "shape": [1, 2], "data": [[1.0, 2.5]]},
        "name": "x",
        "n": 3,
    }
    assert document["about"]["run"] == "bpm/nn"
    assert document["about"]["metrics"] == {"a": 1.5}


def test_json_of_anybody_is_plain_values(tmp_path):
    (tmp_path / "x.json").write_text('{"a": [1, 2.5, "NaN", null], "$array": 5}')
    assert is_known(tmp_path / "x.json")
    assert read_file(tmp_path / "x.json") == {"a": [1, 2.5, "NaN", None], "$array": 5}


UBJ = b"{L\x00\x00\x00\x00\x00\x00\x00\x07learner" + bytes(2000)


def test_boosters_pass_as_bytes(tmp_path):
    (tmp_path / "x.ubj").write_bytes(UBJ)
    assert read_file(tmp_path / "x.ubj") == UBJ
    write_file({"params": {"eta": 0.1}, "note": b"other bytes", "model": UBJ}, tmp_path / "y.ubj")
    assert (tmp_path / "y.ubj").read_bytes() == UBJ
    write_file([1, ({"model": bytearray(UBJ)},)], tmp_path / "z.ubj")
    assert (tmp_path / "z.ubj").read_bytes() == UBJ


@pytest.mark.parametrize("state", [{}, {"a": UBJ, "b": UBJ + b"x"}, {"a": b"bytes"}])
def test_ubj_needs_exactly_one_booster(tmp_path, state):
    with pytest.raises(BadRequest, match="ubj"):
        write_file(state, tmp_path / "x.ubj")
    assert list(tmp_path.iterdir()) == []


# ---- nothing half-written


@pytest.mark.parametrize("format", ["safetensors", "npz", "json"])
def test_a_bad_leaf_leaves_the_old_file(tmp_path, format):
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(BadLeaf):
        write_file({"a": object()}, path, format=format)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_torch_format_without_torch_says_so(tmp_path):
    with pytest.raises(MissingExtra):
        write_file({}, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []


def test_bad_destinations_are_bad_requests(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    for path in ("x.unknown", "x", "nowhere/x.json"):
        with pytest.raises(BadRequest):
            write_file({}, tmp_path / path)
    with pytest.raises(BadRequest):
        write_file({}, tmp_path / "full", format="json")
    for path in ("full", "full/file", "nowhere/x"):
        with pytest.raises(BadRequest):
            write_tree({}, tmp_path / path)
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write_tree({"a": 1}, tmp_path / "out")
    assert read_file(tmp_path / "out") == {"a": 1}


def test_equal_states_give_equal_files(tmp_path):
    for format in ("safetensors", "npz", "json"):
        write_file(everything(), tmp_path / "a", format=format)
        write_file(everything(), tmp_path / "b", format=format)
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, NoSpace), (errno.EIO, OperationFailed)]
)
def test_a_failing_disk_leaves_what_was_there(tmp_path, monkeypatch, number, error):
    (tmp_path / "x.json").write_text("old")

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(error):
        write_file({}, tmp_path / "x.json")
    with pytest.raises(error):
        write_tree({}, tmp_path / "out")
    assert (tmp_path / "x.json").read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_real_booster_passes_through(tmp_path):
    xgboost = pytest.importorskip("xgboost")
    data = xgboost.DMatrix(np.arange(8.0).reshape(4, 2), label=[0, 1, 0, 1])
    booster = xgboost.train({"max_depth": 2}, data, 2)
    raw = bytes(booster.save_raw("ubj"))
    import casckpt.api  # noqa: F401 - names the readers of frameworks

    write_file({"model": booster}, tmp_path / "object.ubj")
    assert (tmp_path / "object.ubj").read_bytes() == raw
    write_file({"booster": raw}, tmp_path / "x.ubj")
    found = read_file(tmp_path / "x.ubj")
    assert found == raw
    assert xgboost.Booster(model_file=bytearray(found)).num_boosted_rounds() == 2


def test_importing_the_package_imports_no_array_library():
    code = "import sys, casckpt.checkpoint.exchange; print({'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
