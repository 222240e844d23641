"""State trees without any framework: what comes back, and what is refused."""

from __future__ import annotations

import collections
import dataclasses
import math
import pathlib
import struct
import sys
import time
import types
from collections import Counter, OrderedDict, defaultdict
from typing import NamedTuple

import numpy as np
import pytest

from casckpt.checkpoint import manifest as manifests
from casckpt.checkpoint.leaves import Pickled
from casckpt.checkpoint.tree import DEPTH_MAX, flatten
from casckpt.errors import BadLeaf, Corrupt, MissingExtra, NotFound, PickleRefused
from tests.suites.memory_repository import Saved


class Point(NamedTuple):
    x: int
    y: object


@dataclasses.dataclass
class Best:
    score: float
    weights: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    a: int
    b: object


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -(2**53),
        2**200,
        -0.0,
        math.inf,
        1e-320,
        complex(-0.0, math.inf),
        "",
        "é\n\x00",
        "\ud800\udc00",
        "\ud83d",
        b"\x00\xff",
        bytearray(b"ab"),
        "x" * 5000,
        "é" * 600,
        "\udc80" * 600,
        b"y" * 1025,
        bytearray(b"z" * 2000),
        [],
        (),
        {},
        [[], ((),), {"a": {}}],
        pathlib.Path("/a/b"),
        pathlib.PureWindowsPath("c:/x"),
        OrderedDict(b=1, a=2),
        Counter({"a": 3}),
        {1: "a", 2.5: "b", None: "c", b"k": "d", (1, (True, 1.0)): "e", "1": "f"},
        Point(1, [2]),
        Frozen(1, "x"),
    ],
)
def test_a_plain_value_comes_back_equal_and_of_its_type(value):
    restored = Saved({"v": value}).restore()["v"]
    assert restored == value
    assert type(restored) is type(value)


def test_the_root_may_be_anything():
    assert Saved(7).restore() == 7
    assert np.array_equal(Saved(np.arange(3)).restore(), np.arange(3))


def test_nan_payloads_and_signs_survive():
    (nan,) = struct.unpack(">d", bytes.fromhex("7ff80000deadbeef"))
    (back,) = Saved([nan]).restore()
    assert struct.pack(">d", back).hex() == "7ff80000deadbeef"
    assert math.copysign(1, Saved([-0.0]).restore()[0]) == -1


@pytest.mark.parametrize("key", [1, True, 1.0, "1", (1,), (True,), (1.0,)])
def test_equal_keys_of_different_types_stay_apart(key):
    (back,) = Saved({key: 0}).restore()
    assert repr(back) == repr(key)


def test_order_of_dicts_is_kept():
    assert list(Saved({"b": 1, "a": 2, 0: 3}).restore()) == ["b", "a", 0]


def test_metadata_of_an_ordered_dict_is_kept():
    state = OrderedDict(a=1)
    state._metadata = OrderedDict({"": {"version": 1}})
    back = Saved(state).restore()
    assert type(back) is OrderedDict
    assert back._metadata == state._metadata
    assert type(back._metadata) is OrderedDict


def test_defaultdict_keeps_a_factory_that_has_a_name():
    back = Saved(defaultdict(list, a=[1])).restore()
    assert back["new"] == []
    with pytest.raises(BadLeaf, match="factory"):
        flatten(defaultdict(lambda: 0))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {2}]}, "a.1"),
        ({"f": print}, "f"),
        ({"model": {"w": object()}}, "model.w"),
        ([np.array([None])], "0"),
        ({"m": np.ma.array([1])}, "m"),
        ({"k": int}, "k"),
        ({"e": types.SimpleNamespace()}, "e"),
        ({"s": np.array(["a"], dtype=np.dtypes.StringDType())}, "s"),
    ],
)
def test_what_cannot_be_stored_is_named_by_path(value, path):
    with pytest.raises(BadLeaf) as caught:
        flatten(value)
    assert caught.value.path == path


def test_a_key_that_is_not_allowed_is_refused():
    with pytest.raises(BadLeaf, match="frozenset"):
        flatten({"a": {frozenset(): 1}})


def test_cycles_and_bottomless_trees_are_refused():
    cycle = {"a": []}
    cycle["a"].append(cycle)
    with pytest.raises(BadLeaf, match="contains itself"):
        flatten(cycle)
    deep = []
    for _ in range(DEPTH_MAX + 1):
        deep = [deep]
    with pytest.raises(BadLeaf, match="deeper"):
        flatten(deep)


def test_the_deepest_allowed_tree_comes_back():
    deep = 1
    for _ in range(DEPTH_MAX):
        deep = [deep]
    assert Saved(deep).restore() == deep


def test_one_list_in_two_places_is_no_cycle():
    shared = [1]
    assert Saved([shared, shared]).restore() == [[1], [1]]


def test_pickles_need_permission_and_nothing_is_read_without():
    saved = Saved({"p": Pickled({1, 2}), "a": 1})
    assert saved.manifest.entries[0].kind == "pickle"
    with pytest.raises(PickleRefused, match="p"):
        saved.restore()
    assert saved.repo.bytes_read == 0
    assert saved.restore(allow_pickle=True)["p"] == {1, 2}
    assert saved.restore(only="a") == {"a": 1}


class Located(collections.namedtuple("_Located", "x y")):
    """A named tuple with methods: its fields are those of the class below."""

    __slots__ = ()

    def norm(self):
        return abs(self.x) + abs(self.y)


def test_a_namedtuple_extended_by_methods_comes_back_as_its_class(caplog):
    back = Saved({"at": Located(3, -4)}).restore()["at"]
    assert type(back) is Located
    assert back.norm() == 7
    assert not caplog.messages


def test_unknown_record_classes_come_back_as_namedtuples_with_a_warning(caplog):
    made = collections.namedtuple("Gone", "a b")
    local = dataclasses.make_dataclass("Away", ["a", "class_"])
    back = Saved([made(1, 2), local(3, 4)]).restore()
    assert back[0]._asdict() == {"a": 1, "b": 2}
    assert type(back[0]).__name__ == "Gone"
    assert back[1]._asdict() == {"a": 3, "class_": 4}
    assert "not loaded" in caplog.text


def test_nothing_is_imported_to_find_a_class():
    node = {"n": ["antigravity", "Point"], "f": ["x"], "v": [1]}
    from casckpt.checkpoint.leaves import RestoreOptions
    from casckpt.checkpoint.tree_build import Builder

    Builder(lambda index: None, 0, RestoreOptions()).build(node)
    assert "antigravity" not in sys.modules


class Holder:
    def __init__(self, values):
        self.values = values

    def state_dict(self):
        return {"values": self.values, "n": len(self.values)}

    def load_state_dict(self, state):
        self.values = state["values"]


def test_an_object_and_its_plain_state_stand_for_each_other():
    plain = Saved({"h": Holder([1, 2])}).restore()
    assert plain == {"h": {"values": [1, 2], "n": 2}}
    target = Holder([])
    assert Saved(plain).restore(into={"h": target})["h"] is target
    assert target.values == [1, 2]
    assert Saved({"h": Holder([1, 2])}).restore(into={"h": {"values": [], "n": 0}}) == plain


ARRAYS = {
    "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(20)[::3],
    "reversed": np.arange(5)[::-1],
    "broadcast": np.broadcast_to(np.float32(3), (4, 5)),
    "zero_d": np.array(3, dtype=">i2"),
    "empty": np.empty((0, 3), np.float16),
    "strings": np.array(["a", "", "longer é"]),
    "bytes": np.array([b"a", b"xyz"]),
    "dates": np.array(["2020-01-01", "NaT"], "M8[us]"),
    "deltas": np.array([1, 2], "m8[3h]"),
    "structured": np.array(
        [(1, 2.5, "é", [1, 2])], [("a", ">i4"), ("b", "f8"), ("c", "U3"), ("d", "i2", 2)]
    ),
    "aligned": np.zeros(2, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "void": np.array([b"ab"], "V2"),
    "longdouble": np.array([1, 2], np.longdouble),
    "bool": np.array([True, False]),
    "large": np.random.default_rng(0).random((300, 100)),
}


@pytest.mark.parametrize("stage", [False, True])
def test_arrays_come_back_in_value_dtype_and_order(stage):
    back = Saved(ARRAYS, stage=stage).restore()
    for name, array in ARRAYS.items():
        assert back[name].dtype == array.dtype, name
        assert back[name].dtype.str == array.dtype.str, name
        assert back[name].tobytes() == array.tobytes(), name
        assert back[name].shape == array.shape, name
        assert back[name].flags.writeable, name
    assert back["fortran"].flags.f_contiguous
    assert back["transposed"].strides == ARRAYS["transposed"].strides
    assert back["aligned"].dtype.isalignedstruct


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_arrays_of_ml_dtypes_come_back_by_name(name):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    dtype = np.dtype(getattr(ml_dtypes, name))
    array = np.arange(4).astype(dtype)
    back = Saved({"a": array, "s": dtype.type(2)}).restore()
    assert back["a"].dtype == dtype
    assert back["a"].tobytes() == array.tobytes()
    assert type(back["s"]) is dtype.type


def test_no_dtype_of_ml_dtypes_loses_its_name():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    kinds = {name for name, kind in vars(ml_dtypes).items() if isinstance(kind, type)}
    kinds -= {"finfo", "iinfo"}
    assert kinds >= {"bfloat16", "int4"}
    for name in kinds:
        array = np.zeros(3, getattr(ml_dtypes, name))
        try:
            saved = Saved([array])
        except BadLeaf:
            continue
        assert saved.restore()[0].dtype == array.dtype, name


def test_without_ml_dtypes_the_error_names_the_extra(monkeypatch):
    from casckpt.checkpoint import arrays_dtypes

    ml_dtypes = pytest.importorskip("ml_dtypes")
    saved = Saved([np.zeros(2, ml_dtypes.bfloat16)])
    arrays_dtypes.parse_dtype.cache_clear()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingExtra, match="ml-dtypes"):
        saved.restore()


@pytest.mark.parametrize(
    "scalar",
    [
        np.float32(1.5),
        np.float64("nan"),
        np.int8(-1),
        np.bool_(True),
        np.complex64(1j),
        np.datetime64("2020-01-01T00"),
        np.timedelta64(3, "m"),
        np.str_("a\x00"),
        np.bytes_(b"a\x00"),
        np.longdouble(2),
        np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")])[0],
    ],
)
def test_numpy_scalars_keep_their_type(scalar):
    (back,) = Saved([scalar]).restore()
    assert type(back) is type(scalar)
    assert back.dtype == scalar.dtype
    if scalar.dtype != np.longdouble:  # which has bytes that mean nothing
        assert back.tobytes() == scalar.tobytes()
    assert str(back) == str(scalar)


def test_a_memmap_comes_back_as_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "m", np.int32, "w+", shape=(5,))
    mapped[:] = 3
    assert type(Saved([mapped]).restore()[0]) is np.ndarray


def test_the_same_array_twice_is_stored_once_and_one_again():
    array = np.arange(100_000)
    saved = Saved({"a": array, "b": [array]})
    back = saved.restore()
    assert back["a"] is back["b"][0]
    assert saved.manifest.logical_bytes == array.nbytes


def test_small_arrays_share_blobs_by_width_and_stay_aligned():
    state = [np.full(3, i, np.float32 if i % 2 else np.float64) for i in range(100)]
    saved = Saved(state)
    assert len(saved.refs) == 2
    assert all(entry.offset % 16 == 0 for entry in saved.manifest.entries)
    assert all(np.array_equal(a, b) for a, b in zip(saved.restore(), state, strict=True))


# ---- only


def test_only_reads_what_matches_and_prunes():
    state = {"model": {"a": np.zeros(20_000), "b": np.ones(20_000)}, "l": [1, [2, 3], 4], "n": 5}
    saved = Saved(state)
    back = saved.restore(only="model.b")
    assert list(back) == ["model"]
    assert list(back["model"]) == ["b"]
    assert saved.repo.bytes_read == state["model"]["b"].nbytes
    assert saved.restore(only=["l.1.*", "n"]) == {"l": {1: {0: 2, 1: 3}}, "n": 5}
    assert saved.restore(only="l") == {"l": [1, [2, 3], 4]}
    assert saved.restore(only="*.1*") == {"l": {1: [2, 3]}}


@pytest.mark.parametrize("only", ["m.a", "m.sub.b", ["m.a", "m.sub"], "m", "m.*"])
def test_a_pruned_dict_keeps_its_metadata_whatever_that_holds(only):
    state = {"m": OrderedDict(a=1, sub=OrderedDict(b=np.ones(2))), "n": np.zeros(3)}
    long = {"text": "y" * 3000, "array": np.arange(3)}
    state["m"]._metadata = long
    state["m"]["sub"]._metadata = {"text": "z" * 3000}
    saved = Saved(state)
    back = saved.restore(only=only)
    assert list(back) == ["m"]
    assert back["m"]._metadata["text"] == long["text"]
    assert np.array_equal(back["m"]._metadata["array"], long["array"])
    if "sub" in back["m"]:
        assert back["m"]["sub"]._metadata == {"text": "z" * 3000}
    assert list(saved.restore(only="n")) == ["n"]


def test_metadata_of_what_is_not_selected_is_not_read():
    state = OrderedDict(m=OrderedDict(a=1), n=np.zeros(3))
    state["m"]._metadata = {"pickle": Pickled({1})}
    saved = Saved(state)
    assert list(saved.restore(only="n")) == ["n"]
    with pytest.raises(PickleRefused):
        saved.restore(only="m.a")


def test_a_glob_that_matches_nothing_is_an_error():
    with pytest.raises(NotFound, match="nope"):
        Saved({"a": 1}).restore(only=["a", "nope.*"])


def test_only_reads_the_memory_an_alias_needs():
    array = np.arange(5)
    assert np.array_equal(Saved({"a": array, "b": array}).restore(only="b")["b"], array)


# ---- damage


def test_damage_names_the_paths():
    saved = Saved({"good": np.zeros(20_000), "bad": np.ones(20_000)})
    entry = saved.manifest.entries[1]
    blob_id = saved.refs[entry.blob]
    saved.repo.blobs[blob_id] = b"\x01" + saved.repo.blobs[blob_id][1:]
    with pytest.raises(Corrupt) as caught:
        saved.restore()
    assert caught.value.paths == ["bad"]
    assert "bad" in str(caught.value)
    assert saved.restore(only="good")["good"].sum() == 0


# ---- size


def test_a_manifest_of_a_hundred_thousand_entries_takes_a_second_or_two():
    small = Saved([np.zeros(3)]).manifest
    entries = tuple(
        dataclasses.replace(small.entries[0], path=f"layer.{i}.weight", offset=16 * i)
        for i in range(100_000)
    )
    tree = [{"e": i} for i in range(100_000)]
    start = time.process_time()
    body = manifests.encode(dataclasses.replace(small, entries=entries, tree=tree))
    middle = time.process_time()
    assert manifests.decode(body, 1).entries == entries
    assert middle - start < 2
    assert time.process_time() - middle < 4


def test_ten_thousand_leaves_come_back():
    state = {f"k{i}": np.full(3, i, np.float32) for i in range(10_000)}
    back = Saved(state).restore()
    assert all(back[name][0] == array[0] for name, array in state.items())
