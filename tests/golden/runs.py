"""Make a golden run: `python -m tests.golden.runs FOLDER`, killed inside an epoch.

What a run keeps beside its checkpoints (generators, positions, counters, its row, its log) has
names that every later version must understand. A run of an older casckpt is gone on with by this
one, and must end as if nobody had ended it.
"""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import casckpt
from tests.golden import archive

RUN = "golden/run"
EPOCHS, BATCHES = 4, 6


class Killed(BaseException):
    """Ends the training as a signal does: nothing is saved any more."""


class Shuffled:
    """A loader that shuffles by the generator of the process, and knows where it stands."""

    def __init__(self) -> None:
        self.order: list[int] = []
        self.at = 0

    def __iter__(self) -> Any:
        if not self.order:
            self.order = random.sample(range(BATCHES), BATCHES)
        while self.at < len(self.order):
            self.at += 1
            yield self.order[self.at - 1]
        self.order, self.at = [], 0

    def __len__(self) -> int:
        return BATCHES

    def state_dict(self) -> dict[str, Any]:
        return {"order": list(self.order), "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = list(state["order"]), state["at"]


def train(path: Path, killed_at: tuple[int, int] | None = None) -> dict[str, Any]:
    """Train, or go on; return what came of it, as JSON has it."""
    np.random.seed(3)
    random.seed(3)
    own = np.random.RandomState(5)
    net: dict[str, Any] = {"w": np.zeros(40), "batches": 0}
    state = casckpt.State(net=net, own=own)
    with casckpt.open(path) as store, store.run(RUN, config={"lr": 0.5}) as run:
        for epoch in run.epochs(EPOCHS, state, save_every=1, monitor="loss", mode="min"):
            for number, batch in enumerate(run.batches(Shuffled(), save_every_s=0.0)):
                if (epoch, number) == killed_at:
                    raise Killed
                noise = np.random.normal(size=40) + own.normal(size=40)
                net["w"] += 0.5 * batch * noise * random.random()
                net["batches"] += 1
            run.log(loss=abs(float(net["w"].sum())))
        history = [value for _, value in store.history(RUN)["loss"]]
    return {
        "w": net["w"].tobytes().hex(),
        "next": [random.random(), float(np.random.normal()), own.normal()],
        "batches": net["batches"],
        "history": history,
    }


def main(target: Path) -> None:
    """Write the store of a run that was killed, and its end if it had not been, into `target`."""
    with tempfile.TemporaryDirectory() as folder:
        expected = train(Path(folder) / "whole")
        path = Path(folder) / "store"
        with contextlib.suppress(Killed):
            train(path, killed_at=(2, 4))
        archive.pack(path, expected, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
