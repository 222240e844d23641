"""Saves that a script makes itself beside those of a loop: predictions, an average, embeddings.

What a loop saves is what it goes on from, and its steps are its units. So anything else goes to a
run below, NAME/saves or NAME/<name>, on a line of the same number and at the step of the unit at
hand. After a kill this unit is done again, and what it saves takes the place of what was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.guards import unpinned
from casckpt.checkpoint.lines import branch_points
from casckpt.checkpoint.placement import Placement
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRequest, StepExists
from casckpt.training.lines import read_record

if TYPE_CHECKING:
    from casckpt.training.run import Run

DEFAULT_NAME: Final = "saves"


def save(
    run: Run,
    name: str,
    state: Any,
    step: int | None,
    *,
    metrics: Mapping[str, Any] | None,
    tags: str | Sequence[str],
    replace: bool,
    level: str | None,
) -> Checkpoint:
    """Save a state below a run, durable on return; the process that leads makes this call.

    Args:
        run: begun.
        name: of the run below.
        state: see `Store.save`, like all others.
        step: None for the unit at hand, or the last one after the loop.
        metrics: see `Store.save`.
        tags: see `Store.save`.
        replace: see `Store.save`.
        level: see `Store.save`.

    Raises:
        StepExists: this session has saved something else there.
        BadLeaf, BadRequest, NoSpace: see `Store.save`.
    """
    below, at = f"{run.name}/{name}", run._row_at if step is None else step
    placement = Placement(line=run.line, parent=_parent(run, below))

    def place() -> Checkpoint:
        saved = run.store._save_placed(
            below, state, at, placement, metrics=metrics, tags=tags, replace=replace, level=level
        )
        assert isinstance(saved, Checkpoint)
        return saved

    try:
        saved = place()
    except StepExists as exc:
        if not _make_way(run, below, at):
            hint = "give each its name: run.save(state, name='predictions')"
            raise StepExists(exc.what, exc.why, hint) from exc
        saved = place()
    run._saved_by_hand.add(saved.id)
    return saved


def _make_way(run: Run, below: str, step: int) -> bool:
    """Trash what earlier sessions saved at units that are done again; False if it may not go."""
    if run.resumed is not None and step < run.resumed.step:
        return False  # of a unit before: nobody makes again what follows it
    members = run.store._catalog.matching(below)
    stale = [one for one in members if one.line == run.line and one.step >= step]
    kept = branch_points(members) | run._saved_by_hand
    if any(one.pinned or one.id in kept for one in stale):
        return False
    for one in stale:
        run.store.untag(one, *one.tags)
    places = [(one.run, one.seq) for one in stale]
    try:
        run.repository.trash(places, unpinned(places))
    except BadRequest:
        return False  # pinned in between
    return bool(stale)


def _parent(run: Run, below: str) -> str | None:
    """Return the id of what the next save there follows: on this line, or where it began."""
    members = run.store._catalog.inherited(below, run.line)
    line = read_record(run.repository, run.name).lines.get(run.line)
    if not members and line is not None and line.branch is not None:
        if line.branch.store or line.branch.run != run.name:
            return None
        before = run.store._catalog.inherited(below, line.branch.line)
        members = [one for one in before if one.step <= line.branch.step]
    return members[-1].id if members else None
