"""Workflow C: a search, then every candidate trained; the same script again, nothing changed."""

from __future__ import annotations

import json

import pytest

import casckpt
from tests.e2e.workshop import Workshop

pytest.importorskip("optuna")

PROGRAM = """
import argparse, time
from pathlib import Path
import numpy as np, optuna
import casckpt, casckpt.optuna
from ledger import call

optuna.logging.set_verbosity(optuna.logging.ERROR)
parser = argparse.ArgumentParser()
parser.add_argument("--trials", type=int, default=6)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--on-seed", default="raise")
casckpt.add_arguments(parser)
args = parser.parse_args()
rng = np.random.default_rng(0)
X = rng.normal(size=(80, 5))
y = np.tanh(X @ rng.normal(size=5))

def objective(trial):
    call(f"trial {trial.number}")
    width = trial.suggest_int("width", 2, 12)
    rate = trial.suggest_float("rate", 1e-3, 1e-1, log=True)
    return (width - 7) ** 2 * 0.01 + abs(np.log(rate) + 4)

def train(run, number, width, rate):
    np.random.seed(args.seed * 100 + number)
    state = {"w": np.random.normal(size=(5, width)) * 0.1, "v": np.random.normal(size=width) * 0.1}
    for epoch in run.epochs(args.epochs, state, monitor="score", mode="min"):
        call(f"model {number} epoch {epoch}")
        for row in np.random.permutation(len(X)):
            hidden = np.tanh(X[row] @ state["w"])
            error = hidden @ state["v"] - y[row]
            grown = np.outer(X[row], state["v"] * (1 - hidden ** 2))
            state["v"] -= rate * error * hidden
            state["w"] -= rate * error * grown
        run.log(score=float(((np.tanh(X @ state["w"]) @ state["v"] - y) ** 2).mean()))
    return state

with casckpt.open(args.checkpoint_dir) as store, store.run(
    "nas", config={"seed": args.seed}, on_mismatch={"seed": args.on_seed, "*": "raise"},
    resume=casckpt.resume_choice(args),
) as run:
    with run.child("search") as child:
        study = casckpt.optuna.optimize(
            child, objective, args.trials, seed=args.seed,
            sampler=lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3))
    run.expect("model-*", args.trials)
    made = []
    for trial in study.trials:
        with run.child(f"model-{trial.number}", config=trial.params) as child:
            if child.finished:
                print(f"model {trial.number} is done")
            state = train(child, trial.number, **trial.params)
        made.append(repr(trial.params).encode() + state["w"].tobytes() + state["v"].tobytes())
        run.export("results")
    print("line", run.line)
Path("made").write_bytes(b"".join(made))
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    shop = Workshop(tmp_path_factory.mktemp("search") / "whole", PROGRAM)
    shop()
    return shop


def results(shop):
    document = json.loads((shop.folder / "results" / "results.json").read_text())
    return {one["name"]: (one["status"], one["metrics"]) for one in document["runs"]
            if "/" in one["name"]}  # fmt: skip


@pytest.mark.slow
@pytest.mark.crash
def test_the_same_script_again_goes_on_in_each_phase(tmp_path, whole):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    shop(die="trial 3")
    shop(die="model 2 epoch 3")
    done = {name for name in results(shop) if "model" in name}
    assert done == {"nas/model-0", "nas/model-1"}, "results are rewritten after every model"
    answer = shop(die="model 4 epoch 1")
    assert "nas/model-2: going on at epoch 3 of 4" in answer.err
    assert "model 1 is done" in answer.out
    shop()
    assert shop.made() == whole.made()
    assert results(shop) == results(whole)
    calls = shop.calls()
    assert {what for what, count in calls.items() if count > 1} == {
        "trial 3", "model 2 epoch 3", "model 4 epoch 1"
    }  # fmt: skip
    history = (shop.folder / "results/histories/nas.model-2.csv").read_text().splitlines()
    assert history == (
        (whole.folder / "results/histories/nas.model-2.csv").read_text().splitlines()
    )
    assert len(history) == 5
    shop()
    assert shop.calls() == calls


@pytest.mark.slow
def test_another_seed_is_another_experiment_by_policy(tmp_path, whole):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    shop("--trials", 3)
    answer = shop("--trials", 3, "--seed", 2, code=1)
    assert "ConfigMismatch" in answer.err
    assert "seed" in answer.err
    # The policy that ignores old state: a new line, on which all begins anew.
    command = ("--trials", 3, "--seed", 2, "--on-seed", "restart")
    before = shop.calls()
    shop(*command, die="model 1 epoch 2")
    answer = shop(*command)
    assert "line 1" in answer.out
    assert (shop.calls() - before)["trial 0"] == 1
    assert (shop.calls() - before)["model 1 epoch 2"] == 2
    fresh = Workshop(tmp_path / "fresh", PROGRAM)
    fresh("--trials", 3, "--seed", 2)
    assert shop.made() == fresh.made()
    with casckpt.open(shop.folder / ".casckpt", mode="r") as store:
        assert store.latest("nas/model-0~0") is not None, "the old line stays"


@pytest.mark.slow
@pytest.mark.crash
def test_more_trials_extend_the_experiment(tmp_path, whole):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    shop("--trials", 4)
    shop("--trials", 6, die="model 5 epoch 2")
    shop("--trials", 6)
    assert shop.made() == whole.made()
    assert shop.calls()["trial 1"] == shop.calls()["model 3 epoch 4"] == 1
