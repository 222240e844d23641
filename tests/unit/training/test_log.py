"""log: rows and series, what is kept, and when others see it."""

from __future__ import annotations

import math
import threading
import time

import pytest

from casckpt.errors import BadRequest
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
