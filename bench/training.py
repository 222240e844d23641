"""Training: what does a run cost the loop it watches?

A step takes 10 ms of numpy's work. The same steps in a plain loop and in `epochs` with `batches`,
turn by turn; an epoch is 100 steps, and every one is saved as latest, a state of 4 MB that changes
wholly. Beside them: one call of `run.log`, as a row of the epoch and as a point of a series.

The goal is by the clock. The time that the loop's own thread had the CPU is there too: on a machine
that others use it is what can be compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.harness import COMPARED, Context, Goal, Result, measure, rotated
from bench.trees import assert_equal

STEP_S = 0.010
BATCHES = 100
STATE_FLOATS = 1_000_000
PLAIN, WATCHED = "plain loop", "epochs and batches"


def run(context: Context) -> Result:
    """Time loops with and without a run, and calls of `log`."""
    import casckpt

    result = Result("training", context.quick)
    epochs = 2 if context.quick else 5
    calls = 20_000 if context.quick else 100_000
    work = _Step()
    with context.folder("training") as base, casckpt.open(base / "store") as store:
        cpu: dict[str, list[float]] = {}
        contenders = {
            PLAIN: _on_thread(cpu, PLAIN, lambda number: _plain(work, epochs)),
            WATCHED: _on_thread(cpu, WATCHED, lambda number: _watched(store, work, epochs, number)),
        }
        times = measure(contenders, context.rounds)
        expected = _plain(lambda: None, epochs)
        assert_equal(expected, store.restore(f"loop-{context.rounds - 1}"), WATCHED)
        times |= {f"{name}, thread": taken for name, taken in cpu.items()}
        for name, seconds in times.items():
            steps = [took / (epochs * BATCHES) * 1e3 for took in seconds]
            result.rows.append({"name": name, "median_ms": statistics.median(steps), "ms": steps})
        plain, watched = (times[name] for name in (PLAIN, WATCHED))
        shares = [100 * (one / other - 1) for one, other in zip(watched, plain, strict=True)]
        logs: dict[str, list[float]] = {"log, row": [], "log, series": []}
        for number in range(context.rounds):
            _log(store, number, calls, logs)
    for name, micros in logs.items():
        result.rows.append({"name": name, "median_us": statistics.median(micros), "us": micros})
        result.goals.append(Goal(f"run.{name}", 20.0, statistics.median(micros), "us", True))
    overhead = statistics.median(shares)
    result.goals.append(Goal("overhead on a step of 10 ms", 1.0, overhead, "%", True))
    result.notes.append(COMPARED)
    result.notes.append(f"{epochs} epochs of {BATCHES} steps a round; {calls} calls of log")
    return result


class _Step:
    """About 10 ms of work on the CPU that lets other threads run, as a training step does."""

    def __init__(self) -> None:
        self._data = np.linspace(0.0, 1.0, 1 << 16)
        self._times = 1
        took = min(self._timed() for _ in range(20))
        self._times = max(1, round(STEP_S / took))

    def __call__(self) -> None:
        for _ in range(self._times):
            np.sin(self._data)

    def _timed(self) -> float:
        begun = time.perf_counter()
        self()
        return time.perf_counter() - begun


def _on_thread(
    times: dict[str, list[float]], name: str, work: Callable[[int], Any]
) -> Callable[[int], None]:
    """Return the contender, which also notes the CPU time of this thread in counted rounds."""

    def run(number: int) -> None:
        begun = time.thread_time()
        work(number)
        if number >= 0:
            times.setdefault(name, []).append(time.thread_time() - begun)

    return run


def _state() -> dict[str, Any]:
    return {"w": np.random.default_rng(0).normal(size=STATE_FLOATS).astype("float32"), "loss": 0.0}


def _plain(work: Callable[[], None], epochs: int) -> dict[str, Any]:
    state = _state()
    for _ in range(epochs):
        for _ in range(BATCHES):
            work()
        state["w"] *= 0.999
    return state


def _watched(store: Any, work: _Step, epochs: int, number: int) -> None:
    state = _state()
    with store.run(f"loop-{number}") as run:
        for _ in run.epochs(epochs, state):
            for _ in run.batches(range(BATCHES)):
                work()
            state["w"] *= 0.999


def _log(store: Any, number: int, calls: int, times: dict[str, list[float]]) -> None:
    with store.run(f"log-{number}") as run:
        for _ in run.epochs(1, {"v": 0}):
            run.log(loss=0.5)
            for kind, step in rotated((("log, row", None), ("log, series", 1)), number):
                begun = time.perf_counter()
                for at in range(calls):
                    run.log(loss=0.5, step=None if step is None else at)
                times[kind].append((time.perf_counter() - begun) / calls * 1e6)
