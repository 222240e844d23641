"""A loop that is over when it is called leaves the generators as its last unit did."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

import casckpt


def _work(path: Path) -> tuple[float, float]:
    random.seed(1)
    np.random.seed(1)
    with casckpt.open(path) as store, store.run("r") as run:
        state = {"drawn": 0.0}
        for _ in run.epochs(3, state):
            state["drawn"] = random.random() + float(np.random.rand())
    return random.random(), float(np.random.rand())


def test_what_follows_a_finished_loop_draws_the_same(tmp_path: Path) -> None:
    first = _work(tmp_path / "s")
    assert _work(tmp_path / "s") == first
