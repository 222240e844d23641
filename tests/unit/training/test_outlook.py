from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime, timedelta

import pytest

from casckpt.errors import NoSpace
from casckpt.training import runlock
from casckpt.training.lines import read_record
from casckpt.training.watching import outlook, progress
from casckpt.training.watching.outlook import alarms, outlook_of
from casckpt.training.watching.progress import Progress, Saves

NOW_S = 1_800_000_000.0


def text(seconds_ago: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(NOW_S - seconds_ago))
    return f"{stamp}Z"


def found(*, moved: float, saved: float | None, gap_s: float | None = 10.0, unit_s: float = 10.0,
          row: float = 5.0, started: float = 3600.0, saves: Saves | None = None):  # fmt: skip
    part = Progress("epochs", 30, 100, unit_s, text(moved))
    return alarms(
        [part],
        saves or Saves(5, gap_s, "" if saved is None else text(saved)),
        saved_s=None if saved is None else NOW_S - saved,
        row_s=NOW_S - row,
        started_s=NOW_S - started,
        now_s=NOW_S,
    )


def test_all_is_well_while_saves_come():
    assert found(moved=3, saved=8) == []


def test_saves_that_stopped_while_training_goes_on():
    (alarm,) = found(moved=3, saved=300)
    assert alarm == ("training goes on, but nothing was saved for 5 min; a save came every 10 s")


def test_rare_saves_are_none_that_stopped():
    assert found(moved=3, saved=300, gap_s=200) == []


def test_before_the_second_save_nobody_knows_how_often_they_come():
    assert found(moved=3, saved=300, gap_s=None) == []


def test_the_time_between_two_sessions_does_not_count():
    assert found(moved=3, saved=90_000, started=20) == []


def test_nothing_moves():
    (alarm,) = found(moved=700, saved=705)
    assert alarm == "no progress for 12 min"


def test_a_long_unit_is_no_standstill():
    assert found(moved=700, saved=705, unit_s=600) == []


def test_a_process_that_is_silent():
    (alarm,) = found(moved=400, saved=400, row=300)
    assert alarm == "its process has written nothing for 5 min"


def test_a_failed_save_until_the_next_session():
    saves = Saves(5, 10.0, text(100), "no space left", text(50))
    assert found(moved=3, saved=20, saves=saves) == ["the last save failed: no space left"]
    assert found(moved=3, saved=20, saves=saves, started=10) == []


@pytest.fixture
def at_work(store, name):
    """A run in its loop, after four saves."""
    run = store.run(name)
    state = {"n": 0}
    loop = iter(run.epochs(100, state))
    for _ in range(5):
        next(loop)
    store.wait()
    run._session.flush()
    yield run
    loop.close()
    run.close()


def look(run, later_s: float = 0.0):
    info = run.store.runs(run.name)[0]
    return outlook_of(run.repository, info, now_s=time.time() + later_s)


def test_a_real_run_tells_how_often_it_saves(at_work):
    seen = look(at_work)
    assert seen.info.status == "running"
    assert seen.saves.count == 4
    assert seen.saves.gap_s > 0
    assert seen.alarms == ()
    assert seen.eta_s is not None


def test_a_session_that_died_has_worked_until_its_last_sign_of_life(at_work, monkeypatch):
    row = read_record(at_work.repository, at_work.name).lines[0]
    later = datetime.fromisoformat(row.updated) + timedelta(seconds=20)
    monkeypatch.setattr(progress, "now_text", later.isoformat)
    at_work.note_progress("epochs", 50, 100)
    at_work._session.flush()
    monkeypatch.setattr(runlock, "is_held", lambda *_: False)
    seen = look(at_work, 3600)
    assert seen.info.status == "lost"
    assert seen.elapsed_s == pytest.approx(row.elapsed_s + 20)


def test_a_real_run_whose_saves_stop_raises_the_alarm(at_work, monkeypatch):
    later = time.time() + 100
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(later))
    monkeypatch.setattr(progress, "now_text", lambda: stamp)
    at_work.note_progress("epochs", 50, 100)
    at_work._session.flush()
    (alarm,) = look(at_work, 101).alarms
    assert alarm.startswith("training goes on, but nothing was saved for 10")


def test_a_full_disk_raises_the_alarm_and_the_next_save_ends_it(at_work):
    at_work._loop.saver._alarm(NoSpace("cannot write", "No space left on device"))
    at_work._session.flush()
    assert look(at_work).alarms == ("the last save failed: cannot write: No space left on device",)
    at_work._session.tracker.note_save()
    at_work._session.flush()
    assert look(at_work).alarms == ()


def test_children_are_counted_by_what_was_expected(store, name):
    with store.run(name) as run:
        run.expect("model-*", 4)
        for number in range(2):
            with run.child(f"model-{number}") as child:
                for _ in child.epochs(1, {"n": 0}):
                    time.sleep(0.01)
        run.child("other").finish()
        info = store.runs(name)[0]
        models, rest = outlook.groups_of(info, run.children())
    assert (models.pattern, models.done, models.total) == ("model-*", 2, 4)
    assert models.eta_s > 0.02
    assert (rest.pattern, rest.done, rest.total, rest.eta_s) == ("*", 1, None, None)


def test_items_that_failed_are_counted_until_they_are_done(store, name):
    bad: set[int] = set()

    def work(item):
        if item in bad:
            raise ValueError("odd")
        return item

    def seen():
        return outlook_of(store._repository, store.runs(name)[0])

    items = {f"k{number}": number for number in range(6)}
    for failing, failed in (({1, 3}, {"feat": 2}), ({3}, {"feat": 1}), (set(), {})):
        bad = failing
        with store.run(name) as run:
            run.stage("feat", items).map(work, on_error="keep")
        assert seen().failed == failed
    # What failed of items that the stage has no more is no failure of those it has.
    bad = {5}
    with store.run(name) as run:
        run.stage("feat", items, version="2").map(work, on_error="keep")
    with store.run(name) as run:
        run.stage("feat", {"k0": 0, "new": 9}, version="2").map(work)
    assert seen().failed == {}


def test_a_loop_that_ended_before_its_time_says_why(store, name):
    for patience, reason in ((2, "loss was no better 2 times in a row"), (None, "")):
        with store.run(name, resume="never") as run:
            for epoch in run.epochs(5, {"v": 0}, monitor="loss", mode="min", patience=patience):
                run.log(loss=float(epoch))
        found = outlook_of(store._repository, store.runs(name)[0])
        assert (found.status, found.reason) == ("finished", reason)


def test_a_pruned_trial_has_not_failed(store, name):
    class TrialPruned(Exception):
        pass

    with store.run(name) as run:
        for number, text in enumerate(("", "at step 3")):
            with suppress(TrialPruned), run.child(f"trial-{number}") as trial:
                for _ in trial.epochs(2, {"v": 0}):
                    raise TrialPruned(text)
        (group,) = outlook.groups_of(store.runs(name)[0], run.children())
    assert group.counts == {"pruned": 2}
    pruned, said = (outlook_of(store._repository, one) for one in store.runs(f"{name}/trial-*"))
    assert (pruned.status, pruned.reason) == ("pruned", "")
    assert (said.status, said.reason) == ("pruned", "at step 3")
    assert outlook.standing("failed", "KeyboardInterrupt: ") == ("failed", "KeyboardInterrupt")
