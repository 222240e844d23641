"""`casckpt.optuna`: trials in all, trials that go on, Optuna's own tests of storages."""

from __future__ import annotations

import multiprocessing
import random
import time

import optuna
import pytest
from optuna.testing.pytest_storages import StorageTestCase
from optuna.trial import TrialState

import casckpt
import casckpt.optuna
from casckpt.adapters.optuna_storage import RowsBackend
from casckpt.errors import BadRequest
from tests.adapters.kills import check

optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore:The reported value is ignored"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("optuna") / "store") as store:
        yield store


@pytest.fixture
def name(request):
    return "".join(c if c.isalnum() else "-" for c in request.node.name)


class TestOptunaStorage(StorageTestCase):
    """What Optuna asks of every storage, in Optuna's own words."""

    @pytest.fixture
    def storage(self, tmp_path):
        with casckpt.open(tmp_path / "store") as store, store.run("study") as run:
            yield casckpt.optuna.storage(run)


class Killed(BaseException):
    """Ends a session as SIGKILL would: nothing is told to Optuna."""


def objective(trial):
    x = trial.suggest_float("x", -5, 5)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    y = trial.suggest_int("y", 1, 100, log=True)
    value = (x - 1) ** 2 + (kind == "a") + abs(y - 20) / 10
    for step in range(3):
        trial.report(value + 3 - step, step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def killed_at(number, place):
    """Return the objective of a process that dies in a trial, before or after suggestions."""

    def dying(trial):
        if trial.number == number:
            if place >= 1:
                trial.suggest_float("x", -5, 5)
            if place >= 2:
                trial.suggest_categorical("kind", ["a", "b"])
            if place >= 3:
                trial.report(1.0, 0)
            raise Killed
        return objective(trial)

    return dying


def optimize(store, name, function, n_total, **options):
    with store.run(name, resume=options.pop("resume", "auto")) as run:
        return casckpt.optuna.optimize(run, function, n_total, **options)


def facts(study):
    return [(t.number, t.state, t.params, t.values) for t in study.get_trials()]


SAMPLERS = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=4),
    "multivariate": lambda seed: optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=4, multivariate=True, group=True
    ),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "nsga": lambda seed: optuna.samplers.NSGAIISampler(seed=seed, population_size=4),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=0),
}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_interrupted_is_uninterrupted(store, name, sampler, place):
    options = {"sampler": SAMPLERS[sampler], "pruner": optuna.pruners.MedianPruner(3)}
    whole = optimize(store, f"{name}-whole", objective, 12, **options)
    for number in (0, 7):
        with pytest.raises(Killed):
            optimize(store, name, killed_at(number, place), 12, **options)
    study = optimize(store, name, objective, 12, **options)
    assert facts(study) == facts(whole)
    assert len({str(trial.params) for trial in study.trials}) == 12


def test_a_trial_whose_process_died_goes_on_with_its_number_and_parameters(store, name):
    with pytest.raises(Killed):
        optimize(store, name, killed_at(2, 3), 5)
    seen = []

    def watching(trial):
        seen.append((trial.number, dict(trial.params)))
        return objective(trial)

    with store.run(name) as run:
        stored = casckpt.optuna.storage(run).get_all_trials(0)
        assert [trial.state for trial in stored][-1] == TrialState.RUNNING
    study = optimize(store, name, watching, 5)
    assert seen[0] == (2, stored[2].params)
    assert seen[0][1].keys() == {"x", "kind"}
    assert [number for number, _ in seen] == [2, 3, 4]
    assert study.trials[2].params["x"] == stored[2].params["x"]


def test_a_trial_goes_on_from_its_checkpoint(store, name):
    epochs = []

    def training(trial, die_at=None):
        rate = trial.suggest_float("rate", 0, 1)
        state = {"value": 0.0}
        with casckpt.optuna.trial_run(trial) as run:
            for epoch in run.epochs(4, state):
                if (trial.number, epoch) == die_at:
                    raise Killed
                epochs.append((trial.number, epoch))
                state["value"] += rate
        return state["value"]

    with pytest.raises(Killed):
        optimize(store, name, lambda trial: training(trial, (1, 3)), 3)
    study = optimize(store, name, training, 3)
    assert epochs == [(n, e) for n in range(3) for e in range(1, 5)]
    for trial in study.trials:
        assert trial.value == pytest.approx(4 * trial.params["rate"])
    with store.run(name) as run:
        names = {one.name for one in run.children("trial-*")}
    assert names == {f"{name}/trial-{number}" for number in range(3)}


def test_a_sampler_instead_of_a_function_of_a_seed(store, name):
    sampler = optuna.samplers.RandomSampler()
    with pytest.raises(BadRequest, match="sampler is a RandomSampler"):
        optimize(store, name, lambda trial: 1.0, 2, sampler=sampler)


def test_a_finished_study_does_nothing_and_a_larger_total_goes_on(store, name):
    first = facts(optimize(store, name, objective, 4))

    def never(trial):
        raise AssertionError

    assert facts(optimize(store, name, never, 4)) == first
    assert facts(optimize(store, name, never, 2)) == first
    larger = optimize(store, name, objective, 7)
    assert facts(larger)[:4] == first
    assert facts(larger) == facts(optimize(store, f"{name}-whole", objective, 7))


def test_what_is_done_is_said_and_nothing_of_a_new_study(store, name, caplog):
    caplog.set_level("INFO")
    with pytest.raises(Killed):
        optimize(store, name, killed_at(2, 1), 4)
    assert "trials are done" not in caplog.text
    study = optimize(store, name, objective, 4)
    best = min(study.trials[:2], key=lambda trial: trial.value)
    assert (
        f"{name}: 2 of 4 trials are done; best {best.value:.6g} in trial {best.number};"
        " going on with trial 2"
    ) in caplog.text
    optimize(store, name, objective, 4)
    assert f"4 of 4 trials are done; best {study.best_value:.6g}" in caplog.text


def test_a_study_is_extended_under_another_name(store, name):
    first = facts(optimize(store, name, objective, 4))
    more = optimize(store, f"{name}-more", objective, 6, resume=name)
    assert facts(more)[:4] == first
    assert len(more.trials) == 6
    again = optimize(store, f"{name}-more", objective, 6, resume=name)
    assert facts(again) == facts(more)


def test_parameters_of_inherited_trials_stay_in_the_order_of_their_suggestion(store, name):
    def later_names_first(trial):
        return trial.suggest_float("z", 0, 1) + trial.suggest_int("a", 0, 9)

    optimize(store, name, later_names_first, 2)
    more = optimize(store, f"{name}-more", later_names_first, 3, resume=name)
    assert [list(trial.params) for trial in more.trials] == [["z", "a"]] * 3
    assert [list(trial.distributions) for trial in more.trials] == [["z", "a"]] * 3


def test_going_back_opens_a_line_with_the_trials_of_then(store, name):
    first = facts(optimize(store, name, objective, 6))
    back = optimize(store, name, objective, 5, resume=f"{name}@3")
    assert facts(back)[:3] == first[:3]
    assert len(back.trials) == 5
    with store.run(name, resume="never") as run:
        fresh = casckpt.optuna.optimize(run, objective, 2, seed=9)
    assert len(fresh.trials) == 2
    assert facts(fresh) != first[:2]


def test_failed_trials_count_and_the_error_comes_out(store, name):
    def failing(trial):
        if trial.number == 1:
            raise ValueError("bad luck")
        return objective(trial)

    with pytest.raises(ValueError, match="bad luck"):
        optimize(store, name, failing, 3)
    study = optimize(store, name, failing, 3)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    caught = optimize(store, f"{name}-caught", failing, 3, catch=ValueError)
    assert facts(caught) == facts(study)


def test_the_time_limit_counts_over_sessions(store, name):
    def slow(trial):
        time.sleep(0.1)
        return objective(trial)

    first = optimize(store, name, slow, 100, timeout_total_s=0.35)
    assert 1 <= len(first.trials) < 6
    assert len(optimize(store, name, slow, 100, timeout_total_s=0.35).trials) == len(first.trials)


def test_several_jobs_make_the_total(store, name):
    study = optimize(store, name, objective, 12, n_jobs=3)
    assert sorted(trial.number for trial in study.trials) == list(range(12))
    assert all(trial.state.is_finished() for trial in study.trials)


def test_other_directions_are_refused(store, name):
    optimize(store, name, objective, 2)
    with pytest.raises(BadRequest, match="minimize"):
        optimize(store, name, objective, 3, direction="maximize")


def test_several_objectives(store, name):
    def two(trial):
        x = trial.suggest_float("x", 0, 1)
        return x, 1 - x

    study = optimize(store, name, two, 5, directions=["minimize", "maximize"])
    assert len(study.trials) == 5
    restored = store.restore(name)["study"]
    assert [one.values for one in restored.trials] == [one.values for one in study.trials]


def test_a_study_in_a_state_comes_back(store, name):
    study = optuna.create_study(pruner=optuna.pruners.MedianPruner(2))
    study.optimize(objective, 6)
    study.trials[0].user_attrs["a"] = 1
    store.save(name, {"study": study})
    restored = store.restore(name)["study"]
    assert facts(restored) == facts(study)
    assert [t.intermediate_values for t in restored.trials] == [
        t.intermediate_values for t in study.trials
    ]
    assert restored.best_value == study.best_value


def test_a_restored_study_is_not_announced_as_a_new_one(store, name, caplog):
    store.save(name, {"study": optuna.create_study()})
    optuna.logging.set_verbosity(optuna.logging.INFO)
    caplog.clear()
    try:
        store.restore(name)
        assert caplog.messages == []
        optuna.create_study(study_name="theirs")
        assert "theirs" in caplog.text
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)


def append(store_path, name, count):
    with casckpt.open(store_path) as store:
        from casckpt.training.lines import scope

        backend = RowsBackend(store._repository, scope(name, 0))
        for index in range(count):
            backend.append_logs([{"op": index}, {"op": -index}])


def test_processes_append_to_one_journal(store, name):
    processes = [
        multiprocessing.get_context("spawn").Process(target=append, args=(store.path, name, 20))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    from casckpt.training.lines import scope

    backend = RowsBackend(store._repository, scope(name, 0))
    logs = list(backend.read_logs(0))
    assert len(logs) == 120
    assert list(backend.read_logs(7)) == logs[7:]
    assert all(logs[i]["op"] == -logs[i + 1]["op"] for i in range(0, 120, 2))


def test_heartbeats_tell_who_has_died(store, name):
    with store.run(name) as run:
        storage = casckpt.optuna.storage(run, heartbeat_interval_s=60)
        study = optuna.create_study(storage=storage)
        study_id = study._study_id
        trial_id = storage.create_new_trial(study_id)
        storage.record_heartbeat(trial_id)
        assert storage._get_stale_trial_ids(study_id) == []
        storage._interval_s = 0
        time.sleep(0.01)
        assert storage._get_stale_trial_ids(study_id) == [trial_id]


PROGRAM = """
import sys
import optuna
import casckpt, casckpt.optuna

optuna.logging.set_verbosity(optuna.logging.ERROR)

def objective(trial):
    rate = trial.suggest_float("rate", 1e-3, 1, log=True)
    depth = trial.suggest_int("depth", 1, 9)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    state = {"value": 0.0}
    with casckpt.optuna.trial_run(trial) as run:
        for epoch in run.epochs(3, state):
            state["value"] += rate * depth * epoch + (kind == "a")
            trial.report(state["value"], epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
    return state["value"]

with casckpt.open(sys.argv[1]) as store, store.run("kill/optuna") as run:
    print("begin", flush=True)
    study = casckpt.optuna.optimize(
        run, objective, 25, seed=3, pruner=optuna.pruners.MedianPruner(5),
        sampler=lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=6),
    )
facts = [(t.number, t.state.name, t.params, t.value, t.intermediate_values) for t in study.trials]
open(sys.argv[2], "w").write(repr(facts))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_it_makes_the_same_study(tmp_path):
    program = tmp_path / "search_optuna.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="optuna")


def test_an_objective_draws_from_the_process_as_if_never_interrupted(store, name):
    """As one that makes a network from the generators that the program has seeded once."""

    def values(run_name, die_at=None):
        random.seed(1)

        def noisy(trial):
            if trial.number == die_at:
                random.random()
                raise Killed
            return trial.suggest_float("x", 0, 1) * random.random()

        study = optimize(store, run_name, noisy, 4, sampler=SAMPLERS["random"])
        return [trial.value for trial in study.trials], random.random()

    whole = values(f"{name}-whole")
    with pytest.raises(Killed):
        values(name, die_at=2)
    assert values(name) == whole
