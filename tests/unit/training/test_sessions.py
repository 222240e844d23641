"""Who works on a run: locks, statuses, the end, and that one loop trains it at a time."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import casckpt
from casckpt.checkpoint import saves
from casckpt.errors import BadRequest, NoSpace, OperationFailed, RunBusy
from casckpt.training import lines, opening, runlock, session
from casckpt.training.loops import keeping
from casckpt.training.watching.progress import Progress
from tests.unit.training.processes import HOLD, elsewhere

TRAIN_ON = """
    import sys, time, casckpt
    with casckpt.open(sys.argv[1]) as store:
        with store.run(sys.argv[2]) as run:
            for epoch in run.epochs(3, {"epochs": [], "value": 0.0}):
                if epoch == 3:
                    run._settle()
                    if sys.argv[3] == "0":
                        break
                    print("here", flush=True)
                    time.sleep(60)
    print("here", flush=True)
    time.sleep(60)
"""


def test_a_second_live_process_is_refused_and_a_death_frees(store, name):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), str(store.path), name],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "here\n"
    run = store.run(name)
    assert run.info.status == "running"
    with pytest.raises(RunBusy, match="another process") as caught:
        run.epochs(3, {"n": 0})
    assert caught.value.pid == process.pid
    assert caught.value.exit_code == 11
    process.kill()
    process.communicate()
    assert run.info.status == "lost"
    assert list(run.epochs(3, {"n": 0})) == [2, 3]
    run.close()
    assert store.run(name).info.status == "finished"


@pytest.mark.parametrize("is_busy", [True, False])
def test_what_another_process_replaces_between_two_looks(store, name, train, monkeypatch, is_busy):
    train.until(3, stop_at=2)
    decide, others = opening.decide, []

    def late(*arguments, **named):
        decision = decide(*arguments, **named)
        if not others:
            others.append(elsewhere(TRAIN_ON, store.path, name, int(is_busy), wait=False))
            assert others[0].stdout.readline() == "here\n", others[0].stderr.read()
        return decision

    monkeypatch.setattr(opening, "decide", late)
    if is_busy:
        with pytest.raises(RunBusy, match="another process") as caught:
            store.run(name)
        assert caught.value.pid == others[0].pid
    else:
        assert store.run(name).resumed.step == 2
    others[0].kill()
    others[0].communicate()
    with store.run(name) as run:
        assert run.resumed.step == 2


def test_looking_locks_nothing(train, store, name):
    train(1)
    one, two = store.run(name), store.run(name)
    assert one.info.status == two.info.status == "finished"
    assert not runlock.is_held(store.path, name)
    one.close()
    two.close()
    assert store.run(name).info.status == "finished"


def test_the_lock_file_goes_with_the_run(train, store, name):
    train(1)
    assert not runlock.lock_path(store.path, name).exists()


def test_a_run_that_could_not_begin_is_not_locked(store, name, monkeypatch):
    """On a full disk, where its lock file has no room to say whose it is."""
    with monkeypatch.context() as patched:
        patched.setattr(runlock, "_write_about", full)
        with pytest.raises(NoSpace), store.run(name) as run:
            next(iter(run.epochs(2, {"n": 0})))
    assert not runlock.is_held(store.path, name)
    assert not runlock.lock_path(store.path, name).exists()
    code, _, errors = elsewhere(HOLD, store.path, name, "leave")
    assert code == 0, errors
    with store.run(name) as run:
        assert list(run.epochs(3, {"n": 0})) == [2, 3]


def full(*_):
    raise NoSpace("cannot write the lock", "the disk is full")


def test_the_lock_of_another_outlives_the_end_of_one_whose_file_was_removed(store, name):
    ours = runlock.take(store.path, name)
    path = runlock.lock_path(store.path, name)
    path.unlink()
    path.write_bytes(b"{}")  # another took the run meanwhile
    ours.release()
    assert path.exists()


def test_a_run_ends_and_is_free_though_no_thread_begins(store, name, monkeypatch, caplog):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with store.run(name) as run:
        run.log(loss=1.0, step=0)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        run._session._stop_thread()
        run.log(loss=0.5, step=1)
        run.log(loss=0.25, step=2)
    assert not runlock.is_held(store.path, name)
    assert store.history(name)["loss"] == [(0, 1.0), (1, 0.5), (2, 0.25)]
    assert caplog.text.count("can't start new thread") == 1


def test_the_log_outlives_a_want_of_memory(store, name, monkeypatch, caplog):
    monkeypatch.setattr(session, "FLUSH_S", 0.01)
    with store.run(name) as run:
        real, failed = run._session.tracker.take, threading.Event()

        def take():
            failed.set()
            raise MemoryError

        run._session.tracker.take = take
        run.log(loss=1.0, step=0)
        assert failed.wait(20)
        time.sleep(0.05)
        run._session.tracker.take = real
        run.log(loss=0.5, step=1)
        deadline = time.monotonic() + 20
        with casckpt.open(store.path, mode="r") as other:
            while other.history(name).get("loss") != [(0, 1.0), (1, 0.5)]:
                assert time.monotonic() < deadline
                time.sleep(0.02)
    assert caplog.text.count("MemoryError()") == 1


def test_statuses(train, store, name):
    run = store.run(name)
    assert run.info.status == ""
    run.close()
    train.until(3, stop_at=2)
    info = store.run(name).info
    assert (info.status, info.reason) == ("failed", "RuntimeError: power cut")
    train(3)
    info = store.run(name).info
    assert (info.status, info.reason) == ("finished", "")
    assert info.progress == (Progress("epochs", 3, 3, info.progress[0].unit_s,
                                      info.progress[0].updated),)  # fmt: skip
    assert info.elapsed_s > 0


def test_a_normal_exit_without_a_goodbye(store, name):
    code = """
        import sys, casckpt
        run = casckpt.open(sys.argv[1]).run(sys.argv[2])
        for epoch in run.epochs(3, {"n": 0}):
            if epoch == int(sys.argv[3]):
                sys.exit(0)
    """
    assert elsewhere(code, store.path, name, 2)[0] == 0
    assert store.run(name).info.status == "stopped"
    assert elsewhere(code, store.path, name, 9)[0] == 0
    assert store.run(name).info.status == "finished"


def test_an_error_without_with(store, name):
    code = """
        import sys, casckpt
        run = casckpt.open(sys.argv[1]).run(sys.argv[2])
        for epoch in run.epochs(3, {"n": 0}):
            if epoch == 2:
                raise ValueError("bad batch")
    """
    status, _, errors = elsewhere(code, store.path, name)
    assert (status, "bad batch" in errors) == (1, True)
    info = store.run(name).info
    assert (info.status, info.reason) == ("failed", "ValueError: bad batch")


def test_a_run_whose_checkpoints_were_deleted_is_not_finished(train, store, name):
    train(5)
    assert store.run(name).finished
    store.delete(name)
    assert not store.run(name).finished
    train.until(5, stop_at=3)
    assert store.history(name)["loss"] == [(1, 1), (2, 2)]


def test_a_stop_leaves_with_its_own_exit_code(store, name):
    code = """
        import os, signal, sys, casckpt
        with casckpt.open(sys.argv[1]) as store, store.run(sys.argv[2]) as run:
            for epoch in run.epochs(4, {"n": 0}):
                if epoch == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
    """
    assert [elsewhere(code, store.path, name)[0] for _ in range(2)] == [75, 0]
    assert store.run(name).info.status == "finished"


def test_a_full_disk_does_not_end_training(train, store, name, monkeypatch, caplog):
    save = casckpt.Store._save_placed
    calls = []

    def full(self, run, state, step, *args, **options):
        calls.append(step)
        if step in (2, 3):
            raise casckpt.errors.NoSpace("the disk is full")
        return save(self, run, state, step, *args, **options)

    monkeypatch.setattr(casckpt.Store, "_save_placed", full)
    assert train(5)["epochs"] == [1, 2, 3, 4, 5]
    assert calls == [1, 2, 3, 4, 5]
    assert caplog.text.count("IS NOT BEING SAVED: the disk is full") == 2
    assert train.steps == [5]


def test_a_clock_that_jumps_changes_nothing(train, store, name, monkeypatch):
    years = [0]

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, zone=None):
            return datetime.datetime.now(zone) + datetime.timedelta(days=365 * years[0])

    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 365 * 86400 * years[0])
    for module in (saves, lines, keeping):
        monkeypatch.setattr(module, "datetime", Jumping)

    def loss(epoch):
        years[0] = {1: 20, 2: -20, 3: 5, 4: -5}.get(epoch, 0)
        return float(epoch)

    keep = casckpt.KeepLast(2) | casckpt.KeepNewerThan("7d")
    train.until(6, stop_at=4, loss=loss, save_every=1, keep=keep)
    assert store.latest(name).step == 3
    assert train(6, loss=loss, save_every=1, keep=keep)["epochs"] == [1, 2, 3, 4, 5, 6]
    assert train.seen == [4, 5, 6]
    assert store.history(name)["loss"] == [(at, float(at)) for at in range(1, 7)]
    info = store.run(name).info
    assert (info.status, info.last.step) == ("finished", 6)
    assert 0 < info.elapsed_s < 600
    assert {5, 6} <= set(train.steps)


def test_finish_with_metrics_and_keep(train, store, name):
    train(6, save_every=2, monitor="loss", mode="max", loss=lambda epoch: -abs(epoch - 2))
    run = store.run(name)
    run.finish(metrics={"test": 1.5}, keep=casckpt.KeepLast(1))
    assert run.finished
    run.close()
    assert store.latest(name).metrics["test"] == 1.5
    assert 6 in train.steps


def test_a_run_is_dead_in_the_child_of_a_fork(store, name):
    code = """
        import os, sys, casckpt
        store = casckpt.open(sys.argv[1])
        run = store.run(sys.argv[2])
        run.save({"n": 1})
        pid = os.fork()
        if pid == 0:
            try:
                run.save({"n": 2})
            except casckpt.CasckptError as exc:
                print(type(exc).__name__, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        run.save({"n": 3})
        run.close()
    """
    code_, out, errors = elsewhere(code, store.path, name)
    assert (code_, out) == (0, "OperationFailed\n"), errors
    assert [one.step for one in store.checkpoints(name)] == [0, 1]
    assert OperationFailed.exit_code == 3


def test_a_closed_run_says_so(store, name):
    run = store.run(name)
    run.close()
    run.close()
    with pytest.raises(BadRequest, match="is closed"):
        run.epochs(1, {})


def test_another_run_of_the_process_is_refused_while_a_loop_is_under_way(store, name):
    first, second = store.run(name), store.run(name)
    state = {"n": 0}
    for epoch in first.epochs(3, state):
        state["n"] += 1
        if epoch == 2:
            for work in (
                lambda: second.epochs(3, {"n": 0}),
                lambda: second.steps(3, {"n": 0}, [1]),
                lambda: second.save({"n": 0}),
                lambda: second.stage("items", [1]).map(str),
            ):
                with pytest.raises(RunBusy, match="by this process already") as caught:
                    work()
                assert caught.value.pid == os.getpid()
                assert caught.value.since
            # Runs below it, and runs of the name in another store, are others.
            assert list(store.run(f"{name}/below").epochs(1, {"n": 0})) == [1]
    assert state["n"] == 3
    assert [one.step for one in store.checkpoints(name)] == [3]
    # The loop is at its end: who comes next goes on there.
    assert list(second.epochs(4, state)) == [4]


def test_a_run_that_another_has_overtaken_does_not_train_again_what_is_saved(store, name):
    """As in a notebook that opens the run anew in one cell, and goes on with the old one below."""
    old, state = store.run(name), {"n": 0}
    assert list(old.epochs(2, state)) == [1, 2]
    assert list(store.run(name).epochs(3, state)) == [3]
    refused = rf"not the newest.*\n.*{name}@3 since.* stands at {name}@2"
    for begin in (lambda: old.epochs(4, state), lambda: old.steps(4, state, [1])):
        with pytest.raises(BadRequest, match=refused):
            begin()
    assert list(store.run(name).epochs(4, state)) == [4]
    logger = store.run(f"{name}/logged")
    logger.log(loss=1.0)
    assert list(store.run(f"{name}/logged").epochs(1, state)) == [1]
    with pytest.raises(BadRequest, match="stands at its beginning"):
        logger.epochs(2, state)


def test_a_loop_that_was_left_is_in_nobodys_way(store, name):
    """As in a notebook, where a cell that failed is run again and nobody has closed anything."""
    kept = []

    def cell(fail_at):
        run = store.run(name)
        kept.append(run)
        for epoch in run.epochs(4, {"n": 0}):
            if epoch == fail_at:
                raise ValueError("bad batch")

    with pytest.raises(ValueError, match="bad batch") as caught:
        cell(2)
    with pytest.raises(ValueError, match="bad batch"):
        cell(3)
    for epoch in store.run(name).epochs(4, {"n": 0}):
        assert epoch == 3
        break
    held = store.run(name)
    suspended = held.epochs(4, {"n": 0})
    assert next(suspended) == 3
    with pytest.raises(RunBusy):
        store.run(name).epochs(4, {"n": 0})
    held.close()
    assert list(store.run(name).epochs(4, {"n": 0})) == [3, 4]
    assert caught.tb is not None
    assert len(kept) == 2


def test_what_a_left_loop_still_saves_is_waited_for(store, name, monkeypatch):
    """Else the save replaces what the next session is about to go on from."""
    begun, go_on = threading.Event(), threading.Event()
    tidy = keeping.tidy

    def slow(store, checkpoint, *arguments):
        if checkpoint.step == 2:
            begun.set()
            assert go_on.wait(60)
        tidy(store, checkpoint, *arguments)

    monkeypatch.setattr(keeping, "tidy", slow)
    run = store.run(name)
    for epoch in run.epochs(4, {"n": 0}):
        if epoch == 3:
            break
    assert begun.wait(60)
    threading.Timer(0.2, go_on.set).start()
    assert store.run(name).resumed.step == 2
    assert go_on.is_set()


def test_of_threads_that_train_the_same_run_one_does(store, name):
    gate = threading.Barrier(4)
    ends = []

    def train():
        run = store.run(name)
        gate.wait()
        try:
            epochs = list(run.epochs(3, {"weights": [0.0] * 1000}))
        except RunBusy:
            epochs = None
        gate.wait()
        ends.append(epochs)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    trained = [epochs for epochs in ends if epochs]
    assert trained == [[1, 2, 3]]
