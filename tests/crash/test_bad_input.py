"""Stores that are damaged, foreign, closed off or in use: a clear error, an exit code, no loss."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import casckpt
from casckpt.api import repair_store
from casckpt.errors import (
    CasckptError,
    Corrupt,
    FileSystemRefused,
    NewerFormat,
    NoStore,
    PermissionRefused,
)
from casckpt.store import files

pytestmark = pytest.mark.crash

NOBODY = 65534
ROOT = Path(__file__).resolve().parents[2]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="SKIPPED (needs root to become another user)"
)


def arrays(seed: int) -> dict:
    return {"w": np.random.default_rng(seed).standard_normal(50_000)}


def equal(restored: dict, seed: int) -> bool:
    return restored["w"].tobytes() == arrays(seed)["w"].tobytes()


@pytest.fixture
def place(tmp_path):
    """A closed store of two checkpoints, each in a pack of its own."""
    path = tmp_path / "store"
    for step in (0, 1):
        with casckpt.open(path) as store:
            store.save("run", arrays(step), step)
    return path


def packs_of(place: Path) -> list[Path]:
    return sorted((place / "packs").glob("*/*.pack"), key=lambda path: path.stat().st_mtime_ns)


def cli(
    place: Path, *arguments: str, uid: int | None = None, reads_all: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a command; `reads_all` for an interpreter that the other user cannot reach."""
    prefix = [] if uid is None else ["setpriv", f"--reuid={uid}", "--clear-groups"]
    if reads_all:
        prefix += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return subprocess.run(
        [*prefix, sys.executable, "-m", "casckpt", *arguments],
        env={**os.environ, "CASCKPT_STORE": str(place), "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def assert_says(done: subprocess.CompletedProcess[str], code: int) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert 1 <= len(done.stderr.strip().splitlines()) <= 4, done.stderr


def next_save_works(place: Path, step: int = 2) -> None:
    with casckpt.open(place) as store:
        store.save("run", arrays(step), step)
    with casckpt.open(place, mode="r") as store:
        assert equal(store.restore(f"run@{step}"), step)


def test_a_missing_pack_is_corrupt_and_the_rest_stays(place):
    packs_of(place)[0].unlink()
    with casckpt.open(place) as store:
        with pytest.raises(Corrupt) as caught:
            store.restore("run@0")
        assert caught.value.exit_code == 13
        assert equal(store.restore("run@1"), 1)
        assert store.verify().damaged
        with pytest.raises(Corrupt):
            store.gc(now=True)  # nothing is freed while something that is needed cannot be read
    assert_says(cli(place, "restore", "run@0", "-o", str(place / "never")), 13)
    assert cli(place, "verify").returncode == 1
    next_save_works(place)


@pytest.mark.parametrize("at", [100, 5000, 200_000])
def test_a_flipped_bit_is_corrupt_and_never_data(place, at):
    pack = packs_of(place)[0]
    data = bytearray(pack.read_bytes())
    data[at] ^= 4
    pack.write_bytes(data)
    with casckpt.open(place, mode="r") as store:
        with pytest.raises(Corrupt):
            store.restore("run@0")
        assert equal(store.restore("run@1"), 1)
        assert store.verify().damaged
        assert equal(store.restore("run@1", fallback=True), 1)
    next_save_works(place)


def test_half_a_record_is_corrupt(place):
    pack = packs_of(place)[0]
    os.truncate(pack, pack.stat().st_size // 2)
    with casckpt.open(place) as store:
        with pytest.raises(Corrupt):
            store.restore("run@0")
        assert store.verify().damaged
    next_save_works(place)


def test_half_a_record_after_the_end_is_garbage_only(place):
    pack = packs_of(place)[0]
    with pack.open("ab") as file:
        file.write(pack.read_bytes()[80:300])
    with casckpt.open(place) as store:
        assert store.verify().damaged == ()
        assert equal(store.restore("run@0"), 0)
    next_save_works(place)


@pytest.mark.parametrize("how", ["empty", "missing", "folder missing", "noise", "no CURRENT"])
def test_a_lost_index_is_never_an_empty_store(place, how):
    data = place / "index.0" / "data.mdb"
    if how == "empty":
        os.truncate(data, 0)
    elif how == "missing":
        data.unlink()
    elif how == "folder missing":
        shutil.rmtree(data.parent)
    elif how == "noise":
        data.write_bytes(os.urandom(40_000))
    else:
        (place / "CURRENT").unlink()
    for mode in ("r", "a"):
        with pytest.raises(Corrupt) as caught:
            casckpt.open(place, mode=mode)
        assert "rebuild" in str(caught.value)
    assert_says(cli(place, "ls"), 13)
    assert repair_store(place, rebuild_index=True).checkpoint_count == 2
    with casckpt.open(place) as store:
        assert all(equal(store.restore(f"run@{step}"), step) for step in (0, 1))
    next_save_works(place)


def test_what_is_no_store_is_said_to_be_none(tmp_path):
    for name, content in (("file", None), ("folder", "x"), ("noise", "format.json")):
        path = tmp_path / name
        if content is None:
            path.write_text("hello")
        else:
            path.mkdir()
            (path / content).write_text("hello")
        for mode in ("r", "a"):
            with pytest.raises(NoStore) as caught:
                casckpt.open(path, mode=mode)
            assert caught.value.exit_code == 10
        assert_says(cli(path, "ls"), 10)
    with pytest.raises(NoStore):
        casckpt.open(tmp_path / "nowhere", mode="r")


@pytest.mark.parametrize("key", ["version", "read", "write", "collect"])
def test_a_newer_format_is_refused_for_what_needs_it(place, key):
    document = json.loads((place / "format.json").read_text())
    document[key] = 99 if key == "version" else [*document[key], "from-the-future"]
    (place / "format.json").write_text(json.dumps(document))
    if key in ("version", "read"):
        with pytest.raises(NewerFormat):
            casckpt.open(place, mode="r")
        assert_says(cli(place, "ls"), 14)
        return
    with casckpt.open(place, mode="r") as store:
        assert equal(store.restore("run@0"), 0)
    if key == "write":
        with pytest.raises(NewerFormat):
            casckpt.open(place, mode="a")
        return
    next_save_works(place)
    assert_says(cli(place, "gc", "--now", "--yes"), 14)


def test_a_network_file_system_is_refused(place, monkeypatch):
    monkeypatch.setattr(files, "file_system_type", lambda path: 0x6969)
    for path in (place, place.with_name("new")):
        with pytest.raises(FileSystemRefused, match="NFS") as caught:
            casckpt.open(path)
        assert caught.value.exit_code == 10


def _readable(place: Path) -> None:
    """Let others read everything: what stands above in a temporary folder is 0700."""
    for path in (place, *place.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for path in place.parents:
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)


@needs_root
def test_a_store_that_we_may_not_write_to_is_read_and_not_changed(place):
    _readable(place)
    listed = cli(place, "ls", "-q", uid=NOBODY, reads_all=True)
    assert (listed.returncode, len(listed.stdout.split())) == (0, 2), listed.stderr
    assert cli(place, "verify", uid=NOBODY, reads_all=True).returncode == 0
    assert_says(cli(place, "rm", "run@0", "--yes", uid=NOBODY, reads_all=True), 10)
    assert_says(cli(place, "gc", "--now", "--yes", uid=NOBODY, reads_all=True), 10)
    next_save_works(place)


@needs_root
def test_a_store_without_permission_is_refused(place):
    _readable(place)
    place.chmod(0o700)
    assert_says(cli(place, "ls", uid=NOBODY), 10)
    place.chmod(0o755)
    (place / "packs").chmod(0o700)
    done = cli(place, "export", "run@0", "/dev/null/x.npz", uid=NOBODY)
    assert done.returncode not in (0, 70), done.stderr
    assert "Traceback" not in done.stderr
    (place / "packs").chmod(0o755)
    next_save_works(place)


@needs_root
def test_a_store_on_a_read_only_mount_can_be_read(place):
    mounted = place.with_name("mounted")
    mounted.mkdir()
    for command in (
        ["mount", "--bind", str(place), str(mounted)],
        ["mount", "-o", "remount,bind,ro", str(mounted)],
    ):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("SKIPPED (this machine does not mount)")
    try:
        with casckpt.open(mounted, mode="r") as store:
            assert equal(store.restore("run@1"), 1)
        with pytest.raises(PermissionRefused) as caught, casckpt.open(mounted) as store:
            store.save("run", arrays(5), 5)
        assert caught.value.exit_code == 10
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)
    next_save_works(place)


SECOND_WRITER = """
import sys, numpy as np, casckpt
from casckpt.store import files
def hook(name, path):
    if name == "records durable":
        print("in mid-save", flush=True)
        import time
        time.sleep(60)
with casckpt.open(sys.argv[1]) as store:
    files.set_crash_hook(hook)
    store.save("other", {"w": np.ones(50_000)}, 0)
"""


def test_a_second_writer_killed_in_mid_save_hinders_nobody(place):
    with casckpt.open(place) as store:
        command = [sys.executable, "-c", SECOND_WRITER, str(place)]
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "in mid-save\n"
        store.save("run", arrays(2), 2)
        other.send_signal(signal.SIGKILL)
        other.wait()
        other.stdout.close()
        began = time.monotonic()
        store.save("run", arrays(3), 3)
        store.gc(now=True)
        assert time.monotonic() - began < 10
        assert [run.name for run in store.runs()] == ["run"]
        assert all(equal(store.restore(f"run@{step}"), step) for step in range(4))
        assert store.verify().damaged == ()


def test_every_error_here_has_a_class_with_an_exit_code(place):
    packs_of(place)[0].write_bytes(b"")
    with casckpt.open(place, mode="r") as store, pytest.raises(CasckptError) as caught:
        store.restore("run@0")
    assert caught.value.exit_code == 13
    assert caught.value.hint
