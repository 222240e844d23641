"""Verify of what roots reach: wrong roots, deep nests, forged bodies, unknown types, moves."""

from __future__ import annotations

import os

import pytest

from casckpt.store import BlobSource, CommitRequest, Repository, files, layout, lists, rows
from tests.unit.store.stores import MIB, find, read, save
from tests.unit.store.test_verification import add_record

NOTHING = lists.encode_list(1, [5])


def put_root(repository: Repository, identity: bytes) -> None:
    """Let a row that is no checkpoint need an object."""
    row = rows.Row("live", (identity,), b"")
    repository._shared().writer.run(lambda tx: tx.put("progress", b"key", row.encode()))


@pytest.mark.parametrize(("count", "whole"), [(9, True), (10, False)])
def test_lists_may_be_nested_only_so_deep(repository, count, whole):
    with repository.saver() as saver:
        identity = saver.put_blobs([BlobSource([b"chunk"], 1, True)])[0].id
        for _ in range(count):
            identity = saver._objects.put_object(layout.TYPE_LIST, (identity,), NOTHING)
        manifest = saver.put_manifest([identity], b"a manifest of lists of lists")
        saver.commit(CommitRequest("run", 0, 1, 0, manifest.id, b"\x01", None))
    report = repository.verify("refs")
    if whole:
        assert (report.damaged, report.whole) == ((), (manifest.id,))
    else:
        (damage,) = report.damaged
        assert damage.message == "objects are nested too deep"
        assert damage.blobs == {identity}
        assert report.damaged_manifests == {manifest.id: frozenset({identity})}


def test_a_checkpoint_whose_manifest_is_something_else_is_not_whole(repository):
    whole = save(repository, [os.urandom(3 * MIB)])
    stranger = whole.infos[0].id
    with repository.saver() as saver:
        saver.commit(CommitRequest("evil", 0, 1, 0, stranger, b"\x01", None))
    report = repository.verify("refs")
    (damage,) = report.damaged
    assert damage.id == stranger
    assert damage.message == "another object stands where the index says"
    assert report.damaged_manifests[stranger] == frozenset({stranger})


@pytest.mark.parametrize("kind", [layout.TYPE_LIST, layout.TYPE_MANIFEST])
def test_a_body_with_another_id_is_found_where_it_is_needed(repository, kind):
    saved = save(repository, [b"chunk"])
    identity = os.urandom(32)
    add_record(
        repository, kind, layout.ENCODING_RAW, NOTHING,
        identity=identity, logical=len(NOTHING), refs=(saved.infos[0].id,),
    )  # fmt: skip
    assert repository.verify("refs").damaged == ()
    put_root(repository, identity)
    (damage,) = repository.verify("refs").damaged
    assert (damage.id, damage.message) == (identity, "its bytes have another id")
    assert damage.blobs == {identity}


@pytest.mark.parametrize("encoding", [layout.ENCODING_RAW, 99])
def test_what_an_unknown_type_names_is_followed(repository, encoding):
    saved = save(repository, [b"chunk"])
    identity = os.urandom(32)
    add_record(
        repository, 77, encoding, b"a body of a newer version",
        identity=identity, logical=25, refs=(saved.infos[0].id,),
    )  # fmt: skip
    put_root(repository, identity)
    assert repository.verify("refs").damaged == ()
    repository._shared().writer.run(lambda tx: tx.delete("objects", saved.infos[0].id), facts=False)
    (damage,) = repository.verify("refs").damaged
    assert (damage.kind, damage.id) == ("missing", saved.infos[0].id)
    assert damage.blobs == {identity, saved.infos[0].id}


def test_a_manifest_that_a_collector_moves_meanwhile_is_read_where_it_is(path):
    with Repository.open(path) as repository:
        gone = save(repository, [os.urandom(MIB)], run="gone")
        kept = save(repository, [os.urandom(1000), os.urandom(1000)], run="kept")
        repository.bury([("gone", gone.seq, b"\x01payload")])
    pack, _ = find(path, b"kept 1")
    with Repository.open(path) as repository:
        packs_are_checked = False
        moved = []

        def progress(done: int, total: int) -> None:
            nonlocal packs_are_checked
            packs_are_checked = done == total > 0

        def collect(name: str, where: str) -> None:
            if packs_are_checked and name == "open" and where == str(pack) and not moved:
                moved.append(where)
                assert repository.gc(now=True).freed_bytes > 0
                assert not pack.exists()
                # What lies below it is followed from the new place.
                repository._shared().writer.run(
                    lambda tx: tx.delete("objects", kept.infos[1].id), facts=False
                )

        files.set_crash_hook(collect)
        report = repository.verify("refs", progress)
        files.set_crash_hook(None)
        assert moved == [str(pack)]
        (damage,) = report.damaged
        assert (damage.kind, damage.id) == ("missing", kept.infos[1].id)
        assert report.damaged_manifests == {kept.manifest_id: frozenset({kept.infos[1].id})}
        assert read(repository, kept.infos[0]) == kept.data[0]
