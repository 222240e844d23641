"""Runs a program to its end by killing it at random moments, and counts the kills that landed.

A program is a file that trains in the store it is given and writes what it made to a file, last of
all. It prints `begin` when training begins: before that there is nothing to lose.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import casckpt

PACKAGE_HOME = Path(casckpt.__file__).parents[1]
KILLS = int(os.environ.get("CASCKPT_TEST_KILLS", "2"))
"""Kills per program: few by default, 20 in `python -m tests.tasks kills`."""

JOURNAL = os.environ.get("CASCKPT_TEST_KILLS_JOURNAL")
"""Where to note the kills that landed, a line of JSON per program; None for nowhere."""


@dataclass(frozen=True)
class Fate:
    """How a program came to its end, in one store after the other.

    Attributes:
        results: what it wrote in each store, where it was killed there at least once.
        kills: how often it was killed while it was training.
        starts: how often it was started.
    """

    results: tuple[bytes, ...]
    kills: int
    starts: int

    @property
    def result(self) -> bytes:
        """Return what it wrote last."""
        return self.results[-1]


def start(program: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_HOME), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", str(program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def whole(program: Path, folder: Path) -> tuple[bytes, float]:
    """Return what the program makes when nobody kills it, and how long its training takes."""
    output = folder / "whole.out"
    child = start(program, str(folder / "whole"), str(output))
    assert child.stdout is not None
    line = child.stdout.readline()
    began = time.monotonic()
    _, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    assert line == "begin\n", (line, errors)
    return output.read_bytes(), time.monotonic() - began


def killed(program: Path, folder: Path, kills: int, training_s: float, seed: int = 0) -> Fate:
    """Kill the program at random moments until that has been done `kills` times, then let it end.

    A child that ends before it is killed begins anew in another store; its kills count.
    """
    rng = random.Random(seed)
    landed = starts = place = here = 0
    results: list[bytes] = []
    while True:
        output = folder / f"killed-{place}.out"
        child = start(program, str(folder / f"killed-{place}"), str(output))
        starts += 1
        assert child.stdout is not None
        line = child.stdout.readline()
        if landed < kills:
            try:
                child.wait(rng.uniform(0.0, training_s / 2))
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.communicate()
                landed += 1
                here += 1
                continue
        _, errors = child.communicate(timeout=300)
        assert child.returncode == 0, errors
        assert line == "begin\n", errors
        if here or not kills:
            results.append(output.read_bytes())
        if landed >= kills:
            return Fate(tuple(results), landed, starts)
        place += 1
        here = 0


def note(
    framework: str, program: str, kills: int, starts: int, *, ends: int = 1, other: int = 0
) -> None:
    """Note how many kills landed, and in how many `ends` after kills something `other` was made."""
    sys.stderr.write(f"{program}: {kills} kills landed in {starts} starts, {ends} ends\n")
    if JOURNAL:
        facts = {
            "framework": framework,
            "program": program,
            "kills": kills,
            "starts": starts,
            "ends": ends,
            "other": other,
        }
        with Path(JOURNAL).open("a") as file:
            file.write(json.dumps(facts) + "\n")


def check(
    program: Path, folder: Path, kills: int = KILLS, seed: int = 0, *, framework: str
) -> Fate:
    """Assert that the killed program makes what the whole one makes; say how many kills landed."""
    expected, training_s = whole(program, folder)
    fate = killed(program, folder, kills, training_s, seed)
    other = sum(result != expected for result in fate.results)
    ends = len(fate.results)
    note(framework, program.stem, fate.kills, fate.starts, ends=ends, other=other)
    assert other == 0, f"{other} of {ends} ends after a kill made something else"
    return fate
