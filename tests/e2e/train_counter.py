"""A training script without a framework, which can be told to die or to go wrong.

    python train_counter.py EPOCHS [PACE_S] [--die EPOCH]... [--lr LR] [--random] [--never]

It trains the run "net" in the store that CASCKPT_STORE names. --die kills the process with SIGKILL
inside that epoch, once: a file beside the store remembers it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

import casckpt


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("epochs", type=int)
    parser.add_argument("pace_s", type=float, nargs="?", default=0.0)
    parser.add_argument("--die", type=int, action="append", default=[])
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--forgets", action="store_true", help="keep a part out of the state")
    parser.add_argument("--random", action="store_true", help="come out differently each time")
    parser.add_argument("--never", action="store_true", help="begin a new line")
    options = parser.parse_args()
    resume = "never" if options.never else "auto"
    path = Path(os.environ["CASCKPT_STORE"])
    random.seed(None if options.random else 0)
    outside = 0.0
    config = {"lr": options.lr}
    with casckpt.open(path) as store, store.run("net", config=config, resume=resume) as run:
        state = {"weights": [0.0] * 50, "seen": [], "drawn": [], "outside": 0.0}
        for epoch in run.epochs(
            options.epochs, state, save_every=2, monitor="val_loss", mode="min"
        ):
            time.sleep(options.pace_s)
            died = path.with_name(f"died-{epoch}")
            if epoch in options.die and not died.exists():
                died.touch()
                store.wait()
                os.kill(os.getpid(), signal.SIGKILL)
            outside += options.lr
            state["weights"] = [weight + options.lr for weight in state["weights"]]
            state["seen"].append(epoch)
            state["drawn"].append(random.random())
            if options.forgets:
                state["outside"] = outside
            run.log(val_loss=1 / epoch, accuracy=epoch / (epoch + 1))
            sys.stdout.write(f"epoch {epoch}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
