"""Runs a training program as a person does: a process each time, killed where a test says.

A program calls `call("epoch 3")` for each piece of work it begins; calls are counted over all
starts, and the environment variable DIE names the one at which the process gets SIGKILL.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import casckpt

PACKAGE_HOME = Path(casckpt.__file__).parents[1]
LEDGER = """
import os, signal, time

def call(what):
    with open(os.environ["CALLS"], "a") as file:
        file.write(what + "\\n")
    if os.environ.get("DIE") == what:
        time.sleep(1.0)  # saves in the background come to rest: what is repeated can be counted
        os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass(frozen=True)
class Answer:
    """How one start of a program ended."""

    code: int
    out: str
    err: str


class Workshop:
    """A folder with a program in it, and what it has called so far."""

    def __init__(self, folder: Path, program: str) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        (folder / "ledger.py").write_text(LEDGER)
        (folder / "train.py").write_text(program)
        self.ledger = folder / "calls"

    def begin(self, *arguments: object, die: str = "") -> subprocess.Popen[str]:
        """Start the program and leave it at work."""
        return subprocess.Popen(
            [sys.executable, "-u", "-W", "ignore", "train.py", *map(str, arguments)],
            cwd=self.folder,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(self.folder),
                "PYTHONPATH": str(PACKAGE_HOME),
                "CALLS": str(self.ledger),
                "DIE": die,
                "OMP_NUM_THREADS": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: object, die: str = "", code: int = 0) -> Answer:
        """Run the program to its end; with `die` it has to get there and die."""
        child = self.begin(*arguments, die=die)
        out, err = child.communicate(timeout=300)
        assert child.returncode == (-signal.SIGKILL if die else code), err
        return Answer(child.returncode, out, err)

    def calls(self) -> Counter[str]:
        """Return how often each piece of work was begun, in all starts."""
        return Counter(self.ledger.read_text().splitlines()) if self.ledger.exists() else Counter()

    def made(self, name: str = "made") -> bytes:
        """Return what the program wrote last of all."""
        return (self.folder / name).read_bytes()
