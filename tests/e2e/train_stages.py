"""A script with a stage, a shared stage, a cached value and children; each call is counted.

python train_stages.py [--die KEY]
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import casckpt

HOME = Path(os.environ["CASCKPT_STORE"]).parent


def count(what: str) -> None:
    with (HOME / "calls").open("a") as file:
        file.write(f"{what}\n")


def table(size: int) -> dict[str, bytes]:
    (HOME / "calls").open("a").write("table\n")
    return {"rows": bytes(range(256)) * size}


def main(option: str = "", value: str = "") -> None:
    die = value if option == "--die" else ""
    pace_s = float(value) if option == "--pace" else 0.0
    with casckpt.open(os.environ["CASCKPT_STORE"]) as store, store.run("nas") as run:
        run.cached("table", table, 100)
        for name, shared in (("features", False), ("speech", True)):
            stage = run.stage(name, {key: key * 3 for key in "abc"}, shared=shared)
            for key, item in stage:
                if die == f"{name}-{key}":
                    os.kill(os.getpid(), signal.SIGKILL)
                count(f"{name}-{key}")
                time.sleep(pace_s)
                stage.done(key, bytes(item, "ascii") * 5000, tokens=1)
        run.expect("model-*", 2)
        for number in range(2):
            with run.child(f"model-{number}") as child:
                for _ in child.epochs(2, {"n": number}, save_every=1):
                    time.sleep(pace_s)
                    child.log(score=number + 0.5)


if __name__ == "__main__":
    main(*sys.argv[1:])
