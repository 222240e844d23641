"""Breadth-first exploration of a finite state machine, with shortest counterexamples.

Breadth first, so that the first violation found is one that no shorter trace reaches. The
explorer knows nothing of stores: a state is any hashable value.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True)
class Result(Generic[State]):
    """What one exploration saw.

    ``exhaustive`` is true only if every reachable state was visited and none was in violation.
    ``marked_count`` counts distinct states first reached by a label that contains ``mark``.
    """

    states_count: int
    transitions_count: int
    depth: int
    seconds: float
    exhaustive: bool
    violation: str | None
    trace: tuple[str, ...]
    marked_count: int


def explore(
    initial: State,
    successors: Callable[[State], Iterable[tuple[str, State]]],
    violation_of: Callable[[State], str | None],
    *,
    limit_states: int | None = None,
    limit_s: float | None = None,
    mark: str = "\0",
) -> Result[State]:
    """Visit every state reachable from ``initial`` until one is in violation or a limit is met.

    Args:
        initial: The first state; it is checked too.
        successors: Labelled next states. States must be canonical: equal futures, equal values.
        violation_of: None for a good state, else one line that says what is wrong.
        limit_states: Stop, not exhaustive, once this many states are known.
        limit_s: Stop, not exhaustive, after this much wall time.
        mark: Count the states first reached by labels that contain this text.

    Returns:
        The counts, and the shortest trace to a violation if there is one.
    """
    started = time.perf_counter()
    parents: dict[State, tuple[State, str] | None] = {initial: None}
    frontier = deque([initial])
    transitions_count = marked_count = 0

    def result(bad: str | None, at: State | None, *, complete: bool) -> Result[State]:
        return Result(
            states_count=len(parents),
            transitions_count=transitions_count,
            depth=len(_trace(parents, last)),
            seconds=time.perf_counter() - started,
            exhaustive=complete and bad is None,
            violation=bad,
            trace=() if at is None else _trace(parents, at),
            marked_count=marked_count,
        )

    last = initial
    bad = violation_of(initial)
    if bad is not None:
        return result(bad, initial, complete=False)
    while frontier:
        state = frontier.popleft()
        for label, reached in successors(state):
            transitions_count += 1
            if reached in parents:
                continue
            parents[reached] = (state, label)
            last = reached
            marked_count += mark in label
            bad = violation_of(reached)
            if bad is not None:
                return result(bad, reached, complete=False)
            frontier.append(reached)
        if limit_states is not None and len(parents) >= limit_states:
            return result(None, None, complete=False)
        if limit_s is not None and time.perf_counter() - started > limit_s:
            return result(None, None, complete=False)
    return result(None, None, complete=True)


def _trace(parents: dict[State, tuple[State, str] | None], state: State) -> tuple[str, ...]:
    """Give the labels that lead from the initial state to ``state``."""
    labels: list[str] = []
    step = parents[state]
    while step is not None:
        labels.append(step[1])
        step = parents[step[0]]
    return tuple(reversed(labels))
