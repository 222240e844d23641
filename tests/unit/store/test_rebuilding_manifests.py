"""Rebuild of manifests that no fact names: their commits may have been the last."""

from __future__ import annotations

import os

from casckpt.errors import NewerFormat
from casckpt.store import (
    BlobSource,
    CommitRequest,
    Repository,
)
from tests.unit.store.stores import MIB, find, flip, save
from tests.unit.store.test_rebuilding import lose_index, open_rebuilt


def orphan(repository, run: str, step: int, data: bytes) -> bytes:
    """Store a manifest whose save is killed before its commit."""
    with repository.saver() as saver:
        infos = saver.put_blobs([BlobSource([data], 4)])
        return saver.put_manifest([infos[0].id], f"{run} {step}".encode()).id


def from_body(identity: bytes, body: bytes) -> CommitRequest:
    run, step = body.decode().split()
    return CommitRequest(run, 0, int(step), 0, identity, b"recovered", None)


def test_a_whole_manifest_without_a_fact_comes_back_where_it_was(path):
    with Repository.open(path) as repository:
        save(repository, [b"x"], run="run", step=1)
        identity = orphan(repository, "run", 2, os.urandom(3 * MIB))
    lose_index(path)
    report = Repository.rebuild_index(path, recover=from_body)
    assert report.recovered == (identity.hex(),)
    with open_rebuilt(path) as repository:
        row = repository.checkpoint_rows("run")[-1]
        assert (row.manifest_id, row.step, row.payload) == (identity, 2, b"recovered")
        assert repository.head("run", 0) == row.seq
        assert repository.verify("bytes").damaged == ()
        saved = save(repository, [b"y"], run="run", step=3)
        assert saved.seq > row.seq
    # It has no fact of its own, and is found again; nothing is counted as lost.
    lose_index(path)
    report = Repository.rebuild_index(path, recover=from_body)
    assert report.gaps == ()
    assert report.checkpoints == 3


def test_without_a_place_it_gets_a_run_of_its_own(path):
    with Repository.open(path) as repository:
        identity = orphan(repository, "run", 2, b"x")
    Repository.rebuild_index(path)
    with open_rebuilt(path) as repository:
        (row,) = repository.checkpoint_rows()
        assert (row.run, row.payload) == (f"recovered/{identity.hex()[:10]}", b"")

    def refuse(identity: bytes, body: bytes) -> None:
        raise NewerFormat("a manifest of a newer version")

    Repository.rebuild_index(path, recover=refuse)
    with open_rebuilt(path) as repository:
        assert len(repository.checkpoint_rows()) == 1


def test_it_never_takes_the_place_of_an_acknowledged_checkpoint(path):
    with Repository.open(path) as repository:
        identity = orphan(repository, "run", 2, b"first try, killed")
        saved = save(repository, [b"second try"], run="run", step=2, body=b"run 2 again")
    Repository.rebuild_index(path, recover=from_body)
    with open_rebuilt(path) as repository:
        assert repository.head("run", 0) == saved.seq
        assert [row.manifest_id for row in repository.checkpoint_rows("run")] == [saved.manifest_id]
        (row,) = repository.checkpoint_rows(f"recovered/{identity.hex()[:10]}")
        assert row.manifest_id == identity


def test_a_manifest_with_a_hole_does_not_come_back(path):
    with Repository.open(path) as repository:
        data = os.urandom(1000)
        orphan(repository, "run", 2, data)
    file, at = find(path, data)
    flip(file, at)
    report = Repository.rebuild_index(path)
    assert report.recovered == ()
    assert len(report.unreadable) == 1
    assert file.name in report.unreadable[0]
