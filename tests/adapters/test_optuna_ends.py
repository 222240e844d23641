"""How a study of `casckpt.optuna` ends, and goes on: a grid, its own stop, signals, errors."""

from __future__ import annotations

import os
import signal

import optuna
import pytest

import casckpt
import casckpt.optuna
from casckpt.errors import Stopped
from tests.adapters.test_optuna import Killed, objective, optimize

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("optuna") / "store") as store:
        yield store


@pytest.fixture
def name(request):
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


def grid_objective(trial):
    return 10 * trial.suggest_categorical("a", [1, 2, 3]) + trial.suggest_categorical("b", [1, 2])


@pytest.mark.parametrize("kill", [None, 0, 3])
@pytest.mark.parametrize("kind", ["grid", "brute"])
def test_a_grid_is_searched_whole_and_once_then_the_study_stops(store, name, kind, kill):
    def sampler(seed):
        if kind == "brute":
            return optuna.samplers.BruteForceSampler(seed=seed)
        return optuna.samplers.GridSampler({"a": [1, 2, 3], "b": [1, 2]}, seed=seed)

    def search(at=None):
        def objective(trial):
            value = grid_objective(trial)
            if trial.number == at:
                raise Killed
            return value

        with store.run(name) as run:
            return casckpt.optuna.optimize(run, objective, 20, sampler=sampler)

    if kill is not None:
        with pytest.raises(Killed):
            search(kill)
    for _ in range(2):  # the second time it is done
        found = sorted(trial.value for trial in search().trials)
        assert found == [11, 12, 21, 22, 31, 32]


def test_a_study_that_was_stopped_is_done_until_more_is_asked_for(store, name):
    calls = []

    def count(trial):
        calls.append(trial.number)
        return trial.suggest_float("x", 0, 1)

    def search(total):
        with store.run(name) as run:
            enough = optuna.study.MaxTrialsCallback(2 if total == 5 else 4)
            return casckpt.optuna.optimize(run, count, total, callbacks=[enough])

    search(5)
    search(5)
    assert calls == [0, 1]
    assert len(search(6).trials) == 4


@pytest.mark.filterwarnings("ignore:`constraints_func` has been deprecated")
@pytest.mark.parametrize("total", [2, 5])
def test_a_study_whose_trials_break_the_constraints_goes_on(store, name, total):
    def bounded(trial):
        trial.set_user_attr("over", 1.0 if trial.number < 3 else -1.0)
        return trial.suggest_float("x", -1, 1) ** 2

    def sampler(seed):
        return optuna.samplers.TPESampler(
            seed=seed, constraints_func=lambda trial: [trial.user_attrs["over"]]
        )

    for _ in range(2):  # the second time it says what is done
        assert len(optimize(store, name, bounded, total, sampler=sampler).trials) == total
    metrics = [one.metrics for one in store.checkpoints(name)]
    assert [bool(one) for one in metrics] == [False, False, False, True, True][:total]
    if total == 5:
        best = optimize(store, name, bounded, total, sampler=sampler).best_trial
        assert best.number >= 3
        assert metrics[-1]["best_value"] == best.value


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("by", ["callback", "objective"])
def test_a_study_that_was_stopped_is_done_though_a_signal_came_in_the_same_trial(
    store, name, by, kind
):
    def count(trial, stop=False):
        if stop and trial.number == 2:
            os.kill(os.getpid(), kind)
        if by == "objective" and trial.number == 2:
            trial.study.stop()
        return trial.suggest_float("x", 0, 1)

    def enough(study, trial):
        if by == "callback" and trial.number == 2:
            study.stop()

    with pytest.raises((Stopped, KeyboardInterrupt)):
        optimize(store, name, lambda trial: count(trial, stop=True), 9, callbacks=[enough])
    assert len(optimize(store, name, count, 9, callbacks=[enough]).trials) == 3
    assert len(optimize(store, name, count, 10, callbacks=[enough]).trials) == 10


@pytest.mark.parametrize("kind", ["callback", "later callback", "objective", "sampler"])
def test_a_study_that_was_stopped_is_done_though_it_was_killed_right_then(
    store, name, kind, monkeypatch
):
    def sampler(seed):
        if kind == "sampler":
            return optuna.samplers.GridSampler({"a": [1, 2, 3]}, seed=seed)
        return optuna.samplers.RandomSampler(seed=seed)

    def count(trial):
        if kind == "objective" and trial.number == 2:
            trial.study.stop()
        return trial.suggest_categorical("a", [1, 2, 3])

    def enough(study, trial):
        if "callback" in kind and trial.number == 2:
            study.stop()

    def die(study, trial):
        if kind == "later callback" and trial.number == 2:
            raise Killed

    def search(*callbacks):
        return optimize(store, name, count, 9, sampler=sampler, callbacks=[enough, *callbacks])

    def killed_in(method, call):
        original, calls = getattr(casckpt.Run, method), []

        def dying(run, *arguments, **options):
            calls.append(run)
            if len(calls) == call:
                raise Killed
            return original(run, *arguments, **options)

        return method, dying

    with monkeypatch.context() as patch:
        if kind == "callback":
            patch.setattr(casckpt.Run, *killed_in("check_stop", 4))
        elif kind != "later callback":
            patch.setattr(casckpt.Run, *killed_in("save", 3))
        with pytest.raises(Killed):
            search(die)
    assert len(search().trials) == 3
    assert store.get(name).step == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_the_signals_are_the_programs_own_when_the_study_ended_or_was_left(store, name, error):
    def interrupted(trial):
        if trial.number == 1:
            if error is ValueError:
                raise ValueError
            os.kill(os.getpid(), signal.SIGINT)
        return trial.suggest_float("x", 0, 1)

    def handlers():
        return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = handlers()
    cells = [store.run(name) for _ in range(2)]  # without a `with`, as in a notebook
    with pytest.raises(error):
        casckpt.optuna.optimize(cells[0], interrupted, 4)
    assert handlers() == before
    assert len(casckpt.optuna.optimize(cells[1], objective, 4).trials) == 4
    assert handlers() == before
    for one in cells:
        one.close()
