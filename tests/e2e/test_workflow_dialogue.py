"""Workflow D: six kinds of resumable work in one command, and an API that is paid for."""

from __future__ import annotations

import json
import signal
import time

import pytest

import casckpt
from tests.e2e.test_stage_kill import Api
from tests.e2e.workshop import Workshop

pytest.importorskip("optuna")
pytest.importorskip("sklearn")

COUNT = 24
PROGRAM = """
import argparse, json, time, urllib.error, urllib.request
from pathlib import Path
import numpy as np, optuna
from sklearn.model_selection import KFold
import casckpt, casckpt.optuna
from ledger import call

optuna.logging.set_verbosity(optuna.logging.ERROR)
parser = argparse.ArgumentParser()
parser.add_argument("--experiment", default="exp")
parser.add_argument("--url")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--trials", type=int, default=4)
parser.add_argument("--on-seed", default="raise")
parser.add_argument("--skip", nargs="*", default=[])
casckpt.add_arguments(parser)
args = parser.parse_args()
tag = args.experiment

class Broken(Exception):
    pass

def ask(texts):
    request = urllib.request.Request(args.url, json.dumps(texts).encode())
    try:
        with urllib.request.urlopen(request, timeout=0.5) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as exc:
        if exc.code == 500:
            raise Broken from exc
        raise
    except (TimeoutError, urllib.error.URLError) as exc:
        raise TimeoutError(str(exc)) from exc
    call(f"{tag} answer {texts[0]}")
    return casckpt.Result(found["answers"], tokens=found["tokens"])

def correct(texts):
    call(f"{tag} correct {texts[0]}")
    return [text.replace("a", "b") for text in texts]

def rouge(one, other):
    first, second = set(one.lower().split()), set(other.lower().split())
    return 2 * len(first & second) / max(1, len(first) + len(second))

def objective(trial):
    call(f"{tag} trial {trial.number}")
    return (trial.suggest_float("rate", 0, 1) - 0.3) ** 2 + trial.suggest_int("beams", 1, 4)

texts = [f"{tag} dialogue {number}" for number in range(24)]
with casckpt.open(args.checkpoint_dir) as store, store.run(
    args.experiment, config={"seed": args.seed},
    on_mismatch={"seed": args.on_seed, "data": "warn", "*": "raise"},
    resume=casckpt.resume_choice(args),
) as run:
    augment = run.stage("augment", texts, save_every=4)
    for key, text in augment:
        call(f"{tag} augment {key}")
        words = text.split()
        augment.done(key, " ".join(np.random.default_rng(augment.seed(key)).permutation(words)))
    corrected = list(run.stage("correct", texts, uses={"models": ["small"], "threshold": 0.5})
                     .map(correct, batch_size=5))
    if "api" not in args.skip:
        api = run.stage("api", texts)
        answers = list(api.map(ask, batch_size=3, workers=2, retry={
            urllib.error.HTTPError: 50, Broken: 50, TimeoutError: 50}))
        tokens = api.totals
    else:
        answers, tokens = texts, {}
    with run.child("hpo") as child:
        study = casckpt.optuna.optimize(child, objective, args.trials, seed=args.seed)
    weights = []
    X = np.random.default_rng(1).normal(size=(30, 3))
    for fold in run.folds(KFold(3, shuffle=True, random_state=0), X):
        np.random.seed(args.seed)
        state = {"w": np.zeros(3)}
        for epoch in fold.run.epochs(3, state):
            call(f"{tag} fold {fold.number} epoch {epoch}")
            state["w"] += X[np.random.permutation(fold.train)[:5]].sum(0)
        fold.run.log(f1=float(state["w"].sum()))
    folds = [one.metrics for one in run.children("fold-*")]
    if args.resume_from is None:  # what came from elsewhere has no checkpoint of its own here
        weights = [store.restore(f"{tag}/fold-{n}")["w"].tobytes().hex() for n in (1, 2, 3)]
    validate = run.stage("validate", list(zip(texts, answers)), key=lambda pair: pair[0])
    for key, (text, answer) in validate:
        call(f"{tag} validate {key}")
        validate.done(key, answer, rouge=rouge(text, answer))
    made = [list(augment.results()), corrected, answers, tokens, folds, weights,
            [trial.params for trial in study.trials], validate.means]
    run.log(rouge=validate.means["rouge"])
part = Path(f".made-{tag}")
part.write_text(json.dumps(made))
part.rename(f"made-{tag}")
"""


@pytest.fixture
def api():
    server = Api(trouble=0.15)
    yield server
    server.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    server = Api(trouble=0.0)
    shop = Workshop(tmp_path_factory.mktemp("dialogue") / "whole", PROGRAM)
    shop("--url", server.url)
    server.close()
    return shop


@pytest.mark.slow
@pytest.mark.crash
def test_each_kind_of_work_goes_on_where_it_was(tmp_path, whole, api):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    command = ("--url", api.url)
    for place in (
        "augment exp dialogue 9", "correct exp dialogue 10", "answer exp dialogue 12",
        "trial 2", "fold 2 epoch 2", "validate exp dialogue 17",
    ):  # fmt: skip
        shop(*command, die=f"exp {place}")
        assert not (shop.folder / "made-exp").exists()
    answered = api.answered.copy()
    answer = shop(*command, "--resume")
    assert "stage validate: 17 of 24 are done" in answer.err
    assert api.answered == answered, "the stage was done: nothing was called again"
    assert shop.made("made-exp") == whole.made("made-exp")
    assert sum(api.troubles.values()) > 0
    # Killed right after an answer came: that batch, and the other worker's, were open.
    assert sum(count - 1 for count in api.answered.values()) <= 2 * 3
    repeated = {what for what, count in shop.calls().items() if count > 1}
    assert {what for what in repeated if "augment" in what} == {
        "exp augment exp dialogue 8", "exp augment exp dialogue 9"
    }  # fmt: skip
    assert {what for what in repeated if "augment" not in what and "answer" not in what} == {
        "exp correct exp dialogue 10", "exp trial 2", "exp fold 2 epoch 2",
        "exp validate exp dialogue 17",
    }  # fmt: skip
    before = shop.calls()
    shop(*command)
    assert shop.calls() == before


@pytest.mark.slow
@pytest.mark.crash
def test_three_experiments_at_once_in_one_store(tmp_path, whole, api):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    names = ("exp", "exp-2", "exp-3")

    def begin():
        return [shop.begin("--experiment", name, "--url", api.url) for name in names]

    children = begin()
    deadline = time.monotonic() + 120
    while len({what.split()[0] for what in shop.calls() if "answer" in what}) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for child in children:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    for child in begin():
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
    assert shop.made("made-exp") == whole.made("made-exp")
    alone = Workshop(tmp_path / "alone", PROGRAM)
    alone("--experiment", "exp-2", "--url", api.url)
    assert shop.made("made-exp-2") == alone.made("made-exp-2")
    with casckpt.open(shop.folder / ".casckpt", mode="r") as store:
        assert {one.name: one.status for one in store.runs("exp*") if "/" not in one.name} == (
            dict.fromkeys(names, "finished")
        )
        assert {len(store.history(name)["rouge"]) for name in names} == {1}


@pytest.mark.slow
def test_a_seed_that_changed_is_allowed_where_asked(tmp_path):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    shop("--skip", "api", die="exp trial 2")
    answer = shop("--skip", "api", "--seed", 7, code=1)
    assert "seed" in answer.err
    shop("--skip", "api", "--seed", 7, "--on-seed", "allow")
    assert shop.calls()["exp augment exp dialogue 3"] == 1, "finished units stay"
    old = Workshop(tmp_path / "old", PROGRAM)
    old("--skip", "api")
    mixed, first = (json.loads(one.made("made-exp")) for one in (shop, old))
    assert mixed[6][:2] == first[6][:2]
    assert mixed[6][3] != first[6][3], "new units use the new seed"


@pytest.mark.slow
def test_a_study_of_another_experiment_is_extended(tmp_path):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    shop("--skip", "api")
    first = json.loads(shop.made("made-exp"))
    before = shop.calls()
    shop("--skip", "api", "--trials", 6)
    assert {what for what in shop.calls() - before if "trial" in what} == {
        "exp trial 4", "exp trial 5"
    }  # fmt: skip
    assert json.loads(shop.made("made-exp"))[6][:4] == first[6]
    with casckpt.open(shop.folder / ".casckpt") as store:
        with store.run("other/hpo", resume="exp/hpo"):
            pass
        assert store.runs("other/hpo")[0].line == 0


@pytest.mark.slow
def test_experiments_are_found_by_their_folder(tmp_path):
    shop = Workshop(tmp_path / "exp", PROGRAM)
    shop("--skip", "api")
    other = Workshop(tmp_path / "new", PROGRAM)
    answer = other("--skip", "api", "--resume-from", shop.folder)
    assert "with the stages, folds and trials of" in answer.err
    assert not any(
        word in what for what in other.calls() for word in ("augment", "correct", "trial", "epoch")
    )
    first, second = (json.loads(one.made("made-exp")) for one in (shop, other))
    assert second[5] == []
    assert second[:5] + second[6:] == first[:5] + first[6:]
    again = other("--skip", "api", "--resume_from", shop.folder / ".casckpt")
    assert again.code == 0
    fresh = other("--skip", "api", "--experiment", "fresh", "--resume")
    assert fresh.code == 0
    answer = other("--skip", "api", "--ignore-checkpoint", "--resume-from", "exp", code=1)
    assert "contradict" in answer.err
