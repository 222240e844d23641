"""Who works on a run: locks, statuses, children, requests to stop, the end."""

from __future__ import annotations

import datetime
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

import casckpt
from casckpt.checkpoint import saves
from casckpt.errors import BadRequest, OperationFailed, RunBusy, Stopped
from casckpt.training import keeping, lines, runlock, stops
from casckpt.training.progress import Progress


def elsewhere(code, *arguments, wait=True):
    """Run code in another process."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if wait:
        out, errors = process.communicate(timeout=60)
        return process.returncode, out, errors
    return process


HOLD = """
    import sys, casckpt
    store = casckpt.open(sys.argv[1])
    with store.run(sys.argv[2]) as run:
        for epoch in run.epochs(3, {"n": 0}):
            if epoch == 2:
                print("here", flush=True)
                sys.stdin.readline() if len(sys.argv) < 4 else sys.exit(0)
                import time; time.sleep(60)
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


# ---- requests to stop


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
    process.communicate(timeout=10)
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


def test_a_stop_reaches_children(store, name):
    with pytest.raises(Stopped), store.run(name) as run, run.child("a") as child:  # noqa: PT012
        for _ in child.epochs(3, {"n": 0}):
            stops.request_stop(run.repository, name)
            child._session.watch._next_look_s = 0
    assert store.latest(f"{name}/a").step == 1


def test_no_save_is_begun_that_does_not_fit_the_grace(store, name, monkeypatch):
    def on_epoch(epoch):
        if epoch == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    from casckpt.training.saving import LoopSaver

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
    saver._durable_s = 4.0
    assert [saver.level_for(left) for left in (None, 10, 5, 1)] == [None, None, "fast", "none"]
    run.close()


# ---- children


def test_children_resume_by_themselves(store, name):
    def script(fail_at=None):
        seen = []
        with store.run(name) as run:
            run.expect("model-*", 3)
            for number in range(3):
                with run.child(f"model-{number}", config={"n": number}) as child:
                    for epoch in child.epochs(2, {"n": 0}):
                        if (number, epoch) == fail_at:
                            raise RuntimeError
                        seen.append((number, epoch))
        return seen

    with pytest.raises(RuntimeError):
        script(fail_at=(1, 2))
    with store.run(name) as run:
        assert [one.status for one in run.children("model-*")] == ["finished", "failed"]
    assert script() == [(1, 2), (2, 1), (2, 2)]
    run = store.run(name)
    assert [one.name for one in run.children()] == [f"{name}/model-{n}" for n in range(3)]
    assert run.info.expected == {"model-*": 3}


def test_children_begin_anew_under_a_new_line_and_come_along_on_a_branch(store, name):
    def script(total, **run):
        seen = []
        with store.run(name, **run) as parent:
            parent.save({"n": 1})
            with parent.child("c") as child:
                for epoch in child.epochs(total, {"n": 0}):
                    seen.append(epoch)
        return seen

    assert script(2) == [1, 2]
    assert script(2, resume="never") == [1, 2]
    assert script(3) == [3]
    assert script(4, resume=f"{name}~1@0") == [4]
    assert {one.line for one in store.checkpoints(f"{name}/c~*")} == {0, 1, 2}


def test_export(store, name, tmp_path):
    import json

    with store.run(name, config={"lr": 0.1}) as run, run.child("a") as child:
        for epoch in child.epochs(2, {"n": 0}, monitor="loss", mode="min"):
            child.log(loss=1 / epoch, bad=float("nan"))
        run.export(tmp_path / "results")
    document = json.loads((tmp_path / "results" / "results.json").read_text())
    assert [one["name"] for one in document["runs"]] == [name, f"{name}/a"]
    child = document["runs"][1]
    assert (child["metrics"], child["best"]["step"]) == ({"loss": 0.5, "bad": "nan"}, 2)
    text = (tmp_path / "results" / "histories" / f"{name}.a.csv").read_text()
    assert text == "step,loss,bad\n1,1.0,nan\n2,0.5,nan\n"


def test_run_restore_by_what_and_into(train, store, name):
    train(4, save_every=2, monitor="loss", mode="min", loss=lambda epoch: abs(epoch - 2))
    run = store.run(name)
    assert run.restore()["epochs"] == [1, 2, 3, 4]
    assert run.restore("best:loss:min")["epochs"] == [1, 2]
    assert run.restore(2, only="value") == {"value": 0.0}
    into = casckpt.State(epochs=[], value=1.0)
    run.restore("latest", into=into)
    assert into.epochs == [1, 2, 3, 4]


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
