"""Workflow A: audio to features to two models; killed in each stage, run again, compared."""

from __future__ import annotations

import json

import numpy as np
import pytest

import casckpt
from casckpt.training.manager import CheckpointManager, TrainingResumer
from tests.e2e.workshop import Workshop

pytest.importorskip("torch")
xgboost = pytest.importorskip("xgboost")

TRACKS = 30
PROGRAM = """
import argparse, json
from pathlib import Path
import numpy as np, torch, xgboost
import casckpt, casckpt.torch, casckpt.xgboost
from ledger import call

torch.set_num_threads(1)

def spectrum(signal, bins):
    return np.abs(np.fft.rfft(signal))[:bins].astype("float32")

class Rounds(xgboost.callback.TrainingCallback):
    def after_iteration(self, model, epoch, log):
        call(f"round {epoch + 1}")
        return False

parser = argparse.ArgumentParser()
parser.add_argument("data", type=Path)
parser.add_argument("--algorithms", nargs="+", default=["xgboost", "neural_network"])
parser.add_argument("--bins", type=int, default=8)
parser.add_argument("--epochs", type=int, default=12)
casckpt.add_arguments(parser)
args = parser.parse_args()

def extract(path):
    call(f"extract {path.stem}")
    return spectrum(np.load(path), args.bins)

def train_network(run, X, y):
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(X.shape[1], 8), torch.nn.Dropout(0.2),
                                torch.nn.Tanh(), torch.nn.Linear(8, 1))
    state = casckpt.torch.State(model=model, optimizer=torch.optim.Adam(model.parameters(), 0.01))
    data = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(data, batch_size=6, shuffle=True)
    for epoch in run.epochs(args.epochs, state, save_every=args.checkpoint_freq or 20,
                            monitor="val_loss", mode="min", patience=50,
                            keep=casckpt.KeepLast(5)):
        call(f"epoch {epoch}")
        for inputs, target in run.batches(loader):
            loss = ((model(inputs)[:, 0] - target) ** 2).mean()
            state.optimizer.zero_grad()
            loss.backward()
            state.optimizer.step()
        run.log(train_loss=loss, val_loss=((model(data.tensors[0])[:, 0] - data.tensors[1]) ** 2)
                .mean().item())
    return model

with casckpt.open(args.checkpoint_dir) as store:
    with store.run("bpm", resume=casckpt.resume_choice(args)) as run:
        tracks = sorted(args.data.glob("*.npy"))
        features = run.stage("features", tracks, key=lambda path: path.name,
                             uses=[spectrum, args.bins])
        print("features:", features.done_count, "of", features.total)
        X = np.stack(list(features.map(extract)))
        y = X[:, 1] - X[:, 2]
        made = b""
        if "xgboost" in args.algorithms:
            with run.child("xgboost") as child:
                if child.finished:
                    print("xgboost: trained before")
                booster = casckpt.xgboost.train(
                    child, {"max_depth": 3, "subsample": 0.7, "nthread": 1},
                    xgboost.DMatrix(X, y), 300, every=100, evals=[(xgboost.DMatrix(X, y), "val")],
                    verbose_eval=False, callbacks=[Rounds()])
            made += bytes(booster.save_raw("ubj"))
        if "neural_network" in args.algorithms:
            with run.child("neural_network") as child:
                model = train_network(child, X, y)
            made += b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())
            made += json.dumps(store.history("bpm/neural_network")).encode()
Path("made").write_bytes(made)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracks")
    rng = np.random.default_rng(0)
    for number in range(TRACKS):
        np.save(folder / f"{number:02}.npy", rng.normal(size=400))
    return folder


@pytest.mark.slow
@pytest.mark.crash
def test_killed_in_each_stage_it_makes_the_same_models(tmp_path, data):
    whole = Workshop(tmp_path / "whole", PROGRAM)
    command = (data, "--checkpoint-dir", "ckpts", "--checkpoint-freq", 5)
    whole(*command)

    shop = Workshop(tmp_path / "killed", PROGRAM)
    shop(*command, die="extract 21")
    answer = shop(*command, die="round 150")
    assert f"features: 21 of {TRACKS}" in answer.out
    answer = shop(*command, die="epoch 9")
    assert f"features: {TRACKS} of {TRACKS}" in answer.out
    # The frequency may change: it counts epochs, and is no setting that a resume compares.
    answer = shop(*command[:-1], 4)
    assert "xgboost: trained before" in answer.out
    assert "neural_network: going on at epoch 9 of 12" in answer.err
    assert shop.made() == whole.made()
    calls = shop.calls()
    again = {what for what, count in calls.items() if count > 1}
    assert again == {"extract 21", "epoch 9", *(f"round {n}" for n in range(101, 151))}
    assert max(calls.values()) == 2

    before = shop.calls()
    shop(*command)
    assert shop.calls() == before
    assert shop.made() == whole.made()


@pytest.mark.slow
def test_what_is_changed_is_extracted_again_and_nothing_else(tmp_path, data):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    tracks = tmp_path / "tracks"
    tracks.mkdir()
    for path in sorted(data.iterdir())[:6]:
        (tracks / path.name).write_bytes(path.read_bytes())
    command = (tracks, "--algorithms", "xgboost", "--checkpoint-dir", "ckpts")
    shop(*command)
    before = shop.calls()
    np.save(tracks / "03.npy", np.ones(400))
    shop(*command, "--ignore-checkpoint")
    extracted = [what for what in (shop.calls() - before).elements() if what[0] == "e"]
    assert len(extracted) == 6, "a new line begins its stages anew"
    before = shop.calls()
    np.save(tracks / "04.npy", np.zeros(400))
    shop(*command)
    assert [what for what in (shop.calls() - before) if what[0] == "e"] == ["extract 04"]
    text = (shop.folder / "train.py").read_text()
    (shop.folder / "train.py").write_text(text.replace("np.abs(np", "np.abs(2 * np"))
    before = shop.calls()
    shop(*command)
    assert len([what for what in (shop.calls() - before) if what[0] == "e"]) == 6
    with casckpt.open(shop.folder / "ckpts") as store:
        store.delete("bpm", stage="features")
    before = shop.calls()
    shop(*command)
    assert len([what for what in (shop.calls() - before) if what[0] == "e"]) == 6


@pytest.mark.slow
def test_the_manager_of_the_pile_has_its_face(tmp_path, data):
    shop = Workshop(tmp_path / "shop", PROGRAM)
    shop(data, "--checkpoint-dir", "ckpts", "--checkpoint-freq", 2)
    assert not TrainingResumer(tmp_path / "nowhere").can_resume("bpm/xgboost")
    with CheckpointManager(shop.folder / "ckpts") as manager:
        assert TrainingResumer(manager).can_resume("bpm/xgboost")
        network = "bpm/neural_network"
        steps = [one.step for one in manager.list_checkpoints(network)]
        assert steps[-1] == 12
        assert len(steps) >= 5
        best = manager.get_best_checkpoint(algorithm=network)
        history = json.loads(json.dumps(manager.get_history(network)))
        assert best.metrics["val_loss"] == min(value for _, value in history["val_loss"])
        assert len(history["train_loss"]) == 12
        assert manager.cleanup_old_checkpoints(3, algorithm=network) > 0
        assert [one.step for one in manager.list_checkpoints(network)][-1] == 12
        # One hundred trees more from checkpoint 200, by hand.
        booster = manager.load_checkpoint("bpm/xgboost@200")["booster"]
        matrix = xgboost.DMatrix(np.zeros((5, 8), "float32"), np.zeros(5))
        longer = xgboost.train({"nthread": 1}, matrix, 100, xgb_model=booster)
        assert longer.num_boosted_rounds() == 300
        assert manager.load_checkpoint(algorithm="bpm/forest") is None
        assert manager.format_progress_bar(12, 8, network) == "########"
