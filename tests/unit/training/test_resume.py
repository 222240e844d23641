"""resume=: auto, must, never and REFs; lines and branches; damaged checkpoints."""

from __future__ import annotations

import itertools
import json
import logging

import pytest

import casckpt
from casckpt import supervised
from casckpt.errors import BadRequest, Corrupt, NotFound
from casckpt.training import lines, resume, session


@pytest.fixture(autouse=True)
def _messages(caplog):
    caplog.set_level(logging.INFO)


def damage(monkeypatch, *refs):
    """Let checkpoints count as damaged."""
    whole = casckpt.Store._is_whole
    monkeypatch.setattr(
        casckpt.Store, "_is_whole", lambda self, ck: ck.ref not in refs and whole(self, ck)
    )


def test_a_first_run_says_nothing(train, caplog):
    train(2)
    assert caplog.text == ""


def test_one_line_says_where_it_goes_on(train, caplog, name):
    train.until(9, stop_at=4, monitor="loss", mode="min")
    caplog.clear()
    train(9, monitor="loss", mode="min")
    assert [one.message for one in caplog.records] == [
        f"{name}: going on at epoch 4 of 9, from {name}@3, best loss 1 at 1"
    ]


def test_more_epochs_than_before_are_said_as_what_they_are(train, caplog, name):
    train(2)
    for total, before, then in ((4, 2, "going on at epoch 3"), (3, 4, "all are done")):
        caplog.clear()
        train(total)
        assert [one.message for one in caplog.records] == [
            f"{name}: {before} of {before} epochs are done, from {name}@{before}",
            f"{name}: {total} epochs in all, before {before}; {then}",
        ]


def test_what_another_store_has_is_named_with_it(train, store, name, tmp_path, caplog):
    train(2)
    with casckpt.open(tmp_path / "other") as other:
        caplog.clear()
        other.run(name, resume=f"{store.path}::{name}@2")
        assert f"{name}: 2 of 2 epochs are done, from {store.path}::{name}@2" in caplog.messages


def test_must_needs_something(train, store, name):
    with pytest.raises(NotFound, match="nothing to go on from"):
        train(2, run={"resume": "must"})
    train(2)
    assert train(3, run={"resume": "must"})["epochs"] == [1, 2, 3]


def test_never_opens_a_new_line_and_the_old_one_stays(train, store, name):
    train(3)
    assert train(2, run={"resume": "never"})["epochs"] == [1, 2]
    assert train.seen == [1, 2]
    assert [one.ref for one in store.checkpoints(f"{name}~*")] == [f"{name}~0@3", f"{name}~1@2"]
    assert store.run(name).line == 1
    assert train(4)["epochs"] == [1, 2, 3, 4]
    assert train.seen == [3, 4]


def test_never_on_a_run_that_is_new_is_its_first_line(train, store, name):
    train(1, run={"resume": "never"})
    assert store.latest(name).line == 0


def test_never_begins_one_line_however_often_a_command_is_started_again(
    train, store, name, tmp_path, monkeypatch
):
    numbers, hours = itertools.count(1), itertools.count(23, -1)

    def start(supervision=None):
        # The clock is set back before each start.
        now = f"2030-01-01T{next(hours)}:00:00.000Z"
        monkeypatch.setattr(lines, "now_text", lambda: now)
        monkeypatch.setattr(session, "now_text", lambda: now)
        number = next(numbers)
        about = {"since": now, "id": supervision or f"{number}", "start": number}
        (tmp_path / supervised.COMMAND_FILE).write_text(json.dumps(about))
        return about["id"]

    monkeypatch.setenv(supervised.SUPERVISOR, str(tmp_path))
    never = {"resume": "never"}
    train(2)
    since = start()
    train.until(6, stop_at=4, run=never)
    assert (train.seen, store.run(name).line) == ([1, 2, 3, 4], 1)
    start(since)
    train.until(6, stop_at=5, run=never)
    assert (train.seen, store.run(name).line) == ([4, 5], 1)
    # What the same start begins besides is another line, and no later start can tell them apart.
    train.until(6, stop_at=2, run=never)
    assert store.run(name).line == 2
    start(since)
    train.until(6, stop_at=2, run=never)
    assert store.run(name).line == 3
    start()
    train(6, run=never)
    assert store.run(name).line == 4


def test_a_branch_goes_on_with_the_number_and_the_old_line_stays(train, store, name):
    train(6, save_every=2)
    state = train(8, run={"resume": f"{name}@4"}, save_every=2)
    assert state["epochs"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert train.seen == [5, 6, 7, 8]
    assert [one.step for one in store.checkpoints(f"{name}~0")] == [2, 4, 6]
    assert [one.step for one in store.checkpoints(f"{name}~1")] == [6, 8]
    assert [one.ref for one in store.checkpoints(name)] == [
        f"{name}~0@2", f"{name}~0@4", f"{name}~1@6", f"{name}~1@8",
    ]  # fmt: skip
    assert store.get(f"{name}~1@6").parent == store.get(f"{name}~0@4").id


def test_the_same_command_with_a_ref_goes_on_after_a_crash(train, store, name):
    train(6, save_every=2)
    again = {"resume": f"{name}@4"}
    train.until(9, stop_at=8, run=again)
    assert train(9, run=again)["epochs"] == list(range(1, 10))
    assert train.seen == [8, 9]
    assert store.run(name).line == 1


def test_the_same_command_goes_on_though_its_ref_means_another_checkpoint(train, store, name):
    train(4, save_every=2, loss=lambda epoch: abs(epoch - 2.0), monitor="loss", mode="min")
    best = {"resume": f"{name}@best:loss:min"}
    train.until(7, stop_at=6, run=best, loss=lambda epoch: epoch - 9.0, save_every=1)
    assert (train.seen, store.run(name).line) == ([3, 4, 5, 6], 1)
    train.until(7, stop_at=7, run=best, save_every=1)
    assert (train.seen, store.run(name).line) == ([6, 7], 1)
    train(7, run=best)
    assert (train.seen, store.run(name).line) == ([7], 1)


def test_the_same_command_goes_on_though_the_other_run_has_moved_on(train, store, name):
    train(3)
    tuned = type(train)(store, f"{name}-tuned")
    tuned.until(8, stop_at=6, run={"resume": name})
    assert tuned.seen == [4, 5, 6]
    train(5)
    tuned.until(8, stop_at=7, run={"resume": name})
    assert tuned.seen == [6, 7]
    store.delete(name)
    assert tuned(8, run={"resume": name})["epochs"] == list(range(1, 9))
    assert (tuned.seen, store.run(tuned.name).line) == ([7, 8], 0)
    # That line is finished, so the REF means again what it says.
    train(2)
    tuned(4, run={"resume": name})
    assert (tuned.seen, store.run(tuned.name).line) == ([3, 4], 1)


def test_a_line_of_before_without_its_ref_is_begun_again_if_that_moves(train, store, name):
    train(3)
    tuned = type(train)(store, f"{name}-tuned")
    tuned.until(8, stop_at=6, run={"resume": name})

    def forget(record):
        record.lines[0].named = ""

    lines.edit_record(store._repository, tuned.name, forget)
    train(4)
    tuned(8, run={"resume": name})
    assert (tuned.seen, store.run(tuned.name).line) == ([5, 6, 7, 8], 1)


def test_a_crash_before_the_first_save_of_a_branch(train, store, name):
    train(6, save_every=2)
    train.until(8, stop_at=5, run={"resume": f"{name}@4"})
    assert train(8, run={"resume": f"{name}@4"})["epochs"] == list(range(1, 9))
    assert train.seen == [5, 6, 7, 8]
    train.until(9, stop_at=3, run={"resume": f"{name}~0@2"})
    assert train(9)["epochs"] == list(range(1, 10)), "auto stays on the line opened last"
    assert train.seen == [3, 4, 5, 6, 7, 8, 9]
    assert store.run(name).line == 2


def test_the_newest_of_a_line_goes_on_there(train, store, name):
    train(2)
    train(3, run={"resume": "never"})
    train.until(6, stop_at=5, run={"resume": f"{name}~0"})
    assert train(6, run={"resume": f"{name}~0@2"})["epochs"] == [1, 2, 3, 4, 5, 6]
    assert train.seen == [5, 6]
    assert [one.line for one in store.checkpoints(f"{name}~*")] == [0, 0, 1]


def test_from_another_run(train, store, name):
    train(3)
    other = type(train)(store, f"{name}-tuned")
    assert other(5, run={"resume": name})["epochs"] == [1, 2, 3, 4, 5]
    assert other.seen == [4, 5]
    assert store.latest(f"{name}-tuned").line == 0
    assert other(6, run={"resume": name})["epochs"] == [1, 2, 3, 4, 5, 6]
    assert other.seen == [6]


def test_from_another_store(train, store, name, tmp_path):
    train(3)
    with casckpt.open(tmp_path / "other") as elsewhere:
        other = type(train)(elsewhere, "copy")
        ref = {"resume": f"{store.path}::{name}@3"}
        other.until(6, stop_at=5, run=ref)
        assert other(6, run=ref)["epochs"] == [1, 2, 3, 4, 5, 6]
        assert other.seen == [5, 6]


def test_a_ref_to_nothing_and_to_the_trash(train, store, name):
    with pytest.raises(NotFound):
        store.run(name, resume=f"{name}@3")
    train(3)
    store.delete(f"{name}@3")
    with pytest.raises(NotFound):
        store.run(name, resume=f"{name}@3")
    with pytest.raises(BadRequest):
        store.run(name, resume=3)


def test_a_damaged_checkpoint_is_named_and_set_aside(train, store, name, monkeypatch, caplog):
    train(6, save_every=2)
    damage(monkeypatch, f"{name}@6")
    assert train(7)["epochs"] == [1, 2, 3, 4, 5, 6, 7]
    assert train.seen == [5, 6, 7]
    assert f"damaged and set aside: {name}@6" in caplog.text
    assert [one.step for one in store.checkpoints(name, trash=True)] == [6]
    assert store.run(name).line == 0


@pytest.mark.parametrize("repaired", [False, True])
def test_bytes_damaged_on_the_disk_do_not_stop_a_training(train, store, name, caplog, repaired):
    train(6, save_every=2)
    newest = bytes.fromhex(store.latest(name).id)
    with store._repository._shared().environment.read() as tx:
        row = tx.object(newest)
        pack = tx.pack(row.pack).uuid.hex()
    (file,) = store.path.glob(f"packs/*/{pack}.pack")
    with file.open("r+b") as stream:
        stream.seek(row.offset + row.total_bytes - 8)
        stream.write(b"damaged!")
    if repaired:
        assert store.repair().verified.lost == (f"{name}@6",)
    assert train(7)["epochs"] == [1, 2, 3, 4, 5, 6, 7]
    assert train.seen == [5, 6, 7]
    assert f"damaged and set aside: {name}@6" in caplog.text


def test_none_whole_is_a_new_line_said_loudly(train, store, name, monkeypatch, caplog):
    train(4, save_every=2)
    damage(monkeypatch, f"{name}@4", f"{name}@2")
    with pytest.raises(Corrupt):
        store.run(name, resume="must")
    assert train(2)["epochs"] == [1, 2]
    assert [one.levelname for one in caplog.records] == ["WARNING"]
    assert "no checkpoint of line 0 is whole" in caplog.text
    assert store.run(name).line == 1


def test_history_is_neither_doubled_nor_lost(train, store, name):
    for stop_at in (3, 3, 5):
        train.until(7, stop_at=stop_at, save_every=4, save_latest=stop_at != 5)
    train(7, save_every=4)
    assert store.history(name)["loss"] == [(epoch, float(epoch)) for epoch in range(1, 8)]


def test_history_of_a_branch_has_what_it_inherited(train, store, name):
    train(4, save_every=2)
    train(5, run={"resume": f"{name}@2"}, loss=lambda epoch: -epoch)
    assert store.history(name)["loss"] == [(1, 1), (2, 2), (3, -3), (4, -4), (5, -5)]
    assert store.history(f"{name}~0")["loss"] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_what_a_resume_needs_is_not_part_of_the_state(train, store, name):
    train(1)
    assert set(store.restore(name)) == {"epochs", "value"}
    extra = resume.read_extra(store, store.latest(name))
    assert extra.loop["total"] == 1
    assert "python" in extra.streams
