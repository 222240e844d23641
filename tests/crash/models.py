"""Row 12: the protocol model to its end with its mutants, and the store against a dict."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile

from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test

from tests.crash import oracle, scale, threadless
from tests.crash.job import Job
from tests.crash.ledger import ROOT

_EXAMPLES = 10
_STEPS = 50
# Threads have no part in what a history is about, so only one seed in eight keeps them.
_THREADS_EVERY = 8


def protocol(job: Job) -> None:
    """Every state of every scenario, and every mutant; without --all the small scenarios."""
    out = job.lab.folder / "model.json"
    command = [sys.executable, "-m", "tests.model.run", "--json", str(out)]
    for _ in job.turns({"model": 1}):
        done = subprocess.run(
            [*command, *(["--all"] if job.limit is None else [])],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            job.found("# python -m tests.model.run --all --trace", done.stdout[-400:])
        summary = json.loads(out.read_text())
        job.count(summary["states_count"])
        job.count(len(summary["scenarios"]), "scenarios")
        job.count(sum(one["exhaustive"] for one in summary["scenarios"]), "scenarios to their end")
        job.count(summary["mutants_count"], "mutants")
        job.count(summary["mutants_violated_count"], "mutants violated")
        job.count(sum(one["as_expected"] is True for one in summary["mutants"]), "as expected")


def _machine(seed: int) -> None:
    from tests.property.test_store_machine import StoreMachine

    scale.walk_here()
    if seed % _THREADS_EVERY:
        threadless.switch_off()
    limits = settings(
        max_examples=_EXAMPLES,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        # A history that fails is told as it is: the seed repeats it.
        phases=[Phase.generate],
    )
    run_state_machine_as_test(seeded(seed)(StoreMachine), settings=limits)


def row(job: Job) -> None:
    """Runs of the machine, ten to a seed, in memory."""
    tempfile.tempdir = str(job.lab.folder)
    for _, number in job.turns({"machine": None}):
        said = oracle.in_child(lambda n=number: _machine(n), job.lab.folder / "said", 1800)
        if said:
            job.found(f"# python -m tests.crash.rows model --seed-range {number}", said)
        job.count(_EXAMPLES)
