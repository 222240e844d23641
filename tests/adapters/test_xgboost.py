"""`casckpt.xgboost`: rounds in all, exact segments, early stopping, callbacks; killed, resumed."""

from __future__ import annotations

import base64
import json
import os
import pickle
import signal
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import xgboost
import zstandard

import casckpt
import casckpt.xgboost
from casckpt.adapters.xgboost_parts import HANDLER
from casckpt.checkpoint.boosters import tree_edges
from casckpt.errors import BadRequest
from tests.adapters.kills import check

PLAIN = {"max_depth": 3, "eta": 0.3, "nthread": 1, "tree_method": "hist"}
SAMPLED = {**PLAIN, "subsample": 0.7, "colsample_bytree": 0.6, "colsample_bynode": 0.7, "seed": 5}


def data(seed=0, count=300):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6)).astype("float32")
    target = features[:, 0] * features[:, 1] + rng.normal(size=count) * 0.5
    return xgboost.DMatrix(features, target)


def raw(booster):
    return bytes(booster.save_raw("ubj"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("xgboost") / "store") as store:
        yield store


@pytest.fixture
def name(request):
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


class Interrupted(Exception):
    pass


class InterruptAt(xgboost.callback.TrainingCallback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def after_iteration(self, model, epoch, evals_log):
        if epoch + 1 == self.at:
            raise Interrupted
        return False


def train(store, name, total, params=SAMPLED, *, every=5, at=None, **options):
    options.setdefault("verbose_eval", False)
    callbacks = [*options.pop("callbacks", []), *([InterruptAt(at)] if at else [])]
    with store.run(name) as run:
        return casckpt.xgboost.train(
            run, params, data(), total, every=every, callbacks=callbacks, **options
        )


@pytest.mark.parametrize(
    "params",
    [
        PLAIN,
        {**PLAIN, "tree_method": "exact"},
        {**PLAIN, "tree_method": "approx"},
        {"booster": "gblinear", "nthread": 1},
    ],
    ids=["hist", "exact", "approx", "gblinear"],
)
def test_without_sampling_it_is_plain_train(store, name, params):
    assert raw(train(store, name, 12, params)) == raw(xgboost.train(params, data(), 12))


@pytest.mark.parametrize("at", [1, 4, 5, 6, 11, 12])
@pytest.mark.parametrize(
    "params",
    [
        SAMPLED,
        {**SAMPLED, "booster": "dart", "rate_drop": 0.4},
        {**SAMPLED, "num_parallel_tree": 3},
        {**SAMPLED, "tree_method": "approx", "max_bin": 8},
    ],
    ids=["sampled", "dart", "forest", "approx"],
)
def test_interrupted_is_uninterrupted(store, name, params, at):
    whole = train(store, f"{name}-whole", 12, params)
    with pytest.raises(Interrupted):
        train(store, name, 12, params, at=at)
    assert raw(train(store, name, 12, params)) == raw(whole)


def test_a_matrix_that_something_else_was_trained_on_makes_no_difference(store, name):
    params, training = {**SAMPLED, "tree_method": "approx"}, data()
    xgboost.train({**params, "seed": 9}, training, 2)
    with store.run(name) as run:
        booster = casckpt.xgboost.train(run, params, training, 8, every=4)
    assert raw(booster) == raw(train(store, f"{name}-new", 8, params, every=4))


def test_early_stopping_and_history_go_on(store, name):
    options = {
        "evals": [(data(0), "train"), (data(1, 100), "test")],
        "early_stopping_rounds": 6,
    }
    plain_log, whole_log, log = {}, {}, {}
    plain = xgboost.train(PLAIN, data(), 200, verbose_eval=False, evals_result=plain_log, **options)
    whole = train(store, f"{name}-whole", 200, PLAIN, evals_result=whole_log, **options)
    assert whole.best_iteration == plain.best_iteration
    assert whole.num_boosted_rounds() == plain.num_boosted_rounds() < 200
    for at in (3, plain.best_iteration + 3):
        run = f"{name}-{at}"
        with pytest.raises(Interrupted):
            train(store, run, 200, PLAIN, at=at, **options)
        log.clear()
        resumed = train(store, run, 200, PLAIN, evals_result=log, **options)
        assert raw(resumed) == raw(whole) == raw(plain)
        assert (resumed.best_iteration, resumed.best_score) == (
            plain.best_iteration,
            plain.best_score,
        )
        assert log == whole_log == plain_log


def test_save_best_returns_the_best_and_goes_on_from_the_last(store, name):
    def stop(rounds):
        return [xgboost.callback.EarlyStopping(rounds=rounds, save_best=True)]

    options = {"evals": [(data(1, 100), "test")]}
    plain = xgboost.train(PLAIN, data(), 200, verbose_eval=False, callbacks=stop(4), **options)
    ours = train(store, name, 200, PLAIN, callbacks=stop(4), **options)
    assert ours.num_boosted_rounds() == plain.num_boosted_rounds()
    longer = xgboost.train(PLAIN, data(), 200, verbose_eval=False, callbacks=stop(9), **options)
    assert raw(train(store, name, 200, PLAIN, callbacks=stop(9), **options)) == raw(longer)


def test_a_learning_rate_schedule_sees_one_training(store, name):
    def schedule():
        return xgboost.callback.LearningRateScheduler(lambda epoch: 0.5 * 0.9**epoch)

    plain = xgboost.train(PLAIN, data(), 12, callbacks=[schedule()])
    assert raw(train(store, name, 12, PLAIN, callbacks=[schedule()])) == raw(plain)


@pytest.mark.parametrize("given", ["eta", "learning_rate"])
@pytest.mark.parametrize("names", [["eta"], ["learning_rate"], ["eta", "learning_rate", "eta"]])
def test_what_a_callback_sets_stays_under_either_name(store, name, given, names):
    class Set(xgboost.callback.TrainingCallback):
        def before_iteration(self, model, epoch, evals_log):
            if epoch in (2, 3, 4) and epoch - 2 < len(names):
                model.set_param(names[epoch - 2], 0.3 / epoch)
            return False

    params = {**{k: v for k, v in PLAIN.items() if k not in ("eta", "learning_rate")}, given: 0.5}
    plain = xgboost.train(params, data(), 12, callbacks=[Set()])
    ours = train(store, name, 12, params, callbacks=[Set()])
    assert np.array_equal(ours.predict(data(1)), plain.predict(data(1)))


def test_an_objective_draws_from_the_process_as_if_never_interrupted(store, name):
    def noisy(predicted, training):
        return (predicted - training.get_label()) * np.random.random(len(predicted)), predicted**0

    def booster(run_name, at=None):
        np.random.seed(1)
        return raw(train(store, run_name, 12, PLAIN, obj=noisy, at=at))

    whole = booster(f"{name}-whole")
    with pytest.raises(Interrupted):
        booster(name, at=8)
    assert booster(name) == whole


def test_a_finished_training_returns_the_stored_booster_and_trains_nothing(store, name):
    first = train(store, name, 10)
    assert raw(train(store, name, 10, at=1)) == raw(first)
    assert raw(train(store, name, 7, at=1)) == raw(first)


def test_a_callback_that_has_stopped_it_is_obeyed_the_next_time_too(store, name):
    class StopAfter(xgboost.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            return epoch + 1 == 7

    first = train(store, name, 12, callbacks=[StopAfter()])
    assert first.num_boosted_rounds() == 7
    assert raw(train(store, name, 12, at=8, callbacks=[StopAfter()])) == raw(first)
    assert train(store, name, 14).num_boosted_rounds() == 14


def test_more_rounds_go_on(store, name):
    train(store, name, 7)
    longer = train(store, name, 15)
    assert longer.num_boosted_rounds() == 15
    assert raw(longer[:7]) == raw(train(store, f"{name}-7", 7)[:7])


def test_a_later_every_only_chooses_what_is_kept(store, name):
    whole = train(store, f"{name}-whole", 20)
    with pytest.raises(Interrupted):
        train(store, name, 20, at=7)
    assert raw(train(store, name, 20, every=8)) == raw(whole)
    assert [checkpoint.step for checkpoint in store.checkpoints(name)] == [5, 10, 20]


def test_metrics_are_those_of_the_round(store, name):
    log = {}
    train(store, name, 10, evals=[(data(1), "test")], evals_result=log)
    for checkpoint in store.checkpoints(name):
        assert checkpoint.metrics == {"test-rmse": log["test"]["rmse"][checkpoint.step - 1]}
    series = store.history(name)["test-rmse"]
    assert [value for _, value in series][-10:] == pytest.approx(log["test"]["rmse"])


def test_a_run_of_something_else_is_refused(store, name):
    store.save(name, {"weights": 1})
    with pytest.raises(BadRequest, match="no training of xgboost"):
        train(store, name, 5)


def test_the_callback_saves_for_those_who_call_train(store, name):
    with store.run(name) as run:
        xgboost.train(PLAIN, data(), 7, callbacks=[casckpt.xgboost.Callback(run, every=3)])
    with store.run(name) as run:
        assert casckpt.xgboost.rounds(run) == 7
        booster = xgboost.train(
            PLAIN,
            data(),
            12 - casckpt.xgboost.rounds(run),
            xgb_model=casckpt.xgboost.model(run),
            callbacks=[casckpt.xgboost.Callback(run, every=3)],
        )
    assert [checkpoint.step for checkpoint in store.checkpoints(name)] == [3, 6, 7, 9, 12]
    assert raw(booster) == raw(xgboost.train(PLAIN, data(), 12))


@pytest.mark.parametrize("how", ["train", "callback"])
def test_without_a_with_signals_are_the_programs_own_again_when_it_was_left(store, name, how):
    mine = signal.getsignal(signal.SIGINT)
    caught, runs = [], []

    class Interrupt(xgboost.callback.TrainingCallback):
        def after_iteration(self, model, epoch, evals_log):
            caught.append(signal.getsignal(signal.SIGINT) is not mine)
            time.sleep(0.3)  # the watch looks a few times a second
            os.kill(os.getpid(), signal.SIGINT)
            return False

    def cell(*callbacks):
        run = store.run(name)
        runs.append(run)
        if how == "train":
            return casckpt.xgboost.train(
                run, PLAIN, data(), 9, every=3, callbacks=callbacks, verbose_eval=False
            )
        left = 9 - casckpt.xgboost.rounds(run)
        return xgboost.train(
            PLAIN,
            data(),
            left,
            xgb_model=casckpt.xgboost.model(run),
            callbacks=[*callbacks, casckpt.xgboost.Callback(run, every=3)],
        )

    with pytest.raises(KeyboardInterrupt):
        cell(Interrupt())
    assert caught == [True]
    assert signal.getsignal(signal.SIGINT) is mine
    assert cell().num_boosted_rounds() == 9
    assert signal.getsignal(signal.SIGINT) is mine
    for run in runs:
        run.close()


def test_what_a_run_goes_on_from_draws_by_the_seed_of_the_caller(store, name):
    with store.run(name) as run:
        xgboost.train(SAMPLED, data(), 5, callbacks=[casckpt.xgboost.Callback(run, every=5)])
        made = [
            raw(xgboost.train(SAMPLED, data(), 5, xgb_model=casckpt.xgboost.model(run)))
            for _ in range(3)
        ]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("params", [PLAIN, {"booster": "gblinear"}, {**PLAIN, "num_class": 3}])
def test_a_booster_in_a_state_comes_back_byte_for_byte(store, name, params):
    matrix = data()
    if "num_class" in params:
        params = {**params, "objective": "multi:softprob"}
        matrix.set_label(np.arange(300) % 3)
    booster = xgboost.train(params, matrix, 20)
    booster.set_attr(note="a [$d#L in an attribute")
    store.save(name, {"model": booster, "epoch": 3})
    assert raw(store.restore(name)["model"]) == raw(booster)
    state = {"model": None, "epoch": 0}
    store.restore(name, into=state)
    assert raw(state["model"]) == raw(booster)


@pytest.mark.parametrize(
    "params", [{**PLAIN, "eta": 0.01}, {"booster": "gblinear", "updater": "coord_descent"}]
)
def test_a_restored_booster_goes_on_with_its_parameters(store, name, params):
    matrix = data()
    booster = xgboost.train({**params, "eval_metric": ["mae", "rmse"]}, matrix, 5)
    first = store.save(name, {"model": booster})
    restored = store.restore(name)["model"]
    assert restored.save_config() == booster.save_config()
    second = store.save(name, {"model": restored})
    assert [one.blob for one in store.entries(first)] == [one.blob for one in store.entries(second)]
    assert first.logical_bytes - len(raw(booster)) < 2048
    # As a pickled one does: not exactly as the original for all kinds of training.
    pickled = pickle.loads(pickle.dumps(booster))
    for one in (restored, pickled):
        one.update(matrix, 5)
    assert raw(restored) == raw(pickled)


def test_a_booster_of_a_store_of_before_comes_back_without_parameters(caplog):
    booster = xgboost.train({**PLAIN, "eta": 0.01}, data(), 5)
    assert raw(HANDLER.build("booster", "ubj", [raw(booster)], None)) == raw(booster)
    assert not caplog.records


def edited(booster, version=None, **generic):
    config = json.loads(booster.save_config())
    config["version"] = version or config["version"]
    config["learner"]["generic_param"].update(generic)
    return json.dumps(config).encode()


REFUSED = {
    "no such device": lambda booster: edited(booster, device="sycl:gpu"),
    "of no known device": lambda booster: edited(booster, device="abacus"),
    "another version": lambda booster: edited(booster, version=[1, 7, 0]),
    "no parameters": lambda booster: json.dumps(
        {**json.loads(edited(booster)), "learner": {}}
    ).encode(),
    "no version": lambda _: b"{}",
    "no object": lambda _: b"[]",
    "no JSON": lambda _: b"eta=0.3",
    "no text": lambda _: b"\xff\xfe",
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # xgboost says so too
@pytest.mark.parametrize("why", REFUSED)
def test_parameters_that_this_xgboost_refuses_do_not_keep_the_model_away(why, caplog):
    matrix = data()
    booster = xgboost.train({**PLAIN, "eta": 0.01}, matrix, 5)
    back = HANDLER.build("booster", "ubj", [raw(booster), REFUSED[why](booster)], None)
    assert "restored without its parameters" in caplog.text
    assert raw(back) == raw(booster)
    assert np.array_equal(back.predict(matrix), booster.predict(matrix))
    back.update(matrix, 5)


@pytest.mark.filterwarnings("ignore::UserWarning")  # xgboost says so too
def test_a_booster_of_a_machine_with_cuda_works_on_one_without():
    matrix = data()
    booster = xgboost.train({**PLAIN, "eta": 0.01}, matrix, 5)
    config = edited(booster, device="cuda:0", fail_on_invalid_gpu_id="1")
    back = HANDLER.build("booster", "ubj", [raw(booster), config], None)
    assert np.array_equal(back.predict(matrix), booster.predict(matrix))
    back.update(matrix, 5)


def test_boosters_in_pieces_of_stores_of_before_come_back():
    known = json.loads(Path(__file__).with_name("xgboost_pieces.json").read_text())
    pieces = [base64.b85decode(piece) for piece in known["pieces"]]
    booster = HANDLER.build("booster", None, pieces, None)
    assert raw(booster) == base64.b85decode(known["raw"])


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_trees_are_found_in_bytes_and_any_bytes_give_places_in_them(form):
    rng = np.random.default_rng(0)
    booster = xgboost.train({**PLAIN, "num_parallel_tree": 2}, data(), 30).save_raw(form)
    edges = tree_edges(booster)
    assert len(edges) == 61
    trees = [bytes(booster[start:end]) for start, end in pairwise(edges)]
    assert all(b"base_weights" in tree[:30] and b"tree_param" in tree for tree in trees)
    for trial in range(50):
        mutated = bytearray(booster)
        for place in rng.integers(0, len(booster), trial):
            mutated[place] = rng.integers(0, 256)
        document = bytes(mutated[: int(rng.integers(0, len(booster)))])
        edges = tree_edges(document)
        assert edges == sorted(set(edges))
        assert all(0 <= edge <= len(document) for edge in edges)


@pytest.mark.parametrize("form", ["ubj", "json"])
def test_a_growing_booster_as_bytes_shares_its_trees(store, name, form):
    booster, stored = None, []
    for step in range(1, 21):
        booster = xgboost.train({**SAMPLED, "max_depth": 6}, data(0, 2000), 10, xgb_model=booster)
        model = bytes(booster.save_raw(form))
        stored.append(store.save(name, {"model": model}, step).stored_bytes)
    assert store.restore(name) == {"model": model}
    assert sum(stored) < 1.5 * len(zstandard.compress(model, 3))


def test_a_growing_booster_shares_its_trees(store, name):
    params = {**SAMPLED, "max_depth": 6}
    checkpoints = []
    with store.run(name) as run:
        casckpt.xgboost.train(run, params, data(0, 2000), 200, every=10)
        checkpoints = store.checkpoints(name)
    assert len(checkpoints) == 20
    final = max(checkpoints, key=lambda one: one.step)
    assert sum(one.new_bytes for one in checkpoints) < 1.4 * final.logical_bytes


PROGRAM = """
import sys
import numpy as np, xgboost
import casckpt, casckpt.xgboost

rng = np.random.default_rng(0)
X = rng.normal(size=(2000, 10)).astype("float32")
y = X[:, 0] * X[:, 1] + rng.normal(size=2000)
train, test = xgboost.DMatrix(X[:1500], y[:1500]), xgboost.DMatrix(X[1500:], y[1500:])
log = {}
with casckpt.open(sys.argv[1]) as store, store.run("kill/xgboost") as run:
    print("begin", flush=True)
    booster = casckpt.xgboost.train(
        run,
        {"max_depth": 6, "eta": 0.02, "subsample": 0.7, "colsample_bynode": 0.6, "nthread": 1},
        train, 400, every=10, evals=[(test, "test")], early_stopping_rounds=200,
        evals_result=log, verbose_eval=False,
    )
open(sys.argv[2], "wb").write(bytes(booster.save_raw("ubj")) + repr(dict(log)).encode())
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_it_makes_the_same_booster(tmp_path):
    program = tmp_path / "train_xgboost.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="xgboost")


def test_other_parameters_are_told_where_rounds_are_there(store, name, caplog):
    train(store, name, 10)
    train(store, name, 10)
    assert "other parameters" not in caplog.text
    train(store, name, 15, {**SAMPLED, "eta": 0.1, "nthread": 2})
    told = "other parameters than its 10 rounds were trained with: eta: 0.3 -> 0.1; they count"
    assert f"{name}: {told}" in caplog.text
    assert "nthread" not in caplog.text
    caplog.clear()
    train(store, name, 20, {**SAMPLED, "eta": 0.1})
    assert "other parameters" not in caplog.text


@pytest.mark.parametrize("total", ["5", 2.5, True, 0])
def test_rounds_are_whole_numbers(store, name, total):
    with pytest.raises(BadRequest, match=r"num_boost_round=.*\n.*whole number from 1 on"):
        train(store, name, total)
    assert train(store, name, np.int64(2)).num_boosted_rounds() == 2
