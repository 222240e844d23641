"""`casckpt://`: fsspec's own suites, and programs that know nothing of casckpt."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest

fsspec = pytest.importorskip("fsspec")
from fsspec.tests.abstract import AbstractFixtures  # noqa: E402
from fsspec.tests.abstract.copy import AbstractCopyTests  # noqa: E402
from fsspec.tests.abstract.get import AbstractGetTests  # noqa: E402
from fsspec.tests.abstract.open import AbstractOpenTests  # noqa: E402
from fsspec.tests.abstract.pipe import AbstractPipeTests  # noqa: E402
from fsspec.tests.abstract.put import AbstractPutTests  # noqa: E402

RNG = np.random.default_rng(0)
KiB = 1024


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("fsspec") / "store") as store:
        yield store


@pytest.fixture
def store(shared, monkeypatch):
    monkeypatch.setenv("CASCKPT_STORE", str(shared.path))
    yield shared
    if shared.checkpoints():
        shared.delete("*")
    shared.gc(now=True, force=True)


@pytest.fixture
def fs(store):
    found = fsspec.filesystem("casckpt", skip_instance_cache=True)
    found._folders().clear()
    yield found
    found.close()


class Fixtures(AbstractFixtures):
    @pytest.fixture(scope="class")
    @classmethod
    def fs(cls, shared):
        found = fsspec.filesystem("casckpt", store=shared.path, skip_instance_cache=True)
        yield found
        found.close()
        if shared.checkpoints():
            shared.delete("*")

    @pytest.fixture
    def fs_join(self):
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self, fs, request):
        fs._folders().clear()
        # A run of its own: the trash of hundreds of tests makes a run slow to look at.
        return f"suite-{hash(request.node.nodeid) & 0xFFFFFFFF}/tests"


class TestCopy(Fixtures, AbstractCopyTests):
    pass


class TestGet(Fixtures, AbstractGetTests):
    pass


class TestOpen(Fixtures, AbstractOpenTests):
    pass


class TestPipe(Fixtures, AbstractPipeTests):
    pass


class TestPut(Fixtures, AbstractPutTests):
    pass


# ---- what a file system does


def test_it_is_found_by_its_entry_point():
    assert type(fsspec.filesystem("casckpt")).__module__ == "casckpt.adapters.fsspec"
    code = "import fsspec; print(fsspec.get_filesystem_class('casckpt').__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "CasckptFileSystem\n"


def test_files_and_folders(fs, store):
    fs.pipe_file("casckpt://r/a/one.bin", b"1" * 3000)
    fs.pipe_file("r/a/b/two.bin", b"2")
    fs.pipe_file("r/three", b"")
    assert fs.ls("casckpt://r", detail=False) == ["r/a", "r/three"]
    assert fs.ls("r/a/", detail=False) == ["r/a/b", "r/a/one.bin"]
    assert fs.ls("", detail=False) == ["r"]
    assert sorted(fs.find("r")) == ["r/a/b/two.bin", "r/a/one.bin", "r/three"]
    assert fs.glob("r/**/*.bin") == ["r/a/b/two.bin", "r/a/one.bin"]
    assert (fs.isdir("r/a"), fs.isfile("r/three"), fs.exists("r/a/four")) == (True, True, False)
    info = fs.info("r/a/one.bin")
    assert (info["type"], info["size"]) == ("file", 3000)
    assert datetime.now(UTC) - fs.modified("r/a/one.bin") < timedelta(minutes=1)
    assert fs.created("r/a/one.bin") == store.get(info["ref"]).created
    for missing in ("r/none", "none", "none/file", "no such/name"):
        with pytest.raises(FileNotFoundError):
            fs.info(missing)
        with pytest.raises(FileNotFoundError):
            fs.open(f"casckpt://{missing}")
        with pytest.raises(FileNotFoundError):
            fs.ls(missing)


def test_ranges_are_read_alone(fs):
    raw = RNG.bytes(5 << 20)
    fs.pipe_file("r/big", raw)
    assert fs.cat_file("r/big", 1_000_000, 3_500_000) == raw[1_000_000:3_500_000]
    assert fs.cat_file("r/big", -10) == raw[-10:]
    with fs.open("r/big") as file:
        file.seek(-100, 2)
        assert file.read() == raw[-100:]
        file.seek(4 << 20)
        assert file.read(33) == raw[4 << 20 : (4 << 20) + 33]
        fs.pipe_file("r/big", b"another")
        file.seek(7)
        assert file.read(50) == raw[7:57]  # an open file is what it was
    assert fs.cat_file("r/big") == b"another"


def test_what_replaces_and_removes_can_be_undone(fs, store):
    fs.pipe_file("r/f", b"old")
    fs.pipe_file("r/f", b"new")
    assert [ck.step for ck in store.checkpoints("r")] == [1]
    fs.rm("r/f")
    assert not fs.exists("r/f")
    store.undelete("r@1")
    assert fs.cat_file("r/f") == b"new"
    store.pin("r@1")
    with pytest.raises(BadRequest, match="pinned"):
        fs.rm("r/f")
    fs.pipe_file("r/f", b"newer")
    assert fs.cat_file("casckpt://r@1/f") == b"new"
    assert fs.cat_file("r/f") == b"newer"
    store.pin("r@1", on=False)


def test_append_exclusive_and_text(fs):
    with fs.open("r/log", "w") as file:
        file.write("ö\n")
    with fs.open("r/log", "a") as file:
        file.write("two\n")
    assert fs.read_text("r/log", encoding="utf-8").splitlines() == ["ö", "two"]
    with pytest.raises(FileExistsError):
        fs.open("r/log", "xb")
    with pytest.raises(ValueError, match="written whole"):
        fs.open("r/log", "r+b")
    with pytest.raises(IsADirectoryError):
        fs.open("r", "wb")
    with pytest.raises(PermissionError):
        fs.open("r@0/log", "wb")


def test_a_transaction_commits_all_or_nothing_of_what_is_open(fs):
    fs.pipe_file("r/a", b"old")
    with fs.transaction:
        with fs.open("r/a", "wb") as file:
            file.write(b"new")
        with fs.open("r/b", "wb") as file:
            file.write(b"b")
        assert fs.cat_file("r/a") == b"old"
        assert not fs.exists("r/b")
    assert (fs.cat_file("r/a"), fs.cat_file("r/b")) == (b"new", b"b")
    with contextlib.suppress(KeyError), fs.transaction:
        fs.pipe_file("r/a", b"never")
        raise KeyError
    assert fs.cat_file("r/a") == b"new"


def test_half_a_file_is_not_committed(fs):
    with contextlib.suppress(KeyError), fs.open("r/f", "wb") as file:
        file.write(b"half")
        raise KeyError
    assert not fs.exists("r/f")
    file = fs.open("r/f", "wb")
    file.write(b"half")
    del file
    assert not fs.exists("r/f")


WRAPPED = {
    "with": lambda fs: fsspec.open("casckpt://r/f", "wb"),
    "text with": lambda fs: fsspec.open("casckpt://r/f", "w"),
    "gzip with": lambda fs: fsspec.open("casckpt://r/f", "wb", compression="gzip"),
    "text": lambda fs: fs.open("r/f", "w"),
    "closing": lambda fs: contextlib.closing(fs.open("r/f", "wb")),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_half_a_file_that_a_wrapper_closes_is_not_committed(fs, how, caplog):
    fs.pipe_file("r/f", b"whole")
    half = "half" if "text" in how else b"half"
    with contextlib.suppress(KeyError), WRAPPED[how](fs) as file:
        file.write(half)
        raise KeyError
    assert fs.cat_file("r/f") == b"whole"
    assert "r/f was closed because of KeyError, and is not saved" in caplog.text
    with fs.transaction, contextlib.suppress(KeyError), WRAPPED[how](fs) as file:
        file.write(half)
        raise KeyError
    assert fs.cat_file("r/f") == b"whole"
    with WRAPPED[how](fs) as file:
        file.write(half)
    assert fs.cat_file("r/f") != b"whole"


def test_half_a_text_file_that_nobody_closes_is_not_committed(fs, caplog):
    fs.pipe_file("r/f", b"whole")
    for opened in (fs.open("r/f", "w"), fsspec.open("casckpt://r/f", "w").open()):
        opened.write("half")
    del opened
    gc.collect()
    assert fs.cat_file("r/f") == b"whole"
    assert caplog.text.count("r/f was never closed, and is not saved") == 2


def test_a_file_that_is_opened_while_an_error_is_handled_is_committed(fs):
    try:
        raise KeyError
    except KeyError:
        with fsspec.open("casckpt://r/f", "wb") as file:
            with contextlib.suppress(ValueError):
                int("x")
            file.write(b"rescued")
        with contextlib.suppress(ValueError), fsspec.open("casckpt://r/half", "wb") as file:
            file.write(bytes(int("x")))
        later = fs.open("r/later", "wb")
    later.close()
    assert fs.cat_file("r/f") == b"rescued"
    assert fs.exists("r/later")
    assert not fs.exists("r/half")


def test_a_generator_commits_what_it_has_written_whole(fs):
    def write(name):
        with fsspec.open(f"casckpt://r/{name}", "wb") as file:
            file.write(b"head")
            yield
            file.write(b"tail")

    whole, left, failed = write("whole"), write("left"), write("failed")
    for one in (whole, left, failed):
        next(one)
    try:
        raise KeyError
    except KeyError as exc:
        # The error is that of the caller.
        assert next(whole, "end") == "end"
        left.close()
        with contextlib.suppress(KeyError):
            failed.throw(exc)
    assert fs.cat_file("r/whole") == b"headtail"
    assert not fs.exists("r/left")
    assert not fs.exists("r/failed")


def test_mv_and_cp(fs, store):
    raw = RNG.bytes(300 * KiB)
    fs.pipe_file("r/tmp", raw)
    stored = store.get("r").new_bytes
    fs.mv("r/tmp", "r/final")
    assert fs.ls("r", detail=False) == ["r/final"]
    assert fs.cat_file("r/final") == raw
    assert stored >= len(raw)
    assert store.get("r").new_bytes < 2 * KiB
    fs.cp("r/final", "other/sub/copy")
    assert fs.cat_file("other/sub/copy") == raw


def test_nested_runs_have_colons_and_folders_are_seen(fs, store, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/w").write_bytes(b"w1")
    (tmp_path / "out/link").symlink_to("w")
    store.save_files("bpm/nn", tmp_path / "out")
    (tmp_path / "out/w").write_bytes(b"w2")
    store.save_files("bpm/nn", tmp_path / "out")
    assert fs.cat_file("casckpt://bpm:nn/w") == b"w2"
    assert fs.cat_file("casckpt://bpm:nn@0/link") == b"w1"
    assert fs.ls("", detail=False) == ["bpm:nn"]
    with pytest.raises(BadRequest, match="part of the folder"):
        fs.rm("bpm:nn/w")
    store.save("states", {"a": 1})
    assert fs.ls("states") == []


def test_training_runs_keep_their_checkpoints_to_themselves(fs, store):
    with store.run("train") as run:
        run.save({"a": 1})
    with pytest.raises(BadRequest, match="training run"):
        fs.pipe_file("train/f", b"x")
    assert not fs.exists("train/f")


def test_reading_makes_no_store(tmp_path):
    fs = fsspec.filesystem("casckpt", store=tmp_path / "none")
    assert fs.ls("") == []
    assert not fs.exists("r/f")
    with pytest.raises(FileNotFoundError):
        fs.open("r/f")
    assert list(tmp_path.iterdir()) == []
    fs.pipe_file("r/f", b"x")
    assert fs.cat_file("r/f") == b"x"
    fs.close()


def test_a_file_system_travels(fs):
    fs.pipe_file("r/f", b"x")
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("r/f") == b"x"
    again.close()


def test_processes_put_files_into_one_run_at_once(store):
    code = (
        "import fsspec, sys\n"
        "fs = fsspec.filesystem('casckpt')\n"
        "for n in range(8): fs.pipe_file(f'ranks/{sys.argv[1]}-{n}', sys.argv[1].encode() * n)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(rank)], stderr=subprocess.PIPE)
        for rank in range(3)
    ]
    for child in children:
        _, errors = child.communicate(timeout=120)
        assert child.returncode == 0, errors
    fs = fsspec.filesystem("casckpt")
    assert len(fs.find("ranks")) == 24
    assert fs.cat_file("ranks/2-5") == b"2" * 5
    fs.close()


@pytest.mark.crash
def test_a_kill_leaves_the_old_file_or_the_new_one(store):
    code = textwrap.dedent("""
        import fsspec
        fs = fsspec.filesystem("casckpt")
        n = 0
        while True:
            n += 1
            fs.pipe_file("r/f", bytes([n % 251]) * 400_000)
            print(n, flush=True)
    """)
    fs = fsspec.filesystem("casckpt")
    for kill in range(4):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.02 + 0.015 * kill)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        raw = fs.cat_file("r/f")
        assert len(raw) == 400_000
        assert len(set(raw)) == 1
    fs.close()


# ---- programs that know nothing of casckpt


def test_torch_saves_and_loads(store, fs):
    torch = pytest.importorskip("torch")
    weights = {"w": torch.randn(300, 200), "n": torch.arange(5)}
    store.save("state", weights)
    with fsspec.open("casckpt://r/model.pt", "wb") as file:
        torch.save(weights, file)
    assert store.get("r").new_bytes < 4 * KiB  # the same tensors as in the state
    with fsspec.open("casckpt://r/model.pt", "rb") as file:
        again = torch.load(file, weights_only=True)
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.filterwarnings("ignore")
def test_torch_distributed_checkpoints(store, fs):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"model": {"w": torch.randn(300, 200), "b": torch.ones(7)}, "step": 3}
    for step in range(2):
        dcp.save(state, checkpoint_id=f"casckpt://dcp/step{step}", no_dist=True)
    assert sorted(fs.ls("dcp/step1", detail=False)) == [
        "dcp/step1/.metadata", "dcp/step1/__0_0.distcp",
    ]  # fmt: skip
    empty = {"model": {"w": torch.zeros(300, 200), "b": torch.zeros(7)}, "step": 0}
    dcp.load(empty, checkpoint_id="casckpt://dcp/step1", no_dist=True)
    assert torch.equal(empty["model"]["w"], state["model"]["w"])
    assert empty["step"] == 3
    dcp.save(state, checkpoint_id="casckpt://dcp/step1", no_dist=True)  # overwritten


def test_pandas_reads_and_writes(fs):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    frame.to_csv("casckpt://tables/a.csv", index=False)
    assert pandas.read_csv("casckpt://tables/a.csv").equals(frame)
    frame.to_pickle("casckpt://tables/a.pkl.gz")
    assert pandas.read_pickle("casckpt://tables/a.pkl.gz").equals(frame)


def test_numpy_reads_and_writes(fs):
    array = RNG.normal(size=(50, 60))
    with fsspec.open("casckpt://r/a.npy", "wb") as file:
        np.save(file, array)
    with fsspec.open("casckpt://r/a.npy") as file:
        assert np.array_equal(np.load(file), array)


def test_the_current_store_is_looked_up_at_each_call(tmp_path, monkeypatch):
    monkeypatch.delenv("CASCKPT_STORE", raising=False)
    fs = fsspec.filesystem("casckpt", skip_instance_cache=True)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        fs.pipe_file("r/f", name.encode())
    monkeypatch.chdir(tmp_path / "one")
    assert fs.cat_file("r/f") == b"one"
    assert Path(tmp_path / "two/.casckpt/format.json").exists()
    fs.close()
    assert os.environ.get("CASCKPT_STORE") is None


def test_a_file_system_that_is_garbage_closes_nothing_in_the_middle_of_anything(tmp_path):
    store = tmp_path / "left"
    fs = fsspec.filesystem("casckpt", store=store, skip_instance_cache=True)
    fs.pipe_file("r/f", b"x")
    (handle,) = fs._handles.values()
    del fs
    gc.collect()
    assert not handle._closed
    fsspec.filesystem("casckpt", store=store, skip_instance_cache=True).cat_file("r/f")
    assert handle._closed
