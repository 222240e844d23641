"""safetensors, numpy and JSON files that lie about themselves."""

from __future__ import annotations

import importlib
import io
import json
import os
import random
import resource
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from casckpt.checkpoint.exchange import (
    NumpyTensors,
    packed,
    read_file,
    safetensors,
    write_file,
    write_tree,
)
from casckpt.checkpoint.exchange.trainers import TrainerFolder
from casckpt.errors import BadRequest, CasckptError, Corrupt, OperationFailed, PickleRefused


def put(tmp_path: Path, data: bytes, name: str = "file.bin") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


# ---- safetensors


def safetensors_bytes(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"a": tensor(0, 8, [3])}, 8),
        ({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, 12),
        ({"a": tensor(0, 8, [2]), "b": tensor(12, 16, [1])}, 16),
        ({"a": tensor(4, 8, [1])}, 8),
        ({"a": tensor(0, 8, [2])}, 12),
        ({"a": tensor(0, 8, [2])}, 4),
        ({"a": tensor(8, 0, [2])}, 8),
        ({"a": tensor(0, 8, [-2])}, 8),
        ({"a": tensor(0, 8, [2.0])}, 8),
        ({"a": tensor(0, 8, [True, 2])}, 8),
        ({"a": tensor(0, 1 << 63, [1 << 61])}, 8),
        ({"a": tensor(0, 8, [1] * 100 + [2])}, 8),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8),
        ({"a": 5}, 0),
        ({"__metadata__": {"a": 5}}, 0),
        ({"__metadata__": []}, 0),
        (b'{"a":{},"a":{}}', 0),
        (b"{" + b'"a":{' * 5000 + b"}" * 5001, 0),
        (b"{not json at all}", 0),
        (b'{"\xff": 1}', 0),
    ],
)
def test_safetensors_that_contradict_themselves_are_corrupt(tmp_path, header, size):
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, safetensors_bytes(header, bytes(size))))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "a safetensors header of 0 bytes in a file of 0"),
        ((99).to_bytes(8, "little") + b"{}", "a safetensors header of 99 bytes in a file of 10"),
        (safetensors_bytes(b"[1]"), "its header is no object"),
    ],
)
def test_the_tensors_of_a_folder_are_judged_as_any(tmp_path, data, why):
    write_tree({"a": np.ones(2)}, tmp_path / "out")
    put(tmp_path / "out", data, "state.safetensors")
    with pytest.raises(Corrupt, match=why):
        read_file(tmp_path / "out")


def test_descriptions_of_an_impossible_length_are_not_read(tmp_path):
    write_tree({"a": np.ones(2)}, tmp_path / "out")
    os.truncate(tmp_path / "out/tree.json", (1 << 30) + 1)
    with pytest.raises(Corrupt, match=r"tree\.json is larger than 1073741824 bytes"):
        read_file(tmp_path / "out")


def test_a_header_that_no_reader_takes_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(safetensors, "HEADER_MAX_BYTES", 100)
    with pytest.raises(BadRequest, match="the limit is 100"):
        write_file({"a": np.ones(2)}, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [20, 60_000])
def test_a_file_that_becomes_shorter_meanwhile_is_corrupt(tmp_path, size):
    header = {name: tensor(at, at + 40_000, [10_000]) for name, at in (("a", 0), ("b", 40_000))}
    path = put(tmp_path, safetensors_bytes(header, bytes(80_000)))

    class Cutting(NumpyTensors):
        def storage(self, data):
            os.truncate(path, size)
            return data

    with pytest.raises(Corrupt, match="it became shorter while it was read"):
        read_file(path, tensors=Cutting())


def test_an_unknown_safetensors_dtype_is_named(tmp_path):
    with pytest.raises(BadRequest, match="F4"):
        read_file(put(tmp_path, safetensors_bytes({"a": tensor(0, 2, [4], "F4")}, bytes(2))))


def description(**changes: object) -> dict[str, str]:
    from casckpt.checkpoint.exchange.packed import pack

    _, text = pack({"a": np.zeros(2, np.float32)}, frozenset({"float32"}))
    document = json.loads(text)
    entry = document["manifest"]["entries"][0]
    for name, value in changes.items():
        (document if name in document else entry)[name] = value
    return {"__metadata__": {"casckpt": json.dumps(document)}, "a": tensor(0, 8, [2])}


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [3]},
        {"length": 1 << 50},
        {"length": 4},
        {"offset": 4},
        {"blob": 1},
        {"tensors": []},
        {"tensors": ["b"]},
        {"tensors": [5]},
        {"casckpt": 2},
        {"dtype": "O"},
        {"dtype": "<f8"},
        {"order": "7,7"},
        {"kind": "magic"},
        {"manifest": None},
        {"manifest": {}},
    ],
)
def test_descriptions_that_do_not_fit_are_corrupt(tmp_path, changes):
    assert "a" in read_file(put(tmp_path, safetensors_bytes(description(), bytes(8))))
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, safetensors_bytes(description(**changes), bytes(8))))


def test_a_description_of_an_impossible_length_is_not_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "TEXT_MAX_BYTES", 100)
    with pytest.raises(Corrupt, match=r"a description of \d+ bytes"):
        read_file(put(tmp_path, safetensors_bytes(description(), bytes(8))))


def test_pickled_values_in_a_description_are_refused(tmp_path):
    from casckpt.checkpoint.leaves import Pickled

    write_file({"x": Pickled(print)}, tmp_path / "x.safetensors")
    with pytest.raises(PickleRefused):
        read_file(tmp_path / "x.safetensors")


# ---- numpy


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x93NUMPY\x04\x00" + bytes(80), "an unknown version"),
        (b"\x93NUMPY\x01\x00\xff\x01" + bytes(80), "511 bytes long"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(80), "2147483647 bytes long"),
    ],
)
def test_npy_headers_of_no_version_or_length_are_corrupt(tmp_path, data, why):
    with pytest.raises(Corrupt, match=why):
        read_file(put(tmp_path, data, "x.npy"))


def test_an_array_that_becomes_shorter_meanwhile_is_corrupt(tmp_path, monkeypatch):
    path, real = put(tmp_path, npy(np.ones(100))), os.fstat

    def cutting(descriptor):
        status = real(descriptor)
        os.truncate(path, 300)
        return status

    monkeypatch.setattr(os, "fstat", cutting)
    with pytest.raises(Corrupt, match="it became shorter while it was read"):
        read_file(path)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f8', 'fortran_order': False, 'shape': (2.0,), }",
        "{'descr': 'no', 'fortran_order': False, 'shape': (2,), }",
        "{'descr': '<f8', 'shape': (2,), }",
        "__import__('os').system('touch RAN')",
        "(" * 5000,
        "[" * 90 + "]" * 90,
    ],
)
def test_npy_headers_that_lie_are_corrupt(tmp_path, monkeypatch, header):
    monkeypatch.chdir(tmp_path)
    text = header.encode().ljust(118) + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(16)
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, data, "x.npy"))
    assert not Path("RAN").exists()


def test_object_arrays_in_npz_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.array([{}], dtype=object))
    with pytest.raises(PickleRefused):
        read_file(tmp_path / "x.npz")


# ---- JSON


@pytest.mark.parametrize(
    "state",
    [
        {"$array": "<f4", "shape": [3], "data": [1, 2]},
        {"$array": "O", "shape": [1], "data": [1]},
        {"$array": "<i4", "shape": [1], "data": [1.5]},
        {"$array": "<i4", "shape": [1], "data": [1 << 40]},
        {"$array": "<f4", "shape": [1], "data": ["text"]},
        {"$array": "<f4", "shape": [-1], "data": []},
        {"$array": "<f4", "shape": [1], "base64": "!!"},
        {"$array": 5, "shape": [1], "data": [1]},
        {"$array": "<M8[s]", "shape": [1], "data": [1]},
        {"$bytes": "!"},
        {"$dict": [[[], 1]], "kind": None},
        {"$dict": 5},
        {"$record": "os.system", "kind": "n"},
        {"$extension": ["numpy", "magic"], "attributes": None, "parts": []},
        {"$node": {"e": 0}},
        {"$magic": 1},
    ],
)
def test_json_values_that_cannot_be_are_corrupt(tmp_path, state):
    document = {"casckpt": 1, "about": {}, "state": state}
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, json.dumps(document).encode()))


def test_json_of_another_version_is_corrupt(tmp_path):
    document = {"casckpt": 2, "about": {}, "state": 1}
    with pytest.raises(Corrupt, match="another version of casckpt"):
        read_file(put(tmp_path, json.dumps(document).encode()))


def test_json_of_an_impossible_length_is_not_read(tmp_path):
    path = put(tmp_path, b'{"a": 1}')
    os.truncate(path, (4 << 30) + 1)
    with pytest.raises(Corrupt, match="a JSON document of 4294967297 bytes"):
        read_file(path)


@pytest.mark.parametrize("text", ["{", "[1,", "[" * 100_000, '{"a": 1} x', "truth", "9" * 5000])
def test_broken_json_is_corrupt(tmp_path, text):
    with pytest.raises(Corrupt):
        read_file(put(tmp_path, text.encode()))


def test_a_class_named_by_json_is_not_imported_or_called(tmp_path, caplog):
    record = {"$record": "antigravity.Fly", "kind": "D", "fields": {"a": 1}}
    document = {"casckpt": 1, "about": {}, "state": record}
    value = read_file(put(tmp_path, json.dumps(document).encode()))
    assert value._asdict() == {"a": 1}
    assert "antigravity" not in sys.modules


# ---- any file


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x89HDF\r\n\x1a\n" + bytes(50), b"\x7fELF", b"P"])
def test_other_content_is_refused_with_the_list_of_formats(tmp_path, data):
    with pytest.raises(BadRequest) as caught:
        read_file(put(tmp_path, data))
    assert "safetensors" in caught.value.hint
    assert "save_files" in caught.value.hint


def test_no_file_a_pipe_and_a_plain_folder_are_bad_requests(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("nothing", "pipe", "folder"):
        with pytest.raises(BadRequest, match="cannot import"):
            read_file(tmp_path / name)


def test_a_file_behind_a_file_is_an_error_of_the_system(tmp_path):
    put(tmp_path, b"x", "a")
    with pytest.raises(OperationFailed):
        read_file(tmp_path / "a" / "b")


def test_the_state_of_a_trainer_has_a_length_that_one_has(tmp_path):
    (tmp_path / "trainer_state.json").write_text('{"global_step": 5, "log_history": []}')
    assert TrainerFolder.of(tmp_path).step == 5
    os.truncate(tmp_path / "trainer_state.json", (256 << 20) + 1)
    with pytest.raises(Corrupt, match="it is far too long"):
        TrainerFolder.of(tmp_path)


def test_importing_what_tries_files_in_a_child_limits_nothing_here():
    limits = resource.getrlimit(resource.RLIMIT_AS)
    sys.modules.pop("casckpt.checkpoint.exchange.trial", None)
    importlib.import_module("casckpt.checkpoint.exchange.trial")
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


@pytest.mark.parametrize("kind", ["safetensors", "npz", "json", "pkl", "tree"])
def test_random_damage_never_gives_an_untyped_error(tmp_path, kind):
    import pickle

    state = {"a": np.arange(6.0).reshape(2, 3), "b": [1, 2.5, "x", None], "c": {"d": b"bytes"}}
    path = tmp_path / f"x.{kind}"
    if kind == "pkl":
        path.write_bytes(pickle.dumps(state))
    elif kind == "tree":
        write_tree(state, path)
        path = path / "tree.json"
    else:
        write_file(state, path)
    whole = path.read_bytes()
    chance = random.Random(zlib.crc32(kind.encode()))
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            place = chance.randrange(len(data))
            choice = chance.random()
            if choice < 0.6:
                data[place] = chance.randrange(256)
            elif choice < 0.8:
                del data[place : place + chance.randrange(1, 9)]
            else:
                data[place:place] = chance.randbytes(chance.randrange(1, 9))
        path.write_bytes(data)
        try:
            read_file(path.parent if kind == "tree" else path)
        except CasckptError as error:
            assert str(error).count("\n") == 2  # noqa: PT017 - many errors, one loop
