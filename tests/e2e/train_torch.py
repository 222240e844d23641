"""A small torch training script, as a person writes it; the tests kill it and run it again.

    python train_torch.py STORE OUT MODE [PACE_S]

MODE is "epoch" (saves at boundaries), "middle" (and inside epochs) or "steps". It says "begin"
before the first batch: until then there is nothing to lose. At its end it writes the final state
and what it logged to OUT.
"""

from __future__ import annotations

import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import casckpt

EPOCHS = 6


class Task:
    def __init__(self) -> None:
        self.begun = False
        torch.manual_seed(0)
        torch.set_num_threads(1)
        inputs = torch.randn(192, 8)
        targets = (2 * inputs[:, :1] + inputs[:, 1:2]).sin()
        self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=EPOCHS)
        self.loader = DataLoader(TensorDataset(inputs, targets), batch_size=16, shuffle=True)
        self.state = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "losses": [],
            "sum": 0.0,
        }

    def step(self, batch: list[torch.Tensor]) -> float:
        if not self.begun:
            self.begun = True
            sys.stdout.write("begin\n")
            sys.stdout.flush()
        self.model.train()
        loss = ((self.model(batch[0]) - batch[1]) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


def train_epochs(run: casckpt.Run, task: Task, pace_s: float, every_s: float | None) -> None:
    state = task.state
    for _ in run.epochs(EPOCHS, state, save_every=2, monitor="loss", mode="min"):
        for batch in run.batches(task.loader, save_every_s=every_s):
            state["sum"] += task.step(batch)
            time.sleep(pace_s)
        task.scheduler.step()
        state["losses"].append(state["sum"])
        state["sum"] = 0.0
        run.log(loss=state["losses"][-1])


def train_steps(run: casckpt.Run, task: Task, pace_s: float) -> None:
    state = task.state
    steps = run.steps(70, state, task.loader, save_every=20, save_latest_s=0.0)
    for step, batch in steps:
        state["losses"].append(task.step(batch))
        run.log(step=step, loss=state["losses"][-1])
        time.sleep(pace_s)


def main(path: str, out: str, mode: str, pace_s: str = "0") -> None:
    task = Task()
    with casckpt.open(path) as store:
        with store.run("net", config={"lr": 1e-2, "mode": mode}) as run:
            if mode == "steps":
                train_steps(run, task, float(pace_s))
            else:
                train_epochs(run, task, float(pace_s), 0.0 if mode == "middle" else None)
        result = {
            "model": task.model.state_dict(),
            "optimizer": task.optimizer.state_dict(),
            "scheduler": task.scheduler.state_dict(),
            "losses": task.state["losses"],
            "rng": torch.get_rng_state(),
            "history": store.history("net"),
        }
    torch.save(result, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
