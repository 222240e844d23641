"""What becomes superfluous when a checkpoint of a run is durable.

A checkpoint that is only `latest` or `stop` is rolling: the next one replaces it, past the trash.
A best one that is best no more, and what `keep=` does not choose, goes to the trash, and past it
when a disk is full. Tagged and pinned ones, branch points and the newest stay, whatever a policy
says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint import retention, room
from casckpt.checkpoint.guards import Seen, until_unchanged
from casckpt.checkpoint.policies import Policy
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import rank
from casckpt.errors import CasckptError
from casckpt.logs import logger
from casckpt.training.lines import read_records

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.training.loops.monitor import Monitor

EVERY, BEST, LATEST, FINAL, STOP = "every", "best", "latest", "final", "stop"

ROLLING: Final = frozenset({LATEST, STOP})
_CHOSEN: Final = frozenset({EVERY, BEST})


def tidy(store: Store, newest: Checkpoint, monitor: Monitor, keep: Policy | None) -> None:
    """Drop what `newest` makes superfluous; called once it is durable.

    An error is logged: the checkpoint is there, and what is left too many is no harm.
    """
    try:
        until_unchanged(partial(_tidy, store, newest, monitor, keep), "nothing was dropped")
    except CasckptError as exc:
        logger.warning("old checkpoints of %s stay for now: %s", newest.run, exc.what)


def keep_only(store: Store, run: str, line: int, policy: Policy, monitor: Monitor | None) -> None:
    """Drop of a finished line what a policy does not choose; the final and the best stay.

    Raises:
        Busy: other processes keep changing the run.
    """

    def attempt() -> None:
        seen = Seen(store._repository, run)
        members = store._catalog.matching(run)
        mine = [one for one in members if one.line == line]
        kept = {*[one for one in mine if FINAL in one.reasons][-1:]} | _best(mine, monitor)
        _remove(store, seen, members, trash=_unchosen(mine, policy, kept, members))

    until_unchanged(attempt, f"the checkpoints of {run} that are too many stay")


def _tidy(store: Store, newest: Checkpoint, monitor: Monitor, keep: Policy | None) -> None:
    seen = Seen(store._repository, newest.run)
    members = store._catalog.matching(newest.run)
    mine = [one for one in members if one.line == newest.line]
    rolling = [
        one for one in mine if one.reasons and ROLLING.issuperset(one.reasons) and
        one.position < newest.position
    ]  # fmt: skip
    rest = [one for one in mine if one not in set(rolling)]
    best = _best(rest, monitor)
    doomed: list[Checkpoint] = []
    if keep is not None:
        chosen = [one for one in rest if _CHOSEN.intersection(one.reasons)]
        final = {one for one in chosen if FINAL in one.reasons}
        doomed = _unchosen(chosen, keep, best | final, members)
    elif BEST in newest.reasons:
        doomed = [
            one
            for one in rest
            if BEST in one.reasons and {BEST, *ROLLING}.issuperset(one.reasons) and one not in best
        ]
    _remove(store, seen, members, bury=rolling, trash=doomed)


def _best(mine: Sequence[Checkpoint], monitor: Monitor | None) -> set[Checkpoint]:
    if monitor is None or not monitor.metric:
        return set()
    ranked = rank(mine, monitor.metric, monitor.mode)
    return {ranked[0][1]} if ranked else set()


def _unchosen(
    candidates: Sequence[Checkpoint],
    policy: Policy,
    kept: Collection[Checkpoint],
    members: Sequence[Checkpoint],
) -> list[Checkpoint]:
    """Return what a policy does not choose of the candidates; it counts those in `kept` too."""
    decision = retention.decide(candidates, policy, datetime.now(UTC), everything=members)
    # The newest of the candidates need not be the newest of the line, which `_remove` spares.
    return [
        one
        for one in candidates
        if one not in kept and (one in decision.drop or decision.reasons[one] == ("newest",))
    ]


def _remove(
    store: Store,
    seen: Seen,
    members: Sequence[Checkpoint],
    *,
    bury: Sequence[Checkpoint] = (),
    trash: Sequence[Checkpoint] = (),
) -> None:
    """Remove what nothing protects, past the trash or into it, unless the run has moved."""
    protected = _protected(store, members) if bury or trash else frozenset()
    repository = store._repository
    if buried := [(one.run, one.seq) for one in bury if one not in protected]:
        payloads = [(*place, seen.payload(*place) or b"") for place in buried]
        repository.bury(payloads, seen.allows(buried))
        seen.removed(buried)
    if trashed := [(one.run, one.seq) for one in trash if one not in protected]:
        repository.trash(trashed, seen.allows(trashed))
        for place in trashed:
            room.note_superfluous(repository, *place)


def _protected(store: Store, members: Sequence[Checkpoint]) -> Collection[Checkpoint]:
    begun = {
        line.branch.id
        for record in read_records(store._repository).values()
        for line in record.lines.values()
        if line.branch is not None
    }
    return {*retention.protections(members), *(one for one in members if one.id in begun)}
