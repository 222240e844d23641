"""What of a run a name sees: one line, all lines, or the current one with what it inherited.

A run has numbered lines; going back opens the next one. The bare name of a run means the line
opened last, or gone on with last, including everything it inherited up to its branch point.

Which line that is, and where lines branched, is in the row of the run (training floor). Without
one it follows from the checkpoints: the largest number, and the parent of a line's first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import ALL_LINES, Mode
from casckpt.errors import Corrupt

# attrgetter builds the tuple in C: of ten thousand keys, that is 10 ms of `ls`.
_by_position = attrgetter("step", "batch", "seq")
_by_line = attrgetter("line", "step", "batch", "seq")


@dataclass(frozen=True)
class LineView:
    """What the row of a run says of its lines.

    Attributes:
        current: the line that the bare name means; None if nothing is said.
        branches: line to the (line, (step, batch)) of the same run that it began at.
        monitors: line to the (metric, mode) that decides what is best on it.
        begun_from: ids of the checkpoints of this store, of any run, that lines have begun from.
    """

    current: int | None = None
    branches: Mapping[int, tuple[int, tuple[int, int]]] = field(default_factory=dict)
    monitors: Mapping[int, tuple[str, str]] = field(default_factory=dict)
    begun_from: frozenset[str] = frozenset()


PLAIN = LineView()
"""The view of a run without a row."""


def declared_mode(views: Iterable[LineView], metric: str) -> Mode | None:
    """Return which end of a metric the loops of runs have declared as the good one.

    None where they have declared none, or not all the same.
    """
    declared = {each for view in views for each in view.monitors.values()}
    modes: tuple[Mode, ...] = ("min", "max")
    found = [mode for mode in modes if (metric, mode) in declared]
    return found[0] if len(found) == 1 else None


def read_view(run: str, payload: bytes | None) -> LineView:
    """Return the view that the row of a run gives.

    Raises:
        Corrupt: if the row does not decode.
    """
    if not payload:
        return PLAIN
    try:
        document = json.loads(payload)
        branches = {
            line["number"]: (at["line"], (at["step"], at["batch"]))
            for line in document["lines"]
            if (at := line.get("branch")) is not None and at["run"] == run and not at["store"]
        }
        monitors = {
            line["number"]: (line["monitor"], line["mode"])
            for line in document["lines"]
            if line.get("monitor") and line.get("mode")
        }
        begun_from = frozenset(
            at["id"]
            for line in document["lines"]
            if (at := line.get("branch")) is not None and not at["store"] and at.get("id")
        )
        current = document["current"] if document["lines"] else None
        return LineView(current, branches, monitors, begun_from)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Corrupt(f"the row of {run} does not decode", str(exc)) from exc


def visible(
    checkpoints: Sequence[Checkpoint], line: int | None, view: LineView = PLAIN
) -> list[Checkpoint]:
    """Return the checkpoints of one run that a name sees, oldest first.

    Args:
        checkpoints: all of the run's, in any order.
        line: a number, ALL_LINES, or None for the current line with what it inherited.
        view: what the row of the run says.
    """
    if line == ALL_LINES:
        return sorted(checkpoints, key=_by_line)
    if line is not None:
        return sorted((ck for ck in checkpoints if ck.line == line), key=_by_position)
    newest = max((ck.line for ck in checkpoints), default=0)
    current = newest if view.current is None else view.current
    if newest == current == 0:
        return sorted(checkpoints, key=_by_position)
    return with_inherited(checkpoints, current, view)


def with_inherited(
    checkpoints: Sequence[Checkpoint], line: int, view: LineView = PLAIN
) -> list[Checkpoint]:
    """Return the checkpoints of a line and those it inherited, oldest first.

    Args:
        checkpoints: all of the run's, in any order.
        line: number of the line.
        view: what the row of the run says.
    """
    by_id = {ck.id: ck for ck in checkpoints}
    seen: set[int] = set()
    found: list[Checkpoint] = []
    limit: tuple[int, int] | None = None
    while line not in seen:
        seen.add(line)
        members = [ck for ck in checkpoints if ck.line == line]
        found += [ck for ck in members if limit is None or ck.position <= limit]
        if line in view.branches:
            line, limit = view.branches[line]
            continue
        parents = (by_id.get(ck.parent or "") for ck in sorted(members, key=_by_position))
        branch = next((ck for ck in parents if ck is not None and ck.line != line), None)
        if branch is None:
            break
        line, limit = branch.line, branch.position
    return sorted(found, key=_by_position)


def branch_points(checkpoints: Iterable[Checkpoint]) -> set[str]:
    """Return ids of checkpoints that a checkpoint on another line continued from.

    Another line may be of another run: a run can start from any checkpoint.
    """
    everything = list(checkpoints)
    home = {ck.id: (ck.run, ck.line) for ck in everything}
    return {
        ck.parent
        for ck in everything
        if ck.parent is not None and home.get(ck.parent, (ck.run, ck.line)) != (ck.run, ck.line)
    }


def by_line(checkpoints: Iterable[Checkpoint]) -> dict[tuple[str, int], list[Checkpoint]]:
    """Return checkpoints grouped by (run, line), oldest first in each."""
    grouped: dict[tuple[str, int], list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        grouped.setdefault((checkpoint.run, checkpoint.line), []).append(checkpoint)
    for members in grouped.values():
        members.sort(key=_by_position)
    return grouped
