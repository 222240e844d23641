"""Save: how long until a new checkpoint is durable?

Every checkpoint of the trajectory is saved by every contender, one after the other, in an order
that rotates; nothing repeats, so nothing is deduplicated away. A save ends when its bytes are
fsynced. Speeds are logical bytes over time, the median over the checkpoints.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from bench import limits
from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import COMPARED, Context, Goal, Result, rotated, speed_row
from bench.inputs import trajectory
from bench.peers import Dcp, Orbax, Safetensors, TorchSave, ZipNn, ZstdFile
from bench.trees import logical_bytes


def run(context: Context) -> Result:
    """Save both trajectories with every contender."""
    result = Result("save", context.quick)
    recipes = (trajectory.QUICK_FP32, trajectory.QUICK_BF16)
    if not context.quick:
        recipes = (trajectory.FP32, trajectory.BF16)
    for recipe in recipes:
        name = recipe.name.removeprefix("quick-")
        _save_all(context, result, name, recipe)
        torch_speed = _speed(result, name, "torch.save")
        balanced = _speed(result, name, "casckpt balanced") / torch_speed
        fast = _speed(result, name, "casckpt fast") / torch_speed
        result.goals += [
            Goal(f"durable save, balanced / torch.save + fsync, {name}", 1.1, balanced, "x", False),
            Goal(f"durable save, fast / torch.save + fsync, {name}", 1.5, fast, "x", False),
        ]
    result.notes.append(COMPARED)
    result.limits = limits.machine_limits(context.work, quick=context.quick)
    return result


def _save_all(context: Context, result: Result, name: str, recipe: trajectory.Recipe) -> None:
    levels = ("fast", "balanced") if context.quick else ("fast", "balanced", "small")
    wanted: list[Contender] = [Casckpt(level) for level in levels]
    wanted += [TorchSave(), Dcp(), Safetensors(), ZstdFile(), Orbax(), ZipNn()]
    contenders, missing = split_missing(wanted)
    result.missing |= missing
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    sizes: list[int] = []
    with context.folder("save") as base:
        for contender in contenders:
            folder = base / contender.name.replace(" ", "-")
            folder.mkdir()
            contender.open(folder)
        for index, (step, state) in enumerate(trajectory.states(recipe, context.cache)):
            for contender in rotated(contenders, index):
                elapsed = _timed(contender, step, state)
                if index:  # the first state has no optimizer yet, and warms everybody up
                    seconds[contender.name].append(elapsed)
            if index:
                sizes.append(logical_bytes(state))
        for contender in contenders:
            contender.check(step, state)
            contender.close()
    baseline = statistics.median(seconds["torch.save"])
    for contender in contenders:
        row = speed_row(contender.name, sizes, seconds[contender.name])
        result.rows.append({"input": name, **row, "times_torch": baseline / row["median_s"]})


def _timed(contender: Contender, step: int, state: Any) -> float:
    start = time.perf_counter()
    contender.save(step, state)
    return time.perf_counter() - start


def _speed(result: Result, input_name: str, contender: str) -> float:
    for row in result.rows:
        if row["input"] == input_name and row["name"] == contender:
            return float(row["gb_per_s"])
    return float("nan")
