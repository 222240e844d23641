"""Restore: how long until a checkpoint is back in memory?

Three ways, because they differ by a factor of five on the same machine: warm in a process that has
restored before (memory and page cache hot), warm in a fresh process (what a resume is: every page
of memory is touched for the first time), and cold (the files are dropped from the page cache).
casckpt checks the BLAKE3 of every chunk in all of them; torch.load checks nothing.
"""

from __future__ import annotations

import copy
import importlib
import statistics
import time
from pathlib import Path
from typing import Any

from bench import limits
from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import (
    ROTATED,
    Context,
    Goal,
    Result,
    forget_cached_pages,
    measure,
    rotated,
    run_child,
    speed_row,
)
from bench.inputs import trajectory
from bench.peers import Dcp, Orbax, Safetensors, TorchSave, ZipNn, ZstdFile
from bench.trees import logical_bytes, tensors

KEPT = 3


class CasckptInto(Casckpt):
    """Restore into the tensors of a state that exists already, as a resuming script does."""

    def __init__(self) -> None:
        """Use the default level."""
        super().__init__("balanced")
        self.name = "casckpt balanced, into="
        self.into: Any = None

    def save(self, step: int, state: Any) -> None:
        """Save, and make a target of the same structure once."""
        super().save(step, state)
        self.into = copy.deepcopy(state)

    def load(self, step: int) -> Any:
        """Restore in place."""
        return self.store.restore(f"bench@{step}", into=self.into)


def contender_named(name: str) -> Contender:
    """Return a fresh contender by its name (child processes get names only)."""
    everyone = [
        Casckpt("balanced"), Casckpt("fast"), CasckptInto(),
        TorchSave(), Dcp(), Safetensors(), ZstdFile(), Orbax(), ZipNn(),
    ]  # fmt: skip
    return next(c for c in everyone if c.name == name)


NAMES = (
    "casckpt balanced", "casckpt fast", "casckpt balanced, into=",
    "torch.save", "DCP", "safetensors", "zstd -3 per file", "Orbax", "ZipNN",
)  # fmt: skip


def run(context: Context) -> Result:
    """Restore the last checkpoint of both trajectories, warm, fresh and cold."""
    result = Result("restore", context.quick)
    recipes = (trajectory.QUICK_FP32, trajectory.QUICK_BF16)
    if not context.quick:
        recipes = (trajectory.FP32, trajectory.BF16)
    for recipe in recipes:
        name = recipe.name.removeprefix("quick-")
        _restore_all(context, result, name, recipe)
        for way, target in (("warm", 0.65), ("fresh process", 0.65), ("cold", 1.0)):
            ours = _speed(result, name, way, "casckpt balanced")
            ratio = ours / _speed(result, name, way, "torch.save")
            goal = f"verified {way} restore / torch.load, {name}"
            result.goals.append(Goal(goal, target, ratio, "x", False))
    result.limits = limits.machine_limits(context.work, quick=context.quick)
    result.notes.append(ROTATED)
    result.notes.append("torch.save rows are torch.load; DCP loads into empty tensors")
    return result


def _restore_all(context: Context, result: Result, name: str, recipe: trajectory.Recipe) -> None:
    contenders, missing = split_missing([contender_named(n) for n in NAMES])
    result.missing |= missing
    kept = list(trajectory.states(recipe, context.cache))[-KEPT:]
    step, state = kept[-1]
    size = logical_bytes(state)
    with context.folder("restore") as base:
        folders = {c.name: base / str(i) for i, c in enumerate(contenders)}
        for contender in contenders:
            folders[contender.name].mkdir()
            contender.open(folders[contender.name])
            for kept_step, kept_state in kept:
                contender.save(kept_step, kept_state)
            contender.check(step, state)
        work = {c.name: (lambda _, c=c: c.load(step)) for c in contenders}
        _add(result, name, "warm", size, measure(work, context.rounds))
        _add(result, name, "cold", size, _cold(contenders, folders, step, context.rounds))
        for contender in contenders:
            contender.close()
        fresh: dict[str, list[float]] = {}
        for number in range(context.rounds):
            for contender in rotated(contenders, number):
                if contender.name in ("DCP", "casckpt balanced, into="):
                    continue  # they need a target, whose pages would be touched already
                arguments = {"name": contender.name, "folder": str(folders[contender.name])}
                took = run_child("bench.restore:load_in_child", **arguments, step=step)
                fresh.setdefault(contender.name, []).append(took)
        _add(result, name, "fresh process", size, fresh)


def load_in_child(name: str, folder: str, step: int) -> float:
    """Load once in this process and return the seconds, imports and opening excluded."""
    contender = contender_named(name)
    for module in contender.imports:
        importlib.import_module(module)
    contender.open(Path(folder))
    start = time.perf_counter()
    state = contender.load(step)
    elapsed = time.perf_counter() - start
    assert tensors(state) or state
    contender.close()
    return elapsed


def _cold(
    contenders: list[Contender], folders: dict[str, Path], step: int, rounds: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {c.name: [] for c in contenders}
    for number in range(rounds):
        for contender in rotated(contenders, number):
            forget_cached_pages(folders[contender.name])
            start = time.perf_counter()
            contender.load(step)
            seconds[contender.name].append(time.perf_counter() - start)
    return seconds


def _add(result: Result, name: str, way: str, size: int, seconds: dict[str, list[float]]) -> None:
    baseline = statistics.median(seconds["torch.save"])
    for contender, samples in seconds.items():
        row = speed_row(contender, size, samples)
        times = baseline / row["median_s"]
        result.rows.append({"input": name, "way": way, **row, "times_torch": times})


def _speed(result: Result, input_name: str, way: str, contender: str) -> float:
    for row in result.rows:
        if (row["input"], row["way"], row["name"]) == (input_name, way, contender):
            return float(row["gb_per_s"])
    return float("nan")
