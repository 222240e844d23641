"""Workflow B: a regression trainer; killed, branched, extended, with an old pile taken along."""

from __future__ import annotations

import pytest

import casckpt
from tests.e2e.workshop import Workshop

torch = pytest.importorskip("torch")

PROGRAM = """
import argparse, json
from pathlib import Path
import numpy as np, torch
import casckpt, casckpt.torch
from ledger import call

torch.set_num_threads(1)
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--width", type=int, default=8)
parser.add_argument("--allow-seed", action="store_true")
parser.add_argument("--list", action="store_true")
casckpt.add_arguments(parser)
args = parser.parse_args()

def prepare(path, noise):
    call("prepare")
    rng = np.random.default_rng(len(path.read_text()))
    X = rng.normal(size=(60, 4)).astype("float32")
    return X, (X[:, 0] * X[:, 1] + noise * rng.normal(size=60)).astype("float32")

store = casckpt.open(args.checkpoint_dir)
if args.list:
    for one in store.checkpoints("reg~*"):
        print(one.ref, sorted(one.metrics))
    raise SystemExit
choice = casckpt.resume_choice(args)
if choice.endswith(".pth"):  # of the old pile
    (old,) = store.import_files("old/" + Path(choice).stem, choice)
    choice = old.ref
with store, store.run(
    "reg",
    config={"seed": args.seed, "lr": 0.02},
    data=casckpt.fingerprint(Path("data.csv")),
    resume=choice,
    on_mismatch={"seed": "allow" if args.allow_seed else "raise", "data": "warn", "*": "raise"},
) as run:
    X, y = map(torch.from_numpy, run.cached("prepared", prepare, Path("data.csv"), 0.1))
    torch.manual_seed(args.seed)
    model = torch.nn.Sequential(torch.nn.Linear(4, args.width), torch.nn.Dropout(0.1),
                                torch.nn.ReLU(), torch.nn.Linear(args.width, 1))
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    state = casckpt.torch.State(
        model=model, optimizer=optimizer,
        scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 4),
        train_losses=[], correlations=[], best=-2.0, best_epoch=0)
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(X, y), batch_size=10, shuffle=True)
    for epoch in run.epochs(args.epochs, state, save_every=args.checkpoint_freq or 5,
                            monitor="corr", mode="max"):
        for number, (inputs, target) in enumerate(run.batches(loader, save_every_s=0.0)):
            call(f"epoch {epoch} batch {number}")
            loss = ((model(inputs)[:, 0] - target) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        state.scheduler.step()
        model.eval()
        corr = torch.corrcoef(torch.stack([model(X)[:, 0], y]))[0, 1].item()
        model.train()
        state.train_losses.append(loss.item())
        state.correlations.append(corr)
        if corr > state.best:
            state.best, state.best_epoch = corr, epoch
        run.log(train_loss=loss, corr=corr)
    name = f"{run.name}~{run.line}"
made = [state.train_losses, state.correlations, state.best, state.best_epoch]
Path("made").write_bytes(json.dumps(made).encode() + b"".join(
    tensor.numpy().tobytes() for tensor in model.state_dict().values()))
print(name)
"""


def workshop(folder):
    shop = Workshop(folder, PROGRAM)
    (shop.folder / "data.csv").write_text("a,b\n" * 50)
    return shop


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    shop = workshop(tmp_path_factory.mktemp("regression") / "whole")
    shop()
    return shop


@pytest.mark.slow
@pytest.mark.crash
def test_killed_in_the_middle_of_epochs_it_is_the_same(tmp_path, whole):
    shop = workshop(tmp_path / "shop")
    shop(die="prepare")
    shop(die="epoch 2 batch 0")
    answer = shop("--checkpoint_freq", 2, die="epoch 5 batch 4")
    assert "going on at epoch 2 of 10" in answer.err
    answer = shop("--resume", die="epoch 9 batch 5")
    assert "going on at epoch 5 of 10 after batch" in answer.err
    shop()
    assert shop.made() == whole.made()
    calls = shop.calls()
    assert calls["prepare"] == 2
    assert sum(calls.values()) - len(calls) <= 3 + 3, "at most an open batch or so each time"


@pytest.mark.slow
@pytest.mark.crash
def test_back_to_an_older_epoch_is_a_branch_and_the_old_line_stays(tmp_path, whole):
    shop = workshop(tmp_path / "shop")
    shop("--checkpoint-freq", 4)
    with casckpt.open(shop.folder / ".casckpt", mode="r") as store:
        old = [(one.step, one.id) for one in store.checkpoints("reg~0")]
    before = shop.calls()
    command = ("--resume", "reg~0@4", "--epochs", 12)
    shop(*command, die="epoch 8 batch 1")
    # The same command after a crash goes on with the branch.
    answer = shop(*command)
    assert "going on at epoch 8 of 12" in answer.err
    assert answer.out.strip() == "reg~1"
    assert min(shop.calls() - before).startswith("epoch 10"), "nothing before 5 is done again"
    assert not any(what.startswith(("epoch 4 ", "epoch 3 ")) for what in shop.calls() - before)
    with casckpt.open(shop.folder / ".casckpt", mode="r") as store:
        assert [(one.step, one.id) for one in store.checkpoints("reg~0")] == old
        steps = [step for step, _ in store.history("reg")["corr"]]
        assert steps == list(range(1, 13))
        store.restore("reg~0@10")
    # Ten epochs of the branch are those of the first line: nothing else was different.
    listed = shop("--list").out
    assert "reg~0@10 ['corr', 'train_loss']" in listed
    assert "reg~1@12 ['corr', 'train_loss']" in listed


@pytest.mark.slow
def test_more_epochs_go_on_and_equal_one_training(tmp_path):
    longer, shop = workshop(tmp_path / "longer"), workshop(tmp_path / "shop")
    longer("--epochs", 7)
    shop("--epochs", 4)
    before = shop.calls()
    shop("--epochs", 7)
    assert {what.partition(" batch")[0] for what in shop.calls() - before} == {
        "epoch 5", "epoch 6", "epoch 7"
    }  # fmt: skip
    assert shop.made() == longer.made()


@pytest.mark.slow
def test_changes_are_named_and_the_policy_decides(tmp_path):
    shop = workshop(tmp_path / "shop")
    shop("--epochs", 2)
    answer = shop("--epochs", 3, "--seed", 5, code=1)
    assert "ConfigMismatch" in answer.err
    assert "seed" in answer.err
    assert "0" in answer.err
    assert "5" in answer.err
    shop("--epochs", 3, "--seed", 5, "--allow-seed")
    assert shop.calls()["epoch 3 batch 0"] == shop.calls()["epoch 2 batch 0"] == 1
    (shop.folder / "data.csv").write_text("other\n")
    assert "data" in shop("--epochs", 4, "--seed", 5).err
    answer = shop("--epochs", 5, "--seed", 5, "--width", 9, code=1)
    assert "model" in answer.err


@pytest.mark.slow
def test_a_checkpoint_of_the_old_pile_is_taken_by_resume(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.ReLU(),
                                torch.nn.Linear(8, 1))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    shop = workshop(tmp_path / "shop")
    torch.save(
        {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 4).state_dict(),
            "train_losses": [3.0] * 6, "correlations": [0.1] * 6, "best": 0.1, "best_epoch": 1,
        },
        shop.folder / "model_epoch_6.pth",
    )  # fmt: skip
    answer = shop("--resume", "model_epoch_6.pth", die="epoch 9 batch 0")
    shop("--resume", "model_epoch_6.pth")
    assert "old/model_epoch_6@6" in answer.err
    calls = shop.calls()
    assert not any(what.startswith("epoch 6 ") for what in calls)
    assert sum(count - 1 for count in calls.values()) <= 1
    with casckpt.open(shop.folder / ".casckpt") as store:
        assert store.restore("reg")["train_losses"][:6] == [3.0] * 6
        assert len(store.restore("reg")["train_losses"]) == 10
        (copy,) = store.export("reg@best", tmp_path / "important.pt")
    assert "model" in torch.load(copy, weights_only=True)
