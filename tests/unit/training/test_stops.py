"""Requests to stop: signals, the store, and what still fits a grace period."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import pytest

import casckpt
from casckpt import supervised
from casckpt.errors import Stopped
from casckpt.training import stops
from casckpt.training.lines import now_text
from tests.unit.training.processes import HOLD, elsewhere


def body(store, name, on_epoch, total=5):
    state = {"n": 0}
    with store.run(name) as run:
        for epoch in run.epochs(total, state):
            state["n"] += 1
            on_epoch(epoch)
    return state


def test_a_signal_saves_and_leaves(store, name):
    def on_epoch(epoch):
        if epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as caught:
        body(store, name, on_epoch)
    assert caught.value.code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert store.latest(name).reasons == ("stop",)
    info = store.run(name).info
    assert (info.status, info.reason) == ("stopped", "SIGTERM")
    assert body(store, name, lambda epoch: None)["n"] == 5


def test_a_request_is_over_though_a_failed_loop_was_never_closed(store, name):
    """As in a notebook: a cell fails, another run is stopped, and both are run again."""
    failed = store.run(f"{name}-failed")
    with pytest.raises(ValueError, match="bad batch"):  # noqa: PT012
        for _ in failed.epochs(2, {}):
            raise ValueError("bad batch")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped):
        body(store, name, lambda epoch: os.kill(os.getpid(), signal.SIGTERM))
    assert body(store, name, lambda epoch: None)["n"] == 5
    assert signal.getsignal(signal.SIGTERM) is before
    with pytest.raises(Stopped):  # noqa: PT012
        for epoch in failed.epochs(2, {}):
            assert epoch == 1
            os.kill(os.getpid(), signal.SIGTERM)
    assert store.latest(failed.name).step == 1


def test_a_signal_after_a_loop_without_with_is_the_programs(store, name):
    before = signal.getsignal(signal.SIGINT)
    run = store.run(name)
    assert list(run.epochs(2, {})) == [1, 2]
    assert signal.getsignal(signal.SIGINT) is before
    stops.request_stop(run.repository, name)
    run._session.watch._next_look_s = 0
    with pytest.raises(Stopped):
        list(run.epochs(4, {}))
    run.close()


def test_a_signal_after_a_stage_without_with_is_the_programs(store, name):
    before = signal.getsignal(signal.SIGINT)
    run = store.run(name)
    assert list(run.stage("first", [1, 2]).map(lambda item: item + 1)) == [2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    stage = run.stage("second", [1, 2])
    for key, item in stage:
        stage.done(key, item)
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        run.stage("third", [1, 2]).map(lambda item: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    # Inside a loop the loop goes on watching.
    for epoch in run.epochs(2, {}):
        run.stage("fourth", [epoch]).map(str)
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert len(run.stage("third", [1, 2]).map(str)) == 2
    run.close()


def test_a_stage_that_is_left_inside_a_loop_leaves_the_signals_to_the_loop(store, name):
    before = signal.getsignal(signal.SIGTERM)
    run = store.run(name)
    with pytest.raises(Stopped):  # noqa: PT012
        for epoch in run.epochs(5, {}):
            for _ in run.stage(f"stage-{epoch}", [1, 2]):
                break
            assert signal.getsignal(signal.SIGTERM) is not before
            if epoch == 2:
                os.kill(os.getpid(), signal.SIGTERM)
    assert store.latest(name).step == 2
    for _ in run.stage("alone", [1, 2]):
        break
    assert signal.getsignal(signal.SIGTERM) is before
    run.close()


def test_a_signal_after_break_is_still_heeded_within_with(store, name):
    with store.run(name) as run:
        for _ in run.epochs(2, {}):
            break
        os.kill(os.getpid(), signal.SIGTERM)
        assert run.stopping
    assert store.run(name).info.status == "stopped"


def test_a_loop_of_ones_own_leaves_when_its_state_is_saved(store, name):
    with pytest.raises(Stopped), store.run(name) as run:  # noqa: PT012
        for count in range(6):
            if count == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            run.save({"count": count})
    assert store.restore(name)["count"] == 3
    assert store.run(name).info.status == "stopped"
    with pytest.raises(KeyboardInterrupt), store.run(name) as run:  # noqa: PT012
        run.save({"count": 4})
        os.kill(os.getpid(), signal.SIGINT)
        run.save({"count": 5})
    assert store.restore(name)["count"] == 5


def test_a_save_by_hand_leaves_it_to_a_stage_that_looks_itself(store, name):
    went_on = []
    with pytest.raises(Stopped), store.run(name) as run:  # noqa: PT012
        run.save({"count": 0})
        stage = run.stage("items", [1, 2, 3])
        for key, item in stage:
            os.kill(os.getpid(), signal.SIGTERM)
            run.save({"count": item})
            went_on.append(item)
            stage.done(key, item)
    assert went_on == [1]
    assert store.run(name).stage("items", [1, 2, 3]).done_count == 1


def test_signals_stay_the_programs_own_where_nothing_would_leave_on_them(store, name):
    before = signal.getsignal(signal.SIGTERM)
    with store.run(name) as run:
        run.log(loss=1.0)
        assert signal.getsignal(signal.SIGTERM) is before
        run.save({"count": 1})
        assert signal.getsignal(signal.SIGTERM) is not before
    run = store.run(f"{name}-outside")
    run.save({"count": 1})
    assert signal.getsignal(signal.SIGTERM) is before
    run.close()


def test_a_stop_while_a_save_is_in_flight_loses_neither(store, name, monkeypatch):
    asked, order = threading.Event(), []
    commit = casckpt.Store._commit

    def slow(self, request, *rest):
        assert asked.wait(60)
        made = commit(self, request, *rest)
        order.append(made.step)
        return made

    def on_epoch(epoch):
        if epoch == 2:
            assert order == []
            os.kill(os.getpid(), signal.SIGTERM)
            asked.set()

    monkeypatch.setattr(casckpt.Store, "_commit", slow)
    with pytest.raises(Stopped):
        body(store, name, on_epoch)
    assert order == [1, 2]
    assert store.latest(name).step == 2
    assert body(store, name, lambda epoch: None)["n"] == 5


def test_ctrl_c_saves_and_is_a_keyboard_interrupt(store, name):
    with pytest.raises(KeyboardInterrupt):
        body(store, name, lambda epoch: epoch == 3 and os.kill(os.getpid(), signal.SIGINT))
    assert store.latest(name).step == 3
    assert store.run(name).info.status == "stopped"


def test_a_second_signal_leaves_at_once(store, name):
    code = HOLD.replace("sys.stdin.readline() if len(sys.argv) < 4 else sys.exit(0)", "")
    process = elsewhere(code, store.path, name, wait=False)
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    assert "stopping at the next boundary" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert store.run(name).info.status == "lost"


def test_through_the_store(store, name):
    state = {"n": 0}
    with pytest.raises(Stopped), store.run(name) as run:  # noqa: PT012
        for _ in run.epochs(3, state):
            for batch in run.batches(range(1000), save_every_s=None):
                state["n"] += 1
                if batch == 5:
                    stops.request_stop(run.repository, name)
                    run._session.watch._next_look_s = 0
    assert state["n"] == 6
    assert store.latest(name).position == (0, 6)
    with store.run(name) as run:
        for _ in run.epochs(1, state):
            for _ in run.batches(range(1000)):
                state["n"] += 1
    assert state["n"] == 1000


def test_a_stop_of_the_programs_own_is_over_with_the_loop_it_ended(store, name):
    with store.run(name) as run:
        for epoch in run.epochs(10, {}):
            if epoch == 2:
                run.stop("converged")
        assert run.stopping
        stage = run.stage("items", [1, 2, 3])
        for key, _ in stage:
            stage.done(key)
        assert stage.done_count == 3
        assert list(run.epochs(10, {})) == list(range(3, 11))
        for _ in run.epochs(12, {}):
            run.stop()
            break
        assert list(run.epochs(12, {})) == [11, 12]
        run.stop("before it")
        assert list(run.epochs(20, {})) == [13]
        list(run.epochs(20, {}))
        for key, _ in (stage := run.stage("more", [1, 2])):
            stage.done(key)
            run.stop("budget used up")
        assert list(run.epochs(22, {})) == [21]
    assert (run.info.status, run.info.reason) == ("stopped", "budget used up")


def test_a_stop_inside_a_stage_ends_the_loop_around_it(store, name):
    with store.run(name) as run:
        for _ in run.epochs(10, {}):
            for part in ("first", "second"):
                for key, _ in run.stage(part, [1, 2]):
                    run.stage(part, [1, 2]).done(key)
                    run.stop()
        assert run.info.last.step == 1


def test_a_stop_through_the_store_is_over_with_the_loop_it_ended(store, name):
    """As in a notebook, where the cell is run again."""
    run, steps = store.run(name), []
    for _ in range(2):
        with pytest.raises(Stopped):  # noqa: PT012
            for epoch in run.epochs(9, {}):
                steps.append(epoch)
                if len(steps) % 3 == 0:
                    stops.request_stop(run.repository, name)
                    run._session.watch._next_look_s = 0
    assert steps == [1, 2, 3, 4, 5, 6]
    assert list(run.epochs(9, {})) == [7, 8, 9]
    run.close()


def test_a_stop_reaches_children(store, name):
    with pytest.raises(Stopped), store.run(name) as run, run.child("a") as child:  # noqa: PT012
        for _ in child.epochs(3, {"n": 0}):
            stops.request_stop(run.repository, name)
            child._session.watch._next_look_s = 0
    assert store.latest(f"{name}/a").step == 1


def asked(store, name):
    return store._repository.row("progress", stops._key(name)) is not None


def test_a_request_to_a_run_above_is_for_those_at_work_alone(store, name):
    below = f"{name}/a/b"
    stops.request_stop(store._repository, name)
    assert body(store, below, lambda epoch: None)["n"] == 5
    assert not asked(store, name)

    def on_epoch(epoch):
        stops.request_stop(store._repository, name)
        time.sleep(1.1 * stops.LOOK_EVERY_S)

    store.delete(below)
    with pytest.raises(Stopped):
        body(store, below, on_epoch)
    assert body(store, below, lambda epoch: None)["n"] == 5


def test_a_request_of_before_does_not_stop_folds_and_children(store, name):
    with store.run(name) as run:
        run.child("first").close()
    stops.request_stop(store._repository, name)
    with store.run(name) as run:
        for fold in run.folds([([0], [1]), ([1], [0])], None):
            assert list(fold.run.epochs(2, {})) == [1, 2]
        run.check_stop()


def test_a_request_still_reaches_those_at_work_when_another_run_begins(store, name):
    with pytest.raises(Stopped), store.run(f"{name}/a") as run:  # noqa: PT012
        for epoch in run.epochs(3, {"n": 0}):
            if epoch == 2:
                stops.request_stop(store._repository, name)
                assert body(store, f"{name}/b", lambda epoch: None)["n"] == 5
                assert asked(store, name)
                run._session.watch._next_look_s = 0
    assert store.latest(f"{name}/a").step == 2


def test_a_request_reaches_the_child_that_begins_next(store, name):
    with store.run(name) as run:
        with run.child("a") as child:
            assert list(child.epochs(1, {})) == [1]
        stops.request_stop(store._repository, name)
        child = run.child("b")
        with pytest.raises(Stopped):
            list(child.epochs(3, {}))


@pytest.mark.parametrize("is_for", ["", "/a"])
def test_a_supervised_command_that_starts_again_heeds_what_was_asked_since(
    store, name, tmp_path, monkeypatch, is_for
):
    monkeypatch.setenv(supervised.SUPERVISOR, str(tmp_path))
    stops.request_stop(store._repository, name + is_for)
    time.sleep(0.01)
    since = now_text()
    (tmp_path / supervised.COMMAND_FILE).write_text(json.dumps({"since": since}))
    assert not stops.is_requested(store._repository, f"{name}/a", since)
    assert body(store, f"{name}/a", lambda epoch: None, 2)["n"] == 2
    stops.request_stop(store._repository, name + is_for)
    assert stops.is_requested(store._repository, f"{name}/a", since)
    for _ in range(2):
        with pytest.raises(Stopped):
            body(store, f"{name}/a", lambda epoch: None)


def test_no_save_is_begun_that_does_not_fit_the_grace(store, name, monkeypatch):
    def on_epoch(epoch):
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    from casckpt.training.loops.saving import LoopSaver

    monkeypatch.setattr(LoopSaver, "level_for", lambda self, left_s: "none")
    with pytest.raises(Stopped), store.run(name, grace_s=1.0) as run:  # noqa: PT012
        for epoch in run.epochs(5, {"n": 0}):
            on_epoch(epoch)
    assert store.latest(name).step == 2


def test_the_grace_is_compared_with_what_saves_took_in_earlier_sessions(store, name):
    for _ in range(2):
        with pytest.raises(RuntimeError), store.run(name, grace_s=1e-9) as run:  # noqa: PT012
            for epoch in run.epochs(5, {"n": 0}):
                if epoch == 3:
                    assert run._loop.saver.level_for(1e-9) == "none"
                    raise RuntimeError
    assert run.resumed.step == 2


def test_how_a_save_fits_a_grace(store, name):
    run = store.run(name)
    run.epochs(1, {"n": 0})
    saver = run._loop.saver
    assert saver.level_for(10) is None
    saver._took_s[""] = 4.0
    assert [saver.level_for(left) for left in (None, 10, 5, 1)] == [None, None, "none", "none"]
    saver._took_s["fast"] = 3.0
    assert [saver.level_for(left) for left in (None, 10, 5, 1)] == [None, None, "fast", "none"]
    saver._took_s["fast"] = 4.5  # of a disk that takes longer for more bytes
    assert saver.level_for(5) == "none"
    run.close()


def test_level_fast_is_tried_once_where_a_save_would_not_fit_the_grace(store, name, monkeypatch):
    levels, save = [], store._save_placed

    def noting(*arguments, level, **others):
        levels.append(level)
        return save(*arguments, level=level, **others)

    monkeypatch.setattr(store, "_save_placed", noting)
    with pytest.raises(RuntimeError), store.run(name, grace_s=1e-9) as run:  # noqa: PT012
        for epoch in run.epochs(5, {"n": 0}):
            if epoch == 5:
                raise RuntimeError
    assert levels == [None, "fast", None, None]
    with store.run(name, grace_s=1e-9) as run:
        for _ in run.epochs(7, {"n": 0}):
            run._loop.saver._took_s |= {"": 4.0, "fast": 0.1}
            assert run._loop.saver.level_for(1) == "fast"
    assert levels[4:] == [None, None, None]  # what it took is known from the session before
