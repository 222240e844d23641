"""The process's handlers: whose they are during a run, after it, and in children."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from casckpt.errors import Stopped
from tests.unit.training.processes import elsewhere

FORKS = """
    import multiprocessing, os, signal, sys, threading, time, casckpt

    context = multiprocessing.get_context("fork")

    def ended(process):
        process.start()
        process.terminate()
        process.join(20)
        return process.exitcode

    with casckpt.open(sys.argv[1]) as store, store.run(sys.argv[2]) as run:
        for epoch in run.epochs(1, {}):
            for _ in range(20):
                assert ended(context.Process(target=time.sleep, args=(60,))) == -signal.SIGTERM
            codes = []
            process = context.Process(target=time.sleep, args=(60,))
            thread = threading.Thread(target=lambda: codes.append(ended(process)))
            thread.start()
            thread.join()
            assert codes == [-signal.SIGTERM]
            with context.Pool(2) as pool:
                next(pool.imap_unordered(time.sleep, [0] + 50 * [60]))
            assert not run.stopping
    print("done")
"""

CTRL_C = """
    import multiprocessing, os, signal, sys, casckpt

    os.setsid()
    context = multiprocessing.get_context("fork")
    with casckpt.open(sys.argv[1]) as store, store.run(sys.argv[2]) as run:
        for epoch in run.epochs(3, {}):
            with context.Pool(2) as pool:
                pool.map(abs, range(4))
                os.killpg(0, signal.SIGINT)
                assert pool.map(abs, range(4)) == [0, 1, 2, 3]
"""

SECOND = """
    import multiprocessing, os, signal, sys, time, casckpt

    def hold(ready):
        try:
            ready.send(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
            time.sleep(60)
        except KeyboardInterrupt:
            ready.send("interrupted")

    context = multiprocessing.get_context("fork")
    with casckpt.open(sys.argv[1]) as store, store.run(sys.argv[2]) as run:
        for epoch in run.epochs(1, {}):
            here, there = context.Pipe()
            process = context.Process(target=hold, args=(there,))
            process.start()
            assert here.recv() is True
            while not here.poll(0.05):
                os.kill(process.pid, signal.SIGINT)
            assert here.recv() == "interrupted"
            process.join()
    print("done")
"""


@pytest.mark.parametrize("code", [FORKS, SECOND])
def test_children_are_ended_as_ever(store, name, code):
    assert elsewhere(code, store.path, name)[:2] == (0, "done\n")


def test_ctrl_c_leaves_the_workers_to_a_parent_that_saves(store, name):
    code, _, errors = elsewhere(CTRL_C, store.path, name)
    assert "KeyboardInterrupt" in errors.splitlines()[-1], errors
    assert errors.count("Traceback") == 1, errors
    assert (code, store.latest(name).step) == (-signal.SIGINT, 1)


@pytest.fixture
def handler():
    """Give a handler of the program's own that is in place, and notes what it gets."""
    seen = []

    def own(number, frame):
        seen.append(number)

    own.seen = seen
    before = signal.signal(signal.SIGTERM, own)
    yield own
    signal.signal(signal.SIGTERM, before)


def test_a_handler_that_is_installed_within_a_run_stays(store, name, handler):
    def later(number, frame):
        handler.seen.append("later")

    with store.run(name) as run:
        for _ in run.epochs(2, {}):
            signal.signal(signal.SIGTERM, later)
    assert signal.getsignal(signal.SIGTERM) is later
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler.seen == ["later"]


def test_a_handler_put_over_ours_may_call_it_and_put_it_back(store, name, handler):
    order = []

    def over(number, frame):
        order.append("over")
        ours(number, frame)

    with pytest.raises(Stopped), store.run(name) as run:  # noqa: PT012
        for _ in run.epochs(3, {}):
            ours = signal.signal(signal.SIGTERM, over)
            os.kill(os.getpid(), signal.SIGTERM)
    assert store.latest(name).step == 1
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
    assert (order, handler.seen) == (["over"] * 3, [signal.SIGTERM] * 2)
    signal.signal(signal.SIGTERM, ours)
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler.seen == [signal.SIGTERM] * 3
    assert signal.getsignal(signal.SIGTERM) is handler


def test_a_run_closed_by_another_thread_leaves_signals_to_the_program(store, name, handler):
    run = store.run(name)
    next(iter(run.epochs(3, {})))
    thread = threading.Thread(target=run.close)
    thread.start()
    thread.join()
    os.kill(os.getpid(), signal.SIGTERM)
    assert handler.seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is handler
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_next_run_keeps_what_the_last_one_could_not_put_back(store, name, handler):
    run = store.run(name)
    loop = run.epochs(3, {})
    next(loop)
    thread = threading.Thread(target=run.close)
    thread.start()
    thread.join()
    with pytest.raises(Stopped), store.run(f"{name}-next") as again:  # noqa: PT012
        for _ in again.epochs(3, {}):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)]
)
def test_children_that_train_in_threads_save_and_leave(store, name, number, error):
    both, left = threading.Barrier(2, timeout=60), threading.Event()

    def train(item):
        with run.child(f"c{item}") as child:
            for epoch in child.epochs(9, {}):
                if epoch == 1:
                    both.wait()
                    if item == 2:
                        assert left.wait(60)
                        time.sleep(0.3)  # the other is gone, and this one has its state to save
                elif epoch == 2 and item == 1:
                    os.kill(os.getpid(), number)
                    while not run.stopping:
                        time.sleep(0.01)

    def call(item):
        try:
            train(item)
        finally:
            if item == 1:
                left.set()

    with pytest.raises(error), store.run(name) as run:
        run.stage("items", [1, 2, 3]).map(call, workers=2)
    found = {info.name: (info.status, info.last.step) for info in store.runs(f"{name}/*")}
    assert found == {f"{name}/c1": ("stopped", 2), f"{name}/c2": ("stopped", 1)}
