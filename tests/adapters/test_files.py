"""`save_files` and `restore_files`: any content, byte for byte, sharing what it can."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import casckpt
from casckpt.checkpoint import containers, filetrees
from casckpt.errors import BadRequest, Corrupt, NotFound, OperationFailed, StepExists

RNG = np.random.default_rng(0)
BIG = RNG.normal(size=(120, 200)).astype(np.float32)
KiB = 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("files") / "store") as store:
        yield store


@pytest.fixture
def store(shared):
    yield shared
    if shared.runs():
        shared.delete("*")
    shared.gc(now=True, force=True)


def same(one: Path, other: Path) -> bool:
    """Return whether two folders hold the same: names, bytes, links, permissions."""

    def facts(root: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in root.rglob("*"):
            name = str(path.relative_to(root))
            if path.is_symlink():
                found[name] = str(path.readlink())
            else:
                mode = stat.S_IMODE(path.stat().st_mode)
                found[name] = (mode, None if path.is_dir() else path.read_bytes())
        return found

    return facts(one) == facts(other)


# ---- what comes back


def test_a_folder_comes_back_as_it_was(store, tmp_path):
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "a/b/deep.bin").write_bytes(RNG.bytes(300 * KiB))
    (source / "nothing").write_bytes(b"")
    (source / "tiny").write_text("hi")
    (source / "räksmörgås �.txt").write_text("ö" * 900)
    Path(os.fsdecode(bytes(source) + b"/not-utf8-\xff")).write_bytes(b"x")
    (source / "run.sh").write_text("exit\n" * 400)
    (source / "run.sh").chmod(0o750)
    (source / "a/up").symlink_to("../tiny")
    (source / "dangling").symlink_to("not-there")
    (source / "folder-link").symlink_to("a")
    made = store.save_files("f", source, metrics={"loss": 1.0}, tags="v1")
    assert (made.step, made.metrics, made.tags) == (0, {"loss": 1.0}, ("v1",))
    written = store.restore_files("f@v1", tmp_path / "back")
    assert same(source, tmp_path / "back")
    assert tmp_path / "back/a/b/deep.bin" in written
    assert store.save_files("f", source, 0) == made
    (source / "tiny").write_text("ho")
    with pytest.raises(StepExists):
        store.save_files("f", source, 0)


def test_a_file_comes_back_under_any_name(store, tmp_path):
    (tmp_path / "one.bin").write_bytes(RNG.bytes(70 * KiB))
    store.save_files("f", tmp_path / "one.bin", step=4)
    (tmp_path / "in").mkdir()
    assert store.restore_files("f@4", tmp_path / "in") == [tmp_path / "in/one.bin"]
    assert store.restore_files("f@4", tmp_path / "two.bin") == [tmp_path / "two.bin"]
    assert (tmp_path / "two.bin").read_bytes() == (tmp_path / "one.bin").read_bytes()
    store.restore_files("f@4", tmp_path / "two.bin")  # what is there is replaced


def test_links_out_of_the_folder_come_back_as_what_they_point_to(store, tmp_path):
    (tmp_path / "blob").write_bytes(b"content" * 1000)
    source = tmp_path / "source"
    source.mkdir()
    (source / "model").symlink_to("../blob")
    (source / "absolute").symlink_to(tmp_path / "blob")
    store.save_files("f", source)
    store.restore_files("f", tmp_path / "back")
    for name in ("model", "absolute"):
        assert not (tmp_path / "back" / name).is_symlink()
        assert (tmp_path / "back" / name).read_bytes() == b"content" * 1000
    (source / "parent").symlink_to("..")
    with pytest.raises(BadRequest, match="link to a folder outside"):
        store.save_files("f", source)


def containers_in(folder: Path) -> dict[str, Path]:
    """Return a file of each format, all with BIG in it."""
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.numpy")
    folder.mkdir()
    small = np.arange(10)
    torch.save({"w": torch.from_numpy(BIG), "small": torch.arange(3)}, folder / "w.pt")
    safetensors.save_file({"w": BIG, "small": small}, folder / "w.safetensors")
    np.savez(folder / "w.npz", w=BIG, small=small)
    np.save(folder / "w.npy", BIG)
    return {path.suffix: path for path in folder.iterdir()}


def test_files_share_their_tensors_with_states_and_each_other(store, tmp_path):
    files = containers_in(tmp_path / "source")
    first = store.save("state", {"w": BIG})
    assert first.new_bytes >= BIG.nbytes
    for suffix, path in files.items():
        made = store.save_files(f"run{suffix}", path)
        assert made.logical_bytes >= BIG.nbytes
        assert made.new_bytes < 8 * KiB, suffix
        store.restore_files(made, tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_hdf5_is_cut_at_its_datasets(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layer/kernel"] = BIG
        file.create_dataset("packed", data=BIG, compression="gzip")
    store.save("state", {"w": BIG})
    made = store.save_files("f", tmp_path / "w.h5")
    assert made.new_bytes < made.logical_bytes - BIG.nbytes + KiB
    store.restore_files(made, tmp_path / "back.h5")
    assert (tmp_path / "back.h5").read_bytes() == (tmp_path / "w.h5").read_bytes()


def test_the_tensors_of_torch_files_have_their_dtypes(tmp_path):
    torch = pytest.importorskip("torch")
    dtypes = (torch.float32, torch.bfloat16, torch.int64, torch.float16, torch.complex64)
    state = {str(dtype): torch.ones(40_000, dtype=dtype) for dtype in dtypes}
    torch.save({"again": state, **state}, tmp_path / "m.pt")
    with (tmp_path / "m.pt").open("rb") as file:
        cuts = containers.find_cuts(file, (tmp_path / "m.pt").stat().st_size)
    assert [f"torch.{cut.dtype}" for cut in cuts] == [str(dtype) for dtype in dtypes]


def test_a_changed_tensor_is_a_difference_to_the_one_before(store, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    weights = RNG.normal(size=400_000).astype(np.float32)
    sizes = []
    for step in range(2):
        safetensors.save_file({"w": weights * (1 + 1e-6 * step)}, tmp_path / "w.safetensors")
        sizes.append(store.save_files("f", tmp_path / "w.safetensors").stored_bytes)
    assert sizes[1] < sizes[0] / 2


# ---- files that lie


def lying_files() -> dict[str, bytes]:
    """Return files that begin like a container, and claim what is not so."""
    header = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    long = b"\0" * (80 * KiB)
    wide = b'{"a":{"dtype":"F32","shape":[40000],"data_offsets":[0,160000]}}'
    npy = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    claims = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999,), }"
    return {
        "safetensors with a tail": len(header).to_bytes(8, "little") + header + long,
        "safetensors beyond its end": len(wide).to_bytes(8, "little") + wide + long,
        "no JSON": (20).to_bytes(8, "little") + b"{" * 20 + long,
        "half a zip": b"PK\x03\x04" + long,
        "npy with a huge shape": npy + claims.ljust(118) + long,
        "npy without a header": npy + long,
        "half an HDF5": b"\x89HDF\r\n\x1a\n" + long,
    }


@pytest.mark.parametrize("name", lying_files())
def test_a_file_that_lies_comes_back_too(store, tmp_path, name):
    (tmp_path / "f").write_bytes(lying_files()[name])
    store.save_files("f", tmp_path / "f")
    store.restore_files("f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == lying_files()[name]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-1, 255)), max_size=12), st.data())
def test_a_damaged_zip_comes_back_too(shared, tmp_path_factory, changes, data):
    folder = tmp_path_factory.mktemp("zip")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.writestr("a/data/0", RNG.bytes(70 * KiB))
        archive.writestr("a/b.npy", RNG.bytes(70 * KiB))
    raw = bytearray((folder / "z.zip").read_bytes())
    for area, value in changes:
        # mostly in the directory and the headers, where a reader looks
        at = data.draw(st.integers(0, len(raw) - 1)) if area == 0 else -1 - area * 31 + value % 31
        raw[at] = value % 256
    (folder / "z.zip").write_bytes(raw)
    shared.restore_files(shared.save_files("zips", folder / "z.zip"), folder / "back")
    assert (folder / "back").read_bytes() == raw


# ---- what is refused


def test_what_is_no_file_is_refused(store, tmp_path):
    with pytest.raises(BadRequest, match="there is no"):
        store.save_files("f", tmp_path / "missing")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BadRequest, match="no regular file"):
        store.save_files("f", tmp_path)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(tmp_path / "s"))
        with pytest.raises((BadRequest, OperationFailed)):
            store.save_files("f", tmp_path)
    assert not store.runs("f")


def test_a_file_that_changes_meanwhile_is_an_error(store, tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(RNG.bytes(90 * KiB))
    was = filetrees.Files

    class Slow(was):
        def __init__(self, path):
            super().__init__(path)
            Path(path).write_bytes(b"other")

    monkeypatch.setattr(filetrees, "Files", Slow)
    with pytest.raises(OperationFailed, match="changed while it was being saved"):
        store.save_files("f", tmp_path / "f")
    assert not store.runs("f")


def test_a_folder_that_is_not_empty_is_left_alone(store, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a").write_text("a")
    store.save_files("f", tmp_path / "source")
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest/mine").write_text("mine")
    with pytest.raises(BadRequest, match="not empty"):
        store.restore_files("f", tmp_path / "dest")
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["mine"]
    with pytest.raises(NotFound):
        store.restore_files("g", tmp_path / "new")


def test_states_are_no_files_and_say_so(store, tmp_path):
    store.save("r", {"a": 1})
    with pytest.raises(BadRequest, match="holds a state"):
        store.restore_files("r", tmp_path / "new")


@pytest.mark.parametrize(
    "items",
    [
        {"../up": {"mode": 0o644, "data": b"x"}},
        {"/abs": {"mode": 0o644, "data": b"x"}},
        {"a//b": {"mode": 0o644, "data": b"x"}},
        {"l": {"link": "/etc"}},
        {"l": {"link": "a/../.."}},
        {"d/l": {"link": "../.."}},
        {"l": {"link": "d"}, "l/f": {"mode": 0o644, "data": b"x"}},
        {"f": {"mode": 0o4755, "data": b"x"}},
        {"f": {"mode": 0o644, "data": b"x", "at": [7], "tensors": {"t": b"y"}}},
        {"f": {"mode": 0o644, "data": "text"}},
        {"f": 1},
    ],
)
def test_files_from_a_hostile_store_never_leave_their_folder(store, tmp_path, items):
    store.save("r", {filetrees.MARK: 1, "mode": 0o755, "items": items})
    with pytest.raises(Corrupt):
        store.restore_files("r", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named_and_nothing_is_written(tmp_path):
    (tmp_path / "f").mkdir()
    (tmp_path / "f/weights").write_bytes(RNG.bytes(300 * KiB))
    with casckpt.open(tmp_path / "store") as store:
        store.save_files("f", tmp_path / "f")
    (pack,) = sorted((tmp_path / "store").rglob("*.pack"), key=lambda p: -p.stat().st_size)[:1]
    raw = bytearray(pack.read_bytes())
    for at in range(20 * KiB, 200 * KiB, KiB):
        raw[at] ^= 0xFF
    pack.write_bytes(raw)
    with casckpt.open(tmp_path / "store") as store, pytest.raises(Corrupt, match="weights"):
        store.restore_files("f", tmp_path / "new")
    assert not (tmp_path / "new").exists()


# ---- around it


def test_large_files_are_several_blobs(store, tmp_path, monkeypatch):
    monkeypatch.setattr(filetrees, "PIECE_BYTES", 100 * KiB)
    raw = RNG.bytes(333 * KiB + 7)
    (tmp_path / "f").write_bytes(raw)
    store.save_files("f", tmp_path / "f")
    assert len(store.entries("f")) == 4
    store.restore_files("f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == raw


def test_the_command_line_brings_files_back(store, tmp_path):
    (tmp_path / "one.txt").write_text("text" * 600)
    store.save_files("single", tmp_path / "one.txt")
    (tmp_path / "source/sub").mkdir(parents=True)
    (tmp_path / "source/sub/a").write_text("a")
    store.save_files("folder", tmp_path / "source")
    for run, out in (("single", "o1"), ("folder", "o2")):
        done = subprocess.run(
            [sys.executable, "-m", "casckpt", "--store", str(store.path), "restore", run,
             "-o", str(tmp_path / out)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "o1/one.txt").read_text() == "text" * 600
    assert same(tmp_path / "source", tmp_path / "o2")


def test_files_are_part_of_verify_and_gc(store, tmp_path):
    (tmp_path / "f").write_bytes(RNG.bytes(200 * KiB))
    for step in range(3):
        (tmp_path / "f").write_bytes(RNG.bytes(200 * KiB))
        store.save_files("f", tmp_path / "f", step)
    store.gc(store.plan_gc(casckpt.KeepLast(1)), now=True)
    assert [ck.step for ck in store.checkpoints("f")] == [2]
    assert not store.verify().damaged
    store.restore_files("f", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "f").read_bytes()
