"""What a loop declares is kept: its best, its metric, where it began, how often it saves."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import casckpt
from casckpt import Every, KeepLast, State
from casckpt.errors import BadLeaf


class Killed(BaseException):
    """Ends a training as a signal does: nothing is saved any more."""


LOSSES = {1: 4.0, 2: 1.0, 3: 2.0, 4: 3.0}


def descend(store, name, total=4, **options):
    """Train by a fixed course of losses; return the state that is left."""
    state = {"w": 0}
    with store.run(name) as run:
        for epoch in run.epochs(total, state, monitor="loss", mode="min", **options):
            state["w"] = epoch
            run.log(loss=LOSSES[epoch])
    return state


def test_a_policy_does_not_drop_the_declared_best(store, name):
    descend(store, name, save_every=1)
    plan = store.plan_gc(KeepLast(1), name)
    assert [one.step for one in plan.drop] == [1, 3]
    assert plan.reasons[f"{name}@2"] == ("best loss",)
    # What a limit takes besides depends on what that frees: never the best, nor the newest.
    assert {one.step for one in store.plan_gc(run=name, max_bytes=0).drop} <= {1, 3}
    store.gc(plan)
    assert store.best(name).step == 2
    assert descend(store, name, at_end="best") == {"w": 2}


def test_a_plan_that_became_old_does_not_drop_it_either(store, name):
    descend(store, name, total=1)
    plan = store.plan_gc(KeepLast(1), name)
    for step in (2, 3):
        store.save(name, {"w": step}, step, metrics={"loss": step})
    plan = casckpt.api.GcPlan(plan.keep, tuple(store.checkpoints(name)), plan.reasons, 0)
    assert [one.step for one in store.gc(plan).dropped] == [1]


@pytest.mark.parametrize(("at_end", "steps"), [("best", {2, 4}), ("last", {4})])
def test_what_is_measured_after_the_loop_belongs_to_the_state_that_it_left(
    store, name, at_end, steps
):
    state = {"w": 0}
    for _ in range(2):  # the second time all is done already
        with store.run(name) as run:
            for epoch in run.epochs(4, state, monitor="loss", mode="min", at_end=at_end):
                state["w"] = epoch
                run.log(loss=LOSSES[epoch])
            run.log(test=state["w"])
        found = {one.step for one in store.checkpoints(name) if "test" in one.metrics}
        assert found == steps


def test_a_best_that_is_gone_is_said(store, name, caplog):
    descend(store, name, save_every=1)
    store.delete(f"{name}@2")
    with caplog.at_level(logging.WARNING, "casckpt"):
        assert descend(store, name, at_end="best") == {"w": 3}
    assert f"best loss 1 at 2 is gone; the state left is {name}@3, loss 2" in caplog.text


def test_what_a_line_has_begun_from_stays_until_it_saves(store, name):
    descend(store, name, save_every=1)
    state = {"w": 0}

    def branch():
        with store.run(name, resume=f"{name}@1") as run:
            for epoch in run.epochs(4, state):
                state["w"] += 1
                if epoch == 2:
                    raise Killed

    with pytest.raises(Killed):
        branch()
    plan = store.plan_gc(KeepLast(1), name)
    assert plan.reasons[store.get(f"{name}~0@1").ref] == ("branch point",)
    store.gc(plan, now=True)
    with store.run(name) as run:
        assert list(run.epochs(2, state)) == [2]


@pytest.mark.parametrize("logged", [{"vloss": 1.0, "acc": 2.0}, {}])
def test_a_metric_that_is_watched_and_never_logged_is_said_once(store, name, caplog, logged):
    with caplog.at_level(logging.WARNING, "casckpt"), store.run(name) as run:
        for _ in run.epochs(3, {"w": 0}, monitor="loss", mode="min", patience=2):
            run.log(**logged)
    said = [one for one in caplog.messages if "no loss was logged by epoch 1" in one]
    assert len(said) == 1
    assert said[0].endswith("logged: vloss, acc" if logged else "logged: nothing")


def test_a_metric_that_is_nan_is_logged(store, name, caplog):
    with caplog.at_level(logging.WARNING, "casckpt"), store.run(name) as run:
        for _ in run.epochs(2, {"w": 0}, monitor="loss", mode="min"):
            run.log(loss=float("nan"))
    assert "was logged" not in caplog.text


@pytest.mark.parametrize("leaf", [{1, 2}, np.random.default_rng(0)])
def test_a_state_that_cannot_be_saved_is_refused_before_the_first_epoch(store, name, leaf):
    seen = []

    def train():
        with store.run(name) as run:
            for epoch in run.epochs(10, {"w": 0, "odd": leaf}, save_every=5, save_latest=False):
                seen.append(epoch)

    with pytest.raises(BadLeaf, match=r"^odd: ") as caught:
        train()
    assert not seen
    assert ("casckpt.State" in caught.value.hint) == (not isinstance(leaf, set))


def test_a_generator_in_a_state_is_no_such_leaf(store, name):
    with store.run(name) as run:
        assert list(run.epochs(1, State(w=0, rng=np.random.default_rng(0)))) == [1]


def by_steps(store, name, kill=0, log_at=(), **options):
    state = {"w": 0}
    try:
        with store.run(name) as run:
            for step, _ in run.steps(60, state, list(range(7)), **options):
                state["w"] += 1
                if step in log_at:
                    run.log(val=0.5)
                if step == kill:
                    run._loop.saver.settle()
                    raise Killed
    except Killed:
        pass
    return {one.step: dict(one.metrics) for one in store.checkpoints(name)}


def test_a_metric_goes_to_the_checkpoint_after_it_and_to_no_later_one(store, name):
    by_steps(store, name, kill=25, log_at=(20,), save_every=10)
    found = by_steps(store, name, save_every=10)
    assert found[20] == {"val": 0.5}
    assert found[30] == {}


def test_a_rolling_save_takes_no_metric_away(store, name):
    assert by_steps(store, name, log_at=(15,), save_every=10, save_latest_s=0.0)[20] == {"val": 0.5}


def test_a_rolling_save_hands_its_metric_on_after_a_kill(store, name):
    by_steps(store, name, kill=18, log_at=(15,), save_every=10, save_latest_s=0.0)
    assert by_steps(store, name, save_every=10)[20] == {"val": 0.5}


def by_batches(store, name, kill=None):
    state = {"w": 0}
    try:
        with store.run(name) as run:
            for epoch in run.epochs(4, state, save_every=Every(steps=4)):
                for batch in run.batches(list(range(10))):
                    if (epoch, batch) == (1, kill):
                        run._loop.saver.settle()
                        raise Killed
                    state["w"] += 1
    except Killed:
        pass
    return [(one.position, one.reasons) for one in store.checkpoints(name)]


def test_saves_by_steps_are_at_the_same_steps_after_a_kill(store, name):
    whole = by_batches(store, f"{name}-whole")
    by_batches(store, name, kill=6)
    assert by_batches(store, name) == whole
    assert whole[0][0] == (0, 4)


def test_a_stage_that_was_left_by_a_break_is_not_finished(store, name):
    with store.run(name) as run:
        stage = run.stage("parts", [1, 2, 3])
        for key, item in stage:
            stage.done(key, item)
            break
    with store.run(name) as run:
        assert not run.finished
        stage = run.stage("parts", [1, 2, 3])
        for key, item in stage:
            stage.done(key, item)
    with store.run(name) as run:
        assert run.finished
