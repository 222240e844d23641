"""Pickles made to run code, to exhaust memory or to crash: none gets through, nothing runs."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import struct
import subprocess
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from casckpt.checkpoint.exchange import read_file
from casckpt.errors import BadRequest, CasckptError, Corrupt, PickleRefused


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def names(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"


def as_zip(pickled: bytes, **records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in records.items():
            archive.writestr(f"archive/data/{name.lstrip('_')}", data)
    return file.getvalue()


def read(tmp_path: Path, data: bytes, name: str = "hostile.pkl"):
    path = tmp_path / name
    path.write_bytes(data)
    return read_file(path)


CALLS = [
    Calls(os.system, "touch RAN"),
    Calls(subprocess.Popen, ["touch", "RAN"]),
    Calls(eval, "open('RAN', 'w')"),
    Calls(exec, "open('RAN', 'w')"),
    Calls(open, "RAN", "w"),
    Calls(builtins.__import__, "this"),
    Calls(getattr, "text", "upper"),
    Calls(partial, os.system, "touch RAN"),
    Calls(pickle.loads, pickle.dumps(Calls(os.system, "touch RAN"))),
    Calls(np.load, "RAN", None, True),
    Calls(np.fromfile, "/etc/passwd"),
]


@pytest.mark.parametrize("wrap", [lambda data: data, as_zip], ids=["pickle", "zip"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.function.__name__)
def test_a_call_is_refused_and_nothing_runs(tmp_path, monkeypatch, call, protocol, wrap):
    monkeypatch.chdir(tmp_path)
    state = {"model": [1.0], "oops": call}
    with pytest.raises(PickleRefused) as caught:
        read(tmp_path, wrap(pickle.dumps(state, protocol)), "model.pt")
    assert not (tmp_path / "RAN").exists()
    assert "refused to unpickle" in caught.value.what
    assert str(caught.value).count("\n") == 2


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'touch RAN'\ntR.",
        b"(S'touch RAN'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch RAN'\no.",
        b"\x80\x04" + names("os", "system") + short("touch RAN") + b"\x85R.",
        b"\x80\x04" + names("posix", "system") + short("touch RAN") + b"\x85\x81.",
        b"\x80\x04" + names("builtins", "eval") + short("1") + b"\x85}\x92.",
        # A module's attribute behind an allowed name.
        b"\x80\x04" + names("collections", "OrderedDict.fromkeys") + b"]\x85R.",
        b"\x80\x04" + names("numpy", "ndarray.tofile") + b"]\x85R.",
        b"\x80\x04" + names("torch._utils", "os.system") + b"]\x85R.",
        # A name without dots that holds them elsewhere.
        b"\x80\x04" + names("torch.serialization", "os") + b".",
        b"\x80\x02\x82\x01.",
        b"\x80\x02\x84\x01\x00\x00\x00.",
    ],
)
def test_names_outside_the_table_are_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PickleRefused):
        read(tmp_path, data)
    assert not (tmp_path / "RAN").exists()


@pytest.mark.parametrize(
    "data",
    [
        # BUILD on a class, on a plain value, on an OrderedDict beyond its metadata.
        b"\x80\x04" + names("collections", "OrderedDict") + b"}" + short("x") + b"K\x01sb.",
        b"\x80\x04]}" + short("append") + b"K\x01sb.",
        b"\x80\x04" + names("collections", "OrderedDict") + b")R}" + short("pop") + b"K\x01sb.",
        # Calls of what is no function, and of a type that only stands for itself.
        b"\x80\x04K\x01)R.",
        b"\x80\x04" + names("builtins", "int") + short("9" * 200) + b"\x85R.",
        b"\x80\x04" + names("torch", "float32") + b")R.",
        b"\x80\x04" + names("numpy", "ndarray") + b")R.",
    ],
)
def test_building_and_calling_what_is_no_constructor_is_refused(tmp_path, data):
    with pytest.raises(PickleRefused):
        read(tmp_path, data)


def test_a_class_as_a_value_is_refused(tmp_path):
    with pytest.raises(PickleRefused):
        read(tmp_path, pickle.dumps({"type": int}))


def test_no_module_is_imported_for_a_name(tmp_path):
    import sys

    assert "antigravity" not in sys.modules
    with pytest.raises(PickleRefused):
        read(tmp_path, b"\x80\x04" + names("antigravity", "fly") + b")R.")
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04B\xff\xff\xff\x7f.",
        b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".",
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b".",
        b"\x80\x02T" + struct.pack("<i", -5) + b".",
        b"\x80\x02\x8b" + struct.pack("<i", -5) + b".",
        b"\x80\x02\x8b" + struct.pack("<i", 1 << 30) + b".",
        b"\x80\x04K\x01h\x05.",
        b"\x80\x04.",
        b"\x80\x04a.",
        b"\x80\x04(t",
        b"\x80\x04t.",
        b"\x80\x04\x87.",
        b"\x80\x04}K\x01s.",
        b"\x80\x04(K\x01d.",
        b"\x80\x04]K\x01K\x02s.",
        b"\x80\x04K\x01K\x02a.",
        b"\x80\x04\x97.",
        b"\x80\x04K\x01Q.",
        b"\x80\x04\xff.",
        b"\x80\x04X\x02\x00\x00\x00\xff\xfe.",
        b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x04",
    ],
)
def test_malformed_pickles_are_corrupt(tmp_path, data):
    with pytest.raises(Corrupt):
        read(tmp_path, data)


def test_a_memo_index_reserves_no_memory(tmp_path):
    # Python's own Unpickler reserves 64 GiB for these ten bytes.
    data = b"\x80\x04K\x01r" + struct.pack("<I", 0xFFFFFFFF) + b"."
    assert read(tmp_path, data) == 1


def test_deep_nesting_is_refused_without_a_crash(tmp_path):
    for inside in (b"]" * 100_000 + b"a" * 99_999, b")" + b"\x85" * 100_000):
        with pytest.raises(BadRequest, match="cannot import"):
            read(tmp_path, b"\x80\x04" + inside + b".")


def test_a_deep_tuple_as_a_key_is_never_hashed(tmp_path):
    with pytest.raises(Corrupt):
        read(tmp_path, b"\x80\x04})" + b"\x85" * 300_000 + b"K\x01s.")


def test_keys_made_to_collide_are_refused(tmp_path):
    modulus = (1 << 61) - 1
    items = [pickle.dumps(modulus * index, 2)[2:-1] + b"N" for index in range(1, 20_000)]
    data = b"\x80\x02}(" + b"".join(items) + b"u."
    with pytest.raises(Corrupt):
        read(tmp_path, data)


def test_what_multiplies_by_sharing_is_refused(tmp_path):
    level: object = "x" * 1000
    for _ in range(40):
        level = [level] * 10
    with pytest.raises(Corrupt, match="expands"):
        read(tmp_path, pickle.dumps(level))


def repeated(value: bytes, call: bytes, count: int) -> bytes:
    """Return a pickle that keeps `value` in the memo and makes something of it `count` times."""
    return b"\x80\x04" + value + b"\x940](" + call * count + b"e."


@pytest.mark.parametrize("kind", ["array", "text", "list", "set", "nested"])
def test_what_multiplies_by_copying_is_refused(tmp_path, kind):
    data = b"X" + struct.pack("<I", 1 << 20) + b"x" * (1 << 20)
    if kind == "array":
        dtype = names("numpy", "dtype") + short("S1") + b"\x89\x88\x87R"
        call = names("numpy.core.numeric", "_frombuffer") + b"(h\x00" + dtype
        call += b"J" + struct.pack("<i", 1 << 20) + short("C") + b"tR"
    elif kind == "text":
        call = names("_codecs", "encode") + b"h\x00" + short("latin1") + b"\x86R"
    elif kind == "nested":
        data = b"B" + struct.pack("<I", 1 << 20) + b"N" * (1 << 20)
        call = names("torch.storage", "_load_from_bytes") + b"h\x00\x85R"
    else:
        data = b"](" + b"N" * 100_000 + b"e"
        name = ("collections", "deque") if kind == "list" else ("builtins", "set")
        call = names(*name) + b"h\x00\x85R"
    with pytest.raises(Corrupt):
        read(tmp_path, repeated(data, call, 5000))


def test_a_key_that_multiplies_by_sharing_is_refused(tmp_path):
    key = b"K\x01" + b"".join(b"\x942" + b"\x86" for _ in range(40))
    with pytest.raises(Corrupt):
        read(tmp_path, b"\x80\x04}" + key + b"K\x01s.")


def test_cycles_are_refused(tmp_path):
    ring: list[object] = []
    ring.append(ring)
    with pytest.raises(BadRequest, match="contains itself"):
        read(tmp_path, pickle.dumps(ring))


def test_object_arrays_are_refused(tmp_path):
    with pytest.raises(PickleRefused, match="array of Python objects"):
        read(tmp_path, pickle.dumps(np.array([{}, None])))
    with pytest.raises(PickleRefused, match="array of Python objects"):
        read(tmp_path, pickle.dumps(np.zeros(2, [("a", "O")])))


def test_arrays_that_claim_more_than_they_have_are_corrupt(tmp_path):
    data = pickle.dumps(np.arange(4, dtype="<i8"), 4)
    shape = data.index(b"K\x04\x85")
    with pytest.raises(Corrupt):
        read(tmp_path, data[: shape + 1] + b"\x05" + data[shape + 2 :])


def test_messages_show_hostile_names_on_one_line(tmp_path):
    name = "sys\x1b[2J\ntem"
    with pytest.raises(PickleRefused) as caught:
        read(tmp_path, b"\x80\x04" + names("os", name) + b".")
    assert "\x1b" not in str(caught.value)
    assert str(caught.value).count("\n") == 2


# ---- torch's zip files; the readers need no torch


def tensor_pickle(
    *,
    storage: str = "FloatStorage",
    key: bytes = short("0"),
    count: int = 4,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
) -> bytes:
    def number(value: int) -> bytes:
        size = value.bit_length() // 8 + 1
        return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    persistent = b"(" + short("storage") + names("torch", storage) + key + short("cpu")
    return (
        b"\x80\x04"
        + names("torch._utils", "_rebuild_tensor_v2")
        + b"("
        + persistent
        + number(count)
        + b"tQ"
        + number(offset)
        + numbers(shape)
        + numbers(strides)
        + b"\x89"
        + names("collections", "OrderedDict")
        + b")RtR."
    )


def test_a_tensor_is_read_without_torch(tmp_path):
    values = np.arange(4, dtype="<f4")
    data = as_zip(tensor_pickle(), _0=values.tobytes())
    array = read(tmp_path, data, "model.pt")
    assert array.tolist() == [0, 1, 2, 3]
    array[0] = 5


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (5,)},
        {"shape": (1 << 61,), "strides": (0,)},
        {"shape": (1 << 40,), "strides": (0,)},
        {"strides": (2,)},
        {"strides": (-1,)},
        {"strides": (1, 1)},
        {"shape": (-1,)},
        {"shape": (2,) * 65, "strides": (0,) * 65},
        {"offset": 1},
        {"offset": -1},
        {"offset": 1 << 70},
        {"count": 5},
        {"count": -4},
        {"count": 1 << 62},
        {"key": short("1")},
        {"key": short("../../secret")},
        {"key": b"K\x00"},
        {"storage": "DoubleStorage"},
        {"shape": (0, 1 << 61), "strides": (1, 1)},
    ],
)
def test_tensors_beyond_their_storage_are_corrupt(tmp_path, changes):
    data = as_zip(tensor_pickle(**changes), _0=bytes(16))
    with pytest.raises(Corrupt):
        read(tmp_path, data, "model.pt")


def test_quantized_tensors_are_refused_with_a_way_out(tmp_path):
    with pytest.raises(BadRequest) as caught:
        read(tmp_path, as_zip(tensor_pickle(storage="QInt8Storage"), _0=bytes(4)), "model.pt")
    assert "dequantize" in caught.value.hint


def test_a_whole_module_is_refused_with_a_way_out(tmp_path):
    data = as_zip(b"\x80\x04" + names("torch.nn.modules.linear", "Linear") + b")\x81.")
    with pytest.raises(PickleRefused) as caught:
        read(tmp_path, data, "model.pt")
    assert "state_dict" in caught.value.hint


def test_torchscript_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02N.")
        archive.writestr("m/constants.pkl", b"\x80\x02N.")
    with pytest.raises(BadRequest, match="TorchScript"):
        read_file(path)


@pytest.mark.parametrize("cut", range(1, 60, 3))
def test_every_truncation_is_a_typed_error(tmp_path, cut):
    whole = pickle.dumps({"a": np.arange(3), "b": [1.5, "x", (None, True)]}, 2)
    with pytest.raises(CasckptError):
        read(tmp_path, whole[: len(whole) * cut // 60])
