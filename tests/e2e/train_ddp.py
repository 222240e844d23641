"""A DistributedDataParallel script, as a person writes it; the tests kill it and run it again.

    torchrun --nproc-per-node 2 train_ddp.py STORE OUT MODE [PACE_S]

MODE is "epoch" (saves at boundaries), "middle" (and inside epochs) or "steps"; "accelerate" is
"middle" with an Accelerator; "early" ends by patience, "alone" lets the second process end the
training. Each epoch saves a note by hand too. The first process says "begin" and the
pids of all before the first batch. At its end each writes its state to OUT.RANK.
"""

from __future__ import annotations

import os
import random
import sys
import time

import torch
from torch import distributed, nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler

import casckpt
import casckpt.torch

EPOCHS = 5


class Noisy(Dataset):
    """Draws at every item, so that a generator that was not put back shows."""

    def __init__(self) -> None:
        self.inputs = torch.randn(192, 8, generator=torch.Generator().manual_seed(3))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.inputs[index] + 0.05 * torch.randn(8)
        return row, row[:1].sin()


class Task:
    """A model, its data and its state, wrapped by torch itself."""

    def __init__(self) -> None:
        self.rank = distributed.get_rank()
        torch.set_num_threads(1)
        torch.manual_seed(self.rank)
        random.seed(self.rank)
        self.module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
        # Of more than two the order of a sum counts: the buckets of the first pass have to stay.
        stays = distributed.get_world_size() > 2
        self.model = nn.parallel.DistributedDataParallel(self.module, find_unused_parameters=stays)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        data = Noisy()
        self.sampler = DistributedSampler(data, shuffle=True, seed=7)
        self.loader = DataLoader(data, batch_size=8, sampler=self.sampler)
        own = torch.Generator().manual_seed(100 + self.rank)
        self.state = casckpt.torch.State(
            model=self.model, optimizer=self.optimizer, own=own, losses=[], sum=0.0
        )
        self.begun = False

    def step(self, batch: list[torch.Tensor]) -> None:
        if not self.begun:
            self.begun = True
            pids = [torch.zeros(1, dtype=torch.int64) for _ in range(distributed.get_world_size())]
            distributed.all_gather(pids, torch.tensor([os.getpid()]))
            if self.rank == 0:
                sys.stdout.write(f"begin {' '.join(str(int(pid)) for pid in pids)}\n")
                sys.stdout.flush()
        noise = torch.randn(batch[0].shape, generator=self.state.own) * random.random()
        loss = ((self.model(batch[0] + 0.01 * noise) - batch[1]) ** 2).mean()
        self.optimizer.zero_grad()
        self.backward(loss)
        self.optimizer.step()
        shared = loss.detach().clone()
        distributed.all_reduce(shared)
        self.state.sum += shared.item()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def begin_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)


class AcceleratedTask(Task):
    """The same, prepared by an Accelerator, which cuts a plain loader among the processes."""

    def __init__(self) -> None:
        import accelerate

        import casckpt.accelerate

        super().__init__()
        options = accelerate.DistributedDataParallelKwargs(
            find_unused_parameters=distributed.get_world_size() > 2
        )
        self.one = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=2, kwargs_handlers=[options]
        )
        torch.manual_seed(5)  # of all: the order of a plain loader comes from it
        self.module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 1))
        loader = DataLoader(Noisy(), batch_size=8, shuffle=True)
        optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-2)
        self.model, self.optimizer, self.loader = self.one.prepare(self.module, optimizer, loader)
        torch.manual_seed(self.rank)
        own = torch.Generator().manual_seed(100 + self.rank)
        self.state = casckpt.accelerate.State(self.one, own=own, losses=[], sum=0.0)

    def step(self, batch: list[torch.Tensor]) -> None:
        with self.one.accumulate(self.model):
            super().step(batch)

    def backward(self, loss: torch.Tensor) -> None:
        self.one.backward(loss)

    def begin_epoch(self, epoch: int) -> None:
        """Its loader counts its passes itself."""


def train_epochs(run: casckpt.Run, task: Task, mode: str, pace_s: float) -> None:
    every_s = 0.0 if mode in ("middle", "accelerate") else 600.0
    accumulate = 2 if mode == "accelerate" else 1
    patience = 2 if mode == "early" else None
    epochs = run.epochs(
        EPOCHS, task.state, save_every=2, monitor="loss", mode="min", patience=patience,
        at_end="best" if mode == "early" else "last",
    )  # fmt: skip
    for epoch in epochs:
        task.begin_epoch(epoch)
        for batch in run.batches(task.loader, accumulate=accumulate, save_every_s=every_s):
            task.step(batch)
            time.sleep(pace_s)
        run.save({"rank": task.rank, "sum": task.state.sum}, name="notes")
        task.state.losses.append(task.state.sum)
        task.state.sum = 0.0
        # Each process logs another value; the first one's count.
        value = [3.0, 2.0, 2.5, 2.5, 1.0][epoch - 1] if mode == "early" else task.state.losses[-1]
        run.log(loss=value + (-epoch if task.rank else 0))
        if mode == "alone" and task.rank == 1 and epoch == 2:
            run.stop("enough")


def main(path: str, out: str, mode: str, pace_s: str = "0") -> None:
    distributed.init_process_group("gloo")
    task = AcceleratedTask() if mode == "accelerate" else Task()
    with casckpt.open(path) as store:
        with store.run("net", config={"mode": mode}) as run:
            if mode == "steps":
                for _, batch in run.steps(60, task.state, task.loader, save_latest_s=0.0):
                    task.step(batch)
                    time.sleep(float(pace_s))
            else:
                train_epochs(run, task, mode, float(pace_s))
        result = {
            "model": task.module.state_dict(),
            "optimizer": task.optimizer.state_dict(),
            "losses": task.state.losses,
            "own": task.state.own.get_state(),
            "torch": torch.get_rng_state(),
            "python": random.random(),
            "history": store.history("net"),
            "notes": [store.restore(one) for one in store.checkpoints("net/notes")],
        }
    torch.save(result, f"{out}.{task.rank}")
    distributed.barrier()
    distributed.destroy_process_group()
    # Threads of gloo that end with the interpreter abort the process now and then.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
