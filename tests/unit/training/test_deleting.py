"""Deleting runs and stages; what is best by the monitor that a loop declared."""

from __future__ import annotations

import pytest

from casckpt.errors import BadRef, BadRequest, NotFound, RunBusy
from casckpt.training.deleting import count_results
from casckpt.training.stages.rows import result_rows


def work(store, name, stages=("a", "b"), **run):
    done = []
    with store.run(name, **run) as opened:
        for stage in stages:
            for key, item in (st := opened.stage(stage, {"x": 1, "y": 2})):
                done.append(f"{stage}-{key}")
                st.done(key, item * 10)
    return done


def test_one_stage_is_dropped_and_done_again(store, name):
    assert len(work(store, name)) == 4
    plan = store.delete(name, stage="a")
    assert (plan.drop, plan.freed_bytes) == ((), 0)
    assert work(store, name) == ["a-x", "a-y"]
    with pytest.raises(NotFound, match="no stage"):
        store.delete(name, stage="c")
    with pytest.raises(BadRef):
        store.delete(f"{name}@3", stage="a")


def test_a_run_takes_its_stages_along_and_says_so(store, name, caplog):
    work(store, name)
    store.save(name, {"w": 1}, 3)
    work(store, name, resume="never")
    with caplog.at_level("INFO"):
        plan = store.delete(name)
    assert [one.step for one in plan.drop] == [3]
    assert f"{name}: 8 results of its stages are dropped" in caplog.text
    assert len(work(store, name)) == 4


def test_a_run_of_stages_alone_can_be_deleted(store, name):
    work(store, name)
    assert store.delete(name).drop == ()
    with pytest.raises(NotFound):
        store.delete(name)


def test_a_checkpoint_takes_no_stage_along(store, name):
    work(store, name)
    store.save(name, {"w": 1}, 3)
    store.delete(f"{name}@3")
    assert work(store, name) == []


def test_stages_of_a_live_run_stay(store, name):
    with store.run(name) as run:
        for key, item in (st := run.stage("a", {"x": 1})):
            st.done(key, item)
        for target in ({"stage": "a"}, {}):
            with pytest.raises(RunBusy):
                store.delete(name, **target)
        with pytest.raises(BadRequest, match="of a checkpoint"):
            store.delete(store.save("plain", {}, 1, replace=True), stage="a")


def test_best_goes_by_the_declared_monitor(store, name):
    losses = {1: 3.0, 2: 1.0, 3: 2.0}
    with store.run(name) as run:
        for epoch in run.epochs(3, {"v": 0}, save_every=1, monitor="loss", mode="min"):
            run.log(loss=losses[epoch], corr=float(epoch))
    assert store.get(f"{name}@best").step == 2
    assert store.get(f"{name}@best:loss").step == 2
    assert store.best(name).step == 2
    assert store.best(name, "loss").step == 2
    assert store.best(name, "corr", "max").step == 3
    with pytest.raises(BadRef):
        store.get(f"{name}@best:corr")
    store.save(f"{name}-plain", {"v": 1}, 1, metrics={"loss": 1.0})
    for ask in (lambda: store.get(f"{name}-plain@best"), lambda: store.best(f"{name}-plain")):
        with pytest.raises(BadRef):
            ask()


def test_a_run_of_stages_alone_is_resumed_under_another_name(store, name, caplog):
    work(store, name)
    with caplog.at_level("INFO"):
        assert work(store, f"{name}-2", ("a", "c"), resume=name) == ["c-x", "c-y"]
    assert f"with the stages, folds and trials of {name}~0" in caplog.text
    # The same command once more goes on there, and opens no further line.
    assert work(store, f"{name}-2", ("a", "c"), resume=name) == []
    with store.run(f"{name}-2") as run:
        assert run.line == 0
    with pytest.raises(NotFound):
        store.run(f"{name}-3", resume=f"{name}-nothing")


def test_a_run_that_only_logs_shows_its_metrics(store, name):
    with store.run(name) as run:
        for fold in run.folds([([0], [1]), ([1], [0])], None):
            fold.run.log(score=fold.number / 2)
        assert [one.metrics for one in run.children("fold-*")] == [{"score": 0.5}, {"score": 1.0}]


def lines_of_two_runs(store, name):
    """Two runs with two lines each; stages and a checkpoint on every line."""
    for run in (f"{name}-1", f"{name}-2"):
        for start in range(2):
            with store.run(run, resume="never") as opened:
                for loop in opened.epochs(1, {"v": start}, save_every=1):
                    del loop
                for key, item in (st := opened.stage("a", {"x": 1, "y": 2})):
                    st.done(key, item)


def results(store, run, line):
    return sum(1 for _ in result_rows(store._repository, run, line))


def test_a_glob_with_a_line_drops_just_that_line(store, name):
    lines_of_two_runs(store, name)
    assert count_results(store, f"{name}-*~1") == 4
    plan = store.delete(f"{name}-*~1")
    assert [(one.run, one.line) for one in plan.drop] == [(f"{name}-1", 1), (f"{name}-2", 1)]
    assert [results(store, f"{name}-1", line) for line in (0, 1)] == [2, 0]
    with pytest.raises(NotFound):
        store.delete(f"{name}-*~7")
    assert len(store.checkpoints(f"{name}-*")) == 2
    assert len(store.delete(f"{name}-*~*").drop) == 2
    assert results(store, f"{name}-2", 0) == 0


@pytest.mark.parametrize("rest", ["-*~", "-*~x", "-*~0@1", "-*@1", "-*~-1"])
def test_a_pattern_that_is_none_touches_nothing(store, name, rest):
    lines_of_two_runs(store, name)
    with pytest.raises(BadRef, match="a pattern names runs"):
        store.delete(name + rest)
    assert len(store.checkpoints(f"{name}-*")) == 4
    assert [results(store, f"{name}-1", line) for line in (0, 1)] == [2, 2]
