"""log: rows and series, what is kept, and when others see it."""

from __future__ import annotations

import math
import threading
import time

import pytest

from casckpt.errors import BadRequest, NoSpace
from casckpt.training import series


def test_rows_are_the_metrics_of_their_checkpoint(store, name):
    with store.run(name) as run:
        for epoch in run.epochs(2, {"n": 0}, save_every=1):
            run.log({"rouge-L": 0.5}, loss=epoch)
            run.log(loss=epoch * 10)
    assert store.get(f"{name}@1").metrics == {"rouge-L": 0.5, "loss": 10}
    assert store.history(name) == {"rouge-L": [(1, 0.5), (2, 0.5)], "loss": [(1, 10), (2, 20)]}


def test_a_metric_that_is_not_logged_again_is_not_in_the_next_row(store, name):
    with store.run(name) as run:
        for epoch in run.epochs(2, {"n": 0}, save_every=1):
            run.log(**({"val": 1.0} if epoch == 1 else {"loss": 2.0}))
    assert store.get(f"{name}@2").metrics == {"loss": 2.0}


def test_series_have_their_own_axis(store, name):
    with store.run(name) as run:
        for epoch in run.epochs(2, {"n": 0}):
            for step in range(3):
                run.log(step=epoch * 100 + step, lr=step)
    assert [step for step, _ in store.history(name)["lr"]] == [100, 101, 102, 200, 201, 202]


def test_nan_and_infinities_are_kept(store, name):
    with store.run(name) as run:
        for _ in run.epochs(1, {"n": 0}):
            run.log(a=math.nan, b=math.inf, c=-math.inf)
    found = store.history(name)
    assert math.isnan(found["a"][0][1])
    assert (found["b"], found["c"]) == ([(1, math.inf)], [(1, -math.inf)])


def test_after_the_loop_it_is_the_last_row(store, name):
    with store.run(name) as run:
        for _ in run.epochs(2, {"n": 0}):
            run.log(loss=1)
        run.log(test=0.5)
    assert store.latest(name).metrics == {"loss": 1, "test": 0.5}
    assert store.history(name)["test"] == [(2, 0.5)]


def test_others_see_it_within_a_second(store, name):
    with store.run(name) as run:
        for _ in run.epochs(1, {"n": 0}):
            run.log(loss=3)
            run.log(step=7, lr=1)
            deadline_s = time.monotonic() + 3
            began_s = time.monotonic()
            while time.monotonic() < deadline_s:
                if store.history(name):
                    break
                time.sleep(0.02)
            assert time.monotonic() - began_s < 1.5
            assert store.history(name) == {"loss": [(1, 3)], "lr": [(7, 1)]}


@pytest.mark.parametrize("value", ["x", None, [1, 2]])
def test_what_is_no_number(store, name, value):
    run = store.run(name)
    with pytest.raises(BadRequest):
        run.log(loss=value)
    with pytest.raises(BadRequest, match="twice"):
        run.log({"a": 1}, a=2)
    run.close()


@pytest.mark.parametrize("bad", ["loss/\udcff", "a\0b", ""])
def test_a_name_that_cannot_be_kept_is_refused_where_it_is_logged(store, name, bad):
    """As of a file whose name is no text."""
    with store.run(name) as run:
        for more in ({}, {"step": 3}):
            with pytest.raises(BadRequest, match="bad metric name"):
                run.log({bad: 1.0}, **more)
        run.log({"größe 2": 1.0}, step=1)
    assert store.history(name) == {"größe 2": [(1, 1.0)]}


def test_metrics_are_the_last_values_of_all_sessions(train, store, name):
    train(3)
    run = store.run(name)
    assert run.metrics == {"loss": 3.0}
    run.close()


def test_a_quiet_run_leaves_few_pieces(store, name):
    with store.run(name) as run:
        for epoch in run.epochs(3, {"n": 0}, save_latest=False):
            for step in range(10):
                run.log(step=step + 10 * epoch, lr=1)
                run._session.log.flush()
        assert len(list(series.read(run.repository, name, 0))) == 1


def test_a_call_writes_nothing(store, name, monkeypatch):
    flushed_by = []
    with store.run(name) as run:
        for _ in run.epochs(1, {"n": 0}):
            run.log(step=0, a=1.0, b=2.0)
            monkeypatch.setattr(
                run._session.log, "flush", lambda: flushed_by.append(threading.current_thread())
            )
            for step in range(2000):
                run.log(step=step, a=1.0, b=2.0)
            monkeypatch.undo()
    assert threading.main_thread() not in flushed_by
    assert len(store.history(name)["a"]) == 2000


@pytest.fixture
def disk(store, monkeypatch):
    """Return a dict whose `is_full` makes the disk full."""
    state = {"is_full": False}
    for method in ("write_rows", "saver"):
        original = getattr(type(store._repository), method)

        def guarded(*args, original=original, **named):
            if state["is_full"]:
                raise NoSpace("the disk is full")
            return original(*args, **named)

        monkeypatch.setattr(type(store._repository), method, guarded)
    return state


@pytest.mark.parametrize("full", [{3}, {2, 3, 4}])
def test_what_is_logged_while_the_disk_is_full_is_written_later(store, name, disk, full):
    with store.run(name) as run:
        for epoch in run.epochs(6, {"n": 0}):
            run._loop.saver.wait()
            disk["is_full"] = epoch in full
            run.log(loss=epoch)
            run.log(step=epoch * 10, lr=1)
    assert store.history(name) == {
        "loss": [(epoch, epoch) for epoch in range(1, 7)],
        "lr": [(epoch * 10, 1) for epoch in range(1, 7)],
    }


def test_what_a_save_by_hand_could_not_write_is_not_lost(store, name, disk):
    with store.run(name) as run:
        run.save({"n": 0})
        run.log(loss=1)
        disk["is_full"] = True
        with pytest.raises(NoSpace):
            run.save({"n": 1})
        disk["is_full"] = False
    assert [value for _, value in store.history(name)["loss"]] == [1]


def test_what_a_flush_could_not_write_is_written_by_the_next(store, name, disk, monkeypatch):
    monkeypatch.setattr(series, "PIECE_POINTS", 5)
    with store.run(name) as run:
        run.save({"n": 0})
        log = run._session.log
        disk["is_full"] = True
        for step in range(23):  # three pieces that are full, and one at hand
            run.log(step=step, lr=step)
            if step % 7 == 6:
                with pytest.raises(NoSpace):
                    log.flush()
        disk["is_full"] = False
        log.flush()
        assert [step for step, _ in store.history(name)["lr"]] == list(range(23))
        written = [step for piece in series.read(store._repository, name, 0)
                   for step in piece["series"]["lr"][0]]  # fmt: skip
        assert written == list(range(23))
        with monkeypatch.context() as patch:
            patch.setattr(type(store._repository), "write_rows", None)
            log.flush()  # there is nothing left to write
