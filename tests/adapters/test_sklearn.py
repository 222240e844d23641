"""`casckpt.sklearn`: estimators in states, and fitting in rounds; killed and resumed."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
from sklearn import ensemble, linear_model, naive_bayes, neural_network
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import IncrementalPCA
from sklearn.preprocessing import StandardScaler

import casckpt
import casckpt.sklearn
from casckpt.errors import BadLeaf, BadRequest, Corrupt
from tests.adapters.kills import check

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(150, 6))
Y = (X[:, 0] * X[:, 1] > 0).astype(int) + (X[:, 2] > 0.5)
V = X[:, 0] * X[:, 1] + RNG.normal(size=150)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("sklearn") / "store") as store:
        yield store


@pytest.fixture
def name(request):
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


ROUNDS = {
    "gbr": (lambda s: ensemble.GradientBoostingRegressor(subsample=0.6, random_state=s), V),
    "gbr-stopping": (
        lambda s: ensemble.GradientBoostingRegressor(
            subsample=0.5, n_iter_no_change=3, random_state=s
        ),
        V,
    ),
    "gbc": (lambda s: ensemble.GradientBoostingClassifier(max_features=2, random_state=s), Y),
    "forest": (lambda s: ensemble.RandomForestClassifier(random_state=s), Y),
    "extra": (lambda s: ensemble.ExtraTreesRegressor(bootstrap=True, random_state=s), V),
    "bagging": (lambda s: ensemble.BaggingClassifier(random_state=s), Y),
    "bagging-regressor": (lambda s: ensemble.BaggingRegressor(random_state=s), V),
    "hist": (
        lambda s: ensemble.HistGradientBoostingRegressor(
            early_stopping=False, max_features=0.5, random_state=s
        ),
        V,
    ),
    "sgd": (lambda s: linear_model.SGDClassifier(average=True, random_state=s), Y),
    "sgd-regressor": (lambda s: linear_model.SGDRegressor(random_state=s), V),
    "perceptron": (lambda s: linear_model.Perceptron(random_state=s), Y),
    "mlp": (lambda s: neural_network.MLPClassifier((8,), random_state=s), Y),
    "mlp-sgd": (
        lambda s: neural_network.MLPRegressor(
            hidden_layer_sizes=(8,), solver="sgd", learning_rate="adaptive", random_state=s
        ),
        V,
    ),
    "bayes": (lambda s: naive_bayes.GaussianNB(), Y),
}


class Killed(BaseException):
    pass


def prediction(model):
    return (getattr(model, "predict_proba", None) or model.predict)(X).tobytes()


def fit(store, name, model, y, rounds, **options):
    with store.run(name) as run:
        return casckpt.sklearn.fit(run, model, X, y, rounds=rounds, every=3, **options)


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("seed", [0, None, "instance"])
@pytest.mark.parametrize("kind", ROUNDS)
def test_interrupted_is_uninterrupted(store, name, kind, seed, monkeypatch):
    make, y = ROUNDS[kind]

    def new():
        np.random.seed(5)
        return make(np.random.RandomState(3) if seed == "instance" else seed)

    try:
        whole = fit(store, f"{name}-whole", new(), y, 8)
    except BadRequest:
        pytest.skip("it cannot learn in rounds")
    learn = casckpt.adapters.sklearn._learn
    for at in (0, 3, 6):

        def dying(est, kind, data, target, done, to, classes, at=at):
            learn(est, kind, data, target, done, to, classes)
            if done == at:
                raise Killed

        monkeypatch.setattr("casckpt.adapters.sklearn._learn", dying)
        with pytest.raises(Killed):
            fit(store, name, new(), y, 8)
    monkeypatch.setattr("casckpt.adapters.sklearn._learn", learn)
    model = new()
    assert fit(store, name, model, y, 8) is model
    assert prediction(model) == prediction(whole)


def test_trees_in_rounds_are_those_of_one_fit(store, name):
    one = ensemble.GradientBoostingRegressor(n_estimators=10, subsample=0.6, random_state=1)
    one.fit(X, V)
    rounds = ensemble.GradientBoostingRegressor(subsample=0.6, random_state=1)
    assert prediction(fit(store, name, rounds, V, 10)) == prediction(one)


@pytest.mark.parametrize("kind", ["forest", "bagging-regressor", "hist"])
def test_a_finished_fit_returns_the_stored_estimator(store, name, kind):
    make, y = ROUNDS[kind]
    first = fit(store, name, make(0), y, 6)
    again = fit(store, name, make(0), None, 6)
    assert prediction(again) == prediction(first)
    more = fit(store, name, make(0), y, 9)
    assert (more.n_iter_ if kind == "hist" else len(more.estimators_)) == 9
    assert prediction(more) == prediction(fit(store, f"{name}-whole", make(0), y, 9))


@pytest.mark.parametrize("seed", [0, "instance"])
@pytest.mark.parametrize("kind", ROUNDS)
def test_a_new_run_begins_afresh_with_an_estimator_that_was_fitted(store, name, kind, seed):
    make, y = ROUNDS[kind]
    generator = np.random.RandomState(3)

    def new():
        return make(np.random.RandomState(3) if seed == "instance" else seed)

    def folds(one, other):
        fit(store, f"{name}-{one is other}-a", one, y[::-1], 4)
        if "random_state" in other.get_params() and seed == "instance":
            other.set_params(random_state=np.random.RandomState(5))
        return prediction(fit(store, f"{name}-{one is other}-b", other, y, 4))

    try:
        same = make(generator if seed == "instance" else seed)
        reused = folds(same, same)
    except BadRequest:
        pytest.skip("it cannot learn in rounds")
    assert reused == folds(new(), new())
    assert not same.get_params().get("warm_start", False)
    # The run that has something goes on from that, whatever the estimator was fitted to since.
    assert prediction(fit(store, f"{name}-True-b", same, y, 6)) == prediction(
        fit(store, f"{name}-False-b", new(), y, 6)
    )


def test_its_random_generator_stays_the_same_object(store, name):
    generator = np.random.RandomState(3)
    model = linear_model.SGDRegressor(random_state=generator).fit(X, V)
    assert fit(store, name, model, V, 3).random_state is generator


@pytest.mark.parametrize("kind", ["forest", "sgd"])
def test_an_estimator_that_was_made_to_go_on_does(store, name, kind):
    make, y = ROUNDS[kind]
    model = make(0).set_params(warm_start=True)
    if kind == "forest":
        model.set_params(n_estimators=2).fit(X, y)
        before = model.estimators_[0]
        fit(store, name, model, y, 5)
        assert model.estimators_[0] is before
    else:
        model.partial_fit(X, y, classes=np.unique(y))
        fit(store, name, model, y, 5)
        assert model.t_ == 6 * len(X) + 1
    assert model.warm_start is True
    assert store.restore(name)["estimator"].warm_start is True


def test_warm_start_stays_what_it_was_also_when_a_fit_fails(store, name):
    model = ensemble.RandomForestRegressor(random_state=0)
    with pytest.raises(ValueError, match="NaN"):
        fit(store, name, model, np.full(len(X), np.nan), 3)
    assert model.warm_start is False
    fit(store, name, model, V, 3)
    assert model.warm_start is False
    assert store.restore(name)["estimator"].warm_start is False
    assert prediction(model.fit(X, V)) == prediction(
        ensemble.RandomForestRegressor(3, random_state=0).fit(X, V)
    )


def test_without_a_with_signals_are_the_programs_own_again_when_it_was_left(
    store, name, monkeypatch
):
    mine = signal.getsignal(signal.SIGINT)
    learn = casckpt.adapters.sklearn._learn

    def interrupted(*args):
        learn(*args)
        os.kill(os.getpid(), signal.SIGINT)

    runs = []

    def cell():
        model = linear_model.SGDRegressor(random_state=0)
        runs.append(store.run(name))
        return casckpt.sklearn.fit(runs[-1], model, X, V, rounds=6, every=3)

    monkeypatch.setattr("casckpt.adapters.sklearn._learn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cell()
    assert signal.getsignal(signal.SIGINT) is mine
    monkeypatch.setattr("casckpt.adapters.sklearn._learn", learn)
    assert cell().t_ == 6 * len(X) + 1
    assert signal.getsignal(signal.SIGINT) is mine
    for run in runs:
        run.close()


ESTIMATORS = [
    *(make(0) for make, _ in ROUNDS.values()),
    ensemble.HistGradientBoostingClassifier(max_iter=3),
    MiniBatchKMeans(3, random_state=0, n_init=1),
    linear_model.LinearRegression(),
    linear_model.LogisticRegression(),
]


@pytest.mark.parametrize("model", ESTIMATORS, ids=lambda model: type(model).__name__)
def test_an_estimator_in_a_state_comes_back(store, name, model):
    if "n_estimators" in model.get_params():
        model.set_params(n_estimators=3)
    model.fit(X, Y)
    saved = store.save(name, {"model": model, "epoch": 1})
    restored = store.restore(name)["model"]
    assert type(restored) is type(model)
    assert prediction(restored) == prediction(model)
    assert store.save(name, {"model": restored, "epoch": 1}, saved.step).id == saved.id


def test_a_generator_that_parts_of_an_estimator_share_comes_back_as_one(store, name):
    first, other = (
        ensemble.GradientBoostingRegressor(
            n_estimators=2, n_iter_no_change=3, random_state=np.random.RandomState(seed)
        ).fit(X, V)
        for seed in (0, 1)
    )
    store.save(name, {"first": first, "other": other})
    for only in (None, "other"):
        restored = store.restore(name, only=only)
        for key, model in (("first", first), ("other", other)):
            if only in (None, key):
                one = restored[key].random_state
                assert one is restored[key]._rng
                assert one is restored[key].estimators_[0, 0].random_state
                expected = np.random.RandomState()
                expected.set_state(model.random_state.get_state())
                assert one.random_sample() == expected.random_sample()
    store.save(name, first.set_params(random_state=np.random.mtrand._rand).fit(X, V))
    assert store.restore(name)._rng is np.random.mtrand._rand


def test_generators_of_older_checkpoints_are_built():
    from casckpt.adapters.sklearn_objects import HANDLER
    from casckpt.checkpoint.leaves import RestoreOptions

    for kind, old in (("old", np.random.RandomState(5)), ("new", np.random.default_rng(5))):
        state = old.get_state(legacy=False) if kind == "old" else old.bit_generator.state
        assert HANDLER.build("stream", kind, [state], RestoreOptions()).normal() == old.normal()
    with pytest.raises(Corrupt):
        HANDLER.build("stream", ["same", -1], [], RestoreOptions())


def test_transformers_come_back(store, name):
    parts = {"scale": StandardScaler().fit(X), "pca": IncrementalPCA(2).fit(X)}
    store.save(name, parts)
    restored = store.restore(name)
    for key, part in parts.items():
        assert restored[key].transform(X).tobytes() == part.transform(X).tobytes()


def test_what_cannot_learn_in_rounds_or_be_stored_is_refused(store, name):
    with pytest.raises(BadRequest, match="cannot learn in rounds"):
        fit(store, name, linear_model.LinearRegression(), V, 3)

    class Own(linear_model.SGDRegressor):
        pass

    with pytest.raises(BadLeaf, match="not one of scikit-learn's own"):
        fit(store, name, Own(), V, 3)
    store.save(name, {"a": 1})
    with pytest.raises(BadRequest, match="no estimator"):
        fit(store, name, linear_model.SGDRegressor(), V, 3)


@pytest.mark.parametrize(
    "about",
    [
        {"class": ["os", "system"], "made": "call"},
        {"class": ["sklearn.utils", "Bunch"], "made": "call"},
        {"class": ["sklearn.linear_model._base.os", "system"], "made": "call"},
        {"class": ["sklearn.base", "clone"], "made": "new"},
        {"class": ["sklearn.tests.test_base", "MyEstimator"], "made": "new"},
        {"class": ["sklearn.base", "warnings"], "made": "new"},
    ],
)
def test_hostile_objects_are_refused(about):
    from casckpt.adapters.sklearn_objects import HANDLER
    from casckpt.checkpoint.leaves import RestoreOptions

    with pytest.raises(Corrupt):
        HANDLER.build("object", about, [("true",), None], RestoreOptions())


def test_a_tree_that_leads_outside_itself_is_refused():
    from casckpt.adapters.sklearn_objects import HANDLER, _take_apart
    from casckpt.checkpoint.leaves import RestoreOptions

    tree = ensemble.RandomForestRegressor(1, random_state=0).fit(X, V).estimators_[0].tree_
    part = _take_apart(tree, "")
    arguments, state = part.parts
    state["nodes"]["left_child"][0] = 10**6
    with pytest.raises(Corrupt, match="outside"):
        HANDLER.build("object", part.attributes, [arguments, state], RestoreOptions())


PROGRAM = """
import sys
import numpy as np
from sklearn.ensemble import GradientBoostingRegressor
import casckpt, casckpt.sklearn

rng = np.random.default_rng(0)
X = rng.normal(size=(600, 8))
y = X[:, 0] * X[:, 1] + rng.normal(size=600)
with casckpt.open(sys.argv[1]) as store, store.run("kill/sklearn") as run:
    print("begin", flush=True)
    model = GradientBoostingRegressor(subsample=0.5, max_features=3, random_state=7)
    casckpt.sklearn.fit(run, model, X, y, rounds=200, every=5)
open(sys.argv[2], "wb").write(model.predict(X).tobytes() + model.train_score_.tobytes())
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_it_makes_the_same_estimator(tmp_path):
    program = tmp_path / "fit_sklearn.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="sklearn")


def test_other_parameters_are_told_where_rounds_are_there(store, name, caplog):
    def fit(rounds, **params):
        forest = ensemble.RandomForestClassifier(random_state=0, **params)
        with store.run(name) as run:
            return casckpt.sklearn.fit(run, forest, X, Y, rounds=rounds)

    fit(5)
    fit(5, n_jobs=1)
    assert "other parameters" not in caplog.text
    assert fit(8, max_depth=2).max_depth == 2
    told = "other parameters than its 5 rounds were trained with: max_depth: None -> 2; they count"
    assert f"{name}: {told}" in caplog.text
