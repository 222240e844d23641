"""All programs that are killed at random moments, 20 times each: `python -m tests.tasks kills`.

Writes bench/results/kills.json: per framework the kills that landed while a program was at work,
and after which it still made, bit for bit, what it makes when nobody kills it.

    python -m tests.kills [KILLS] [--only WORD]
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

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "kills.json"
PROGRAMS = (
    "tests/adapters/test_torch_kills.py",
    "tests/adapters/test_folds_kills.py",
    "tests/e2e/test_resume_torch.py",
    "tests/e2e/test_stage_kill.py",
    *(
        f"tests/adapters/test_{name}.py"
        for name in ("xgboost", "lightgbm", "sklearn", "optuna", "lightning", "transformers")
    ),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the programs, write the result unless one failed, and return pytest's status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kills", description=__doc__)
    parser.add_argument("kills", nargs="?", type=int, default=20)
    parser.add_argument("--only", default="killed or done_is_called", help="pytest's -k")
    options = parser.parse_args(arguments)
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "kills"
        environment = {
            **os.environ,
            "CASCKPT_TEST_KILLS": str(options.kills),
            "CASCKPT_TEST_KILLS_JOURNAL": str(journal),
        }
        status = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", "0", "-k", options.only, *PROGRAMS],
            cwd=ROOT,
            env=environment,
            check=False,
        ).returncode
        lines = journal.read_text().splitlines() if journal.exists() else []
    programs = [json.loads(line) for line in lines]
    if status == 0:
        document = {
            "schema": 1,
            "question": "kills",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": _commit(),
            "kills_per_program": options.kills,
            "seconds": round(time.monotonic() - began_s),
            "landed": _by_framework(programs),
            "programs": programs,
        }
        RESULT.write_text(json.dumps(document, indent=1) + "\n")
    for framework, kills in _by_framework(programs).items():
        sys.stdout.write(f"{framework}: {kills} kills landed\n")
    return status


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
