"""`casckpt.lightgbm`: rounds in all, exact segments, early stopping; killed and resumed."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest, Stopped
from casckpt.training.stops import StopRequest
from tests.adapters.kills import check

lightgbm = pytest.importorskip("lightgbm")
casckpt_lightgbm = pytest.importorskip("casckpt.lightgbm")

PLAIN = {"num_leaves": 7, "num_threads": 1, "verbosity": -1, "deterministic": True, "metric": "l2"}
BAGGED = {
    **PLAIN,
    "bagging_fraction": 0.6,
    "bagging_freq": 1,
    "feature_fraction": 0.6,
    "extra_trees": True,
    "seed": 4,
}


def data(seed=0, count=400, **options):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6))
    target = features[:, 0] * features[:, 1] + rng.normal(size=count) * 0.5
    return lightgbm.Dataset(features, target, **options)


def text(booster):
    # What follows the trees lists the parameters of the last call, seeds included.
    return booster.model_to_string(num_iteration=-1).partition("end of trees")[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("lightgbm") / "store") as store:
        yield store


@pytest.fixture
def name(request):
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


class Interrupted(Exception):
    pass


def train(store, name, total, params=BAGGED, *, at=None, every=5, with_test=False, **options):
    def interrupt(env):
        if env.iteration + 1 == at:
            raise Interrupted

    training = data()
    if with_test:
        options |= {"valid_sets": [data(1, reference=training)], "valid_names": ["test"]}
    with store.run(name) as run:
        return casckpt_lightgbm.train(
            run, params, training, total, every=every, callbacks=[interrupt], **options
        )


def test_without_sampling_it_is_plain_train(store, name):
    plain = lightgbm.train(PLAIN, data(), 12)
    assert text(train(store, name, 12, PLAIN)) == text(plain)


@pytest.mark.parametrize("at", [1, 5, 6, 12])
@pytest.mark.parametrize("boosting", ["gbdt", "dart", "rf"])
def test_interrupted_is_uninterrupted(store, name, boosting, at):
    params = {**BAGGED, "boosting": boosting}
    whole = train(store, f"{name}-whole", 12, params)
    with pytest.raises(Interrupted):
        train(store, name, 12, params, at=at)
    assert text(train(store, name, 12, params)) == text(whole)


def test_an_objective_draws_from_the_process_as_if_never_interrupted(store, name):
    def noisy(predicted, training):
        return (predicted - training.get_label()) * np.random.random(len(predicted)), predicted**0

    def booster(run_name, at=None):
        np.random.seed(1)
        return text(train(store, run_name, 12, {**PLAIN, "objective": noisy}, at=at))

    whole = booster(f"{name}-whole")
    with pytest.raises(Interrupted):
        booster(name, at=8)
    assert booster(name) == whole


def test_early_stopping_and_history_go_on(store, name):
    log, plain_log = {}, {}
    training = data()
    plain = lightgbm.train(
        PLAIN,
        training,
        300,
        valid_sets=[data(1, reference=training)],
        valid_names=["test"],
        callbacks=[
            lightgbm.early_stopping(7, verbose=False),
            lightgbm.record_evaluation(plain_log),
        ],
    )
    options = {"early_stopping_rounds": 7, "with_test": True}
    for at in (3, plain.best_iteration + 4):
        with pytest.raises(Interrupted):
            train(store, f"{name}-{at}", 300, PLAIN, at=at, **options)
        log.clear()
        ours = train(store, f"{name}-{at}", 300, PLAIN, evals_result=log, **options)
        assert ours.best_iteration == plain.best_iteration
        assert text(ours) == text(plain)
        assert log["test"]["l2"] == pytest.approx(plain_log["test"]["l2"], rel=1e-12)
        assert ours.best_score["test"]["l2"] == pytest.approx(plain.best_score["test"]["l2"])
    again = train(store, f"{name}-3", 300, PLAIN, at=1, **options)
    assert text(again) == text(plain)


def test_a_finished_training_returns_the_stored_booster_and_more_rounds_go_on(store, name):
    first = train(store, name, 7)
    assert text(train(store, name, 7, at=1)) == text(first)
    assert train(store, name, 12).current_iteration() == 12


def test_a_forest_that_stopped_early_is_done(store, name):
    options = {"with_test": True, "early_stopping_rounds": 3}
    forest = {**BAGGED, "boosting": "rf"}
    first = train(store, name, 200, forest, **options)
    assert text(train(store, name, 200, forest, at=1, **options)) == text(first)
    assert first.current_iteration() < 200
    with pytest.raises(BadRequest, match="random forest"):
        train(store, name, 200, forest, with_test=True, early_stopping_rounds=300)


def test_a_callback_that_has_stopped_it_is_obeyed_the_next_time_too(store, name):
    def stop(env):
        if env.iteration + 1 == 7:
            raise lightgbm.callback.EarlyStopException(env.iteration, [])

    def booster(total):
        with store.run(name) as run:
            return casckpt_lightgbm.train(run, BAGGED, data(), total, every=5, callbacks=[stop])

    first = booster(12)
    assert first.current_iteration() == 7
    assert text(booster(12)) == text(first)
    assert booster(14).current_iteration() == 14


def test_a_booster_in_a_state_comes_back(store, name):
    booster = lightgbm.train(PLAIN, data(), 25)
    store.save(name, {"model": booster})
    restored = store.restore(name)["model"]
    assert restored.model_to_string() == booster.model_to_string()


PROGRAM = """
import sys
import numpy as np, lightgbm
import casckpt, casckpt.lightgbm

rng = np.random.default_rng(0)
X = rng.normal(size=(3000, 10))
y = X[:, 0] * X[:, 1] + rng.normal(size=3000)
train = lightgbm.Dataset(X[:2000], y[:2000])
test = lightgbm.Dataset(X[2000:], y[2000:], reference=train)
log = {}
with casckpt.open(sys.argv[1]) as store, store.run("kill/lightgbm") as run:
    print("begin", flush=True)
    booster = casckpt.lightgbm.train(
        run,
        {"bagging_fraction": 0.6, "bagging_freq": 1, "feature_fraction": 0.7, "num_threads": 1,
         "verbosity": -1, "deterministic": True, "learning_rate": 0.02},
        train, 300, every=10, valid_sets=[test], valid_names=["test"], early_stopping_rounds=150,
        evals_result=log,
    )
open(sys.argv[2], "w").write(booster.model_to_string() + repr(log))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_it_makes_the_same_booster(tmp_path):
    program = tmp_path / "train_lightgbm.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="lightgbm")


CALLBACK_PROGRAM = """
import sys
import numpy as np, lightgbm
import casckpt, casckpt.lightgbm

rng = np.random.default_rng(0)
X = rng.normal(size=(3000, 10))
y = X[:, 0] * X[:, 1] + rng.normal(size=3000)
train = lightgbm.Dataset(X[:2000], y[:2000], free_raw_data=False)
test = lightgbm.Dataset(X[2000:], y[2000:], reference=train)
with casckpt.open(sys.argv[1]) as store, store.run("kill/lightgbm") as run:
    print("begin", flush=True)
    saves = casckpt.lightgbm.Callback(run, every=10)
    booster = casckpt.lightgbm.model(run)
    if casckpt.lightgbm.rounds(run) < 300:
        booster = lightgbm.train(
            {"num_threads": 1, "verbosity": -1, "deterministic": True, "learning_rate": 0.02},
            train, 300 - casckpt.lightgbm.rounds(run), valid_sets=[test], valid_names=["test"],
            init_model=booster, callbacks=[saves],
        )
        saves.finish(booster)
trees = booster.model_to_string(num_iteration=-1).partition("end of trees")[0]
with casckpt.open(sys.argv[1]) as store:
    open(sys.argv[2], "w").write(trees + repr(store.history("kill/lightgbm")))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_it_makes_the_same_booster_by_the_callback(tmp_path):
    program = tmp_path / "lightgbm_callback.py"
    program.write_text(CALLBACK_PROGRAM)
    check(program, tmp_path, framework="lightgbm, callback")


def train_by_hand(store, name, total, at=None, every=5):
    def interrupt(env):
        if env.iteration + 1 == at:
            raise Interrupted

    training = data(free_raw_data=False)
    with store.run(name) as run:
        saves = casckpt_lightgbm.Callback(run, every=every)
        booster = lightgbm.train(
            PLAIN, training, total - casckpt_lightgbm.rounds(run),
            valid_sets=[data(1, reference=training)], valid_names=["test"],
            init_model=casckpt_lightgbm.model(run), callbacks=[saves, interrupt],
        )  # fmt: skip
        saves.finish(booster)
        return booster


def test_the_callback_saves_trainings_that_are_driven_by_hand(store, name):
    whole = train_by_hand(store, f"{name}-whole", 23)
    with pytest.raises(Interrupted):
        train_by_hand(store, name, 23, at=13)
    assert [one.step for one in store.checkpoints(name)] == [5, 10]
    parts = train_by_hand(store, name, 23)
    assert text(parts) == text(whole)
    assert [one.step for one in store.checkpoints(name)] == [5, 10, 15, 20, 23]
    history = store.history(name)["test-l2"]
    assert [step for step, _ in history] == list(range(1, 24))
    assert history == store.history(f"{name}-whole")["test-l2"]
    assert store.get(name).metrics == {"test-l2": history[-1][1]}
    assert store.runs(name)[0].status == "finished"


def test_the_callback_leaves_on_a_request_to_stop(store, name):
    with store.run(name) as run:
        saves = casckpt_lightgbm.Callback(run, every=100)

        def stop(env):
            if env.iteration + 1 == 3:
                run._session.watch._own = StopRequest("term", "SIGTERM", 0.0)

        stop.order = 1
        with pytest.raises(Stopped):
            lightgbm.train(PLAIN, data(), 50, callbacks=[stop, saves])
    assert store.get(name).step == 3


@pytest.mark.parametrize(
    "params",
    [
        {"n_estimators": 7},
        {"early_stopping_rounds": 3, "learning_rate": 0.9},
        {"n_iter_no_change": 8, "learning_rate": 0.9},
        {"early_stopping_round": 3, "early_stopping_min_delta": 0.05},
        {"early_stopping": 3, "metric": ["l2", "l1"], "first_metric_only": True},
    ],
)
def test_what_params_ask_of_the_whole_training_is_not_asked_of_each_segment(store, name, params):
    training = data()
    plain = lightgbm.train(
        {**PLAIN, **params}, training, 60, valid_sets=[data(1, reference=training)]
    )
    ours = train(store, name, 60, {**PLAIN, **params}, with_test=True)
    assert ours.num_trees() == (max(plain.best_iteration, 0) or plain.num_trees())
    assert ours.num_trees() < 60


@pytest.mark.parametrize("rates", [[0.5 * 0.8**n for n in range(9)], lambda n: 0.5 * 0.8**n])
def test_parameters_that_change_by_round_count_from_the_first(store, name, rates):
    seen = []

    def note(env):
        seen.append(env.params["learning_rate"])

    note.order = 50
    with store.run(name) as run:
        casckpt_lightgbm.train(
            run,
            PLAIN,
            data(),
            9,
            every=4,
            callbacks=[lightgbm.reset_parameter(learning_rate=rates), note],
        )
    assert seen == pytest.approx([0.5 * 0.8**n for n in range(9)])


@pytest.mark.parametrize("order", [None, 40])
@pytest.mark.parametrize("at", [3, 5, 7, 10, 12])
def test_a_callback_that_ends_the_training_says_what_its_best_round_is(store, name, at, order):
    def stop(env):
        if env.iteration + 1 == at:
            raise lightgbm.callback.EarlyStopException(at - 3, env.evaluation_result_list)

    if order is not None:
        stop.order = order
    training = data(free_raw_data=False)
    valid = [data(1, reference=training, free_raw_data=False)]
    plain = lightgbm.train(PLAIN, training, 12, valid_sets=valid, callbacks=[stop])
    log: dict[str, dict[str, list[float]]] = {}

    def ours(total, *callbacks):
        with store.run(name) as run:
            return casckpt_lightgbm.train(
                run, PLAIN, training, total, every=5, valid_sets=valid,
                callbacks=callbacks, evals_result=log,
            )  # fmt: skip

    for callbacks in ([stop], []):  # the second time it is not asked again
        booster = ours(12, *callbacks)
        assert text(booster) == text(plain)
        assert booster.best_iteration == plain.best_iteration == at - 2
        assert booster.best_score == {"valid_0": dict(plain.best_score["valid_0"])}
    assert store.get(name).step == at
    whole = ours(14)
    assert whole.best_iteration == 0
    assert text(whole) == text(lightgbm.train(PLAIN, data(), 14))
    assert len(log["valid_0"]["l2"]) == 14
    assert whole.best_score == {"valid_0": {"l2": log["valid_0"]["l2"][-1]}}


def test_callbacks_are_called_as_lightgbm_calls_them(store, name):
    def calls(train):
        seen, log = [], {}

        def note(env):
            seen.append((env.iteration, len(log.get("valid_0", {}).get("l2", ()))))

        training = data()
        train(
            training, [data(1, reference=training)], [note, lightgbm.record_evaluation(log), note]
        )
        return seen, {key: dict(value) for key, value in log.items()}

    params = {**PLAIN, "early_stopping_round": 3, "learning_rate": 0.9}

    def ours(training, valid, callbacks):
        with store.run(name) as run:
            casckpt_lightgbm.train(
                run, params, training, 60, every=60, valid_sets=valid, callbacks=callbacks
            )

    def plain(training, valid, callbacks):
        lightgbm.train(params, training, 60, valid_sets=valid, callbacks=callbacks)

    assert calls(ours) == calls(plain)


@pytest.mark.parametrize("alias", ["boosting", "boosting_type", "boost"])
@pytest.mark.parametrize("asked", ["params", "argument", "callback"])
def test_with_dart_there_is_no_early_stopping(store, name, alias, asked):
    params = {**PLAIN, alias: "dart", "num_leaves": 31, "verbosity": 0}
    options = {}
    if asked == "params":
        params["early_stopping_rounds"] = 2
    elif asked == "argument":
        options["early_stopping_rounds"] = 2
    else:
        options["callbacks"] = [lightgbm.early_stopping(2, verbose=False)]
    training = data()
    valid = [data(1, reference=training)]
    warning = "Early stopping is not available in dart mode"
    with pytest.warns(UserWarning, match=warning), store.run(name) as run:
        booster = casckpt_lightgbm.train(
            run, params, training, 30, every=30, valid_sets=valid, **options
        )
    params.pop("early_stopping_rounds", None)
    plain = lightgbm.train(params, training, 30, valid_sets=valid)
    assert (booster.num_trees(), booster.best_iteration) == (30, 0)
    assert text(booster) == text(plain)
    assert booster.best_score == {"valid_0": dict(plain.best_score["valid_0"])}


def test_early_stopping_after_no_rounds_is_none(store, name):
    booster = train(store, name, 7, PLAIN, with_test=True, early_stopping_rounds=0)
    assert booster.num_trees() == 7
    training = data()
    with store.run(f"{name}-2") as run:
        booster = casckpt_lightgbm.train(
            run, PLAIN, training, 7, valid_sets=[data(1, reference=training)],
            callbacks=[lightgbm.early_stopping(0, verbose=False)],
        )  # fmt: skip
    assert booster.num_trees() == 7


@pytest.mark.parametrize("how", ["train", "callback"])
def test_without_a_with_signals_are_the_programs_own_again_when_it_was_left(store, name, how):
    mine = signal.getsignal(signal.SIGINT)

    def interrupt(env):
        time.sleep(0.3)  # the watch looks a few times a second
        os.kill(os.getpid(), signal.SIGINT)

    interrupt.order = 1
    runs = []

    def cell(*callbacks):
        run = store.run(name)
        runs.append(run)
        if how == "train":
            return casckpt_lightgbm.train(run, PLAIN, data(), 9, every=3, callbacks=callbacks)
        saves = casckpt_lightgbm.Callback(run, every=3)
        left = 9 - casckpt_lightgbm.rounds(run)
        booster = lightgbm.train(
            PLAIN,
            data(),
            left,
            init_model=casckpt_lightgbm.model(run),
            callbacks=[*callbacks, saves],
        )
        saves.finish(booster)
        return booster

    with pytest.raises(KeyboardInterrupt):
        cell(interrupt)
    assert signal.getsignal(signal.SIGINT) is mine
    assert cell().current_iteration() == 9
    assert signal.getsignal(signal.SIGINT) is mine
    for run in runs:
        run.close()


@pytest.mark.parametrize("every", [1, 2, 4])
def test_a_training_that_finds_nothing_more_to_split_is_done(store, name, every):
    params = {**PLAIN, "min_gain_to_split": 2.0, "learning_rate": 0.9}
    plain = lightgbm.train(params, data(), 12)
    assert 1 < plain.num_trees() < 12
    for _ in range(2):
        with store.run(name) as run:
            booster = casckpt_lightgbm.train(run, params, data(), 12, every=every)
        assert text(booster) == text(plain)


def test_other_parameters_are_told_where_rounds_are_there(store, name, caplog):
    train(store, name, 10)
    train(store, name, 10, early_stopping_rounds=3, with_test=True)
    assert "other parameters" not in caplog.text
    train(store, name, 15, {**BAGGED, "num_leaves": 5})
    told = "other parameters than its 10 rounds were trained with: num_leaves: 7 -> 5; they count"
    assert f"{name}: {told}" in caplog.text
