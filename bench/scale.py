"""Scale: does the price of a byte, of a checkpoint, of a tensor and of a run stay flat?

Four ladders. Bytes per checkpoint, each size in a fresh process that also reports the peak of its
memory above the state; checkpoints in a store; tensors in a state; runs in a store. A flat ladder
means that nothing in a save grows with what is stored already.

Clouds let a disk write fast for some gigabytes and slowly from then on, which a ladder of bytes
cannot tell from a save that grows. Two columns do: the processor time of a save, and the time that
the disk takes, right after it, for as many random bytes as the save has stored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import limits
from bench.harness import COMPARED, Context, Goal, Result, disk_bytes, run_child
from bench.inputs import synthetic
from bench.trees import assert_equal, digest, logical_bytes

MB = 10**6
SIZES_BYTES = (10 * MB, 100 * MB, 500 * MB, 1_000 * MB, 2_000 * MB, 4_000 * MB)
QUICK_SIZES_BYTES = SIZES_BYTES[:3]
CHECKPOINTS = (10, 100, 1_000, 10_000)
TENSORS = (100, 1_000, 10_000, 100_000)
RUNS = (10, 100, 1_000)
FLAT_COLUMNS = ("new_s_per_gb", "new_cpu_s_per_gb", "unchanged_s_per_gb", "restore_s_per_gb")
FLAT = 1.5  # on a flat ladder, a unit on the last rung costs at most this many cheapest units
PEAK_BYTES = 256 << 20


def run(context: Context) -> Result:
    """Climb the four ladders."""
    result = Result("scale", context.quick)
    _bytes_ladder(context, result)
    _checkpoints_ladder(context, result)
    _tensors_ladder(context, result)
    _runs_ladder(context, result)
    result.notes.append(COMPARED)
    result.limits = limits.machine_limits(context.work, quick=context.quick)
    return result


def _bytes_ladder(context: Context, result: Result) -> None:
    sizes = QUICK_SIZES_BYTES if context.quick else SIZES_BYTES
    rows = []
    for size in sizes:
        with context.folder("scale") as base:
            arguments = {"folder": str(base), "size_bytes": size}
            row = run_child("bench.scale:save_in_child", **arguments)
            row |= run_child("bench.scale:restore_in_child", folder=str(base))
            assert row.pop("saved") == row.pop("restored"), f"{size} bytes came back as others"
            rows.append({"ladder": "bytes", "size_bytes": size, **row})
    result.rows += rows
    large = [row for row in rows if row["size_bytes"] >= 100 * MB]
    for column in FLAT_COLUMNS:
        growth = large[-1][column] / min(row[column] for row in large)
        result.goals.append(Goal(f"flat over bytes: {column}", FLAT, growth, "x", True))
    for column in ("save_peak_bytes", "restore_peak_bytes"):
        peak = max(row[column] for row in rows)
        result.goals.append(Goal(f"memory above the state: {column}", PEAK_BYTES, peak, "B", True))


def save_in_child(folder: str, size_bytes: int) -> dict[str, Any]:
    """Save a state three times anew and three times unchanged; report costs and peak memory."""
    import casckpt

    state = synthetic.state_of(size_bytes)
    logical = logical_bytes(state)
    new, new_cpu, disk, unchanged = [], [], [], []
    at = Path(folder) / "store"
    with casckpt.open(at) as store:
        store.save("warm", synthetic.state_of(MB), 0)
        before = _reset_peak()
        for step in range(3):
            synthetic.nudge(state, step)
            held, cpu = disk_bytes(at), time.process_time()
            new.append(_seconds(lambda s=step: store.save("bench", state, 2 * s)))
            new_cpu.append(time.process_time() - cpu)
            disk.append(limits.write_seconds(Path(folder), disk_bytes(at) - held))
            unchanged.append(_seconds(lambda s=step: store.save("bench", state, 2 * s + 1)))
        peak = _peak() - before
    gigabytes = logical / 1e9
    return {
        "logical_bytes": logical,
        "new_s_per_gb": statistics.median(new) / gigabytes,
        "new_cpu_s_per_gb": statistics.median(new_cpu) / gigabytes,
        "disk_s_per_gb": statistics.median(disk) / gigabytes,
        "unchanged_s_per_gb": statistics.median(unchanged) / gigabytes,
        "save_peak_bytes": peak,
        "saved": digest(state),
        "ratio": disk_bytes(Path(folder)) / (3 * logical),
    }


def restore_in_child(folder: str) -> dict[str, Any]:
    """Restore twice in a fresh process; the peak counts above the one state that is held."""
    import casckpt

    with casckpt.open(Path(folder) / "store") as store:
        store.restore("warm")
        before = _reset_peak()
        start = time.perf_counter()
        state = store.restore("bench")
        took = [time.perf_counter() - start]
        logical = logical_bytes(state)
        peak = _peak() - before - logical
        restored = digest(state)
        del state
        took.append(_seconds(lambda: store.restore("bench")))
    return {
        "first_restore_s_per_gb": took[0] / logical * 1e9,
        "restore_s_per_gb": took[1] / logical * 1e9,
        "restore_peak_bytes": peak,
        "restored": restored,
    }


def _checkpoints_ladder(context: Context, result: Result) -> None:
    """Grow one store; at each rung time the newest saves, a lookup, a listing and a restore."""
    import casckpt

    rungs = CHECKPOINTS[:-1] if context.quick else CHECKPOINTS
    saves = []
    with context.folder("scale") as base, casckpt.open(base / "store") as store:
        done = 0
        for count in rungs:
            fill_from(store, done, count - 9)
            took = [_seconds(lambda s=step: fill_one(store, s)) for step in range(count - 9, count)]
            done = count
            saves.append(statistics.median(took))
            result.rows.append(
                {"ladder": "checkpoints", "checkpoints": count, "save_s": saves[-1],
                 "latest_s": _median(lambda: store.latest("many")),
                 "best_s": _median(lambda: store.best("many", "val_loss", "min")),
                 "list_s": _median(lambda: list(store.checkpoints("many"))),
                 "restore_s": _median(lambda: store.restore("many")),
                 "disk_bytes_per_checkpoint": disk_bytes(base) / count}
            )  # fmt: skip
        assert_equal(_small(done - 1), store.restore("many"), "checkpoints")
    growth = saves[-1] / min(saves)
    result.goals.append(Goal("flat over checkpoints: save", FLAT, growth, "x", True))


def fill_from(store: Any, start: int, stop: int) -> None:
    """Save the small checkpoints of steps `start` to `stop` - 1."""
    for step in range(start, stop):
        fill_one(store, step)


def fill_one(store: Any, step: int) -> None:
    """Save one checkpoint of 16 KiB whose bytes depend on the step."""
    store.save("many", _small(step), step, metrics={"val_loss": 1.0 / (step + 1)})


def _small(seed: int) -> Any:
    return synthetic.state_of(16 << 10, seed=seed)


def _tensors_ladder(context: Context, result: Result) -> None:
    import casckpt

    per_tensor = []
    for count in TENSORS[:-1] if context.quick else TENSORS:
        state = synthetic.many_tensors(count)
        with context.folder("scale") as base:
            torch_s = _torch_save_seconds(base, state)
            with casckpt.open(base / "store") as store:
                new = _seconds(lambda s=state: store.save("bench", s, 0))
                again = _seconds(lambda s=state: store.save("bench", s, 1))
                back = _seconds(lambda: store.restore("bench"))
                assert_equal(state, store.restore("bench"), f"{count} tensors")
        per_tensor.append(new / count)
        result.rows.append(
            {"ladder": "tensors", "tensors": count, "logical_bytes": logical_bytes(state),
             "save_s": new, "unchanged_s": again, "restore_s": back, "torch_save_s": torch_s}
        )  # fmt: skip
    growth = per_tensor[-1] / min(per_tensor)
    result.goals.append(Goal("flat over tensors: save", FLAT, growth, "x", True))


def _torch_save_seconds(base: Path, state: Any) -> float:
    from bench.peers import TorchSave

    peer = TorchSave()
    peer.open(base)
    return _seconds(lambda: peer.save(0, state))


def _runs_ladder(context: Context, result: Result) -> None:
    import casckpt

    saves = []
    with context.folder("scale") as base, casckpt.open(base / "store") as store:
        done = 0
        for count in RUNS:
            took = []
            for number in range(done, count):
                state = _small(number)
                took.append(_seconds(lambda n=number, s=state: store.save(f"sweep/run-{n}", s, 0)))
            done = count
            saves.append(statistics.median(took[-100:]))
            result.rows.append(
                {"ladder": "runs", "runs": count, "save_s": saves[-1],
                 "list_runs_s": _median(lambda: store.runs()),
                 "latest_s": _median(lambda n=count: store.latest(f"sweep/run-{n - 1}"))}
            )  # fmt: skip
        assert_equal(_small(done - 1), store.restore(f"sweep/run-{done - 1}"), "runs")
    growth = saves[-1] / min(saves)
    result.goals.append(Goal("flat over runs: save", FLAT, growth, "x", True))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    kept = work()
    elapsed = time.perf_counter() - start
    del kept
    return elapsed


def _median(work: Callable[[], Any], rounds: int = 5) -> float:
    return statistics.median(_seconds(work) for _ in range(rounds))


def _reset_peak() -> int:
    """Start a new peak of this process's memory and return what is resident now, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this kernel does not report {name}")
