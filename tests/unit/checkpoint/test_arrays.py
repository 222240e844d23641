"""numpy's leaves: odd dtypes, tensors as arrays, and what hostile manifests say of them."""

from __future__ import annotations

import dataclasses
import re
import sys

import numpy as np
import pytest

from casckpt.checkpoint import arrays_dtypes
from casckpt.checkpoint.arrays_dtypes import number_width, parse_dtype
from casckpt.checkpoint.leaves import RestoreOptions, axes_of, memory_order
from casckpt.checkpoint.tree import flatten
from casckpt.checkpoint.tree_build import Builder
from casckpt.errors import BadLeaf, Corrupt, TreeMismatch
from tests.suites.memory_repository import Saved


def build(node, **options):
    return Builder(lambda index: None, 0, RestoreOptions(**options)).build(node)


def changed(saved, index, **fields):
    """Give one entry of a manifest other fields, as a hostile writer would."""
    entries = list(saved.manifest.entries)
    entries[index] = dataclasses.replace(entries[index], **fields)
    saved.manifest = dataclasses.replace(saved.manifest, entries=tuple(entries))
    return saved


# ---- order in memory


@pytest.mark.parametrize(
    ("shape", "stride", "order"),
    [
        ((), (), "C"),
        ((2, 3), (3, 1), "C"),
        ((2, 1, 3), (3, 99, 1), "C"),
        ((2, 3), (1, 2), "F"),
        ((2, 3, 4), (1, 8, 2), "1,2,0"),
        ((2, 3), (4, 1), None),
        ((2, 3), (0, 1), None),
    ],
)
def test_the_order_of_dense_memory_is_named_and_read_again(shape, stride, order):
    assert memory_order(shape, stride) == order
    if order is not None:
        axes = axes_of(order, len(shape))
        strides = [stride[axis] for axis in axes if shape[axis] > 1]
        assert strides == sorted(strides, reverse=True)


@pytest.mark.parametrize("order", ["", "K", "0,1", "0,0,1", "0,1,3", "0,1,-2", "0,1,²", "C,F,C"])
def test_an_order_that_names_no_axes_is_none(order):
    assert axes_of(order, 3) is None


# ---- dtypes


def nested_text(depth):
    return '{"base":' * depth + '"<f8"' + ',"shape":[1]}' * depth


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "an array of the unknown dtype ''"),
        ("<f99", "an array of the unknown dtype '<f99'"),
        ("{", "a structured dtype that is not JSON"),
        ('{"a":' * 100_000, "a structured dtype that is not JSON"),
        ('{"a":1}', "a dtype of an unknown form"),
        ('{"base":5,"shape":[]}', "a dtype of an unknown form"),
        ('{"base":"<f8","shape":5}', "a structured dtype that numpy refuses"),
        (f'{{"base":"<f8","shape":{[1] * 65}}}', "a structured dtype that numpy refuses"),
        ('{"base":"<f8","shape":[-1]}', "a dtype with a size out of bounds"),
        ('{"base":"<f8","shape":[true]}', "a dtype with a size out of bounds"),
        (nested_text(17), "a dtype that is nested too deeply"),
        ('{"fields":5,"size":8,"aligned":false}', "without a list of fields"),
        ('{"fields":[5],"size":8,"aligned":false}', "with a malformed field"),
        ('{"fields":[["a","<i8"]],"size":8,"aligned":false}', "with a malformed field"),
        ('{"fields":[[1,"<i8",0]],"size":8,"aligned":false}', "with a malformed field"),
        ('{"fields":[["a","<i8",4]],"size":8,"aligned":false}', "that numpy refuses"),
        (
            '{"fields":[["a","<i4",0],["a","<i4",4]],"size":8,"aligned":false}',
            "that numpy refuses",
        ),
    ],
)
def test_a_dtype_that_no_save_writes_is_corrupt(text, why):
    with pytest.raises(Corrupt, match=re.escape(why)):
        parse_dtype(text)


def test_items_that_are_arrays_have_the_width_of_their_numbers():
    assert number_width(parse_dtype(nested_text(2))) == 8


def nested_dtype(depth):
    dtype = np.dtype("f8")
    for _ in range(depth):
        dtype = np.dtype([("a", dtype)])
    return dtype


TITLED = np.dtype({"names": ["a", "b"], "formats": ["<i4", "<f8"], "titles": ["the a", None]})


@pytest.mark.parametrize("dtype", [nested_dtype(16), TITLED])
def test_the_deepest_dtype_and_titles_come_back(dtype):
    assert Saved([np.zeros(2, dtype)]).restore()[0].dtype == dtype


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(2, nested_dtype(17)),
        np.zeros(2, np.dtype({"names": ["a"], "formats": ["i4"], "titles": [5]})),
        np.zeros(2, [("a", "O")])[0],
        np.dtype("f4"),
        np.random.default_rng(0),
    ],
)
def test_what_numpy_has_and_a_checkpoint_has_not_is_refused_by_path(value):
    with pytest.raises(BadLeaf) as caught:
        flatten({"m": [value]})
    assert caught.value.path == "m.0"


RECORDS = np.rec.array([(1, 2.0), (3, 4.0)], dtype=[("x", "<i4"), ("y", "<f8")])


@pytest.mark.parametrize("value", [RECORDS, np.asarray(RECORDS), RECORDS[0]])
def test_records_whose_fields_are_attributes_are_refused_and_their_hint_holds(value):
    with pytest.raises(BadLeaf) as caught:
        flatten({"m": [value]})
    assert caught.value.path == "m.0"
    code = caught.value.hint.partition(": ")[2]
    plain = eval(code, {"numpy": np, "value": value})
    back = Saved({"m": [plain]}).restore()["m"][0]
    assert back.dtype.type is np.void
    assert back.tobytes() == value.tobytes()


@pytest.mark.parametrize("shape", [(), (2,)])
def test_a_field_whose_items_have_attributes_is_refused(shape):
    with pytest.raises(BadLeaf, match=r"^m: .*\n.*numpy\.record"):
        flatten({"m": np.zeros(2, [("a", RECORDS.dtype, shape)])})


@pytest.mark.parametrize("stage", [False, True])
def test_of_an_array_that_is_not_dense_its_items_are_stored_and_nothing_between(stage):
    fields = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    memory = np.frombuffer(bytearray(b"\xff" * 160_000), fields)
    state = {"records": memory[::2], "reversed": np.arange(20_000.0)[::-1]}
    for name in memory.dtype.names:
        memory[name] = 1
    saved = Saved(state, stage=stage)
    records, numbers = (saved.repo.blobs[blob] for blob in saved.refs)
    assert len(records) == 80_000
    assert set(records[1:8]) == {0}, "what lies between two fields"
    assert numbers == state["reversed"].tobytes()
    back = saved.restore()
    assert np.array_equal(back["records"], state["records"])
    assert back["reversed"].tolist() == state["reversed"].tolist()


# ---- scalars


@pytest.mark.parametrize(
    "scalar",
    [
        np.str_("x" * 2000),
        np.str_("é\udc80" * 1000 + "\0"),
        np.bytes_(b"y" * 2000),
        np.bytes_(b"y" * 2000 + b"\0"),
        np.zeros(1, [("a", "f8", 500)])[0],
    ],
)
def test_a_large_scalar_keeps_its_type_and_every_bit(scalar):
    (back,) = Saved([scalar]).restore()
    assert type(back) is type(scalar)
    assert back == scalar
    assert back.dtype == scalar.dtype
    assert back.tobytes() == scalar.tobytes()


def test_a_large_string_of_the_other_byte_order_comes_back_and_one_of_no_characters_does_not():
    saved = Saved([np.str_("x" * 2000)])
    assert changed(saved, 0, dtype=">U2000").manifest.entries[0].flags == ("scalar",)
    with pytest.raises(Corrupt, match="0: a string of what are no characters"):
        saved.restore()
    (blob_id,) = saved.refs
    blob = np.frombuffer(saved.repo.blobs[blob_id], "<u4").byteswap().tobytes()
    saved.repo.read_blobs = lambda reads, verify: [
        one.dest.cast("B").__setitem__(slice(None), blob) for one in reads
    ]
    assert saved.restore() == ["x" * 2000]


@pytest.mark.parametrize(
    ("node", "why"),
    [
        ({"x": ["numpy", "str_"], "a": 5, "v": []}, "a numpy string that is none"),
        ({"x": ["numpy", "str_"], "a": {"b": "00"}, "v": []}, "a numpy string that is none"),
        ({"x": ["numpy", "bytes_"], "a": "F", "v": []}, "numpy bytes that is not lower-case hex"),
        ({"x": ["numpy", "scalar"], "a": ["<f4", "00"], "v": []}, "a scalar of the wrong length"),
        ({"x": ["numpy", "scalar"], "a": [4, "00"], "v": []}, "the unknown dtype ''"),
        ({"x": ["numpy", "scalar"], "a": ["<f4"], "v": []}, "the unknown kind 'scalar'"),
        ({"x": ["numpy", "sparse"], "a": {"layout": "coo"}, "v": [1, 2]}, "unknown kind 'sparse'"),
        ({"x": ["numpy", "size"], "a": [1], "v": []}, "the unknown kind 'size'"),
    ],
)
def test_an_extension_that_no_save_writes_is_corrupt(node, why):
    with pytest.raises(Corrupt, match=re.escape(why)):
        build(node)


@pytest.mark.parametrize(
    ("attributes", "parts"),
    [
        ({"layout": "coo"}, [1]),
        ({"layout": "csr"}, [1, 2]),
        ({"layout": "zip"}, []),
        ({"layout": 5}, []),
        ([], [1, 2]),
    ],
)
def test_a_sparse_tensor_with_other_parts_than_its_layout_has_is_corrupt(attributes, parts):
    with pytest.raises(Corrupt, match="the unknown kind 'sparse'"):
        build({"x": ["torch", "sparse"], "a": attributes, "v": parts}, as_numpy=True)


# ---- tensors as arrays


def test_tensors_that_share_memory_are_arrays_that_share_it():
    torch = pytest.importorskip("torch")
    memory = torch.arange(8.0)
    state = {
        "whole": memory,
        "part": memory[2:5],
        "halves": [torch.arange(6)[:4], torch.arange(6)[:4]],
    }
    both = torch.arange(20, dtype=torch.int32)
    state["low"], state["high"] = both[:12], both[8:]
    back = Saved(state).restore(as_numpy=True)
    assert back["part"].tolist() == [2, 3, 4]
    back["whole"][2] = 9
    assert back["part"][0] == 9
    assert back["low"].tolist() == list(range(12))
    assert back["high"].tolist() == list(range(8, 20))
    back["low"][8] = -1
    assert back["high"][0] == -1


def test_a_tensor_of_which_bits_are_lazy_is_an_array_of_its_values():
    torch = pytest.importorskip("torch")
    numbers = torch.tensor([1 + 2j, 3 - 4j])
    state = {"conj": numbers.clone().conj(), "neg": numbers.clone().conj().imag}
    back = Saved(state).restore(as_numpy=True)
    assert back["conj"].tolist() == [1 - 2j, 3 + 4j]
    assert back["neg"].tolist() == [-2, 4]


@pytest.mark.filterwarnings("ignore:ComplexHalf")
def test_a_tensor_whose_dtype_numpy_lacks_is_refused_by_path():
    torch = pytest.importorskip("torch")
    saved = Saved({"h": torch.zeros(2, dtype=torch.complex32)})
    with pytest.raises(BadLeaf, match="h: numpy has no complex32"):
        saved.restore(as_numpy=True)


@pytest.mark.parametrize("as_numpy", [False, True])
@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"stride": (1, 1)}, "a view whose strides do not fit its shape"),
        ({"offset": 3}, "a view whose strides do not fit its shape"),
        ({"offset": 4 * 7}, "a view past the end of what it views"),
        ({"stride": (4,)}, "a view past the end of what it views"),
        ({"shape": (0,)}, "a view past the end of what it views"),
    ],
)
def test_a_view_that_leaves_its_memory_is_corrupt(fields, why, as_numpy):
    torch = pytest.importorskip("torch")
    memory = torch.arange(8.0)
    saved = changed(Saved({"whole": memory, "part": memory[2:5]}), 1, **fields)
    with pytest.raises(Corrupt, match=f"part: {why}"):
        saved.restore(as_numpy=as_numpy)


# ---- into arrays


@pytest.mark.parametrize(
    ("saved", "target", "why"),
    [
        (np.ones((2, 2)), np.lib.stride_tricks.as_strided(np.zeros(1), (2, 2), (0, 0)),
         "the array in into is a broadcast"),
        (np.ones(2), np.zeros(3), r"shape \(2,\) in the checkpoint, \(3,\) in into"),
        (np.ones(2), np.zeros(2, ">f8"), "dtype <f8 in the checkpoint, >f8 in into"),
    ],
)  # fmt: skip
def test_an_array_that_cannot_take_the_values_is_refused(saved, target, why):
    before = target.copy()
    with pytest.raises(TreeMismatch, match=f"a: {why}"):
        Saved({"a": saved}).restore(into={"a": target})
    assert np.array_equal(target, before)


def test_a_dtype_that_needs_a_package_does_not_fit_an_array_without_it(monkeypatch):
    torch = pytest.importorskip("torch")
    saved = Saved({"a": torch.ones(2, dtype=torch.bfloat16)})
    arrays_dtypes.parse_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TreeMismatch, match="a: dtype bfloat16 in the checkpoint, float32 in into"):
        saved.restore(into={"a": np.zeros(2, np.float32)})


def test_a_sparse_tensor_does_not_fit_an_array():
    torch = pytest.importorskip("torch")
    saved = Saved({"a": torch.eye(2).to_sparse()})
    with pytest.raises(TreeMismatch, match="a: a sparse in the checkpoint, an array in into"):
        saved.restore(into={"a": np.zeros((2, 2))})
    with pytest.raises(TreeMismatch, match="a: a sparse tensor in the checkpoint, str in into"):
        saved.restore(into={"a": "text"})
