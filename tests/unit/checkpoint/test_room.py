"""A full disk says what is missing and what gc would free, after it has freed what it may."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

import casckpt
from casckpt.checkpoint import room
from casckpt.errors import NoSpace
from casckpt.store import Repository, files


@pytest.fixture(autouse=True)
def _fresh():
    room._in_vain.clear()
    room._superfluous.clear()
    yield
    files.set_crash_hook(None)


class Full:
    """A disk without room for packs: for ever, or for the first save alone."""

    def __init__(self, *, times: float = math.inf) -> None:
        self.times = times
        self.freed = self.refused = 0

    def __call__(self, operation: str, path: str) -> None:
        if operation == "unlink" and path.endswith(".pack"):
            self.freed += 1
        if operation == "reserve" and self.refused < self.times:
            self.refused += 1
            raise OSError(28, "No space left on device")


def array(seed, count=200_000):
    return np.random.default_rng(seed).random(count)


def large():
    """Return more than what a pack has reserved already."""
    return array(3, 2_000_000)


def test_a_full_disk_says_how_much_is_missing_and_what_gc_would_free(tmp_path, monkeypatch):
    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"a": array(1)}, 0)
    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"a": array(2)}, 1)
        store.delete("r@0")
        store.wait()
        monkeypatch.setattr(room, "free_bytes", lambda path: 500_000)
        files.set_crash_hook(Full())
        with pytest.raises(NoSpace) as caught:
            store.save("r", {"a": large()}, 2)
        files.set_crash_hook(None)
        error = caught.value
        assert error.missing_bytes == 16_000_000 - 500_000
        assert error.freeable_bytes > 1_300_000
        assert "15.3 MiB and 488 KiB are free: up to 14.8 MiB are missing" in error.why
        assert "gc --now" in error.hint
        assert store.checkpoints("r", trash=True)[0].ref == "r@0"  # its grace is not over
        assert np.array_equal(store.restore("r@1")["a"], array(2))
        store.gc(now=True)
        files.set_crash_hook(Full())
        # Nothing but the block of what this process has noted itself.
        with pytest.raises(NoSpace, match=r"would free (nothing|4 KiB)"):
            store.save("r", {"a": large()}, 2)
        files.set_crash_hook(None)
        assert store.save("r", {"a": large()}, 2).step == 2


def test_what_is_dead_already_is_freed_before_a_save_fails(tmp_path, caplog):
    path = tmp_path / "s"
    with casckpt.open(path) as store:
        first = store.save("r", {"a": array(1)}, 0)
    with casckpt.open(path) as store:
        store.save("r", {"a": array(2)}, 1)
        with Repository.open(path) as repository:
            (row,) = [row for row in repository.checkpoint_rows("r") if row.step == 0]
            repository.bury([("r", first.seq, row.payload)])
        full = Full(times=2)
        files.set_crash_hook(full)
        made = store.save("r", {"a": large()}, 2)
        files.set_crash_hook(None)
        assert full.refused == 2
        assert full.freed >= 1
        assert made.step == 2
        assert "the disk was full: " in caplog.text
        assert np.array_equal(store.restore("r@2")["a"], large())
        assert store.verify().ok


def test_a_disk_that_is_full_again_at_once_is_collected_on_again(tmp_path):
    path = tmp_path / "s"
    for step in (0, 2):
        with casckpt.open(path) as store:
            dead = store.save("r", {"a": array(step)}, step)
        with casckpt.open(path) as store:
            store.save("r", {"a": array(step + 1)}, step + 1)
            with Repository.open(path) as repository:
                (row,) = [row for row in repository.checkpoint_rows("r") if row.step == step]
                repository.bury([("r", dead.seq, row.payload)])
            full = Full(times=2)
            files.set_crash_hook(full)
            store.save("large", {"a": array(10 + step, 2_000_000)}, step)
            files.set_crash_hook(None)
            assert full.refused == 2


def test_a_disk_that_stays_full_is_not_collected_on_for_every_save(tmp_path, monkeypatch):
    calls = []

    def gc(self):
        calls.append(1)
        return SimpleNamespace(freed_bytes=0)

    monkeypatch.setattr(Repository, "gc", gc)
    with casckpt.open(tmp_path / "s") as store:
        for _ in range(3):
            files.set_crash_hook(Full())
            with pytest.raises(NoSpace):
                store.save("r", {"a": large()})
            files.set_crash_hook(None)
    assert calls == [1]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1536, "1.5 KiB"), (5 << 30, "5 GiB")]
)
def test_sizes(count, text):
    assert room.size(count) == text


def test_what_policies_left_out_is_freed_and_what_people_removed_stays(
    tmp_path, caplog, monkeypatch
):
    """Also if the first time was interrupted."""

    def full(*arguments, **options):
        raise NoSpace("no room", "the disk is full")

    path = tmp_path / "s"
    for step in range(5):
        with casckpt.open(path) as store:  # each in a pack of its own
            store.save("r", {"a": array(step)}, step)
    with casckpt.open(path) as store:
        store.delete("r@1")
        for row in store._repository.checkpoint_rows("r"):
            if row.step in (0, 2):
                store._repository.trash([("r", row.seq)])
                room.note_superfluous(store._repository, "r", row.seq)
        store.undelete("r@2")
        with monkeypatch.context() as patched:
            patched.setattr(type(store._repository), "bury", full)
            assert not room.make_room(store._repository, 0, again=True)
        assert room.make_room(store._repository, 0, again=True)
        assert "with 1 checkpoint that keep= left out" in caplog.text
        assert [one.ref for one in store.checkpoints("r")] == ["r@2", "r@3", "r@4"]
        assert [one.ref for one in store.checkpoints("r", trash=True)] == ["r@1"]
        for step in (2, 3, 4):
            assert np.array_equal(store.restore(f"r@{step}")["a"], array(step))
        assert store.verify().ok
        room.make_room(store._repository, 0, again=True)
        assert store.undelete("r@1").ref == "r@1"
