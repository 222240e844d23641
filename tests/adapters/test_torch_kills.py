"""A torch program with everything that is random, killed at random moments."""

from __future__ import annotations

import pytest

from tests.adapters.kills import check

PROGRAM = """
import random, sys
import numpy as np, torch
import casckpt, casckpt.torch

torch.set_num_threads(1)
torch.manual_seed(1); np.random.seed(1); random.seed(1)
model = torch.nn.Sequential(
    torch.nn.Linear(8, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Dropout(0.3),
    torch.nn.Linear(32, 1),
)
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
state = casckpt.torch.State(
    model=model,
    optimizer=optimizer,
    scheduler=torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=40 * 12),
    average=torch.optim.swa_utils.AveragedModel(model, use_buffers=True),
    scaler=torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=50),
    noise=torch.Generator().manual_seed(5),
    losses=[], best=1e9,
)
X, y = torch.randn(96, 8), torch.randn(96, 1)
loader = torch.utils.data.DataLoader(
    torch.utils.data.TensorDataset(X, y), batch_size=8, shuffle=True
)
with casckpt.open(sys.argv[1]) as store, store.run("kill/torch") as run:
    print("begin", flush=True)
    for epoch in run.epochs(40, state, save_every=5, monitor="loss", mode="min"):
        total = 0.0
        for inputs, target in run.batches(loader, save_every_s=SAVE):
            inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=state.noise)
            inputs = inputs * (1 + 0.01 * random.random() + 0.01 * np.random.rand())
            loss = ((model(inputs) - target) ** 2).mean()
            state.scaler.scale(loss).backward()
            state.scaler.step(optimizer)
            state.scaler.update()
            optimizer.zero_grad()
            state.scheduler.step()
            state.average.update_parameters(model)
            total += loss.item()
        state.losses.append(total)
        state.best = min(state.best, total)
        run.log(loss=total)
made = [
    model.state_dict(), optimizer.state_dict(), state.average.state_dict(),
    state.scaler.state_dict(), state.losses, state.best,
    torch.rand(2, generator=state.noise), state.scheduler.last_epoch,
]
torch.set_printoptions(profile="full", precision=12)
open(sys.argv[2], "wb").write(repr(made).encode() + b"".join(
    tensor.numpy().tobytes() for tensor in model.state_dict().values()
))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_it_makes_the_same_model(tmp_path):
    program = tmp_path / "train_torch.py"
    program.write_text(PROGRAM.replace("SAVE", "None"))
    check(program, tmp_path, framework="torch, epochs")


@pytest.mark.slow
@pytest.mark.crash
def test_killed_inside_epochs_it_makes_the_same_model(tmp_path):
    # A sum over an epoch has to be in the state, when a save may come in the middle of it.
    text = PROGRAM.replace("SAVE", "0.0").replace("        total = 0.0\n", "")
    text = text.replace("total += ", "state.total += ").replace("(total)", "(state.total)")
    text = text.replace("state.best, total)", "state.best, state.total)")
    text = text.replace("loss=total)\n", "loss=state.total)\n        state.total = 0.0\n")
    text = text.replace("best=1e9,", "best=1e9, total=0.0,")
    program = tmp_path / "train_torch_batches.py"
    program.write_text(text)
    check(program, tmp_path, seed=1, framework="torch, inside epochs")
