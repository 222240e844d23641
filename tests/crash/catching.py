"""Row 11: every rule that is switched off must be noticed, each by a named test."""

from __future__ import annotations

import subprocess
import sys

from tests.crash import shim
from tests.crash.job import Job
from tests.crash.ledger import ROOT
from tests.crash.mutants import CAUGHT_BY

_MINUTES = "15"


def catch(mutant: str) -> tuple[bool, str]:
    """Run the points that must notice a mutant; return whether they did, and what was said."""
    command = [sys.executable, "-m", "tests.crash.campaign", *CAUGHT_BY[mutant]]
    command += ["--mutant", mutant, "--first", "--minutes", _MINUTES]
    if "--kind" in command:
        command += ["--sample", "60"]
    done = subprocess.run(
        command, cwd=ROOT, env=shim.environment(), capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr[-2000:]
    return done.returncode == 1 and "BAD" in said, said


def row(job: Job) -> None:
    """Every mutant once; the ledger names what caught it."""
    names = sorted(CAUGHT_BY)
    caught_by = job.ledger.cursor.setdefault("caught_by", {})
    for _, number in job.turns({"mutant": len(names)}):
        mutant = names[number]
        caught, said = catch(mutant)
        if not caught:
            job.found(f"{' '.join(CAUGHT_BY[mutant])} --mutant {mutant}", f"{mutant} got away")
        else:
            line = next(line for line in said.splitlines() if line.startswith("BAD"))
            caught_by[mutant] = line.removeprefix("BAD ")[:160]
        job.count()
