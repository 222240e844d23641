"""All programs that are killed at random moments, 20 times each: `python -m tests.tasks kills`.

Writes bench/results/kills.json: per program the kills that landed while it was at work, how often
it then came to its end, and how many of these ends were not, bit for bit, what it makes when nobody
kills it. A test that failed in any way is named. A program that is not run this time keeps the line
of the last time, with the commit that it was for.

    python -m tests.kills [KILLS] [--only EXPRESSION] [--jobs N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "kills.json"
_KILLED = "test_killed_at_random_moments_it"
PROGRAMS = (
    "tests/adapters/test_torch_kills.py",
    "tests/adapters/test_folds_kills.py",
    "tests/adapters/test_saves_kills.py",
    "tests/e2e/test_stage_kill.py::test_nothing_that_is_done_is_called_again[1-1-0]",
    "tests/e2e/test_stage_kill.py::test_nothing_that_is_done_is_called_again[2-2-3]",
    f"tests/adapters/test_xgboost.py::{_KILLED}_makes_the_same_booster",
    f"tests/adapters/test_lightgbm.py::{_KILLED}_makes_the_same_booster",
    f"tests/adapters/test_lightgbm.py::{_KILLED}_makes_the_same_booster_by_the_callback",
    f"tests/adapters/test_sklearn.py::{_KILLED}_makes_the_same_estimator",
    f"tests/adapters/test_optuna.py::{_KILLED}_makes_the_same_study",
    f"tests/adapters/test_lightning.py::{_KILLED}_ends_with_the_same_bits[0.01-0]",
    f"tests/adapters/test_transformers.py::{_KILLED}_ends_with_the_same_bits",
    "tests/e2e/test_ddp.py::test_killed_and_run_again_all_processes_end_with_the_same_bits",
    f"tests/adapters/test_dcp.py::{_KILLED}_ends_with_the_same_bits",
    f"tests/adapters/test_accelerate.py::{_KILLED}_ends_with_the_same_bits[0.0-False]",
    f"tests/adapters/test_ignite.py::{_KILLED}_ends_with_the_same_bits[0.0]",
    f"tests/adapters/test_keras.py::{_KILLED}_ends_with_the_same_bits",
)
"""One of each: continuous integration has more variants, with fewer kills."""


def main(arguments: list[str] | None = None) -> int:
    """Run the programs, write the result, and return pytest's status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=20)
    parser.add_argument("--only", default="", metavar="EXPRESSION", help="pytest's -k")
    parser.add_argument("--jobs", default="2", metavar="N", help="programs at a time")
    options = parser.parse_args(arguments)
    began_s, commit = time.monotonic(), _commit()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "kills"
        environment = {
            **os.environ,
            "CASCKPT_TEST_KILLS": str(options.kills),
            "CASCKPT_TEST_KILLS_JOURNAL": str(journal),
        }
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", options.jobs, "-k", options.only,
             "--dist", "worksteal", f"--junit-xml={folder}/report.xml", *PROGRAMS],
            cwd=ROOT,
            env=environment,
            check=False,
        ).returncode  # fmt: skip
        lines = journal.read_text().splitlines() if journal.exists() else []
        failed = _failed(Path(folder) / "report.xml")
    about = {
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kills_per_program": options.kills,
        "seconds": round(time.monotonic() - began_s),
    }
    programs = [{**json.loads(line), "made": about} for line in lines]
    every = _with_those_before(programs)
    document = {
        "schema": 3,
        "question": "kills",
        "landed": _by_framework(every),
        "failed": failed,
        "programs": every,
    }
    RESULT.write_text(json.dumps(document, indent=1) + "\n")
    for framework, kills in _by_framework(programs).items():
        sys.stdout.write(f"{framework}: {kills} kills landed\n")
    return status


def _failed(report: Path) -> list[str]:
    """Return the tests that failed or came to no end, by what pytest has reported."""
    if not report.exists():
        return ["pytest came to no end"]
    cases = ElementTree.parse(report).iter("testcase")
    bad = (case for case in cases if {part.tag for part in case} & {"failure", "error"})
    return sorted(f"{case.get('classname')}::{case.get('name')}" for case in bad)


def _with_those_before(programs: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the new lines in the place of the old ones of the same programs, by framework."""
    before = json.loads(RESULT.read_text())["programs"] if RESULT.exists() else []
    lines = {(one["framework"], one["program"]): one for one in [*before, *programs]}
    return [lines[key] for key in sorted(lines)]


def _by_framework(programs: list[dict[str, object]]) -> dict[str, int]:
    landed: dict[str, int] = {}
    for one in programs:
        name, kills = one["framework"], one["kills"]
        assert isinstance(name, str)
        assert isinstance(kills, int)
        landed[name] = landed.get(name, 0) + kills
    return landed


def _commit() -> str:
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
