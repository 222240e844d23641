"""Work goes on in the caller's thread when the interpreter begins no thread any more."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

import pytest

import casckpt
from casckpt.store import workers
from casckpt.store.workers import Workers

AT_EXIT = """
import atexit, sys
import numpy as np
import casckpt

store = casckpt.open(sys.argv[1])
store.save("r", {"w": np.zeros(10)}, 0)
state = {"w": np.random.default_rng(1).standard_normal(3_000_000)}

def last():
    if "async" in sys.argv:
        assert store.save_async("r", state, 1).done()
        store.save_async("r", {"w": 0}, 1)
    else:
        store.save("r", state, 1)
    assert (store.restore("r@1")["w"] == state["w"]).all()
    store.close()
    print("saved")

atexit.register(last)
"""

BEFORE = 'store.save_async("q", {"w": 1}).result()\n'


def test_a_pool_works_in_threads_of_its_own():
    with Workers(2, "test") as pool:
        assert pool.submit(threading.current_thread).result() is not threading.current_thread()
        assert list(pool.map(abs, [-1, 2])) == [1, 2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)


@pytest.mark.parametrize("by", ["interpreter", "its threads"])
def test_at_the_interpreters_end_the_caller_works(monkeypatch, by):
    pool = Workers(2, "test")
    if by == "interpreter":
        monkeypatch.setattr("concurrent.futures.thread._shutdown", True)
    else:
        monkeypatch.setattr(pool._threads, "_shutdown", True)
    assert pool.submit(threading.current_thread).result() is threading.current_thread()
    assert isinstance(pool.submit(int, "x").exception(), ValueError)
    pool.shutdown()


def test_at_a_limit_of_threads_the_caller_works_and_nothing_is_done_twice(monkeypatch):
    real, calls = threading.Thread.start, []
    with Workers(3, "test") as pool:
        pool.submit(abs, 1).result()
        go_on = threading.Event()
        waits = pool.submit(go_on.wait)  # the one thread there is
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse_to_start)
            done = [pool.submit(calls.append, n) for n in range(5)]
            assert [one.result(5) for one in done] == [None] * 5
            assert calls == [0, 1, 2, 3, 4]
        go_on.set()
        assert waits.result()
        # What the thread finds in its queue was done.
        assert pool.submit(len, calls).result() == 5
        assert threading.Thread.start is real
    with Workers(2, "test") as pool, monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse_to_start)
        assert pool.submit(threading.current_thread).result() is threading.current_thread()
        assert isinstance(pool.submit(int, "x").exception(), ValueError)


def refuse_to_start(thread):
    raise RuntimeError("can't start new thread")


def test_what_was_cancelled_in_time_is_not_done():
    with Workers(1, "test") as pool:
        go_on, calls = threading.Event(), []
        pool.submit(go_on.wait)
        later = pool.submit(calls.append, 1)
        assert later.cancel()
        go_on.set()
    assert not calls


def test_a_state_is_saved_collected_and_verified_where_no_thread_can_begin(tmp_path, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", refuse_to_start)
    with casckpt.open(tmp_path / "s") as store:
        for step in range(3):
            store.save("r", {"w": bytes([step]) * 9_000_000, "n": step}, step)
        assert store.save_async("r", {"w": b"x" * 100_000}, 3).result().step == 3
        assert store.restore("r@2")["n"] == 2
        store.gc(store.plan_gc(casckpt.KeepLast(1)), now=True)
        assert store.verify("bytes").ok
        with store.run("trained") as run:
            for epoch in run.epochs(2, {"n": 0}):
                run.log({"loss": 1.0 / epoch})
        assert len(store.history("trained")["loss"]) == 2


def test_where_no_pool_can_be_made_any_more_the_caller_works(monkeypatch):
    monkeypatch.setattr(workers, "_threads", lambda count, name: None)
    with Workers(2, "test") as pool:
        assert pool.submit(threading.current_thread).result() is threading.current_thread()
        assert isinstance(pool.submit(int, "x").exception(), ValueError)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)


def test_a_pool_that_can_begin_no_thread_keeps_neither_results_nor_arguments(monkeypatch):
    def start(self):
        raise RuntimeError("can't start new thread")

    class Large:
        pass

    def work(given):
        if given is None:
            return Large()
        raise ValueError

    monkeypatch.setattr(threading.Thread, "start", start)
    with Workers(2, "test") as pool:
        result, argument = pool.submit(work, None).result(), Large()
        seen = [weakref.ref(result), weakref.ref(argument)]
        with pytest.raises(ValueError):
            pool.submit(work, argument).result()
        del result, argument
        gc.collect()
        assert [one() for one in seen] == [None, None]


OPENED_AT_EXIT = """
import atexit, sys, threading
import casckpt

def last():
    assert "concurrent.futures.thread" not in sys.modules
    with casckpt.open(sys.argv[1]) as store:
        if sys.argv[2] == "async":
            store.save_async("r", {"w": b"x" * 100_000}, 1).result()
        elif sys.argv[2] == "save":
            store.save("r", {"w": b"x" * 100_000}, 1)
        assert len(store.restore("r")["w"]) == 100_000
    print("done")

atexit.register(last)
"""


@pytest.mark.parametrize("how", ["save", "async", "restore"])
def test_a_store_that_is_first_opened_at_exit_works(tmp_path, how):
    if how == "restore":
        with casckpt.open(tmp_path / "s") as store:
            store.save("r", {"w": b"x" * 100_000}, 1)
    done = subprocess.run(
        [sys.executable, "-c", OPENED_AT_EXIT, str(tmp_path / "s"), how],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["", "async", "async first"])
def test_a_save_and_a_restore_at_exit_are_done(tmp_path, how):
    code = AT_EXIT if how != "async" else AT_EXIT.replace("def last", BEFORE + "def last")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), *how.split()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "saved\n"), done.stderr
    told = "the background save of r failed and nobody was told: r@1 is there already"
    assert (told in done.stderr) == bool(how)
    assert "Traceback" not in done.stderr
