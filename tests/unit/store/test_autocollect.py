"""Collection starts by itself when enough is likely to be dead, and not before."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from casckpt.store import BlobSource, CommitRequest, Repository, autocollect, layout, sharing

HOUR_NS = 3600 * 10**9


def _save(repository: Repository, step: int, size: int) -> int:
    with repository.saver() as saver:
        infos = saver.put_blobs([BlobSource([os.urandom(size)])])
        manifest = saver.put_manifest([info.id for info in infos], b"{}")
        return saver.commit(
            CommitRequest("r", 0, step, 0, manifest.id, b"", repository.head("r", 0))
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    Repository.init(tmp_path / "s")
    repository = Repository.open(tmp_path / "s")
    yield repository
    repository.close()


def _replace(repository: Repository, steps: Iterable[int]) -> None:
    """Save steps that are each removed again, for good."""
    for step in steps:
        seq = _save(repository, step, 400_000)
        row = repository.checkpoint_row("r", seq)
        assert row is not None
        repository.bury([("r", seq, row.payload)])


def _due(repository: Repository, after_s: float) -> bool:
    with repository._shared().environment.read() as tx:
        return autocollect.is_due(tx, time.time_ns() + int(after_s * 1e9))


def test_nothing_is_due_while_nothing_was_removed(repository: Repository) -> None:
    for step in range(3):
        _save(repository, step, 200_000)
    assert not _due(repository, 10 * 3600)


def test_trash_is_due_after_its_grace(repository: Repository) -> None:
    seq = _save(repository, 0, 200_000)
    _save(repository, 1, 200_000)
    repository.gc()
    repository.trash([("r", seq)])
    assert not _due(repository, layout.GRACE_S - 60)
    assert _due(repository, layout.GRACE_S + 60)
    repository.gc(now=True)
    assert not _due(repository, 10 * 3600)


def test_much_that_was_replaced_is_due_after_ten_minutes(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocollect, "LEAST_BYTES", 500_000)
    kept = _save(repository, 0, 3_000_000)
    repository.gc()
    _replace(repository, range(1, 5))
    assert not _due(repository, autocollect.INTERVAL_S - 60)
    assert _due(repository, autocollect.INTERVAL_S + 60)
    assert repository.checkpoint_row("r", kept) is not None


def test_a_store_that_has_doubled_is_due_after_seconds(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocollect, "LEAST_BYTES", 500_000)
    _save(repository, 0, 400_000)
    repository.gc()
    _replace(repository, range(1, 5))
    assert not _due(repository, autocollect.SOON_S - 3)
    assert _due(repository, autocollect.SOON_S + 3)


def test_what_saves_in_flight_still_hold_is_freed_by_the_same_child(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocollect.os, "nice", lambda increment: increment)
    _save(repository, 0, 300_000)
    repository._shared().own.seal_all()
    _replace(repository, [1])
    _save(repository, 2, 1000)
    row = repository.checkpoint_row("r", repository.commit_at("r", 0, 0, 0) or 0)
    assert row is not None
    repository.bury([("r", row.seq, row.payload)])
    before = repository.sizes().pack_bytes
    saver = repository.saver()  # holds a lease
    pauses = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        saver.__exit__(None, None, None)

    saver.__enter__()
    monkeypatch.setattr(autocollect.time, "sleep", sleep)
    assert autocollect.main(repository.path) == 0
    monkeypatch.undo()
    assert autocollect._SAVE_S in pauses
    assert repository.sizes().pack_bytes < before - 250_000


def test_a_commit_starts_the_child_and_the_child_frees(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocollect, "is_due", lambda tx, now_ns: True)
    monkeypatch.setattr(autocollect.os, "nice", lambda increment: increment)  # for the child only
    monkeypatch.setattr(sharing, "_LOOK_EVERY_S", 0.0)
    seq = _save(repository, 0, 300_000)
    for child in autocollect._children:
        child.wait(timeout=60)
    row = repository.checkpoint_row("r", seq)
    assert row is not None
    repository.bury([("r", seq, row.payload)])
    # The pack of a live session is not collected; a closed session's is.
    path = repository.path
    repository.close()
    for child in autocollect._children:
        child.wait(timeout=60)
    with Repository.open(path) as again:
        again_sizes = again.sizes()
    assert autocollect.main(path) == 0
    assert again_sizes.pack_bytes < 300_000


def test_a_second_child_is_not_started_while_the_first_one_works(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocollect, "_children", [])  # those of other tests may be at work
    monkeypatch.setattr(autocollect, "is_due", lambda tx, now_ns: True)
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(autocollect, "command_of", lambda *words: sleeper)
    shared = repository._shared()
    assert autocollect.start_if_due(shared)
    assert not autocollect.start_if_due(shared)
    (child,) = autocollect._children
    child.kill()
    child.wait()
    assert autocollect.start_if_due(shared)
    for child in autocollect._children:
        child.kill()
        child.wait()
