"""The training script of the demo: run it again after a crash, and it goes on.

    python -m casckpt.cli.demo.train STORE FILES

It trains a booster and a network, and saves both into the store after every few rounds and every
epoch. It is written as a user would write it, but for `record`, which writes the same state to a
file beside it, takes the times, and tells the demo.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import casckpt
from casckpt.cli.demo import peer, text

EPOCHS = 10
ROUNDS = 60
ROUNDS_PER_SAVE = 10

Record = Callable[[str, int, int, dict[str, Any], float], None]


def train_booster(store: casckpt.Store, record: Record) -> None:
    """Boost trees that guess the kind of the next character; a checkpoint every 10 rounds."""
    import xgboost

    train_codes, validation_codes = text.split(text.library_text())
    train = xgboost.DMatrix(*text.next_kinds(train_codes, 12, 12_000, seed=1))
    validation = xgboost.DMatrix(*text.next_kinds(validation_codes, 12, 4_000, seed=2))
    params = {
        "objective": "multi:softprob",
        "num_class": len(text.CLASSES),
        "eval_metric": "mlogloss",
        "nthread": 2,
        "max_depth": 5,
    }

    booster, done = None, 0
    if last := store.latest("demo/booster"):
        booster = xgboost.Booster(params, model_file=bytearray(store.restore(last)["model"]))
        done = last.step
    tell(event="starts", run="demo/booster", step=done, total=ROUNDS)

    for first in range(done, ROUNDS, ROUNDS_PER_SAVE):
        history: dict[str, dict[str, list[float]]] = {}
        booster = xgboost.train(
            params,
            train,
            ROUNDS_PER_SAVE,
            evals=[(validation, "validation")],
            evals_result=history,
            xgb_model=booster,
            verbose_eval=False,
        )
        state = {"model": bytes(booster.save_raw("ubj"))}
        loss = history["validation"]["mlogloss"][-1]
        record("demo/booster", first + ROUNDS_PER_SAVE, ROUNDS, state, loss)


def train_network(store: casckpt.Store, record: Record) -> None:
    """Train the network; a checkpoint after every epoch."""
    if peer.HAS_TORCH:
        from casckpt.cli.demo.network import Network
    else:
        from casckpt.cli.demo.network_numpy import Network  # type: ignore[assignment]

    network = Network()
    losses: list[float] = []
    done = 0
    if last := store.latest("demo/network"):
        state = store.restore(last)
        network.load(state)
        losses, done = state["losses"], last.step
    tell(
        event="starts",
        run="demo/network",
        step=done,
        total=EPOCHS,
        parameters=network.parameter_count,
    )

    for epoch in range(done + 1, EPOCHS + 1):
        losses.append(network.train_epoch(epoch))
        state = {**network.state(), "losses": losses}
        record("demo/network", epoch, EPOCHS, state, network.validation_loss())

    # The best weights once more, by themselves, as people keep a best.pt beside their checkpoints.
    best = store.best("demo/network", "val_loss", "min")
    assert best is not None
    weights = store.restore(best, only="model.*")
    record("demo/release", best.step, best.step, weights, best.metrics["val_loss"])


def tell(**event: Any) -> None:
    """Tell the demo something, as a line of JSON."""
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def recorder(store: casckpt.Store, files: Path) -> Record:
    """Return what saves a state into the store and to a file beside it, and takes the times."""

    def record(run: str, step: int, total: int, state: dict[str, Any], val_loss: float) -> None:
        began_s = time.perf_counter()
        peer.write(peer.file_of(files, run, step), state)
        between_s = time.perf_counter()
        saved = store.save(run, state, step, metrics={"val_loss": val_loss})
        ended_s = time.perf_counter()
        tell(
            event="saved",
            run=run,
            step=step,
            total=total,
            val_loss=val_loss,
            file_s=between_s - began_s,
            save_s=ended_s - between_s,
            logical_bytes=saved.logical_bytes,
            new_bytes=saved.new_bytes,
            stored_bytes=saved.stored_bytes,
        )

    return record


def main(store_path: str, files: str) -> None:
    """Train both, or what is left of both."""
    with casckpt.open(store_path) as store:
        record = recorder(store, Path(files))
        if peer.HAS_XGBOOST:
            train_booster(store, record)
        train_network(store, record)


if __name__ == "__main__":
    main(*sys.argv[1:])
