from __future__ import annotations

import random

import numpy as np
import pytest

from casckpt.errors import BadRequest

SPLITS = [([0, 1], [2]), ([0, 2], [1]), ([1, 2], [0])]


def train(store, name, splits=SPLITS, *, fail_at=None, leave_at=None, epochs=2, X=None):
    done = []
    with store.run(name) as run:
        for fold in run.folds(splits, X):
            if fold.number == leave_at:
                break
            state = {"sum": 0}
            for epoch in fold.run.epochs(epochs, state):
                if fold.number == fail_at and epoch == 2:
                    raise RuntimeError("power cut")
                state["sum"] += epoch
                fold.run.log(score=fold.number * 10 + epoch)
                done.append((fold.number, epoch))
    return done


def test_each_fold_is_a_run_below_and_done_once(store, name):
    assert train(store, name) == [(n, e) for n in (1, 2, 3) for e in (1, 2)]
    assert train(store, name) == []
    with store.run(name) as run:
        children = run.children("fold-*")
    assert [one.name for one in children] == [f"{name}/fold-{n}" for n in (1, 2, 3)]
    assert [one.metrics["score"] for one in children] == [12, 22, 32]
    assert {one.status for one in children} == {"finished"}


def test_a_fold_that_was_cut_off_goes_on_inside(store, name):
    with pytest.raises(RuntimeError):
        train(store, name, fail_at=2)
    assert train(store, name) == [(2, 2), (3, 1), (3, 2)]


def test_what_comes_after_the_loop_belongs_to_the_fold(store, name):
    def run(die_at=None):
        seen = []
        with store.run(name) as opened:
            for fold in opened.folds(SPLITS, None):
                state = {"sum": 0}
                for epoch in fold.run.epochs(2, state):
                    state["sum"] += epoch
                if fold.number == die_at:
                    raise RuntimeError("power cut")
                seen.append((fold.number, state["sum"]))
                fold.run.log(test=state["sum"] * fold.number)
            found = [one.metrics for one in opened.children("fold-*")]
        return seen, found

    with pytest.raises(RuntimeError):
        run(die_at=2)
    assert store.runs(f"{name}/fold-2")[0].status != "finished"
    seen, found = run()
    assert seen == [(2, 3), (3, 3)]
    assert found == [{"test": 3.0}, {"test": 6.0}, {"test": 9.0}]
    assert run() == ([], found)


def test_leaving_the_loop_leaves_the_fold_unfinished(store, name):
    assert train(store, name, leave_at=2) == [(1, 1), (1, 2)]
    assert [number for number, _ in train(store, name)] == [2, 2, 3, 3]


def test_a_fold_whose_split_changed_begins_anew(store, name, caplog):
    train(store, name)
    changed = [SPLITS[0], ([0, 2], [3]), SPLITS[2]]
    assert train(store, name, changed) == [(2, 1), (2, 2)]
    assert "data.split" in caplog.text


def test_a_fold_whose_checkpoints_were_deleted_is_trained_again(store, name):
    train(store, name)
    store.delete(f"{name}/fold-2")
    assert train(store, name) == [(2, 1), (2, 2)]
    assert store.latest(f"{name}/fold-2").step == 2
    assert train(store, name) == []


def test_splitters_of_sklearn(store, name):
    selection = pytest.importorskip("sklearn.model_selection")
    splitter = selection.StratifiedKFold(3, shuffle=True, random_state=0)
    x, y = np.zeros((12, 2)), np.arange(12) % 2
    seen = []
    for _ in range(2):
        with store.run(name) as run:
            for fold in run.folds(splitter, x, y):
                assert len(fold.train) == 8
                assert len(fold.test) == 4
                seen.append(fold.number)
    assert seen == [1, 2, 3]


def test_a_stage_in_a_fold_belongs_to_it(store, name):
    seen = []
    for _ in range(2):
        with store.run(name) as run:
            for fold in run.folds(SPLITS, None):
                fold.run.stage("predict", fold.test).map(lambda i, n=fold.number: i * n)
                seen.append(fold.number)
                if fold.number == 2:
                    break
    assert seen == [1, 2, 2]


def test_what_cannot_split_is_refused(store, name):
    with store.run(name) as run, pytest.raises(BadRequest, match="cannot split"):
        list(run.folds(7, None))


def test_folds_of_other_data_begin_anew(store, name):
    x = np.arange(12.0)
    whole = [(n, e) for n in (1, 2, 3) for e in (1, 2)]
    assert train(store, name, X=x) == whole
    assert train(store, name, X=x.copy()) == []
    assert train(store, name, X=x * 100) == whole
    assert train(store, name, X=object()) == whole
    assert train(store, name, X=object()) == []


def test_folds_draw_from_the_process_as_if_never_interrupted(store, name):
    """As a script does that seeds once and makes the model of each fold with what comes next."""

    def scores(run_name, die_before=None):
        random.seed(1)
        np.random.seed(1)
        with store.run(run_name) as run:
            for fold in run.folds(SPLITS, None):
                if fold.number == die_before:
                    raise RuntimeError("power cut")
                state = {"w": random.random()}
                for _ in fold.run.epochs(2, state):
                    state["w"] += random.random() + np.random.random()
            return [store.restore(f"{run_name}/fold-{n}")["w"] for n in (1, 2, 3)], random.random()

    whole = scores(name)
    for number in (2, 3):
        with pytest.raises(RuntimeError):
            scores(f"{name}-{number}", die_before=number)
        assert scores(f"{name}-{number}") == whole
