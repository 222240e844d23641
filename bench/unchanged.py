"""Unchanged: what does saving a state cost that is already in the store?

A frozen backbone, a sweep over seeds that shares its data, a job that checkpoints on a timer while
it waits: the bytes are hashed, found, and not written. Timed per save, with the disk it adds.
"""

from __future__ import annotations

import statistics
from typing import Any

from bench import limits
from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import COMPARED, Context, Goal, Result, disk_bytes, measure, speed_row
from bench.inputs import synthetic, trajectory
from bench.peers import TorchSave
from bench.trees import logical_bytes

LARGE_BYTES = 1 << 30


def run(context: Context) -> Result:
    """Save the trajectory's last state again and again, and a synthetic one of 1 GiB."""
    result = Result("unchanged", context.quick)
    recipe = trajectory.QUICK_FP32 if context.quick else trajectory.FP32
    last = trajectory.load(trajectory.ensure(recipe, context.cache)[-1])
    large = synthetic.state_of(LARGE_BYTES // (16 if context.quick else 1))
    for name, state in (("trained", last), ("large", large)):
        _save_again(context, result, name, state)
    result.notes.append(COMPARED)
    result.limits = limits.machine_limits(context.work, quick=context.quick)
    return result


def _save_again(context: Context, result: Result, name: str, state: Any) -> None:
    contenders, missing = split_missing([Casckpt("balanced"), TorchSave()])
    result.missing |= missing
    size = logical_bytes(state)
    with context.folder("unchanged") as base:
        for contender in contenders:
            folder = base / contender.name.replace(" ", "-")
            folder.mkdir()
            contender.open(folder)
            contender.save(0, state)
        before = {c.name: disk_bytes(c.folder) for c in contenders}
        work = {c.name: _saver(c, state) for c in contenders}
        seconds = measure(work, context.rounds)
        for contender in contenders:
            added = (disk_bytes(contender.folder) - before[contender.name]) / (context.rounds + 1)
            row = speed_row(contender.name, size, seconds[contender.name])
            result.rows.append({"input": name, **row, "disk_bytes_per_save": added})
            contender.check(_step(context.rounds - 1), state)
            contender.close()
    ours = size / statistics.median(seconds["casckpt balanced"]) / 1e9
    result.goals.append(Goal(f"unchanged save, {name}", 5.0, ours, "GB/s", False))


def _saver(contender: Contender, state: Any) -> Any:
    return lambda round_number: contender.save(_step(round_number), state)


def _step(round_number: int) -> int:
    """Return the step that a round saves: 0 was before the rounds, of which the first is -1."""
    return round_number + 2
