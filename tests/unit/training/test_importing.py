"""Old piles: files of other people's training scripts become runs that go on."""

from __future__ import annotations

import json
import pickle
import random
import zipfile

import numpy as np
import pytest

import casckpt
from casckpt.errors import BadRequest, CasckptError, Corrupt, FilesLeftOut, PickleRefused

X = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
Y = X[:, 0] * X[:, 1]


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def dump(path, value, protocol=None):
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


# ---- folders


def pile_of_torch(folder, epochs=(5, 10, 15)):
    torch = pytest.importorskip("torch")
    folder.mkdir()
    for epoch in epochs:
        state = {"model": {"w": torch.full((3,), float(epoch))}, "epoch": epoch,
                 "val_loss": 1.0 / epoch, "metrics": {"corr": epoch / 20}}  # fmt: skip
        torch.save(state, folder / f"model_epoch_{epoch}.pth")
    return torch


def test_a_folder_is_one_run_with_steps_from_the_names(store, tmp_path):
    torch = pile_of_torch(tmp_path / "old")
    (tmp_path / "old" / "README.txt").write_text("\x01 what these are")
    made = store.import_files("reg", tmp_path / "old")
    assert [(one.run, one.step) for one in made] == [("reg", 5), ("reg", 10), ("reg", 15)]
    assert store.best("reg", "corr", "max").step == 15
    assert store.get("reg@best:val_loss:min").metrics == {"val_loss": 1 / 15, "corr": 0.75}
    assert torch.equal(store.restore("reg@10")["model"]["w"], torch.full((3,), 10.0))
    assert [one.id for one in store.import_files("reg", tmp_path / "old")] == [
        one.id for one in made
    ]


def test_best_and_latest_are_tags_of_what_they_equal(store, tmp_path):
    pile_of_torch(tmp_path / "old")
    old = tmp_path / "old"
    (old / "model_latest.pth").write_bytes((old / "model_epoch_15.pth").read_bytes())
    (old / "model_best.pth").write_bytes((old / "model_epoch_10.pth").read_bytes())
    store.import_files("reg", old)
    assert store.get("reg@imported-latest").step == 15
    assert store.get("reg@imported-best").step == 10
    assert [one.name for one in store.runs()] == ["reg"]


def test_a_best_at_a_step_of_its_own_takes_its_place(store, tmp_path):
    torch = pile_of_torch(tmp_path / "old")
    old = tmp_path / "old"
    torch.save({"model": {"w": torch.ones(3)}, "epoch": 12}, old / "model_best.pth")
    torch.save({"model": {"w": torch.zeros(3)}, "epoch": 15}, old / "model_latest.pth")
    made = store.import_files("reg", old)
    assert [(one.run, one.step) for one in made] == [
        ("reg", 5), ("reg", 10), ("reg", 12), ("reg", 15), ("reg/latest", 0)
    ]  # fmt: skip
    assert store.get("reg@imported-best").step == 12


def test_a_run_goes_on_from_an_imported_pile(store, tmp_path):
    torch = pile_of_torch(tmp_path / "old")
    store.import_files("reg", tmp_path / "old")
    state = {"model": {"w": torch.zeros(3)}, "epoch": 0, "val_loss": 0.0, "metrics": {"corr": 0.0}}
    with store.run("reg", resume="must") as run:
        epochs = []
        for epoch in run.epochs(17, state):
            epochs.append(epoch)
            state["model"]["w"] += 1
    assert epochs == [16, 17]
    assert store.restore("reg@17")["model"]["w"].tolist() == [17.0] * 3


def test_several_things_in_one_folder_are_several_runs(store, tmp_path):
    old = tmp_path / "old"
    (old / "fold_1").mkdir(parents=True)
    for step in (20, 40):
        np.savez(old / f"nn_epoch{step}.npz", w=np.full(2, step))
        np.savez(old / f"head-{step}.npz", w=np.full(2, -step))
        np.savez(old / "fold_1" / f"{step}.npz", w=np.full(2, step / 2))
    made = store.import_files("bpm", old)
    assert {(one.run, one.step) for one in made} == {
        (f"bpm/{name}", step) for name in ("nn", "head", "fold_1") for step in (20, 40)
    }


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("model_epoch_5", 5), ("checkpoint-1200", 1200), ("epoch=12-step=340", 340),
        ("xgb_100_trees", 100), ("nn_epoch20_loss_0.123", 20), ("v2_epoch7", 7), ("best", None),
        ("model_0.95", None), ("resnet50_ep003_epoch_3", 3), ("100", 100), ("trial_7", 7),
    ],
)  # fmt: skip
def test_numbers_in_names(name, step):
    from casckpt.checkpoint.exchange.piles import step_of

    assert step_of(name) == step


def test_what_cannot_be_imported_is_left_out_and_named(store, tmp_path):
    old = tmp_path / "old"
    trainer_folder(old / "bart", 500, {})
    (trainer_folder(old / "bart", 1000, {}) / "trainer_state.json").write_text("{")
    for epoch in (5, 10, 15, 20):
        np.savez(old / f"model_epoch_{epoch}.npz", w=np.full(2, epoch))
    cut = (old / "model_epoch_10.npz").read_bytes()[:-30]
    (old / "model_epoch_10.npz").write_bytes(cut)
    dump(old / "model_epoch_12.pkl", Evil())
    (old / "model_epoch_20.npz").unlink()
    (old / "model_epoch_20.npz").symlink_to("nowhere.npz")
    with zipfile.ZipFile(old / "table.zip", "w") as archive:
        archive.writestr("table.csv", "no checkpoint at all")
    with pytest.raises(FilesLeftOut) as caught:
        store.import_files("reg", old)
    error = caught.value
    there = [("reg/bart", 500), ("reg/model", 5), ("reg/model", 15)]
    assert [(one.run, one.step) for one in error.checkpoints] == there
    assert {path.name: type(one) for path, one in error.left_out} == {
        "model_epoch_10.npz": Corrupt,
        "model_epoch_12.pkl": PickleRefused,
        "checkpoint-1000": Corrupt,
    }
    assert error.what == "3 files were left out of the import into reg"
    assert "model_epoch_12.pkl: it names posix.system (" in error.why
    np.savez(old / "model_epoch_7.npz", w=np.full(2, 7))  # smaller than what is there
    with pytest.raises(FilesLeftOut, match=r"model_epoch_7\.npz: ") as caught:
        store.import_files("reg", old)
    assert [(one.run, one.step) for one in caught.value.checkpoints] == there


def test_files_named_one_by_one_come_in_but_for_the_refused(store, tmp_path):
    names = [tmp_path / f"epoch_{epoch}.pkl" for epoch in (1, 2, 3)]
    for path in names:
        dump(path, {"w": 1.5})
    dump(names[1], Evil())
    with pytest.raises(FilesLeftOut, match=r"a file was left out.*\n.*epoch_2.pkl: it names"):
        store.import_files("r", *names)
    assert [one.step for one in store.checkpoints("r")] == [1, 3]


def test_a_folder_without_checkpoints_is_an_error(store, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("# nothing")
    with pytest.raises(BadRequest, match="no file"):
        store.import_files("r", tmp_path / "empty")


def test_progress_files_are_plain_values(store, tmp_path):
    progress = {"epoch": 15, "best_score": 0.81, "done": ["a", "b"], "history": [1.5, 1.2]}
    (tmp_path / "checkpoint.json").write_text(json.dumps(progress))
    (made,) = store.import_files("nas", tmp_path / "checkpoint.json")
    assert (made.step, made.metrics) == (15, {"best_score": 0.81})
    assert store.restore("nas") == progress


# ---- folders of a Trainer


def trainer_folder(home, step, losses, best=None, optimizer=None):
    torch = pytest.importorskip("torch")
    folder = home / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    history = [{"step": at, "epoch": at / 10, "loss": loss} for at, loss in losses.items()]
    history.append({"step": step, "eval_loss": float("inf"), "note": "text"})
    state = {"global_step": step, "log_history": history, "best_model_checkpoint": best}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    torch.save({"w": torch.full((3,), float(step))}, folder / "pytorch_model.bin")
    torch.save({"state": {}} if optimizer is None else optimizer, folder / "optimizer.pt")
    torch.save(Evil(), folder / "training_args.bin")
    return folder


def test_folders_of_a_trainer_are_one_run_of_files(store, tmp_path):
    out = tmp_path / "out"
    trainer_folder(out, 500, {500: 2.0}, "out/checkpoint-500")
    trainer_folder(out, 1000, {500: 2.0, 1000: 2.5}, "/elsewhere/out/checkpoint-500")
    for name in ("config.json", "trainer_state.json", "training_args.bin"):
        (out / name).write_bytes((out / "checkpoint-500" / "trainer_state.json").read_bytes())
    (out / "model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
    made = store.import_files("bart", out)
    assert [(one.run, one.step) for one in made] == [
        ("bart", 500),
        ("bart", 1000),
        ("bart/final", 0),
    ]
    assert store.get("bart@imported-best").step == 500
    assert store.get("bart").metrics == {"loss": 2.5, "eval_loss": float("inf")}
    assert store.best("bart", "loss", "min").step == 500
    store.restore_files("bart@1000", tmp_path / "back")
    for file in (out / "checkpoint-1000").iterdir():
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()
    assert [one.id for one in store.import_files("bart", out)] == [one.id for one in made]


def test_folders_of_a_trainer_may_be_named_one_by_one(store, tmp_path):
    folders = [trainer_folder(tmp_path / name, step, {}) for name, step in (("a", 30), ("b", 4))]
    made = store.import_files("bart", *folders)
    assert [one.step for one in made] == [4, 30]
    renamed = folders[0].rename(tmp_path / "bart-v2")
    assert store.import_files("other", renamed)[0].step == 30


def test_a_trainers_folder_that_would_run_code_or_says_nothing_is_refused(store, tmp_path):
    folder = trainer_folder(tmp_path / "evil", 5, {}, optimizer={"state": Evil()})
    with pytest.raises(PickleRefused, match="system"):
        store.import_files("r", folder)
    folder = trainer_folder(tmp_path / "broken", 5, {})
    for text in ("{", "[]", '{"global_step": -1, "log_history": []}', '{"global_step": 5}'):
        (folder / "trainer_state.json").write_text(text)
        with pytest.raises(Corrupt, match="no state of a Trainer"):
            store.import_files("r", folder)
    assert store.runs() == []


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


class Evil:
    def __reduce__(self):
        import os

        return (os.system, ("true",))


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
