"""`casckpt.lightgbm`: what it does to the Datasets that it is given, which is nothing."""

from __future__ import annotations

import numpy as np
import pytest

import casckpt

lightgbm = pytest.importorskip("lightgbm")
casckpt_lightgbm = pytest.importorskip("casckpt.lightgbm")

PLAIN = {"num_leaves": 7, "num_threads": 1, "verbosity": -1, "deterministic": True, "metric": "l2"}
CLASSES = {**PLAIN, "metric": "multi_logloss", "objective": "multiclass", "num_class": 3}


def data(count=400, seed=0, **options):
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6))
    return lightgbm.Dataset(features, features[:, 0] * features[:, 1] + 10, **options)


def scored(count=400, seed=0, classes=0, **options):
    """Return a Dataset that begins from a score of its owner's."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 6))
    score = rng.normal(size=(count, classes)) if classes else 20 * features[:, 2]
    target = features[:, 0] * features[:, 1]
    target = np.digitize(target, [-0.3, 0.3]) if classes else target + score + 10
    return lightgbm.Dataset(features, target, init_score=score, **options)


def datasets(kind):
    if kind == "own score":
        training = scored()
        return training, [scored(200, 1, reference=training)]
    if kind == "own scores of classes":
        training = scored(classes=3)
        return training, [scored(200, 1, 3, reference=training)]
    if kind == "constructed":
        training = scored(free_raw_data=False).construct()
        return training, [scored(200, 1, reference=training, free_raw_data=False).construct()]
    if kind == "validated on itself":
        training = data()
        return training, [training]
    if kind == "validated on a part":
        training = scored()
        return training, [training.subset(range(50, 150))]
    whole = scored(free_raw_data=False) if kind == "parts" else data(free_raw_data=False)
    return whole.subset(range(300)), [whole.subset(range(300, 400))]


def text(booster):
    return booster.model_to_string(num_iteration=-1).partition("end of trees")[0]


class Interrupted(Exception):
    pass


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


@pytest.mark.parametrize(
    "kind",
    [
        "own score",
        "own scores of classes",
        "constructed",
        "validated on itself",
        "validated on a part",
        "parts",
        "parts without a score",
    ],
)
def test_datasets_keep_the_scores_of_their_owner(store, kind):
    params = CLASSES if "classes" in kind else PLAIN
    expected: dict[str, object] = {}
    training, valid = datasets(kind)
    plain = lightgbm.train(
        params,
        training,
        12,
        valid_sets=valid,
        callbacks=[lightgbm.record_evaluation(expected)],
    )
    training, valid = datasets(kind)

    def ours(name, at=None):
        def interrupt(env):
            if env.iteration + 1 == at:
                raise Interrupted

        log: dict[str, object] = {}
        with store.run(name) as run:
            booster = casckpt_lightgbm.train(
                run, params, training, 12, every=5, valid_sets=valid,
                callbacks=[interrupt], evals_result=log,
            )  # fmt: skip
        return booster, log

    # All of them on the same Datasets, which the ones before have to leave as they were.
    for at in (3, 7, 12):
        with pytest.raises(Interrupted):
            ours("a", at)
    for name in ("a", "b"):
        booster, log = ours(name)
        assert text(booster) == text(plain)
        assert log == expected
    # And resumed, on Datasets that no segment of this process has seen.
    with pytest.raises(Interrupted):
        ours("c", 7)
    training, valid = datasets(kind)
    booster, log = ours("c")
    assert (text(booster), log) == (text(plain), expected)
    assert all(one._predictor is None for one in (training, *valid))
    assert text(lightgbm.train(params, training, 12, valid_sets=valid)) == text(plain)


def test_a_dataset_that_has_predictions_of_another_training_begins_as_in_lightgbm(store):
    def used():
        training = data(free_raw_data=False)
        lightgbm.train(PLAIN, training, 3, init_model=lightgbm.train(PLAIN, data(), 2))
        return training

    plain = lightgbm.train(PLAIN, used(), 12)
    training = used()
    before = training._predictor, training.init_score
    with store.run("a") as run:
        assert text(casckpt_lightgbm.train(run, PLAIN, training, 12, every=5)) == text(plain)
    assert training._predictor is before[0]
    assert np.array_equal(training.get_field("init_score"), before[1])
