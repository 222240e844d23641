"""Where files are cut; and files that change or lie: they come back whole, or not at all."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

import casckpt
from casckpt.checkpoint import containers, filetrees
from casckpt.checkpoint.file_places import open_files
from casckpt.checkpoint.torch_storages import storage_dtypes
from casckpt.errors import Corrupt, NewerFormat, OperationFailed

RNG = np.random.default_rng(0)
BIG = RNG.normal(size=(120, 200)).astype(np.float32)
KiB = 1024


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def cuts_of(path: Path) -> list[tuple[str, str, int]]:
    """Return (name, dtype, bytes) of each cut."""
    with path.open("rb") as file:
        found = containers.find_cuts(file, path.stat().st_size)
    return [(cut.name, cut.dtype, cut.length) for cut in found]


def assert_comes_back(store, path: Path) -> None:
    store.save_files("f", path)
    store.restore_files("f", path.with_name("back"))
    assert path.with_name("back").read_bytes() == path.read_bytes()


def test_tensors_side_by_side_are_cut_apart(store, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "w.safetensors"
    safetensors.save_file({"a": BIG, "b": BIG + 1, "n" * 1001: BIG + 2}, path)
    assert cuts_of(path) == [("a", "float32", BIG.nbytes), ("b", "float32", BIG.nbytes)]
    assert_comes_back(store, path)
    raw = path.read_bytes()
    with open_files(store.path) as places:
        file = places.files_of("f")["w.safetensors"].file
        edges = [0, 1, 500, *(len(raw) - n * BIG.nbytes + d for n in (1, 2, 3) for d in (-1, 0, 1))]
        for start in edges:
            for end in [one for one in [*edges, len(raw)] if one >= start]:
                part = bytearray(end - start)
                file.read(start, memoryview(part))
                assert part == raw[start:end], (start, end)
        for start, length in ((-1, 2), (len(raw) - 1, 2), (len(raw) + 1, 0)):
            with pytest.raises(ValueError, match=f"of {len(raw)}"):
                file.read(start, memoryview(bytearray(length)))


@pytest.mark.parametrize("dtype", [">f4", "M8[s]", [("a", "<f4"), ("b", "<i4")]])
def test_arrays_of_other_dtypes_are_cut_as_bytes(store, tmp_path, dtype):
    np.save(tmp_path / "x.npy", np.zeros(20_000, dtype))
    np.savez(tmp_path / "x.npz", x=np.zeros(20_000, dtype))
    length = 20_000 * np.dtype(dtype).itemsize
    assert cuts_of(tmp_path / "x.npy") == [("array", "uint8", length)]
    assert cuts_of(tmp_path / "x.npz") == [("x", "uint8", length)]
    assert_comes_back(store, tmp_path / "x.npz")


def test_datasets_of_hdf5_without_bytes_or_of_other_dtypes(store, tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("never written", (200, 200), "f4")
        file["swapped"] = BIG.astype(">f4")
        file["group/kernel"] = BIG
    found = {name: dtype for name, dtype, _ in cuts_of(tmp_path / "w.h5")}
    assert found == {"swapped": "uint8", "group/kernel": "float32"}
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert cuts_of(tmp_path / "w.h5") == []
    assert_comes_back(store, tmp_path / "w.h5")


def test_storages_of_other_pickles_of_torch_are_bytes_or_right(store, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.ones(40_000, dtype=getattr(torch, name)) for name in ("int64", "float16")}
    torch.save(state, tmp_path / "m.pt", pickle_protocol=4)
    lengths = {"int64": 320_000, "float16": 80_000}
    for (_, dtype, length), name in zip(cuts_of(tmp_path / "m.pt"), state, strict=True):
        assert dtype in ("uint8", name)
        assert length == lengths[name]
    assert_comes_back(store, tmp_path / "m.pt")


@pytest.mark.parametrize(
    "identifier", [5, ("storage", 1), ("other", 1, "0", "cpu", 4), ("storage", "x", "0", "cpu", 4)]
)
def test_ids_of_other_objects_give_no_dtype(identifier):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return identifier if value is ... else None

    for protocol in (2, 4):
        file = io.BytesIO()
        Pickler(file, protocol).dump([..., ...])
        assert storage_dtypes(file.getvalue()) == {}


@pytest.mark.parametrize("count", [200 * KiB, 200 * KiB + 1, 100 * KiB - 1])
def test_a_large_file_is_pieces_of_one_length(store, tmp_path, monkeypatch, count):
    monkeypatch.setattr(filetrees, "PIECE_BYTES", 100 * KiB)
    (tmp_path / "f").write_bytes(RNG.bytes(count))
    assert_comes_back(store, tmp_path / "f")
    assert len(store.entries("f")) == -(-count // (100 * KiB))


@pytest.mark.parametrize("size", [100, 90 * KiB])
@pytest.mark.parametrize("change", ["cut before", "cut after", "written after"])
def test_a_file_that_changes_while_it_is_read_is_an_error(
    store, tmp_path, monkeypatch, size, change
):
    path, real = tmp_path / "f", os.preadv
    path.write_bytes(RNG.bytes(size))

    def changing(descriptor, buffers, offset):
        if change == "cut before":
            os.truncate(path, 10 if offset == 0 else 0)
        count = real(descriptor, buffers, offset)
        if change != "cut before":
            path.write_bytes(b"" if change == "cut after" else RNG.bytes(size + 1))
        return count

    monkeypatch.setattr(os, "preadv", changing)
    with pytest.raises(OperationFailed, match="changed while it was being saved"):
        store.save_files("f", path)
    assert not store.runs("f")


# ---- files in stores of others

FILE = {"mode": 0o644, "data": b"x"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"items": {"f": {"mode": 0o644}}}, "other keys than those of version 1"),
        ({"items": {"f": {**FILE, "magic": 1}}}, "other keys than those of version 1"),
        ({"items": {"f": {**FILE, "at": 5, "tensors": {}}}}, "do not pair up"),
        ({"items": {"f": {**FILE, "at": [0], "tensors": {}}}}, "do not pair up"),
        ({"items": {"f": {**FILE, "at": [0], "tensors": {"t": 5}}}}, "does not lie where"),
        ({"items": {"": FILE}}, "a file without a name"),
        ({"items": {5: FILE}}, "a file without a name"),
        ({"items": {"a\0b": FILE}}, "a file without a name"),
        ({"items": {"l": {"link": 5}}}, "a link that leaves its folder"),
        ({"items": {"d": {"mode": "rwx", "folder": True}}}, "permissions that are none"),
        ({"items": 5}, "other keys than those of version 1"),
        ({"magic": 5}, "other keys than those of version 1"),
        ({"mode": -1}, "permissions that are none"),
    ],
)
def test_files_that_casckpt_does_not_write_are_corrupt(store, tmp_path, changes, why):
    tree = {filetrees.MARK: 1, "mode": 0o755, "items": {"f": FILE}}
    store.save("r", tree)
    store.restore_files("r", tmp_path / "sound")
    store.save("r", tree | changes)
    with pytest.raises(Corrupt, match=why):
        store.restore_files("r", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_files_of_a_newer_casckpt_are_refused_as_such(store, tmp_path):
    store.save("r", {filetrees.MARK: 2, "something": "new"})
    with pytest.raises(NewerFormat, match="saved by a newer casckpt"):
        store.restore_files("r", tmp_path / "new")


def test_two_files_over_one_tensor_are_corrupt(store, tmp_path):
    item = {"mode": 0o644, "data": b"", "at": [0], "tensors": {"t": BIG}}
    store.save("r", {filetrees.MARK: 1, "mode": 0o755, "items": {"a": item, "b": item}})
    with pytest.raises(Corrupt, match="a file that is another leaf"):
        store.restore_files("r", tmp_path / "new")


def test_a_tensor_without_bytes_takes_no_place(store, tmp_path):
    item = {"mode": 0o644, "data": b"xy", "at": [1], "tensors": {"t": np.empty(0)}}
    store.save("r", {filetrees.MARK: 1, "mode": 0o755, "items": {"f": item}})
    store.restore_files("r", tmp_path / "new")
    assert (tmp_path / "new/f").read_bytes() == b"xy"
