"""A file system that is really full: saves fail as such, and removing and collecting still work.

Needs root to mount a small tmpfs; skipped visibly otherwise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import casckpt
from casckpt.errors import NoSpace
from casckpt.store import files

pytestmark = pytest.mark.crash


SAVE_UNTIL_FULL = """
import json, sys
import numpy as np
import casckpt
from casckpt.errors import CasckptError
place, count = sys.argv[1], int(sys.argv[2])
done, failed = [], None
try:
    with casckpt.open(place) as store:
        first = store.latest("run")
        at = 0 if first is None else first.step + 1
        for step in range(at, at + count):
            try:
                data = np.random.default_rng(step).bytes(2_000_000)
                store.save("run", {"data": data}, step)
                done.append(step)
            except CasckptError as exc:
                failed = [type(exc).__name__, exc.exit_code, str(exc)]
                break
except CasckptError as exc:
    failed = failed or ["on close: " + type(exc).__name__, exc.exit_code, str(exc)]
print(json.dumps({"done": done, "failed": failed}))
"""


@pytest.fixture
def small_disk(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("SKIPPED (needs root to mount a tmpfs)")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24M", "casckpt-test", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("SKIPPED (this machine does not mount a tmpfs)")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def save(store: Path, count: int = 100) -> dict:
    command = [sys.executable, "-c", SAVE_UNTIL_FULL, str(store), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout)


def cli(store: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "casckpt", *arguments]
    environment = {**os.environ, "CASCKPT_STORE": str(store)}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, env=environment
    )


def assert_all_there(store: Path, steps: list[int]) -> None:
    with casckpt.open(store, mode="r") as opened:
        for step in steps:
            restored = opened.restore(f"run@{step}")
            assert restored["data"] == np.random.default_rng(step).bytes(2_000_000)
        assert opened.verify().damaged == ()


def fill(disk: Path, leave_bytes: int) -> None:
    """Leave that much space free, with a file beside the store."""
    facts = os.statvfs(disk)
    rest = facts.f_bavail * facts.f_frsize - leave_bytes
    if rest > 0:
        with (disk / f"filler-{leave_bytes}").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, rest)


def test_a_save_fails_as_full_and_loses_nothing(small_disk):
    store = small_disk / "store"
    said = save(store)
    assert said["failed"] is not None
    assert said["failed"][:2] == ["NoSpace", 16], said
    assert len(said["done"]) >= 3
    assert_all_there(store, said["done"])
    failed = cli(store, "init", str(small_disk / "other"))
    assert failed.returncode in (0, 16), failed.stderr


@pytest.mark.parametrize("leave_kib", [0, 4, 8, 32, 128])
def test_removing_and_collecting_work_on_a_full_disk_and_the_next_save_too(small_disk, leave_kib):
    store = small_disk / "store"
    done = [save(store, 1)["done"][0] for _ in range(4)]  # a process and a pack each
    done += save(store, 3)["done"]
    fill(small_disk, leave_kib * 1024)
    assert save(store, 1)["failed"][:2] == ["NoSpace", 16]
    for ref in ("run@0", "run@1"):
        removed = cli(store, "rm", ref, "--yes")
        assert removed.returncode == 0, removed.stderr
    collected = cli(store, "gc", "--now", "--yes")
    assert collected.returncode == 0, collected.stderr
    assert_all_there(store, done[2:])
    again = save(store, 1)
    assert again["failed"] is None, again
    assert_all_there(store, [*done[2:], *again["done"]])


def test_what_was_removed_from_a_full_disk_is_free_though_one_process_saved_it_all(small_disk):
    store = small_disk / "store"
    done = save(store)["done"]
    for step in (0, 1, 2):
        assert cli(store, "rm", f"run@{step}", "--yes").returncode == 0
    collected = cli(store, "gc", "--now", "--yes")
    assert collected.returncode == 0, collected.stderr
    assert_all_there(store, done[3:])
    again = save(store, 2)
    assert again["failed"] is None
    assert_all_there(store, [*done[3:], *again["done"]])


def test_a_save_that_is_too_large_for_the_disk_leaves_no_less_room(small_disk):
    path = small_disk / "store"
    with casckpt.open(path) as store:
        store.save("small", {"a": np.random.default_rng(0).bytes(2_000_000)})
        before = files.free_bytes(path)
        written = sum_of_writes()
        for seed in (1, 2):
            with pytest.raises(NoSpace):
                store.save("large", {"a": np.random.default_rng(seed).bytes(40_000_000)})
            assert files.free_bytes(path) > before - 200_000
        # Each tried once: what a failed attempt leaves is no room that was made for another.
        assert sum_of_writes() - written < 2.5 * before
        store.save("small", {"a": np.random.default_rng(3).bytes(2_000_000)})
        assert store.verify("bytes").ok


def sum_of_writes() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


@pytest.mark.parametrize("free_kib", range(0, 260, 52))
def test_a_new_store_on_a_nearly_full_disk_is_an_error_or_a_store(small_disk, free_kib):
    fill(small_disk, free_kib * 1024)
    said = save(small_disk / "store", 1)
    assert said["failed"] is None or said["failed"][1] == 16, said
    (small_disk / f"filler-{free_kib * 1024}").unlink()
    assert save(small_disk / "store", 1)["failed"] is None


def test_removing_and_collecting_need_no_free_inode(small_disk):
    subprocess.run(["mount", "-o", "remount,nr_inodes=120", str(small_disk)], check=True)
    store = small_disk / "store"
    done = [save(store, 1)["done"][0] for _ in range(9)]
    filler = small_disk / "filler"
    filler.mkdir()
    for number in range(os.statvfs(small_disk).f_ffree):
        (filler / str(number)).touch()
    assert os.statvfs(small_disk).f_ffree == 0
    assert save(store, 1)["failed"][:2] == ["NoSpace", 16]
    for step in done[:6]:
        removed = cli(store, "rm", f"run@{step}", "--yes")
        assert removed.returncode == 0, removed.stderr
        assert save(store, 1)["failed"][:2] == ["NoSpace", 16]
    collected = cli(store, "gc", "--now", "--yes")
    assert collected.returncode == 0, collected.stderr
    assert_all_there(store, done[6:])
    again = save(store, 1)
    assert again["failed"] is None, again
    assert_all_there(store, [*done[6:], *again["done"]])


@pytest.mark.parametrize("size", [1_500_000, 2_000_000, 3_000_000, 4_500_000])
def test_a_loop_goes_on_on_a_disk_that_holds_what_keep_chooses(small_disk, size):
    """The hour in the trash is for people who change their minds, not for the disk to fill up."""
    path, steps = small_disk / "store", 30
    with casckpt.open(path) as store, store.run("loop") as run:
        state = casckpt.State(data=b"", epoch=0)
        for epoch in run.epochs(steps, state, save_every=1, keep=casckpt.KeepLast(2)):
            state.data, state.epoch = np.random.default_rng(epoch).bytes(size), epoch
    with casckpt.open(path, mode="r") as store:
        assert [one.step for one in store.checkpoints("loop")] == [steps - 1, steps]
        newest = store.restore(f"loop@{steps}")
        assert newest["data"] == np.random.default_rng(steps).bytes(size)
        assert store.verify().ok
