"""Saves of the script's own beside those of a loop: they never become what a resume restores."""

from __future__ import annotations

import pytest

from casckpt.errors import StepExists, TreeMismatch


def session(store, name, total, *, die_at=None, extra=0, tagged=True, **options):
    state = {"n": 0}
    seen = []
    with store.run(name, **options) as run:
        for epoch in run.epochs(total, state, save_every=1):
            seen.append(epoch)
            state["n"] += epoch
            run.save({"squares": [epoch, extra]}, metrics={"size": epoch})
            run.save({"rows": [1.0]}, name="predictions", tags=[f"epoch-{epoch}"] * tagged)
            if epoch == die_at:
                raise RuntimeError("power cut")
            run.log(loss=1 / epoch)
        run.save({"report": state["n"]}, name="report")
    return state, seen


def steps(store, run):
    return [one.step for one in store.checkpoints(run)]


def test_a_loop_goes_on_from_its_own_state_alone(store, name):
    with pytest.raises(RuntimeError, match="power cut"):
        session(store, name, 4, die_at=3)
    assert steps(store, f"{name}/saves") == steps(store, f"{name}/predictions") == [1, 2, 3]
    assert store.latest(name).step == 2
    state, seen = session(store, name, 4)
    assert (state["n"], seen) == (10, [3, 4])
    assert steps(store, f"{name}/saves") == steps(store, f"{name}/predictions") == [1, 2, 3, 4]
    assert store.restore(f"{name}/report@4") == {"report": 10}
    assert store.get(f"{name}/saves").metrics == {"size": 4}
    again, seen = session(store, name, 4)
    assert (again["n"], seen) == (10, [])
    assert steps(store, f"{name}/report") == [4]


def test_a_unit_that_is_done_again_replaces_what_it_saved(store, name):
    with pytest.raises(RuntimeError):
        session(store, name, 4, die_at=3, extra=1)
    # Two epochs back, as after damage: what they saved by hand is of another training.
    store.delete(f"{name}@2")
    session(store, name, 4, extra=2)
    found = [store.restore(f"{name}/saves@{step}")["squares"] for step in (1, 2, 3, 4)]
    assert found == [[1, 1], [2, 2], [3, 2], [4, 2]]
    assert store.get(f"{name}/predictions@epoch-3").step == 3


def test_what_is_pinned_is_not_replaced(store, name):
    with pytest.raises(RuntimeError):
        session(store, name, 4, die_at=3, extra=1)
    store.pin(f"{name}/saves@3")
    with pytest.raises(StepExists):
        session(store, name, 4, extra=2)


def test_what_is_not_done_again_is_never_replaced(store, name):
    session(store, name, 4, extra=1)
    with store.run(name) as run:
        for _ in run.epochs(6, {"n": 0}):
            with pytest.raises(StepExists):
                run.save({"squares": [2, 9]}, step=2)
    found = [store.restore(f"{name}/saves@{step}")["squares"] for step in (1, 2, 3, 4)]
    assert found == [[1, 1], [2, 1], [3, 1], [4, 1]]
    assert store.get(f"{name}/predictions@epoch-3").step == 3


def test_two_saves_of_one_unit_want_names(store, name):
    with store.run(name) as run:
        for _ in run.epochs(1, {"n": 0}):
            run.save({"a": 1})
            with pytest.raises(StepExists, match="give each its name"):
                run.save({"b": 1})
            run.save({"b": 1}, replace=True)


def test_a_branch_has_saves_of_its_own(store, name):
    session(store, name, 4, extra=1, tagged=False)
    state, seen = session(store, name, 4, extra=2, tagged=False, resume=f"{name}@2")
    assert (state["n"], seen) == (10, [3, 4])
    assert store.restore(f"{name}/saves~0@3")["squares"] == [3, 1]
    assert store.restore(f"{name}/saves~1@3")["squares"] == [3, 2]
    assert [one.ref for one in store.checkpoints(f"{name}/saves")] == [
        f"{name}/saves~0@1", f"{name}/saves~0@2", f"{name}/saves~1@3", f"{name}/saves~1@4",
    ]  # fmt: skip


def test_steps_and_a_name_before_any_loop(store, name):
    def run_it():
        with store.run(name) as run:
            run.save({"vocabulary": ["a"]}, name="setup")
            state = {"n": 0}
            for step, _ in run.steps(3, state, [1, 2]):
                state["n"] += 1
                run.save({"at": step})
        return state["n"]

    assert run_it() == run_it() == 3
    assert steps(store, f"{name}/saves") == [1, 2, 3]
    assert steps(store, f"{name}/setup") == [0, 3]


def test_a_plain_save_that_no_loop_made_says_what_to_do(store, name):
    with store.run(name) as run:
        run.save({"something": [1]})
    with store.run(name) as run, pytest.raises(TreeMismatch, match=r"run\.save\(state, name="):
        run.epochs(3, {"n": 0})


def test_what_is_logged_and_saved_behind_a_save_is_of_its_step(store, name):
    """As behind the adapters, which save the run: there a session that went on said another."""
    for number in (1, 2):
        with store.run(name) as run:
            if number == 1:
                run.save({"n": 4}, 4)
            run.log(accuracy=0.5)
            run.save({"n": 4}, name="predictions")
    assert store.history(name)["accuracy"] == [(4, 0.5)]
    assert steps(store, f"{name}/predictions") == [4]
