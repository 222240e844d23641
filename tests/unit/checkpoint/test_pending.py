from __future__ import annotations

import gc
import os
import threading
import time
import weakref

import pytest

import casckpt
from casckpt.checkpoint import pending
from casckpt.checkpoint.pending import BackgroundSaves, _finish_at_exit
from casckpt.errors import NoSpace, OperationFailed


def fail():
    raise NoSpace("cannot save: the disk is full")


def start(saves, run, work):
    with saves.turn(run):
        return saves.start(run, work)


@pytest.fixture(autouse=True)
def _this_process_goes_on(monkeypatch):
    """Have the interpreter's end, where a test plays it, be over with the test."""
    monkeypatch.setattr(pending, "_is_over", False)


def test_a_result_comes_back(make_checkpoint):
    saves, checkpoint = BackgroundSaves(), make_checkpoint()
    pending = start(saves, "run", lambda: checkpoint)
    assert pending.result() is checkpoint
    assert pending.done()
    assert pending.result(timeout_s=0) is checkpoint
    saves.wait()


def test_the_next_call_on_the_run_is_told_once(make_checkpoint):
    saves = BackgroundSaves()
    start(saves, "run", fail)
    with saves.turn("other"):
        pass
    with pytest.raises(NoSpace), saves.turn("run"):
        pytest.fail("the call must not go on")
    with saves.turn("run"):
        pass
    saves.wait()


def test_wait_and_result_tell_and_count_as_told():
    saves = BackgroundSaves()
    start(saves, "run", fail)
    with pytest.raises(NoSpace):
        saves.wait()
    saves.wait()
    pending = start(saves, "run", fail)
    with pytest.raises(NoSpace):
        pending.result()
    saves.wait()
    with saves.turn("run"):
        pass


def test_a_second_save_of_the_run_waits_for_the_first(make_checkpoint):
    saves, gate, order = BackgroundSaves(), threading.Event(), []

    def slow():
        gate.wait(10)
        order.append("first")
        return make_checkpoint()

    start(saves, "run", slow)
    follower = threading.Thread(
        target=lambda: start(saves, "run", lambda: order.append("second") or make_checkpoint())
    )
    follower.start()
    # Another run does not wait.
    start(saves, "other", make_checkpoint).result(timeout_s=10)
    assert order == []
    gate.set()
    follower.join(10)
    saves.wait()
    assert order == ["first", "second"]


def test_a_result_that_takes_too_long_times_out(make_checkpoint):
    saves, gate = BackgroundSaves(), threading.Event()
    pending = start(saves, "run", lambda: gate.wait(10) and make_checkpoint())
    with pytest.raises(TimeoutError):
        pending.result(timeout_s=0.01)
    assert not pending.done()
    gate.set()
    pending.result(timeout_s=10)


def test_all_errors_of_a_wait_are_heard(caplog):
    saves = BackgroundSaves()
    start(saves, "a", fail)
    start(saves, "b", fail)
    with pytest.raises(NoSpace):
        saves.wait()
    assert "background save of b failed" in caplog.text


def test_without_more_threads_the_save_happens_here(make_checkpoint, monkeypatch):
    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert start(BackgroundSaves(), "run", make_checkpoint).result(timeout_s=0)


def test_a_forked_child_has_nothing_in_flight(make_checkpoint):
    saves, gate = BackgroundSaves(), threading.Event()
    pending = start(saves, "run", lambda: gate.wait(10) and make_checkpoint())
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _finish_at_exit()  # else it would wait for a thread that is not in this process
            saves.wait()
            with saves.turn("run"):
                pass
            try:
                pending.result(timeout_s=5)
            except OperationFailed:
                os.write(write, b"ok")
        finally:
            os._exit(0)
    gate.set()
    assert os.read(read, 2) == b"ok"
    os.waitpid(child, 0)
    os.close(read)
    os.close(write)
    saves.wait()


def test_a_failed_save_lets_go_of_its_copy_before_anybody_is_told():
    class Copy:
        pass

    seen = []

    def fail_with_a_copy():
        copy = Copy()
        seen.append(weakref.ref(copy))
        fail()

    saves = BackgroundSaves()
    pending = start(saves, "run", fail_with_a_copy)
    with pytest.raises(NoSpace) as caught:
        pending.result()
    assert seen[0]() is None
    assert [entry.name for entry in caught.traceback][-1] == "fail"  # where it failed is kept


def test_a_failed_save_is_told_at_exit_though_its_store_is_gone(caplog):
    saves = BackgroundSaves()
    start(saves, "run", fail)._finished.wait(10)
    start(saves, "told", fail)._finished.wait(10)
    with pytest.raises(NoSpace):
        saves.tell("told")
    dropped = weakref.ref(saves)
    del saves
    gc.collect()
    assert dropped() is None
    assert _hear_exit(caplog) == ["the background save of run failed and nobody was told"]
    assert _hear_exit(caplog) == []


def _hear_exit(caplog):
    caplog.clear()
    _finish_at_exit()
    return [record.getMessage().partition(":")[0] for record in caplog.records]


def test_a_dropped_store_is_let_go_of_though_its_save_failed(tmp_path, caplog):
    store = casckpt.open(tmp_path / "store")
    store.save("r", {"v": 1}, 5)
    store.save_async("r", {"v": 2}, 5)._finished.wait(60)
    dropped = weakref.ref(store)
    del store
    for thread in threading.enumerate():
        if thread.name == "casckpt-save-r":
            thread.join(60)
    gc.collect()
    assert dropped() is None
    assert _hear_exit(caplog) == ["the background save of r failed and nobody was told"]


@pytest.mark.parametrize("ask", ["tell", "wait"])
def test_of_two_that_wait_for_a_save_one_is_told(ask):
    saves, gate, told = BackgroundSaves(), threading.Event(), []
    start(saves, "run", lambda: gate.wait(60) and fail())
    waiting = threading.Barrier(3)

    def ask_for_it():
        waiting.wait()
        try:
            if ask == "tell":
                saves.tell("run", wait=True)
            else:
                saves.wait()
        except NoSpace as error:
            told.append(error)

    threads = [threading.Thread(target=ask_for_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    waiting.wait()
    time.sleep(0.2)  # so that both have most likely begun to wait
    gate.set()
    for thread in threads:
        thread.join()
    assert len(told) == 1
    saves.wait()


def test_a_pending_save_says_how_it_stands(make_checkpoint):
    saves, gate = BackgroundSaves(), threading.Event()
    pending = start(saves, "run", lambda: gate.wait(60) and make_checkpoint())
    assert repr(pending) == "<PendingSave of run: in flight>"
    gate.set()
    pending.result()
    assert repr(pending) == "<PendingSave of run: done>"
    failed = start(saves, "bad", fail)
    with pytest.raises(NoSpace):
        failed.result()
    assert repr(failed) == "<PendingSave of bad: failed>"


def test_ctrl_c_while_a_save_begins_leaves_no_save_that_others_wait_for(
    make_checkpoint, monkeypatch
):
    saves, checkpoint, calls = BackgroundSaves(), make_checkpoint(), []

    def work():
        calls.append(1)
        return checkpoint

    begin = threading.Thread.start
    for interrupted_before in (True, False):

        def interrupted(thread, before=interrupted_before):
            if not before:
                begin(thread)
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", interrupted)
            with pytest.raises(KeyboardInterrupt):
                start(saves, "run", work)
        saves.wait()
    assert start(saves, "run", work).result(timeout_s=10) is checkpoint
    assert len(calls) == 3
