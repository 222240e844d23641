"""The protocol holds in every state of every scenario, and each rule in it is there for a reason.

This is the short form: small scenarios and quick mutants. `python -m tests.model.run --all`
explores the rest, and whether a rule without a mutant that harms says why.
"""

from __future__ import annotations

from dataclasses import fields

import pytest

from .explore import explore
from .mutants import MUTANTS, Mutant
from .protocol import run_model
from .rules import Model, Rules
from .scenarios import SCENARIOS, SHORT

# Found, or ruled out, in under a second or two each.
QUICK = (
    "purge in batches",
    "lost locks",
    "facts",
    "reader",
    "repair",
    "two compactors",
    "planned moves",
    "lists",
    "one process",
)


def test_a_shortest_counterexample_is_found() -> None:
    """The explorer itself: breadth first, canonical states, the shortest trace."""

    def steps(number: int) -> list[tuple[str, int]]:
        return [("add 1", (number + 1) % 50), ("double", number * 2 % 50)]

    result = explore(1, steps, lambda number: "nine" if number == 9 else None)
    assert result.trace == ("add 1", "double", "double", "add 1")
    whole = explore(1, steps, lambda number: None)
    assert whole.exhaustive
    assert whole.states_count == 50


def test_a_limit_is_not_called_exhaustive() -> None:
    """A search that was cut short says so."""
    result = explore(0, lambda n: [("next", n + 1)], lambda n: None, limit_states=100)
    assert not result.exhaustive
    assert result.violation is None


@pytest.mark.parametrize("name", SHORT)
def test_small_scenario_keeps_every_promise(name: str) -> None:
    """All states of a small scenario, no violation."""
    result = run_model(Model(Rules(), SHORT[name]))
    assert result.violation is None, "\n".join(result.trace)
    assert result.exhaustive


@pytest.mark.parametrize("name", QUICK)
def test_scenario_keeps_every_promise(name: str) -> None:
    """All states of the scenario in full, no violation."""
    result = run_model(Model(Rules(), SCENARIOS[name]))
    assert result.violation is None, "\n".join(result.trace)
    assert result.exhaustive


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=mutant.name)
        for mutant in MUTANTS
        if mutant.violated and mutant.scenario in QUICK
    ],
)
def test_mutant_does_the_harm_it_is_said_to(mutant: Mutant) -> None:
    """Without the rule a promise breaks."""
    assert run_model(mutant.model()).violation is not None


def test_every_rule_has_a_mutant() -> None:
    """A rule without a mutant would be a rule on trust."""
    switched = {name for mutant in MUTANTS for name in mutant.off}
    assert switched == {field.name for field in fields(Rules)}
    assert all(mutant.violated or mutant.why_not for mutant in MUTANTS)
