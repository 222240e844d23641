"""What commits, edits and removals do to the rows of a run, and what they refuse."""

from __future__ import annotations

import os
import threading

import pytest

from casckpt.errors import NotFound, RunMoved, StepExists
from casckpt.store import BlobSource, CommitRequest, Repository
from casckpt.store.commits import RowWrite
from casckpt.store.transactions import Transaction
from tests.unit.store.stores import Saved, check, request, save


def replace(repository: Repository, first: Saved) -> int:
    """Commit other bytes in the place of a checkpoint, which goes to the trash."""
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"again")
        return saver.commit(request(manifest.id, first.seq, replace_seq=first.seq))


# ---- the head of a line


def test_a_line_that_moved_refuses_the_commit(repository):
    first = save(repository, [b"1"], step=1)
    for expected in (None, first.seq + 1):
        with repository.saver() as saver:
            manifest = saver.put_manifest([], b"m")
            with pytest.raises(RunMoved) as caught:
                saver.commit(request(manifest.id, expected, step=2))
            assert caught.value.run == "run"
    assert len(repository.checkpoint_rows()) == 1
    save(repository, [b"2"], step=2)
    other_line = save(repository, [b"3"], step=1, line=1)
    assert repository.head("run", 1) == other_line.seq
    assert repository.head("other", 0) is None


def test_replacing_puts_the_old_row_into_the_trash_at_once(repository):
    first = save(repository, [b"1"], step=1)
    seq = replace(repository, first)
    assert [row.seq for row in repository.checkpoint_rows()] == [seq]
    assert [row.seq for row in repository.checkpoint_rows(states=("trash",))] == [first.seq]
    with pytest.raises(StepExists, match="at its place"):
        repository.untrash([("run", first.seq)])
    repository.trash([("run", seq)])
    repository.untrash([("run", first.seq)])
    check(repository, first)
    with pytest.raises(NotFound):
        repository.untrash([("run", first.seq)])


def test_what_comes_back_to_its_step_is_found_there_when_what_came_later_is_forgotten(repository):
    """The row of `steps` names whoever is live, not whoever was last."""
    first = save(repository, [b"1"], step=1)
    later = replace(repository, first)
    repository.trash([("run", later)])
    repository.untrash([("run", first.seq)])
    for _ in range(2):
        assert repository.head("run", None) == first.seq
        assert repository.commit_at("run", 0, 1, 0) == first.seq
        repository.gc(now=True)
    assert [row.seq for row in repository.checkpoint_rows(states=("live", "trash"))] == [first.seq]
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"third")
        with pytest.raises(RunMoved):
            saver.commit(request(manifest.id, None))


def test_rows_at_one_step_that_are_all_forgotten_leave_no_row_of_the_step(repository):
    first = save(repository, [b"1"], step=1)
    later = replace(repository, first)
    repository.trash([("run", later)])
    repository.untrash([("run", first.seq)])
    repository.trash([("run", first.seq)])
    repository.gc(now=True)
    assert repository.head("run", None) is None
    assert repository.checkpoint_rows(states=("live", "trash", "tombstone")) == []


def test_removing_and_bringing_back_is_all_or_none_as_a_guard_in_the_transaction_says(repository):
    saves = [save(repository, [bytes([step])], run=run, step=step)
             for run, step in (("a", 1), ("a", 2), ("b", 1))]  # fmt: skip
    places = [(run, one.seq) for run, one in zip("aab", saves, strict=True)]
    seen = []

    def guard(view):
        seen.append({run: [row.seq for row in view.checkpoints(run)] for run in "ab"})
        seen.append(view.records)
        raise RunMoved("run b has moved")

    repository.edit_run("b", lambda old: b"record")
    for call in (
        lambda: repository.trash(places, guard),
        lambda: repository.bury([(*place, b"\x01payload") for place in places], guard),
        lambda: repository.edit_checkpoint(*places[2], lambda old: b"new", guard),
    ):
        with pytest.raises(RunMoved):
            call()
        assert [(row.run, row.seq) for row in repository.checkpoint_rows()] == places
    assert seen[0] == {"a": [saves[0].seq, saves[1].seq], "b": [saves[2].seq]}
    assert seen[1] == {"b": b"record"}
    repository.trash(places)
    with pytest.raises(RunMoved):
        repository.untrash(places, guard)
    assert repository.checkpoint_rows() == []
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"m")
        with pytest.raises(RunMoved, match="run b"):
            saver.commit(CommitRequest("b", 0, 5, 0, manifest.id, b"", places[2][1], guard=guard))


def test_a_row_to_be_replaced_that_is_gone_already_is_no_hindrance(repository):
    first = save(repository, [b"1"], step=1)
    repository.trash([("run", first.seq)])
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"again")
        seq = saver.commit(request(manifest.id, first.seq, replace_seq=first.seq))
    assert [row.seq for row in repository.checkpoint_rows()] == [seq]
    assert [row.seq for row in repository.checkpoint_rows(states=("trash",))] == [first.seq]


def test_what_a_guard_asks_for_is_read_once(repository, monkeypatch):
    places = [(f"run{n}", save(repository, [b"x"], run=f"run{n}").seq) for n in range(20)]
    scans = []
    real = Transaction.scan

    def scan(tx, table, *rest):
        scans.append((table, *rest))
        return real(tx, table, *rest)

    def guard(view):
        for run, _ in places * 2:
            assert len(view.checkpoints(run)) == 1
            assert view.records == {}

    monkeypatch.setattr(Transaction, "scan", scan)
    repository.trash(places, guard)
    assert sorted(scans) == sorted(set(scans))
    assert len(scans) == 21


def test_what_is_buried_from_the_trash_must_be_there_still(repository):
    saved = save(repository, [b"a"], step=1)
    place = ("run", saved.seq, b"\x01payload")
    repository.bury([place], state="trash")
    assert [row.state for row in repository.checkpoint_rows()] == ["live"]
    repository.trash([place[:2]])
    repository.bury([place])
    assert len(repository.checkpoint_rows(states=("trash",))) == 1
    repository.bury([place], state="trash")
    assert len(repository.checkpoint_rows(states=("tombstone",))) == 1


def test_commits_of_threads_that_share_a_transaction_keep_their_rows(repository):
    def work(run: str) -> None:
        for step in range(4):
            save(repository, [os.urandom(50)], run=run, step=step)

    threads = [threading.Thread(target=work, args=(f"run{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = repository.checkpoint_rows()
    assert len({(row.run, row.seq) for row in found}) == len(found) == 16
    for run in range(4):
        steps = [row.step for row in repository.checkpoint_rows(f"run{run}")]
        assert steps == [0, 1, 2, 3]


# ---- rows


def test_payloads_are_edited_and_survive_reopening(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x"], payload=b"one")
        assert repository.edit_checkpoint("run", saved.seq, lambda old: old + b" two") == b"one two"
        with pytest.raises(NotFound):
            repository.edit_checkpoint("run", saved.seq + 9, lambda old: old)
        assert repository.edit_run("run", lambda old: b"first" if old is None else b"") == b"first"
        repository.edit_run("other/run", lambda old: b"second")
    with Repository.open(path, mode="r") as repository:
        assert [row.payload for row in repository.checkpoint_rows()] == [b"one two"]
        assert repository.run_rows() == [("other/run", b"second"), ("run", b"first")]
        assert repository.run_rows("other") == [("other/run", b"second")]


def test_edits_of_several_threads_all_count(repository):
    saved = save(repository, [b"x"], payload=b"")

    def work() -> None:
        for _ in range(10):
            repository.edit_checkpoint("run", saved.seq, lambda old: old + b".")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = repository.checkpoint_rows()
    assert row.payload == b"." * 40


def test_trash_is_all_or_none(repository):
    saved = save(repository, [b"x"])
    with pytest.raises(NotFound):
        repository.trash([("run", saved.seq), ("run", saved.seq + 1)])
    assert len(repository.checkpoint_rows()) == 1
    repository.trash([("run", saved.seq)])
    assert repository.checkpoint_rows() == []
    check(repository, saved)


def test_long_run_names_do_not_mix(repository):
    names = ["a" * 200, "a" * 199 + "b", "a" * 128, "a" * 129]
    for name in names:
        save(repository, [name.encode()], run=name)
    for name in names:
        (row,) = repository.checkpoint_rows(name)
        assert row.run == name


def test_a_step_that_another_writer_took_below_a_trashed_one_is_not_overwritten(repository):
    """The head says nothing of it: the largest step of the line stands in the trash."""
    save(repository, [b"a"], step=1)
    top = save(repository, [b"b"], step=5)
    repository.trash([("run", top.seq)])
    head = repository.head("run", 0)
    with repository.saver() as saver:
        (info,) = saver.put_blobs([BlobSource([b"mine"], 4)])
        manifest = saver.put_manifest([info.id], b"mine")
        with pytest.raises(RunMoved, match="has moved"):
            saver.commit(request(manifest.id, head, step=1))


def test_what_is_buried_must_be_there_live_and_unchanged(repository):
    saved = save(repository, [b"a"], step=1)
    repository.bury([("run", saved.seq + 99, b"\x01payload"), ("run", saved.seq, b"tagged")])
    assert [row.state for row in repository.checkpoint_rows()] == ["live"]
    repository.bury([("run", saved.seq, b"\x01payload")])
    assert repository.checkpoint_rows() == []


def test_an_edit_that_another_writer_overtakes_is_made_again(repository):
    shared, seen = repository._shared(), []

    def edit(old):
        seen.append(old)
        if len(seen) == 1:
            repository.write_rows([RowWrite("progress", b"key", b"theirs")])
        return (old or b"") + b"+mine"

    assert repository.edit_row("progress", b"key", edit) == b"theirs+mine"
    assert seen == [None, b"theirs"]
    with shared.environment.read() as tx:
        assert tx.get("progress", b"key").endswith(b"theirs+mine")
