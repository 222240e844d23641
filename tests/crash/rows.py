"""The reliability campaign, row by row: `python -m tests.crash.rows [ROW...] --minutes 30`.

    ROW                 numbers or names; all of them by default, one after the other
    --short             the form for continuous integration: its figure, and nothing is kept
    --seed-range A:B    only these seeds, or these places in the fixed order of points
    --minutes M         stop when the time is over, shared evenly between the rows
    --jobs N            so many rows side by side, each in a process of its own; of one row,
                        so many fuzzers
    --until-now         stop a row when it has reached the figure that is to be reached now
    --results DIR       where the counts accumulate (bench/results/reliability)
    --list              the rows with what was reached

Without --short a row goes on where its last run stopped, and adds its counts to its file, with the
commit. Every finding is printed with the command that repeats it. The status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.crash import shim
from tests.crash.ledger import RESULTS, ROOT, Ledger

CORE = ("native/src/*", "native/include/*")
# All but the choice of a kernel, which changes no result, and the oracles of the tests.
BINDING = ("casckpt/native/[!kr]*.py",)
STORE = ("casckpt/store/*.py", *CORE, *BINDING)
# What stands between a state and the store: which bytes are put, in which order, and read back.
_STATES = (
    "encode", "decode", "tree", "tree_build", "manifest", "manifest_reader", "payloads", "records",
    "committing", "bases", "staging", "restores",
)  # fmt: skip
CODEC = tuple(f"casckpt/checkpoint/{name}.py" for name in _STATES)


@dataclass(frozen=True)
class Row:
    """A row: its figure in `unit`s for continuous integration, for now and for a release.

    `run` is MODULE:FUNCTION, called with a Job. A change of `sources` resets the counts.
    """

    number: int
    name: str
    title: str
    unit: str
    short: int
    now: int
    release: int
    run: str
    sources: tuple[str, ...] = (*STORE, *CODEC)
    needs_shim: bool = True

    @property
    def file(self) -> str:
        """Return the name of the result file."""
        return f"{self.number:02}-{self.name}.json"

    def function(self) -> Callable[..., None]:
        """Return what carries the row out."""
        module, _, name = self.run.partition(":")
        work: Callable[..., None] = getattr(importlib.import_module(f"tests.crash.{module}"), name)
        return work


ROWS = (
    Row(
        1,
        "kills",
        "kill before every operation, and again during the recovery",
        "points",
        600,
        8_000,
        55_000,
        "points:kills_row",
    ),
    Row(
        2,
        "power",
        "power loss replayed from a write log, strict POSIX",
        "states",
        10_000,
        200_000,
        1_000_000,
        "powerloss:row",
    ),
    Row(
        3,
        "blocks",
        "power loss replayed from the block log of ext4, XFS and btrfs",
        "states",
        100,
        5_400,
        22_000,
        "blocklog:row",
    ),
    Row(
        4,
        "errors",
        "every operation with every error, short writes, flushes that lose data",
        "points",
        1_000,
        10_000,
        20_000,
        "points:errors_row",
    ),
    Row(
        5,
        "full",
        "file systems that are full, or out of inodes",
        "points",
        65,
        260,
        390,
        "full:row",
    ),
    Row(
        6,
        "damage",
        "every bit, truncation and sector of a small store; random damage of a larger one",
        "damages",
        10_000,
        870_000,
        1_770_000,
        "bits:row",
    ),
    Row(
        9,
        "fuzz",
        "the parsers and decoders of the C core under ASan and UBSan",
        "executions",
        600_000,
        100_000_000,
        1_000_000_000,
        "fuzzing:row",
        sources=(*CORE, "native/fuzz/*"),
    ),
    Row(
        10,
        "hostile",
        "stores made to harm, and the same with random damage on top",
        "stores",
        160,
        100_000,
        1_000_000,
        "hostile:row",
        sources=(*STORE, *CODEC, "tests/crash/attacks.py"),
    ),
    Row(
        7,
        "swarm",
        "many processes that save and are killed, with gc and readers beside",
        "saves",
        800,
        40_000,
        160_000,
        "swarm:row",
        sources=(*STORE, *CODEC, "casckpt/checkpoint/curation.py", "casckpt/checkpoint/plans.py"),
    ),
    Row(
        8,
        "hardship",
        "failing allocations, the OOM killer, stopped lock holders, forks, clocks that jump",
        "points",
        50,
        5_300,
        10_500,
        "hardship:row",
        sources=(*STORE, *CODEC, "tests/crash/hardship.py"),  # what it takes for Python's own
    ),
    Row(
        11,
        "mutants",
        "the code without one of its rules",
        "mutants",
        5,
        30,
        30,
        "catching:row",
    ),
    Row(
        12,
        "model",
        "the store against a dict in random histories of 50 steps",
        "histories",
        20,
        3_000,
        20_000,
        "models:row",
        sources=(*STORE, *CODEC, "tests/property/test_store_machine.py"),
    ),
    Row(
        12,
        "protocol",
        "the protocol model to its end, and its mutants",
        "states",
        1_000,
        2_400_000,
        2_400_000,
        "models:protocol",
        sources=("tests/model/[!t]*.py",),  # the model, without its test
    ),
)


def main(arguments: list[str]) -> int:
    """Run the rows that the arguments name; return 1 if something was found."""
    options = _parse(arguments)
    if options.list:
        for row in ROWS:
            sys.stdout.write(_line(row, options.results) + "\n")
        return 0
    rows = [row for row in ROWS if not options.row or {row.name, str(row.number)} & {*options.row}]
    if unknown := {*options.row} - {key for row in ROWS for key in (row.name, str(row.number))}:
        sys.stderr.write(f"no row {sorted(unknown)[0]!r}; see --list\n")
        return 2
    if not shim.missing() and not shim.is_loaded():
        os.chdir(ROOT)
        command = [sys.executable, "-m", "tests.crash.rows", *arguments]
        os.execve(sys.executable, command, shim.environment())
    if options.jobs > 1 and len(rows) > 1:
        return _side_by_side(rows, options)
    bad = 0
    for left, row in zip(range(len(rows), 0, -1), rows, strict=True):
        minutes = options.minutes / left if options.minutes else 0.0
        began = time.monotonic()
        bad += _run(row, options, minutes)
        options.minutes = max(options.minutes - (time.monotonic() - began) / 60, 0.01)
    return 1 if bad else 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("row", nargs="*")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed-range", default="")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--until-now", action="store_true")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args(arguments)


def _side_by_side(rows: list[Row], options: argparse.Namespace) -> int:
    """Run rows in processes, each for its share of the time; return 1 if something was found."""
    minutes = options.minutes * options.jobs / len(rows)

    def run(row: Row) -> int:
        command = [sys.executable, "-m", "tests.crash.rows", row.name]
        command += ["--minutes", f"{minutes:.2f}", "--results", str(options.results)]
        command += ["--seed-range", options.seed_range] if options.seed_range else []
        command += ["--short"] if options.short else []
        command += ["--until-now"] if options.until_now else []
        return subprocess.run(command, check=False).returncode

    with ThreadPoolExecutor(options.jobs) as pool:
        return max(pool.map(run, rows))


def _run(row: Row, options: argparse.Namespace, minutes: float) -> int:
    if row.needs_shim and (why := shim.missing()):
        sys.stdout.write(f"SKIPPED: row {row.number} ({why})\n")
        return 0
    from tests.crash import scale
    from tests.crash.job import Job
    from tests.crash.points import Lab

    scale.shrink()
    about = {"row": row.number, "title": row.title, "unit": row.unit}
    about |= {"goal": row.now, "goal_release": row.release}
    folder = Path(os.devnull) if options.short else options.results
    job = Job(
        lab=Lab(),
        ledger=Ledger.open(folder / row.file, row.sources, about),
        unit=row.unit,
        span=_span(options.seed_range),
        deadline=time.monotonic() + minutes * 60 if minutes else None,
        limit=row.short if options.short else None,
        keep=not options.short,
        enough=row.now if options.until_now else None,
        jobs=options.jobs,
    )
    began = time.monotonic()
    try:
        row.function()(job)
    finally:
        job.lab.close()
        if job.keep:
            job.ledger.save()
    done = job.ledger.runs[-1]["counts"]
    words = ", ".join(f"{name} {count:,}" for name, count in done.items())
    sys.stdout.write(f"row {row.number}: {words}; {time.monotonic() - began:.0f} s\n")
    sys.stdout.flush()
    return job.bad


def _span(text: str) -> range | None:
    if not text:
        return None
    low, _, high = text.partition(":")
    return range(int(low), int(high or int(low) + 1))


def _line(row: Row, results: Path) -> str:
    ledger = Ledger.open(results / row.file, row.sources, {})
    reached, bad = ledger.counts.get(row.unit, 0), ledger.counts.get("bad", 0)
    return f"{row.number:2} {row.name:10} {reached:>11,} of {row.now:>11,} {row.unit}, {bad} bad"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
