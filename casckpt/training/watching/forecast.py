"""What a run will still write, for the warning before training and the alarm during it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.policies import KeepAny, KeepBest, KeepBoth, KeepLast, Policy
from casckpt.checkpoint.room import Need, free_bytes
from casckpt.errors import BadLeaf, CasckptError
from casckpt.logs import logger
from casckpt.training.lines import Line, read_record

if TYPE_CHECKING:
    from pathlib import Path

    from casckpt.checkpoint.records import Checkpoint
    from casckpt.training.loops.epochs import LoopOptions
    from casckpt.training.run import Run

MOST: Final = "most"
"""Counter of a loop, in the row of its run: how many checkpoints its policy keeps at most."""

_RECENT: Final = 8
_PASSING: Final = 2
"""The newest and the one being written are there at once, whatever is kept."""


def before_training(run: Run, state: Any, options: LoopOptions, done: int) -> Need | None:
    """Say how much a loop will need if the disk has less.

    Args:
        run: the run; its earlier checkpoints tell what one takes.
        state: what is saved, as the loop takes it apart.
        options: what the loop was asked.
        done: units that are done.

    Raises:
        BadLeaf: the state holds what no save can store; better known now than after an epoch.
    """
    try:
        need = _need(run, state, options, done)
    except BadLeaf as exc:
        # Others would wait for this process; and what is lazy has no bytes before its first use.
        if run._peers.size == 1 and "Uninitialized" not in exc.what:
            raise _named(exc) from None
        return None
    except (CasckptError, OSError):
        return None  # the save itself says it better
    if need is not None and need.is_short:
        logger.warning(
            "%s needs %s at %s: saves will fail; `casckpt gc` shows what could go",
            run.name,
            need,
            run.store.path,
        )
    return need


def _named(error: BadLeaf) -> BadLeaf:
    """Say where generators belong, which a state has more often than other foreign objects."""
    if "Generator" in error.what or "random" in error.what:
        error.hint = "give the loop a casckpt.State(..., rng=rng): it saves generators"
    return error


def _need(run: Run, state: Any, options: LoopOptions, done: int) -> Need | None:
    mine = [one for one in run.store._catalog.matching(run.name) if one.line == run.line]
    one_bytes = _usual(mine)
    if one_bytes is None:
        from casckpt.checkpoint.tree import flatten

        one_bytes = sum(leaf.length for leaf in flatten(state).leaves)
    kept = _kept(options, done)
    return Need((kept + _PASSING) * one_bytes, free_bytes(run.store.path))


def _usual(checkpoints: Sequence[Checkpoint]) -> int | None:
    """Return what a checkpoint of the run took lately; None before the first two."""
    recent = [one.stored_bytes for one in checkpoints[-_RECENT:] if one.stored_bytes]
    return round(statistics.median(recent)) if len(recent) > 1 else None


def _kept(options: LoopOptions, done: int) -> int:
    """Return how many checkpoints will be kept; those by time are not counted."""
    distance = None if options.every is None else options.every.epochs or options.every.steps
    every = 0 if distance is None else options.total // distance - done // distance
    limit = _limit(options.keep)
    return _best(options) + max(0, every if limit is None else min(every, limit))


def _best(options: LoopOptions) -> int:
    return 1 if options.monitor.metric else 0


def _limit(policy: Policy | None) -> int | None:
    """Return how many checkpoints of a line a policy keeps at most; None if there is no end."""
    match policy:
        case KeepLast():
            return policy.count
        case KeepBest():
            return policy.n
        case KeepAny() | KeepBoth():
            both = _limit(policy.first), _limit(policy.second)
            known = [one for one in both if one is not None]
            if isinstance(policy, KeepBoth):
                return min(known, default=None)
            return sum(known) if len(known) == len(both) else None
    return None


def declare(run: Run, options: LoopOptions) -> None:
    """Record how many checkpoints a loop keeps at most, for the alarm while it trains."""
    limit = _limit(options.keep)
    most = None if limit is None else limit + _best(options)
    line = read_record(run.repository, run.name).lines.get(run.line)
    if line is None or line.loop.get(MOST) == most:
        return

    def change(line: Line) -> None:
        line.loop = {name: value for name, value in line.loop.items() if name != MOST}
        if most is not None:
            line.loop[MOST] = most

    run._session.edit(change)


def alarms(
    checkpoints: Sequence[Checkpoint],
    elapsed_s: float,
    eta_s: float | None,
    path: Path,
    most: object = None,
) -> list[str]:
    """Return the alarm of a run at work that will fill its disk before it ends, if it will.

    It is taken to go on growing as it did: what its checkpoints took, over its time; but not
    beyond what its loop keeps.

    Args:
        checkpoints: those that are kept.
        elapsed_s: the work they took.
        eta_s: the work that is left.
        path: of the store.
        most: how many the loop keeps at most, as `declare` recorded it.
    """
    if eta_s is None or elapsed_s <= 0 or len(checkpoints) < _PASSING:
        return []
    taken = sum(one.stored_bytes for one in checkpoints)
    more = taken / elapsed_s * eta_s
    if isinstance(most, int):
        left = max(0, most + _PASSING - len(checkpoints))
        more = min(more, left * taken / len(checkpoints))
    try:
        need = Need(round(more), free_bytes(path))
    except (CasckptError, OSError):
        return []
    return [f"the disk will be full before it is done: it needs {need}"] if need.is_short else []
