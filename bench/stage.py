"""Stage: how many small items can be done per second, and what does one durable item cost?

In groups of 1,000 (`save_every`), one at a time, with a plain loop and with `map`; beside them an
item of the same size appended to a file with fsync, the least that a durable item can take.
Looking at a stage that is done, as every second start of a script does, is timed too.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from bench.harness import Context, Goal, Result


def run(context: Context) -> Result:
    """Time stages of small items, each round with a stage of its own."""
    import casckpt

    result = Result("stage", context.quick)
    count = 10_000 if context.quick else 50_000
    single = 50 if context.quick else 300
    with context.folder("stage") as base, casckpt.open(base / "store") as store:
        samples: dict[str, list[float]] = {}
        with store.run("bench") as opened:
            for number in range(-1, context.rounds):
                times = _round(opened, base, number, count, single)
                for name, per_s in times.items() if number >= 0 else ():
                    samples.setdefault(name, []).append(per_s)
    for name, per_second in samples.items():
        median = statistics.median(per_second)
        result.rows.append({"name": name, "median_per_s": median, "per_s": per_second})
    grouped = statistics.median(samples["done, groups of 1,000"])
    result.goals.append(Goal("small done per second in groups", 20_000, grouped, "1/s", False))
    result.notes.append(f"{count} items in groups, {single} one at a time; a result is a dict")
    return result


def _round(run: Any, base: Path, number: int, count: int, single: int) -> dict[str, float]:
    times = {}
    grouped = run.stage(f"grouped {number}", range(count), save_every=1000)
    times["plan, nothing done"] = _rate(count, lambda: grouped.total)
    times["done, groups of 1,000"] = _rate(count, lambda: _work(grouped))
    again = run.stage(f"grouped {number}", range(count))
    times["plan, all done"] = _rate(count, lambda: again.done_count)
    times["read results"] = _rate(count, lambda: list(again.results()))
    alone = run.stage(f"alone {number}", range(single))
    assert alone.total == single
    times["done, one at a time"] = _rate(single, lambda: _work(alone))
    mapped = run.stage(f"map {number}", range(count), save_every=1000)
    assert mapped.total == count
    times["map, groups of 1,000"] = _rate(count, lambda: mapped.map(_result))
    times["append and fsync"] = _rate(single, lambda: _append(base / "plain", single))
    return times


def _work(stage: Any) -> None:
    for key, item in stage:
        stage.done(key, _result(item))


def _result(item: int) -> dict[str, Any]:
    return {"label": "positive", "score": item / 7}


def _append(path: Path, count: int) -> None:
    with path.open("ab", buffering=0) as file:
        for item in range(count):
            file.write(json.dumps(_result(item)).encode())
            os.fdatasync(file.fileno())


def _rate(count: int, work: Any) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)
