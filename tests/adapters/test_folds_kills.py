"""K-fold with a model per fold, killed at random moments."""

from __future__ import annotations

import pytest

from tests.adapters.kills import check

pytest.importorskip("sklearn")

PROGRAM = """
import sys, time
import numpy as np
from sklearn.model_selection import KFold
import casckpt

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 4))
y = X @ np.array([1.0, -2.0, 0.5, 3.0])
with casckpt.open(sys.argv[1]) as store, store.run("kill/folds") as run:
    print("begin", flush=True)
    splitter = KFold(5, shuffle=True, random_state=3)
    for fold in run.folds(splitter, X, y):
        np.random.seed(fold.number)
        state = {"w": np.zeros(4), "seen": []}
        for epoch in fold.run.epochs(8, state, monitor="loss", mode="min", at_end="best"):
            for row in np.random.permutation(fold.train):
                noise = 0.01 * np.random.normal()
                state["w"] += 0.05 * (y[row] + noise - X[row] @ state["w"]) * X[row]
            time.sleep(0.005)
            loss = float(((X[fold.test] @ state["w"] - y[fold.test]) ** 2).mean())
            state["seen"].append(loss)
            fold.run.log(loss=loss)
        test = float(((X[fold.test] @ state["w"] - y[fold.test]) ** 2).mean())
        fold.run.log(test=test)
    made = [
        (one.name, one.status, one.metrics["test"], sorted(store.history(one.name)["loss"]))
        for one in run.children()
    ]
    weights = [store.restore(f"{one.name}@best")["w"].tobytes() for one in run.children()]
open(sys.argv[2], "wb").write(repr(made).encode() + b"".join(weights))
"""


@pytest.mark.slow
@pytest.mark.crash
def test_killed_at_random_moments_the_folds_are_the_same(tmp_path):
    program = tmp_path / "folds.py"
    program.write_text(PROGRAM)
    check(program, tmp_path, framework="K-fold")
