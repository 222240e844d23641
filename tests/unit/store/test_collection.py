"""Collections that are met by others halfway: what they must not free, and when they give up."""

from __future__ import annotations

import os
from functools import partial

import pytest

from casckpt.errors import Corrupt, StoreBusy
from casckpt.store import BlobSource, Repository, compaction, layout, marking, rows
from casckpt.store.commits import RowWrite
from casckpt.store.index_writer import IndexWriter
from tests.unit.store.stores import MIB, check, lose_index, pack_files, save


def test_saves_that_come_faster_than_marks_keep_what_they_need(path, repository, monkeypatch):
    """Before each of the three tries to condemn, another save makes an old chunk live again."""
    weights = [os.urandom(60_000) for _ in range(3)]
    for step, piece in enumerate(weights):
        one = save(repository, [piece], step=step)
        repository._shared().own.seal_all()  # each in a pack of its own, which dies with it
        repository.trash([("run", one.seq)])
    again = []
    run = IndexWriter.run

    def faster(writer, job, **how):
        if isinstance(job, partial) and job.func.__name__ == "_condemn_all":
            step = len(again)
            monkeypatch.setattr(IndexWriter, "run", run)
            again.append(save(repository, [weights[step], b"new"], run="again", step=step))
            monkeypatch.setattr(IndexWriter, "run", faster)
        return run(writer, job, **how)

    monkeypatch.setattr(IndexWriter, "run", faster)
    repository.gc(now=True)
    monkeypatch.undo()
    assert len(again) == 3
    repository.gc(now=True)
    for one in again:
        check(repository, one)
    assert not repository.verify().damaged
    with Repository.open(path, mode="r") as other:
        for one in again:
            check(other, one)


def test_a_collection_that_another_has_overtaken_gives_up(repository, monkeypatch):
    keep = save(repository, [os.urandom(5000)], step=1)
    gone = save(repository, [os.urandom(5000)], step=2)
    repository.trash([("run", gone.seq)])
    shared = repository._shared()

    def overtaken(*given):
        shared.writer.run(lambda tx: tx.put("meta", b"gc_run", b"another"), facts=False)
        return mark(*given)

    mark = marking.mark
    with monkeypatch.context() as patched:
        patched.setattr(marking, "mark", overtaken)
        with pytest.raises(StoreBusy, match="this collection was overtaken"):
            repository.gc(now=True)
    check(repository, keep)
    assert repository.gc(now=True).live_bytes > 5000
    check(repository, keep)


def test_half_of_a_store_gone_without_a_removal_is_refused_unless_forced(repository):
    keep = save(repository, [os.urandom(1000)], step=1)
    shared = repository._shared()
    shared.writer.run(lambda tx: tx.set_number("marked_bytes", 10**9), facts=False)
    with pytest.raises(Corrupt, match="refused to free more than half of the store"):
        repository.gc(now=True)
    repository.gc(now=True, force=True)
    check(repository, keep)
    repository.gc(now=True)  # what was forced is the measure from now on


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_results_that_are_cleared_explain_why_less_is_needed(repository, how):
    save(repository, [os.urandom(10_000)])
    with repository.saver() as saver:
        (info,) = saver.put_blobs([BlobSource([os.urandom(MIB)])])
        manifest = saver.put_manifest([info.id], b"{}")
        assert saver.add_rows([RowWrite("cache", b"c\0x", b"", (manifest.id,))]) == [True]
    assert repository.gc().live_bytes > MIB
    repository.write_rows([RowWrite("cache", b"c\0x", None if how == "removed" else b"small")])
    assert repository.gc().live_bytes < MIB
    with repository._shared().environment.read() as tx:
        assert tx.number("removed_roots") == 0
    assert repository.gc().freed_bytes == 0


def test_rows_that_keep_nothing_explain_nothing(repository):
    save(repository, [os.urandom(1000)])
    repository.write_rows([RowWrite("progress", b"a", b"1"), RowWrite("cache", b"b", b"2")])
    repository.write_rows([RowWrite("progress", b"a", None), RowWrite("cache", b"b", b"3")])
    with repository._shared().environment.read() as tx:
        assert tx.number("removed_roots") == 0


def test_what_is_removed_beside_a_collection_explains_the_next_one(repository, monkeypatch):
    keep = save(repository, [os.urandom(1000)], step=1)
    gone = save(repository, [os.urandom(MIB)], step=2)
    mark = marking.mark

    def slow(shared):
        found = mark(shared)
        repository.bury([("run", gone.seq, b"\x01payload")])
        return found

    with monkeypatch.context() as patched:
        patched.setattr(marking, "mark", slow)
        assert repository.gc().live_bytes > MIB
    assert repository.gc().live_bytes < MIB
    check(repository, keep)


def test_an_object_row_that_names_another_record_stops_a_collection(repository):
    """A freed pack cannot be had back: where rows and packs differ, nothing is freed."""
    one = save(repository, [os.urandom(3000)], step=1)
    two = save(repository, [os.urandom(3000)], step=2)
    shared = repository._shared()

    def swap(tx):
        tx.put("objects", one.manifest_id, tx.object(two.manifest_id).encode())

    shared.writer.run(swap, facts=False)
    with pytest.raises(Corrupt, match="is not where it should be"):
        repository.gc(now=True)


def test_a_root_row_that_vanished_stops_a_collection(repository):
    save(repository, [b"a" * 3000], step=1)
    lost = save(repository, [os.urandom(3000)], step=2)
    shared = repository._shared()

    def lose(tx):
        tx._handle.delete(rows.checkpoint_key("run", lost.seq), db=tx._tables["checkpoints"])

    shared.writer.run(lose, facts=False)
    with pytest.raises(Corrupt, match="the index has lost checkpoints"):
        repository.gc(now=True)


def test_rows_are_scanned_in_batches_and_none_is_left_out(repository, monkeypatch):
    saved = save(repository, [os.urandom(200) for _ in range(30)])
    whole = {key for batch in marking.scan_objects(repository._shared()) for key, _ in batch}
    for size in (1, 7, len(whole)):
        monkeypatch.setattr(marking, "_SCAN_ROWS", size)
        batches = list(marking.scan_objects(repository._shared()))
        assert {key for batch in batches for key, _ in batch} == whole
        assert max(map(len, batches)) == size
    assert {info.id for info in saved.infos} < whole


def test_packs_with_facts_that_no_snapshot_has_are_kept_until_one_has(path, repository):
    """Facts are all that a rebuild has: a pack of old ones may go when they stand elsewhere."""
    for step in range(4):
        saved = save(repository, [os.urandom(20_000)], step=step)
        repository._shared().own.seal_all()
        if step < 3:
            repository.trash([("run", saved.seq)])
    repository.gc(now=True)
    repository.close()
    for index in path.glob(f"{layout.INDEX_PREFIX}*/data.mdb"):
        index.unlink()
    from casckpt.api import repair_store

    repair_store(path, rebuild_index=True, accept=True)
    with Repository.open(path) as after:
        assert [row.step for row in after.checkpoint_rows()] == [3]
        check(after, saved)


def test_a_pack_of_facts_that_are_needed_is_not_written_anew(path):
    """It was at every collection, and its bytes were said to be freed each time."""
    with Repository.open(path) as repository:
        save(repository, [os.urandom(MIB)])
        for number in range(40):
            key, payload = b"%04d" % number, os.urandom(500)
            repository.write_rows([RowWrite("history", key, payload)])
    with Repository.open(path) as repository:
        repository.trash([(row.run, row.seq) for row in repository.checkpoint_rows()])
        first = repository.gc(now=True)
        assert first.freed_bytes > MIB
    packs = {pack.name: pack.stat().st_size for pack in pack_files(path)}
    for _ in range(3):
        with Repository.open(path) as repository:
            assert repository.plan_gc(()).freed_bytes == 0
            assert repository.gc(now=True).freed_bytes == 0
            assert len(repository.rows("history")) == 40
        now = {pack.name: pack.stat().st_size for pack in pack_files(path)}
        assert packs.keys() <= now.keys()
    lose_index(path)
    Repository.rebuild_index(path)
    with Repository.open(path) as repository:
        assert len(repository.rows("history")) == 40


def test_facts_that_a_snapshot_stands_for_keep_no_pack(path):
    with Repository.open(path) as repository:
        save(repository, [b"kept"])
        for number in range(1100):
            repository.write_rows([RowWrite("history", b"key", b"%04d" % number)])
    with Repository.open(path) as repository:
        plan = repository.plan_gc(())
        report = repository.gc()
        assert report.freed_bytes > 0
        assert report.freed_bytes == pytest.approx(plan.freed_bytes, rel=0.2)
        assert repository.gc().freed_bytes == 0
        assert repository.row("history", b"key").payload == b"1099"


def test_packs_that_hold_little_but_facts_are_merged_once_they_are_many(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x" * 1000])
    for _ in range(2 * compaction.SMALL_COUNT):
        with Repository.open(path) as repository:
            repository.edit_checkpoint("run", saved.seq, lambda old: old + b".")
    assert len(pack_files(path)) > 2 * compaction.SMALL_COUNT
    with Repository.open(path) as repository:
        repository.gc(now=True)
    few = len(pack_files(path))
    assert few < 6
    for _ in range(3):
        with Repository.open(path) as repository:
            repository.gc(now=True)
            check(repository, saved)
    assert len(pack_files(path)) <= few
    lose_index(path)
    Repository.rebuild_index(path)
    with Repository.open(path) as repository:
        (row,) = repository.checkpoint_rows()
        assert row.payload == b"\x01payload" + b"." * 2 * compaction.SMALL_COUNT
        check(repository, saved)
