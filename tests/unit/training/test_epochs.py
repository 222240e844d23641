"""The loop over epochs, through the public Store: what it yields, saves and keeps."""

from __future__ import annotations

import math

import numpy as np
import pytest

from casckpt import Every, KeepEvery, KeepLast, State
from casckpt.errors import BadLeaf, BadRef, BadRequest, TreeMismatch


def test_a_run_that_was_never_interrupted(train):
    assert train(5)["epochs"] == [1, 2, 3, 4, 5]
    assert train.reasons == {5: ("final",)}


def test_the_same_call_goes_on_after_the_last_durable_epoch(train):
    train.until(5, stop_at=4)
    assert train(5)["epochs"] == [1, 2, 3, 4, 5]
    assert train.seen == [4, 5]


def test_a_finished_loop_restores_and_yields_nothing(train):
    train(3)
    assert train(3)["epochs"] == [1, 2, 3]
    assert train.seen == []
    assert train(2)["epochs"] == [1, 2, 3]
    assert train.seen == []


def test_a_larger_total_reopens_a_finished_loop(train):
    train(3)
    assert train(5)["epochs"] == [1, 2, 3, 4, 5]
    assert train.seen == [4, 5]


def test_what_is_kept(train):
    train(7, save_every=3, monitor="loss", mode="min", loss=lambda epoch: abs(epoch - 4))
    assert train.reasons == {
        3: ("every", "best"),
        4: ("best",),
        6: ("every",),
        7: ("final",),
    }


def test_rolling_ones_go_past_the_trash_and_beaten_ones_into_it(train, store, name):
    train(4, monitor="loss", mode="min", loss=lambda epoch: {1: 2, 2: 1}.get(epoch, 5))
    assert train.steps == [2, 4]
    assert [one.step for one in store.checkpoints(name, trash=True)] == [1]


def test_without_latest_only_what_has_a_reason_is_saved(train):
    train.until(9, stop_at=6, save_every=4, save_latest=False)
    assert train.steps == [4]
    assert train(9, save_every=4, save_latest=False)["epochs"] == list(range(1, 10))
    assert train.steps == [4, 8, 9]


def test_keep_chooses_among_every_and_best(train):
    train(9, save_every=2, monitor="loss", mode="min", keep=KeepLast(2))
    assert train.steps == [1, 6, 8, 9]


def test_keep_counts_a_final_one_that_is_an_every_one_too(train):
    train(20, save_every=1, keep=KeepLast(2))
    assert train.steps == [19, 20]
    train(23, save_every=5, keep=KeepEvery(10))
    assert train.steps == [20, 23]


def test_finish_leaves_the_final_and_the_best(store, name):
    state = {"epoch": 0}
    with store.run(name) as run:
        for epoch in run.epochs(10, state, save_every=2, monitor="loss", mode="min"):
            state["epoch"] = epoch
            run.log(loss=abs(epoch - 4) + 1)
        run.finish(keep=KeepLast(1))
    assert [one.step for one in store.checkpoints(name)] == [4, 10]


def test_metrics_are_those_of_all_sessions(store, name):
    def script(total):
        with store.run(name) as run:
            for epoch in run.epochs(total, {"n": 0}):
                run.log({"once": 0.5} if epoch == 1 else {"loss": float(epoch)})
                run.log(step=epoch, lr=epoch / 10)
            return run.metrics

    assert script(3) == {"once": 0.5, "loss": 3.0, "lr": 0.3}
    assert script(3) == {"once": 0.5, "loss": 3.0, "lr": 0.3}
    assert script(4) == {"once": 0.5, "loss": 4.0, "lr": 0.4}


def test_the_reason_of_a_failure_is_one_line(store, name):
    with pytest.raises(BadLeaf), store.run(name) as run:
        for _ in run.epochs(1, {"thing": object()}):
            pass
    assert "\n" not in store.run(name).info.reason


def test_a_tagged_rolling_checkpoint_stays(train, store, name):
    train.until(4, stop_at=3)
    store.tag(f"{name}@2", "paper")
    train(4)
    assert train.steps == [2, 4]


def test_at_end_best_leaves_the_best_state(train):
    options = {"monitor": "loss", "mode": "min", "at_end": "best"}
    state = train(6, loss=lambda epoch: abs(epoch - 2), **options)
    assert state["epochs"] == [1, 2]
    assert train(6, **options)["epochs"] == [1, 2]
    assert train.seen == []


def test_patience_ends_early_and_survives_a_resume(train):
    options = {"monitor": "loss", "mode": "min", "patience": 3}
    train.until(20, stop_at=4, **options)
    train(20, **options)
    assert train.seen == [4]
    assert train.reasons[4] == ("final",)
    train(20, **options)
    assert train.seen == []
    train(20, **{**options, "patience": 5})
    assert train.seen == [5, 6]


def test_nan_is_never_best_and_wears_patience_down(train, store, name):
    values = {1: math.nan, 2: 3.0, 3: math.inf, 4: -math.inf}
    train(4, monitor="loss", mode="min", loss=values.get)
    assert store.run(name).info.best.step == 2
    assert math.isnan(store.history(name)["loss"][0][1])


def test_every_by_time_and_by_overhead(train):
    train(3, save_every=Every(seconds=1e-9))
    assert all("every" in reasons for reasons in train.reasons.values())
    with pytest.raises(BadRequest):
        Every(seconds=1, epochs=2)
    with pytest.raises(BadRequest):
        Every(overhead=0.9)


def test_every_so_many_steps(store, name):
    state = {"n": 0}
    with store.run(name) as run:
        for _ in run.epochs(3, state, save_every=Every(steps=4), save_latest=False):
            for _ in run.batches(range(5), save_every_s=None):
                state["n"] += 1
    found = [(one.position, one.reasons) for one in store.checkpoints(name)]
    assert found == [((0, 4), ("every",)), ((1, 3), ("every",)), ((2, 2), ("every",)),
                     ((3, 0), ("final",))]  # fmt: skip


def test_break_saves_nothing_of_its_epoch(train, store, name):
    state = {"epochs": []}
    with store.run(name) as run:
        for epoch in run.epochs(5, state):
            state["epochs"].append(epoch)
            if epoch == 3:
                break
    assert train.steps == [2]
    assert store.run(name).info.status == "stopped"


def test_run_stop_ends_after_the_body_and_saves(train, store, name):
    state = {"epochs": [], "value": 0.0}
    with store.run(name) as run:
        for epoch in run.epochs(5, state):
            state["epochs"].append(epoch)
            if epoch == 2:
                run.stop("enough")
    assert state["epochs"] == [1, 2]
    info = store.run(name).info
    assert (info.status, info.reason) == ("stopped", "enough")
    assert train.reasons == {2: ("stop",)}
    assert train(4)["epochs"] == [1, 2, 3, 4]
    assert 2 not in train.reasons


def test_a_state_object_is_filled_in_place(store, name):
    def script(total):
        state = State(value=0, losses=[])
        losses = state.losses
        with store.run(name) as run:
            for epoch in run.epochs(total, state):
                state.value += epoch
                state.losses.append(epoch)
        assert state.losses is losses
        return state.value

    assert script(2) == 3
    assert script(4) == 10


def test_a_state_that_does_not_fit_is_refused_untouched(store, name):
    with store.run(name) as run:
        for _ in run.epochs(1, {"a": [1, 2], "b": 1}):
            pass
    other = {"a": [1, 2], "c": 5}
    with pytest.raises(TreeMismatch), store.run(name) as run:
        run.epochs(2, other)
    assert other == {"a": [1, 2], "c": 5}
    with pytest.raises(TreeMismatch) as found, store.run(name) as run:
        run.epochs(2, {"a": [1, 2], "b": np.zeros(2)})
    assert "before the loop begins" in found.value.hint


def test_keys_that_the_body_adds_to_a_dict_come_back(store, name, caplog):
    def script(total):
        state = {"w": 0}
        with store.run(name) as run:
            for epoch in run.epochs(total, state):
                state["w"] += 1
                state["best"] = [epoch, np.full(2, epoch)]
        return state

    script(2)
    again = script(2)
    assert (again["w"], again["best"][0], again["best"][1].tolist()) == (2, 2, [2, 2])
    assert "best is in" in caplog.text
    assert script(3)["best"][0] == 3
    assert "CANNOT" not in caplog.text


def test_a_second_loop_with_a_state_of_its_own_is_told(store, name, caplog):
    first, second = {"w": np.zeros(2)}, {"w": np.full(2, 9.0)}
    with store.run(name) as run:
        for _ in run.epochs(2, first):
            first["w"] += 1
        for _ in run.epochs(3, first):
            first["w"] += 1
        list(run.epochs(3, {"w": first["w"]}))
        assert "run.child" not in caplog.text
        list(run.epochs(3, second))
    assert caplog.text.count("run.child(NAME)") == 1
    assert second["w"].tolist() == [3, 3]


def removed(state):
    del state.plain


def grown(state):
    state.array = np.append(state.array, 1.0)


def added(state):
    state.inner["more"] = 1


@pytest.mark.parametrize("change", [removed, grown, added])
def test_a_state_that_no_restart_could_fill_is_named_at_the_save(store, name, change, caplog):
    def made():
        return State(plain=1, array=np.zeros(2), inner={"array": np.zeros(1)})

    state = made()
    with store.run(name) as run:
        for _ in run.epochs(2, state):
            if change is not removed or "plain" in state:
                change(state)
    assert caplog.text.count("CANNOT GO ON") == 1
    with pytest.raises(TreeMismatch), store.run(name) as run:
        run.epochs(2, made())


def test_parts_that_a_restart_can_fill_are_not_named(store, name, caplog):
    state = State(none=None, empty={}, value=0.0, history=[1], table={"a": 1})
    with store.run(name) as run:
        for epoch in run.epochs(4, state):
            state.none, state.empty["a"] = np.zeros(epoch), np.zeros(epoch)
            state.value = np.float64(epoch)
            state.history.append(epoch)
            state.table[f"b{epoch}"] = [epoch]
            state.more = np.zeros(epoch)
    assert "CANNOT" not in caplog.text
    with store.run(name) as run:
        run.epochs(4, State(none=None, empty={}, value=0.0, history=[1], table={"a": 1}))


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (BadRef, {"monitor": "loss"}),
        (BadRequest, {"patience": 3}),
        (BadRequest, {"at_end": "best"}),
        (BadRequest, {"at_end": "first"}),
        (BadRequest, {"save_every": 0}),
        (BadRequest, {"keep": 3}),
        (BadRequest, {"monitor": "loss", "mode": "min", "patience": 0}),
    ],
)
def test_options_that_make_no_sense(store, name, error, options):
    run = store.run(name)
    with pytest.raises(error):
        run.epochs(3, {}, **options)
    run.close()


@pytest.mark.parametrize("state", [3, None, (1, 2), "x"])
def test_a_state_that_cannot_be_restored_into(store, name, state):
    run = store.run(name)
    with pytest.raises(BadRequest, match="the state is a"):
        run.epochs(3, state)
    run.close()


def test_generators_go_on_where_they_were(store, name):
    import random

    np = pytest.importorskip("numpy")

    def script(stop_at=None):
        random.seed(4)
        np.random.seed(4)
        state = {"draws": []}
        with store.run(name if stop_at or interrupted else f"{name}-whole") as run:
            for epoch in run.epochs(6, state):
                if epoch == stop_at:
                    raise RuntimeError
                state["draws"].append((random.random(), float(np.random.rand())))
        return state["draws"]

    interrupted = False
    whole = script()
    for stop_at in (2, 5):
        with pytest.raises(RuntimeError):
            script(stop_at)
    interrupted = True
    assert script() == whole
    assert store.latest(name).captured[:2] == ("rng python", "rng numpy")
