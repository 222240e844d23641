"""CLI: do the commands people type all day answer at once?

Every time is of a whole process, start-up included, with its output to a pipe: `casckpt ls` over
many checkpoints, the commands beside it, and `import casckpt`; `python -c pass` is the floor.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.gc import fill
from bench.harness import Context, Goal, Result, disk_bytes, measure
from bench.inputs import trajectory
from bench.trees import assert_equal, logical_bytes

_UNUSUAL = frozenset({"PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"})


def run(context: Context) -> Result:
    """Build a store of many checkpoints, then time the commands, interleaved."""
    import casckpt

    result = Result("cli", context.quick)
    count = 1_000 if context.quick else 10_000
    rounds = max(context.rounds, 9)
    with context.folder("cli") as base:
        path = base / "store"
        with casckpt.open(path) as store:
            fill(store, "many", count, tensor_bytes=1 << 10)
        casckpt_program = _program()
        option = ["--store", str(path)]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import casckpt": [sys.executable, "-c", "import casckpt"],
            "casckpt --version": [*casckpt_program, "--version"],
            "casckpt ls": [*casckpt_program, *option, "ls"],
            "casckpt ls --json": [*casckpt_program, *option, "ls", "--json"],
            "casckpt ls --best val_loss --limit 10": [
                *casckpt_program, *option, "ls", "--best", "val_loss", "--mode", "min",
                "--limit", "10",
            ],
            "casckpt show many": [*casckpt_program, *option, "show", "many"],
            "casckpt du": [*casckpt_program, *option, "du"],
            "casckpt gc --keep-last 3 -n": [
                *casckpt_program, *option, "gc", "--keep-last", "3", "-n",
            ],
        }  # fmt: skip
        listed = len(_output(commands["casckpt ls"]).splitlines())
        assert listed >= count, f"ls printed {listed} lines for {count} checkpoints"
        work = {name: (lambda _, c=c: _output(c)) for name, c in commands.items()}
        for name, seconds in measure(work, rounds).items():
            median = statistics.median(seconds)
            row = {"name": name, "checkpoints": count, "median_s": median, "seconds": seconds}
            result.rows.append(row)
    listing, importing = _median(result, "casckpt ls"), _median(result, "import casckpt")
    result.goals += [
        Goal(f"ls of {count} checkpoints to a pipe", 0.150, listing, "s", True),
        Goal("import casckpt", 0.120, importing, "s", True),
    ]
    _add_resave(context, result)
    return result


def _add_resave(context: Context, result: Result) -> None:
    """Save one state of 130 MB twice, in two processes' worth of opens, and see what is added."""
    import casckpt

    recipe = trajectory.QUICK_FP32 if context.quick else trajectory.FP32
    state = trajectory.load(trajectory.ensure(recipe, context.cache)[-1])
    with context.folder("resave") as base:
        used = []
        for step in range(3):
            with casckpt.open(base / "store") as store:
                store.save("bench", state, step)
            used.append(disk_bytes(base))
        with casckpt.open(base / "store") as store:
            assert_equal(state, store.restore("bench"), "saved again")
    added = [used[1] - used[0], used[2] - used[1]]
    result.rows.append(
        {"name": "save an identical state again", "logical_bytes": logical_bytes(state),
         "disk_bytes": used, "added_bytes": added}
    )  # fmt: skip
    goal = "disk added by saving an identical state again"
    result.goals.append(Goal(goal, 400_000, float(max(added)), "bytes", True))


def _program() -> list[str]:
    installed = Path(sys.executable).with_name("casckpt")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "casckpt"]


def _output(command: list[str]) -> bytes:
    root = Path(__file__).resolve().parent.parent
    # As a user starts them: bytecode is kept from the first start on, and output is buffered.
    kept = {name: value for name, value in os.environ.items() if name not in _UNUSUAL}
    done = subprocess.run(command, cwd=root, env=kept, capture_output=True, check=True)
    return done.stdout


def _median(result: Result, name: str) -> Any:
    return next(row["median_s"] for row in result.rows if row["name"] == name)
