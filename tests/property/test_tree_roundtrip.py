"""Any tree of allowed values comes back the same: values, types, keys and their order."""

from __future__ import annotations

import collections
import math
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import casckpt
from tests.suites.memory_repository import Saved

FLOATS = st.integers(0, 2**64 - 1).map(lambda bits: struct.unpack(">d", struct.pack(">Q", bits))[0])
TEXTS = st.text(st.characters(), max_size=8)
KEY_PARTS = (
    TEXTS
    | st.integers()
    | st.booleans()
    | st.none()
    | st.binary(max_size=6)
    | st.floats(allow_nan=False)
)
KEYS = st.recursive(KEY_PARTS, lambda inner: st.lists(inner, max_size=3).map(tuple), max_leaves=4)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | FLOATS
    | st.tuples(FLOATS, FLOATS).map(lambda pair: complex(*pair))
    | TEXTS
    | st.binary(max_size=20)
    | st.binary(max_size=20).map(bytearray)
    | st.integers(1000, 3000).map(lambda count: "é" * count)
    | st.integers(1000, 3000).map(lambda count: b"z" * count)
    | st.just(pathlib.Path("/a/b"))
)
DTYPES = (
    npst.scalar_dtypes()
    | npst.byte_string_dtypes()
    | npst.unicode_string_dtypes()
    | npst.array_dtypes(allow_subarrays=True)
)

TORCH_DTYPES = (
    *("bool", "uint8", "int8", "int16", "uint16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "float64", "complex64", "complex128"),
    *("float8_e4m3fn", "float8_e5m2"),
)


@st.composite
def arrays(draw: Any) -> Any:
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    array = draw(npst.arrays(draw(DTYPES), shape))
    axes = draw(st.permutations(range(array.ndim)))
    array = array.transpose(axes)
    if array.ndim and draw(st.booleans()):
        array = array[:: draw(st.sampled_from([1, 2, -1]))]
    return array


@st.composite
def tensors(draw: Any) -> Any:
    torch = pytest.importorskip("torch")
    dtype = getattr(torch, draw(st.sampled_from(TORCH_DTYPES)))
    shape = draw(npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    size = math.prod(shape) * dtype.itemsize
    data = draw(st.binary(min_size=size, max_size=size))
    if dtype is torch.bool:
        data = bytes(byte & 1 for byte in data)
    flat = torch.tensor(list(data), dtype=torch.uint8)
    tensor = flat.view(dtype).reshape(shape) if size else torch.empty(shape, dtype=dtype)
    tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    if tensor.dim() and draw(st.booleans()):
        tensor = tensor[1:]
    if draw(st.booleans()) and (dtype.is_floating_point or dtype.is_complex):
        tensor = torch.nn.Parameter(tensor, draw(st.booleans()))
    return tensor


def containers(inner: Any) -> Any:
    return (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | st.dictionaries(KEYS, inner, max_size=4).map(collections.OrderedDict)
    )


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert [repr(key) for key in a] == [repr(key) for key in b]
        for left, right in zip(a.values(), b.values(), strict=True):
            assert_same(left, right)
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert fields_of(a) == fields_of(b)
    elif isinstance(a, float):
        assert struct.pack(">d", a) == struct.pack(">d", b)
    elif isinstance(a, complex):
        assert_same([a.real, a.imag], [b.real, b.imag])
    elif type(a).__module__.startswith("torch"):
        assert (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad)
        assert bits_of(a) == bits_of(b)
    else:
        assert a == b


def fields_of(array: Any) -> Any:
    """Return the bytes of an array without the gaps between its fields."""
    if array.dtype.names:
        return [fields_of(np.ascontiguousarray(array[name])) for name in array.dtype.names]
    if array.dtype.kind in "fc" and array.dtype.itemsize > 16:
        return repr(array)
    return repr(array) if array.dtype.char in "gG" else array.tobytes()


def bits_of(tensor: Any) -> Any:
    import torch

    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.complex128}
    bits = tensor.detach().view(width[tensor.element_size()])
    return bits.numpy().tobytes()


PLAIN_TREES = st.recursive(SCALARS, containers, max_leaves=20)
TREES = st.recursive(SCALARS | arrays() | tensors(), containers, max_leaves=12)


@settings(max_examples=200, deadline=None)
@given(tree=PLAIN_TREES)
def test_any_tree_of_plain_values_comes_back(tree: Any) -> None:
    assert_same(Saved(tree).restore(), tree)


@settings(max_examples=200, deadline=None)
@given(tree=TREES, stage=st.booleans())
def test_any_tree_comes_back(tree: Any, stage: bool) -> None:
    assert_same(Saved(tree, stage=stage).restore(), tree)


@settings(max_examples=100, deadline=None)
@given(tree=TREES)
def test_a_state_saved_twice_has_the_same_manifest(tree: Any) -> None:
    assert Saved(tree).body == Saved(tree, stage=True).body


@settings(max_examples=100, deadline=None)
@given(tree=st.dictionaries(TEXTS, arrays() | tensors(), max_size=4))
def test_any_tree_restores_into_its_like(tree: Any) -> None:
    into = Saved(tree).restore()
    for value in into.values():
        if isinstance(value, np.ndarray):
            value.fill(np.zeros((), value.dtype)[()])
        else:
            value.detach().zero_()
    kept = dict(into)
    back = Saved(tree).restore(into=into)
    assert_same(back, tree)
    assert all(back[name] is kept[name] for name in kept)


def test_any_tree_comes_back_from_a_store(tmp_path: pathlib.Path) -> None:
    with casckpt.open(tmp_path / "store") as store:

        @settings(max_examples=40, deadline=None)
        @given(tree=TREES, later=st.booleans())
        def save_and_restore(tree: Any, later: bool) -> None:
            saved = store.save_async("r", tree).result() if later else store.save("r", tree)
            assert_same(store.restore(saved.ref), tree)

        save_and_restore()
