"""Boosters, estimators and studies of other files: whole, going on, and never run as code."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest, CasckptError, Corrupt, PickleRefused
from tests.unit.training.pickles import Evil, dump

X = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
Y = X[:, 0] * X[:, 1]


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


# ---- boosters


@pytest.mark.parametrize("kind", ["pickle", "json", "ubj", "model"])
def test_boosters_of_xgboost_go_on(store, tmp_path, kind):
    xgboost = pytest.importorskip("xgboost")
    import casckpt.xgboost

    params = {"max_depth": 3, "nthread": 1}
    old = tmp_path / "old"
    old.mkdir()
    data = xgboost.DMatrix(X, Y)
    for rounds in (10, 20):
        booster = xgboost.train(params, data, rounds)
        if kind == "pickle":
            dump(old / f"xgb_{rounds}.pkl", booster)
        elif kind == "model":
            model = xgboost.XGBRegressor(n_estimators=rounds, max_depth=3, n_jobs=1)
            model._Booster = booster
            dump(old / f"xgb_{rounds}.pkl", model, 2)
        else:
            booster.save_model(old / f"xgb_{rounds}.{kind}")
    assert [one.step for one in store.import_files("bpm", old)] == [10, 20]
    with store.run("bpm") as run:
        on = casckpt.xgboost.train(run, params, data, 30)
    whole = xgboost.train(params, data, 30)
    assert on.save_raw("ubj") == whole.save_raw("ubj")
    assert store.get("bpm").step == 30
    store.export("bpm", tmp_path / "out.ubj")
    assert xgboost.Booster(model_file=tmp_path / "out.ubj").num_boosted_rounds() == 30


@pytest.mark.parametrize("kind", ["pickle", "text", "model"])
def test_boosters_of_lightgbm_go_on(store, tmp_path, kind):
    lightgbm = pytest.importorskip("lightgbm")
    import casckpt.lightgbm

    params = {"verbose": -1, "num_threads": 1, "deterministic": True, "min_data_in_leaf": 5}
    old = tmp_path / "old"
    old.mkdir()
    for rounds in (10, 20):
        booster = lightgbm.train(params, lightgbm.Dataset(X, Y), rounds)
        if kind == "text":
            booster.save_model(old / f"lgb_{rounds}.txt")
        elif kind == "pickle":
            dump(old / f"lgb_{rounds}.pkl", booster)
        else:
            model = lightgbm.LGBMRegressor(n_estimators=rounds, verbose=-1, min_child_samples=5)
            dump(old / f"lgb_{rounds}.pkl", model.fit(X, Y))
    store.import_files("bpm", old)
    imported = store.restore("bpm@20")
    assert imported["rounds"] == imported["booster"].current_iteration() == 20
    with store.run("bpm") as run:
        on = casckpt.lightgbm.train(run, params, lightgbm.Dataset(X, Y), 30)
    assert on.current_iteration() == 30


def test_a_booster_inside_a_state_stays_where_it_is(store, tmp_path):
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.train({"max_depth": 2, "nthread": 1}, xgboost.DMatrix(X, Y), 3)
    (made,) = store.import_files("r", dump(tmp_path / "state.pkl", {"model": booster}))
    assert made.ref == "r@0"
    assert store.restore("r")["model"].save_raw("ubj") == booster.save_raw("ubj")


# ---- estimators


def estimators():
    sklearn = pytest.importorskip("sklearn")
    from sklearn.ensemble import (
        GradientBoostingRegressor,
        HistGradientBoostingRegressor,
        RandomForestClassifier,
    )
    from sklearn.linear_model import LogisticRegression, SGDClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert sklearn
    return [
        GradientBoostingRegressor(n_estimators=5, random_state=0),
        GradientBoostingRegressor(n_estimators=5, random_state=np.random.RandomState(3)),
        RandomForestClassifier(n_estimators=4, random_state=0),
        HistGradientBoostingRegressor(max_iter=3, random_state=0),
        SGDClassifier(random_state=0),
        MLPClassifier((5,), max_iter=300, tol=1e9, random_state=0),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ]


@pytest.mark.parametrize("protocol", [2, 4, 5, "joblib"])
@pytest.mark.parametrize("at", range(7))
def test_estimators_come_by_their_arrays(store, tmp_path, at, protocol):
    estimator = estimators()[at]
    labels = np.where(Y > 0, "fast", "slow") if hasattr(estimator, "classes_") or at in (
        2, 4, 5, 6) else Y  # fmt: skip
    estimator.fit(X, labels)
    if protocol == "joblib":
        path = tmp_path / "model.joblib"
        pytest.importorskip("joblib").dump({"model": estimator, "epoch": 4}, path, compress=3)
    else:
        path = dump(tmp_path / "model.pkl", {"model": estimator, "epoch": 4}, protocol)
    (made,) = store.import_files("fitted", path)
    assert made.step == 4
    back = store.restore("fitted")["model"]
    assert type(back) is type(estimator)
    assert (back.predict(X) == estimator.predict(X)).all()


# ---- studies


def objective(trial):
    trial.report(trial.suggest_float("rate", 1e-3, 1, log=True), 1)
    trial.set_user_attr("seen", [1, "two"])
    kind = trial.suggest_categorical("kind", ["a", "b", None])
    return trial.params["rate"] * trial.suggest_int("depth", 1, 9, step=2) + (kind == "a")


def make_study(optuna, storage=None, name="search", trials=12):
    study = optuna.create_study(
        storage=storage, study_name=name, direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=3, multivariate=True),
        pruner=optuna.pruners.MedianPruner(5),
    )  # fmt: skip
    study.optimize(objective, trials)
    study.set_user_attr("note", "old")
    return study


def facts(study):
    return [
        (t.number, t.state, t.params, t.distributions, t.values, t.intermediate_values,
         t.user_attrs, t.datetime_start)
        for t in study.trials
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("kind", ["pickle", "sqlite", "journal"])
def test_studies_come_whole_and_go_on(store, tmp_path, kind):
    optuna = pytest.importorskip("optuna")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    import casckpt.optuna

    path = tmp_path / {"pickle": "study.pkl", "sqlite": "study.db", "journal": "study.log"}[kind]
    if kind == "pickle":
        study = make_study(optuna)
        dump(path, study)
    elif kind == "sqlite":
        study = make_study(optuna, f"sqlite:///{path}")
    else:
        study = make_study(optuna, JournalStorage(JournalFileBackend(str(path))))
    before = path.read_bytes()
    (made,) = store.import_files("search", path)
    assert path.read_bytes() == before
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted({path.name, "store"})
    assert made.step == 12
    assert facts(store.restore("search")["study"]) == facts(study)
    with store.run("search") as run:
        on = casckpt.optuna.optimize(run, objective, 15, direction="maximize")
    assert facts(on)[:12] == facts(study)
    assert len(on.trials) == 15
    assert on.user_attrs["note"] == "old"


def test_a_file_of_several_studies_is_several_runs(store, tmp_path):
    optuna = pytest.importorskip("optuna")
    for name in ("one", "the other"):
        make_study(optuna, f"sqlite:///{tmp_path / 'all.db'}", name, trials=3)
    made = store.import_files("search", tmp_path / "all.db")
    assert {(one.run, one.step) for one in made} == {("search/one", 3), ("search/the_other", 3)}


def test_a_pickled_study_whose_trials_are_elsewhere_says_where(store, tmp_path):
    optuna = pytest.importorskip("optuna")
    study = make_study(optuna, f"sqlite:///{tmp_path / 'study.db'}", trials=1)
    dump(tmp_path / "study.pkl", study)
    with pytest.raises(CasckptError, match=r"study.pkl"):
        store.import_files("search", tmp_path / "study.pkl")


# ---- hostile files


def test_code_inside_an_object_of_a_framework_is_refused(store, tmp_path):
    optuna = pytest.importorskip("optuna")
    linear = pytest.importorskip("sklearn.linear_model")
    study = make_study(optuna, trials=1)
    study.sampler._rng = Evil()
    model = linear.LogisticRegression().fit(X, Y > 0)
    model.extra_ = Evil()
    for name, value in (("study.pkl", study), ("model.pkl", model)):
        with pytest.raises(PickleRefused, match="system"):
            store.import_files("r", dump(tmp_path / name, value))
    assert store.runs() == []


@pytest.mark.parametrize(
    "payload",
    [
        b"csklearn.utils._testing\nset_random_state\n(tR.",
        b"csklearn.datasets._base\nload_files\n(S'/'\ntR.",
        b"cxgboost.core\n_load_lib\n(tR.",
        b"cxgboost.sklearn\nos\n(tR.",
        b"clightgbm.basic\n_safe_call\n(I0\ntR.",
    ],
)
def test_functions_of_frameworks_are_refused(store, tmp_path, payload):
    for name in ("sklearn", "xgboost", "lightgbm"):
        pytest.importorskip(name)
    path = tmp_path / "x.pkl"
    path.write_bytes(payload)
    with pytest.raises(PickleRefused):
        store.import_files("r", path)


def test_readers_of_boosters_that_die_of_a_file_take_nothing_with_them(store, tmp_path):
    xgboost = pytest.importorskip("xgboost")
    booster = xgboost.train({"max_depth": 2}, xgboost.DMatrix(X, Y), 3)
    whole = pickle.dumps(booster)
    rng = random.Random(1)
    refused = 0
    for trial in range(6):
        data = bytearray(whole)
        for _ in range(4):
            data[rng.randrange(40, len(data))] = rng.randrange(256)
        path = tmp_path / f"{trial}.pkl"
        path.write_bytes(data)
        try:
            store.import_files(f"r{trial}", path)
        except (Corrupt, BadRequest):
            refused += 1
    assert refused > 0


@pytest.mark.parametrize("what", ["sqlite", "journal", "lightgbm"])
def test_damaged_files_of_frameworks_are_corrupt(store, tmp_path, what):
    optuna = pytest.importorskip("optuna")
    lightgbm = pytest.importorskip("lightgbm")
    path = tmp_path / "x"
    if what == "sqlite":
        make_study(optuna, f"sqlite:///{path}", trials=2)
        data = bytearray(path.read_bytes())
        data[100 : len(data) // 2] = bytes(len(data) // 2 - 100)
    elif what == "journal":
        data = bytearray(b'{"op_code":0,"worker_id":"w"}\n' * 3)
    else:
        params = {"verbose": -1, "min_data_in_leaf": 5}
        booster = lightgbm.train(params, lightgbm.Dataset(X, Y), 3)
        data = bytearray(booster.model_to_string().encode()[:700])
    path.write_bytes(data)
    with pytest.raises(Corrupt):
        store.import_files("r", path)
    assert store.runs() == []
