"""What every benchmark shares: where it works, how it times, what it writes down."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

SCHEMA = 1
ROUNDS_MIN = 5
ROTATED = "contenders took turns in an order that rotated from round to round"
COMPARED = "after the last round, what was saved last was loaded and compared bit for bit"
ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
T = TypeVar("T")
LIBRARIES = ("casckpt", "torch", "numpy", "lmdb", "zstandard", "safetensors", "xgboost-cpu",
             "xgboost", "optuna", "orbax-checkpoint")  # fmt: skip


@dataclass(frozen=True)
class Context:
    """Where and how thoroughly one benchmark runs.

    `work` is an empty folder on the disk under test: every contender writes below it.
    """

    cache: Path
    work: Path
    quick: bool = False
    rounds: int = 7

    def __post_init__(self) -> None:
        """Refuse fewer rounds than a median is worth quoting of."""
        if self.rounds < ROUNDS_MIN:
            raise ValueError(f"{self.rounds} rounds; at least {ROUNDS_MIN} are needed")

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """Give a fresh folder on the disk under test and remove it afterwards."""
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Goal:
    """A promise with its number: `met` says whether this run kept it."""

    name: str
    target: float
    measured: float
    unit: str
    less_is_better: bool

    @property
    def met(self) -> bool:
        """Whether the measured number is on the right side of the target."""
        if self.less_is_better:
            return self.measured <= self.target
        return self.measured >= self.target


@dataclass
class Result:
    """What one question found out; `rows` hold raw samples beside their medians."""

    question: str
    quick: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    goals: list[Goal] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, folder: Path, facts: Mapping[str, Any]) -> Path:
        """Write `QUESTION.json` and return its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.question}.json"
        document = {
            "schema": SCHEMA,
            "question": self.question,
            "quick": self.quick,
            "machine": dict(facts),
            "rows": self.rows,
            "limits": self.limits,
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
            "missing": self.missing,
            "notes": self.notes,
        }
        path.write_text(json.dumps(_rounded(document), indent=1) + "\n")
        return path


def default_cache() -> Path:
    """Return the user's cache folder for trained inputs."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "casckpt-bench"


def rotated(contenders: Sequence[T], round_number: int) -> list[T]:
    """Return the contenders in the order of a round: another one begins each time."""
    shift = round_number % len(contenders)
    return [*contenders[shift:], *contenders[:shift]]


def measure(
    contenders: Mapping[str, Callable[[int], Any]], rounds: int, *, warmup: bool = True
) -> dict[str, list[float]]:
    """Time each contender once per round, in an order that rotates from round to round.

    Interleaving spreads a slow minute of a shared machine over all contenders; rotating keeps any
    one of them from always running after the same neighbour. With `warmup`, round -1 is run by
    everybody and not counted. What a contender returns is dropped outside the timed part.

    Returns: the seconds of every counted round, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for round_number in range(-1 if warmup else 0, rounds):
        for name in rotated(names, round_number):
            gc.collect()
            start = time.perf_counter()
            kept = contenders[name](round_number)
            elapsed = time.perf_counter() - start
            del kept
            if round_number >= 0:
                seconds[name].append(elapsed)
    return seconds


def speed_row(name: str, logical_bytes: float | list[int], seconds: list[float]) -> dict[str, Any]:
    """Describe a timed contender: every sample, the median, and bytes per second at the median.

    `logical_bytes` may differ by round, as the states of a trajectory do; the speed is then the
    median of the rounds' speeds.
    """
    per_round = logical_bytes if isinstance(logical_bytes, list) else [logical_bytes] * len(seconds)
    speeds = [size / took for size, took in zip(per_round, seconds, strict=True)]
    return {
        "name": name,
        "median_s": statistics.median(seconds),
        "min_s": min(seconds),
        "max_s": max(seconds),
        "gb_per_s": statistics.median(speeds) / 1e9,
        "seconds": seconds,
    }


def disk_bytes(folder: Path) -> int:
    """Return the bytes that a folder's files really take on the disk (blocks, not lengths)."""
    return sum(
        entry.stat().st_blocks * 512
        for entry in folder.rglob("*")
        if entry.is_file() and not entry.is_symlink()
    )


def forget_cached_pages(folder: Path) -> None:
    """Ask the kernel to drop a folder's files from the page cache, for cold reads."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Make every file and folder below (and including) `folder` durable."""
    for path in [*folder.rglob("*"), folder]:
        fsync_path(path)


def fsync_path(path: Path) -> None:
    """Make one file or folder durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def run_child(function: str, /, **arguments: Any) -> Any:
    """Call `module:function(**arguments)` in a fresh process and return its JSON result.

    For what only a new process can tell: first-touch memory, peak memory, start-up time.
    """
    command = [sys.executable, "-m", "bench.child", function, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{function} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def machine_facts(work: Path) -> dict[str, Any]:
    """Return what a reader needs to compare these numbers with others, and no host name."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "file_system": _file_system(work),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """Return the type of the file system that `path` is on, from the mount table."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, point, name, *_ = line.split()
        if path.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short=10", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _rounded(value: Any) -> Any:
    """Keep five significant digits: more is noise, and makes result files hard to compare."""
    if isinstance(value, float) and not math.isfinite(value):
        return None  # a contender that did not run; JSON knows no NaN
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
