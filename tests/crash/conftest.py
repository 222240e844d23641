"""Run the campaign from a test, and say how to repeat what it finds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash import shim
from tests.crash.reached import too_few
from tests.crash.rows import ROWS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def campaign():
    """Return a function that runs the campaign and fails the test on what it finds."""
    if why := shim.missing():
        pytest.skip(f"SKIPPED: {why}")

    def run(*arguments: str, minutes: float = 3.0) -> str:
        status, said = launch(*arguments, "--minutes", str(minutes))
        assert status == 0, said
        return said

    return run


@pytest.fixture
def row():
    """Return a function that runs the short form of a row and fails the test on what it finds."""

    def run(name: str) -> None:
        # On a busy machine a row ends short of its figure, not the build: all rows together take
        # six minutes at most. One that came nowhere is skipped, so that the summary says so. The
        # task `campaign` has no such bound.
        status, said = launch(name, "--short", "--minutes", "0.5", program="rows")
        assert status == 0, said
        if said.startswith("SKIPPED: row"):
            pytest.skip(said.splitlines()[0])
        if lacks := too_few(next(one for one in ROWS if one.name == name), said):
            pytest.skip(lacks)

    return run


def launch(*arguments: str, program: str = "campaign") -> tuple[int, str]:
    """Run the campaign in a process of its own; return its status and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", f"tests.crash.{program}", *arguments],
        cwd=ROOT,
        env=shim.environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    return done.returncode, done.stdout + done.stderr[-3000:]
