"""Explore every scenario, then every mutant, and write down what was found.

``python -m tests.model.run`` takes the small scenarios and the mutants; ``--all`` takes every
scenario to its end, in a few minutes. The exit status is 1 if the protocol is violated, or if a
mutant does not behave as ``mutants.py`` says.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .explore import Result
from .mutants import MUTANTS
from .protocol import run_model
from .rules import Model, Rules
from .scenarios import SCENARIOS, SHORT
from .state import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="the scenarios in full")
    parser.add_argument("--minutes", type=float, help="stop exploring after this long")
    parser.add_argument("--json", type=Path, help="write the counts here")
    parser.add_argument("--trace", action="store_true", help="show each counterexample")
    options = parser.parse_args(arguments)

    ends = time.monotonic() + options.minutes * 60 if options.minutes else None
    started = time.monotonic()
    good = True
    scenarios, mutants = [], []
    for name, bounds in (SCENARIOS if options.all else SHORT).items():
        result = run_model(Model(Rules(), bounds), limit_s=_left_s(ends))
        scenarios.append({"scenario": name, **_counts(result)})
        good &= result.violation is None
        _show(name, result, options.trace)
    for mutant in MUTANTS:
        result = run_model(mutant.model(), limit_s=_left_s(ends))
        expected = (result.violation is not None) == mutant.violated
        # A search that was cut short has not disagreed.
        cut = result.violation is None and not result.exhaustive
        good &= expected or cut
        mutants.append(
            {
                "off": list(mutant.off),
                "scenario": mutant.scenario,
                "as_expected": None if cut else expected,
                "why_not": mutant.why_not,
                **_counts(result),
            }
        )
        _show(f"without {mutant.name}, {mutant.scenario}", result, options.trace)
    states_count = sum(entry["states_count"] for entry in scenarios)
    violated_count = sum(entry["violation"] is not None for entry in mutants)
    summary = {
        "python": platform.python_version(),
        "seconds": round(time.monotonic() - started, 1),
        "states_count": states_count,
        "mutants_count": len(mutants),
        "mutants_violated_count": violated_count,
        "scenarios": scenarios,
        "mutants": mutants,
    }
    _print(
        f"{states_count:,} states in {len(scenarios)} scenarios; "
        f"{violated_count} of {len(mutants)} mutants violated; "
        f"{summary['seconds']} s; {'as expected' if good else 'NOT AS EXPECTED'}"
    )
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    return 0 if good else 1


def _left_s(ends: float | None) -> float | None:
    """Seconds until ``ends``, at least a moment, so that every entry has its line."""
    return None if ends is None else max(0.1, ends - time.monotonic())


def _counts(result: Result[World]) -> dict[str, Any]:
    """Give what is worth keeping of one exploration."""
    return {
        "states_count": result.states_count,
        "transitions_count": result.transitions_count,
        "depth": result.depth,
        "late_misses_count": result.marked_count,
        "seconds": round(result.seconds, 1),
        "exhaustive": result.exhaustive,
        "violation": result.violation,
        "steps": len(result.trace),
        "trace": list(result.trace),
    }


def _show(name: str, result: Result[World], trace: bool) -> None:
    """Print one exploration as a line, and its counterexample if asked."""
    found = "all states, no violation" if result.exhaustive else "cut short"
    if result.violation is not None:
        found = f"{result.violation} ({len(result.trace)} steps)"
    _print(f"{name}: {result.states_count:,} states, {result.seconds:.1f} s: {found}")
    if trace:
        for label in result.trace:
            _print(f"    {label}")


def _print(line: str) -> None:
    """Write a line at once; a long run is watched."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
