"""Row 12: the protocol model to its end, its mutants, and the store against a dict."""

from __future__ import annotations

import json
import subprocess
import sys

from hypothesis import HealthCheck, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.crash import oracle
from tests.crash.job import Job
from tests.crash.ledger import ROOT

_EXAMPLES = 10
_STEPS = 50


def _explore(job: Job) -> None:
    out = job.lab.folder / "model.json"
    short = job.limit is not None
    command = [sys.executable, "-m", "tests.model.run", "--json", str(out)]
    done = subprocess.run(
        [*command, *([] if short else ["--all"])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        job.found("# python -m tests.model.run --all --trace", done.stdout[-400:])
    summary = json.loads(out.read_text())
    job.count(summary["states_count"], "model states")
    job.count(summary["mutants_count"], "model mutants")
    job.count(summary["mutants_violated_count"], "model mutants violated")


def _machine(seed: int) -> None:
    from tests.property.test_store_machine import StoreMachine

    limits = settings(
        max_examples=_EXAMPLES,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seeded(seed)(StoreMachine), settings=limits)


def row(job: Job) -> None:
    """The model once for a state of the code, then runs of the machine, ten to a seed."""
    totals: dict[str, int | None] = {"machine": None}
    for _, _ in job.turns({"model": 1} if job.limit is None else {}):
        _explore(job)
    for _, number in job.turns(totals):
        said = oracle.in_child(lambda n=number: _machine(n), job.lab.folder / "said", 1800)
        if said:
            job.found(f"12 --seed-range {number}:{number + 1}", said)
        job.count(_EXAMPLES)
