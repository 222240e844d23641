"""Stall: how long does an asynchronous save hold the training up?

The time until `save_async` returns, against one copy of the same tensors into memory that has been
touched before: the least that a copying save can take. Beside it, what people do by hand: cloning
every tensor into fresh memory. Each round saves another checkpoint, and waits until it is durable,
so that nothing queues: a training whose saves follow each other faster waits for the one before as
well. How long the background then took is recorded too.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch

from bench import limits
from bench.harness import COMPARED, ROTATED, Context, Goal, Result, rotated, speed_row
from bench.inputs import trajectory
from bench.trees import assert_equal, logical_bytes, tensors


def run(context: Context) -> Result:
    """Save the fp32 trajectory asynchronously, with the copies beside it."""
    import casckpt

    result = Result("stall", context.quick)
    recipe = trajectory.QUICK_FP32 if context.quick else trajectory.FP32
    seconds: dict[str, list[float]] = {"save_async": [], "memcpy": [], "deepcopy": []}
    durable: list[float] = []
    sizes: list[int] = []
    with context.folder("stall") as base, casckpt.open(base / "store") as store:
        targets: dict[str, torch.Tensor] = {}
        for step, state in trajectory.states(recipe, context.cache):
            sources = tensors(state)
            warm = sources.keys() == targets.keys()  # the first states only touch memory
            if not warm:
                targets = {path: tensor.detach().clone() for path, tensor in sources.items()}
            work = {
                "save_async": lambda s=state, n=step: store.save_async("bench", s, n),
                "memcpy": lambda s=sources, t=targets: _copy_into(t, s),
                "deepcopy": lambda s=state: copy.deepcopy(s),
            }
            for name in rotated(list(work), len(sizes)):
                elapsed, made = _timed(work[name])
                waited = _timed(made.result)[0] if name == "save_async" else 0.0
                del made
                if warm:
                    seconds[name].append(elapsed)
                    if name == "save_async":
                        durable.append(elapsed + waited)
            if warm:
                sizes.append(logical_bytes(state))
        assert_equal(state, store.restore(f"bench@{step}"), "save_async")
    for name, samples_s in seconds.items():
        result.rows.append(speed_row(name, sizes, samples_s))
    result.rows.append(speed_row("save_async until durable", sizes, durable))
    copied_s = statistics.median(seconds["memcpy"])
    beyond_s = statistics.median(seconds["save_async"]) - 1.2 * copied_s
    result.goals.append(Goal("stall beyond 1.2 x memcpy", 0.002, beyond_s, "s", True))
    result.notes += [COMPARED, ROTATED]
    result.limits = limits.machine_limits(context.work, quick=context.quick)
    return result


def _timed(work: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    value = work()
    return time.perf_counter() - start, value


def _copy_into(targets: dict[str, torch.Tensor], sources: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for path, source in sources.items():
            targets[path].copy_(source)
