"""GC: what does dropping checkpoints cost, and does the disk really get its bytes back?

The trajectory is kept, then all but the last three checkpoints are dropped and collected. restic
and borg forget and prune the same snapshots; deleting torch files is the floor. A second store of
many small checkpoints shows what planning and collecting cost per checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import Context, Result, disk_bytes
from bench.inputs import trajectory
from bench.peers import Borg, Restic, TorchSave
from bench.trees import assert_equal, logical_bytes

KEEP = 3


def run(context: Context) -> Result:
    """Collect the trajectory with every contender, then many small checkpoints with casckpt."""
    result = Result("gc", context.quick)
    _collect_trajectory(context, result)
    for count in (100, 1_000) if context.quick else (100, 1_000, 10_000):
        result.rows.append(_collect_many(context, count))
    result.notes.append("disk_before and disk_after include casckpt's fixed reserve of 64 MiB")
    result.notes.append("collecting is timed with now=True: no grace period, bytes freed at once")
    return result


def _collect_trajectory(context: Context, result: Result) -> None:
    recipe = trajectory.QUICK_FP32 if context.quick else trajectory.FP32
    contenders, missing = split_missing([Casckpt(), TorchSave(), Restic(), Borg()])
    result.missing |= missing
    steps = list(recipe.saved_steps)
    with context.folder("gc") as base:
        for contender in contenders:
            folder = base / contender.name.replace(" ", "-")
            folder.mkdir()
            contender.open(folder)
        for step, state in trajectory.states(recipe, context.cache):
            size = logical_bytes(state)
            for contender in contenders:
                contender.save(step, state)
        for contender in contenders:
            before = disk_bytes(contender.kept)
            start = time.perf_counter()
            _drop(contender, steps[:-KEEP])
            elapsed = time.perf_counter() - start
            after = disk_bytes(contender.kept)
            contender.check(steps[-1], state)
            contender.close()
            result.rows.append(
                {
                    "input": "trajectory", "name": contender.name, "dropped": len(steps) - KEEP,
                    "kept": KEEP, "gc_s": elapsed, "disk_before": before, "disk_after": after,
                    "kept_logical_bytes": KEEP * size,
                }
            )  # fmt: skip


def _drop(contender: Contender, steps: list[int]) -> None:
    """Drop all but the last `KEEP` checkpoints and give their bytes back."""
    import casckpt

    if isinstance(contender, Casckpt):
        plan = contender.store.plan_gc(casckpt.KeepLast(KEEP))
        contender.store.gc(plan, now=True)
    elif isinstance(contender, Borg):
        archives = [f"{contender.repository}::{step}" for step in steps]
        for archive in archives:
            contender.call("delete", archive)
        contender.call("compact", str(contender.repository))
    elif isinstance(contender, Restic):
        contender.call("forget", "--keep-last", str(KEEP), "--group-by", "", "--prune")
    elif isinstance(contender, TorchSave):
        for step in steps:
            contender.path(step).unlink()


def _collect_many(context: Context, count: int) -> dict[str, Any]:
    """Keep `count` checkpoints of 16 KiB, drop nine of ten, and time each part."""
    import casckpt

    with context.folder("gc") as base:
        with casckpt.open(base / "store") as store:
            last = fill(store, "many", count)
            before = disk_bytes(base)
            times = [time.perf_counter()]
            plan = store.plan_gc(casckpt.KeepLast(count // 10))
            times.append(time.perf_counter())
            store.gc(plan, now=True)
            times.append(time.perf_counter())
            assert_equal(last, store.restore("many"), "many")
        return {
            "input": "many", "name": "casckpt balanced", "checkpoints": count,
            "dropped": count - count // 10, "plan_s": times[1] - times[0],
            "gc_s": times[2] - times[1], "gc_s_per_checkpoint": (times[2] - times[1]) / count,
            "disk_before": before, "disk_after": disk_bytes(Path(base)),
        }  # fmt: skip


def fill(store: Any, run: str, count: int, tensor_bytes: int = 16 << 10) -> dict[str, Any]:
    """Save `count` checkpoints of one small tensor that changes each time, with two metrics.

    Returns: the state that was saved last.
    """
    values = torch.empty(tensor_bytes // 4)
    generator = torch.Generator().manual_seed(0)
    for step in range(count):
        values.normal_(generator=generator)
        metrics = {"val_loss": 1.0 / (step + 1), "accuracy": step / count}
        store.save(run, {"weight": values, "step": step}, step, metrics=metrics)
    return {"weight": values, "step": count - 1}
