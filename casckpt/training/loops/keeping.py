"""What becomes superfluous when a checkpoint of a run is durable.

A checkpoint that is only `latest` or `stop` is rolling: the next one replaces it, past the trash.
A best one that is best no more, and what `keep=` does not choose, goes to the trash, and past it
when a disk is full. Tagged and pinned ones, branch points and the newest stay, whatever a policy
says.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint import retention, room
from casckpt.checkpoint.policies import Policy
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import rank
from casckpt.errors import CasckptError, NotFound
from casckpt.logs import logger
from casckpt.training.lines import read_records

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.store import Repository
    from casckpt.training.loops.monitor import Monitor

EVERY, BEST, LATEST, FINAL, STOP = "every", "best", "latest", "final", "stop"

ROLLING: Final = frozenset({LATEST, STOP})
_CHOSEN: Final = frozenset({EVERY, BEST})


def tidy(store: Store, newest: Checkpoint, monitor: Monitor, keep: Policy | None) -> None:
    """Drop what `newest` makes superfluous; called once it is durable.

    An error is logged: the checkpoint is there, and what is left too many is no harm.
    """
    try:
        _tidy(store, newest, monitor, keep)
    except CasckptError as exc:
        logger.warning("old checkpoints of %s stay for now: %s", newest.run, exc.what)


def keep_only(store: Store, run: str, line: int, policy: Policy, monitor: Monitor | None) -> None:
    """Drop of a finished line what a policy does not choose; the final and the best stay."""
    members = store._catalog.matching(run)
    mine = [one for one in members if one.line == line]
    kept = {*[one for one in mine if FINAL in one.reasons][-1:]} | _best(mine, monitor)
    _drop(store, mine, policy, kept, members)


def _tidy(store: Store, newest: Checkpoint, monitor: Monitor, keep: Policy | None) -> None:
    members = store._catalog.matching(newest.run)
    mine = [one for one in members if one.line == newest.line]
    rolling = [
        one for one in mine if one.reasons and ROLLING.issuperset(one.reasons) and
        one.position < newest.position
    ]  # fmt: skip
    _bury(store._repository, store, rolling, members)
    rest = [one for one in mine if one not in set(rolling)]
    best = _best(rest, monitor)
    if keep is not None:
        chosen = [one for one in rest if _CHOSEN.intersection(one.reasons)]
        final = {one for one in chosen if FINAL in one.reasons}
        _drop(store, chosen, keep, best | final, members)
    elif BEST in newest.reasons:
        beaten = [
            one
            for one in rest
            if BEST in one.reasons and {BEST, *ROLLING}.issuperset(one.reasons) and one not in best
        ]
        _trash(store, beaten, members)


def _best(mine: Sequence[Checkpoint], monitor: Monitor | None) -> set[Checkpoint]:
    if monitor is None or not monitor.metric:
        return set()
    ranked = rank(mine, monitor.metric, monitor.mode)
    return {ranked[0][1]} if ranked else set()


def _bury(
    repository: Repository, store: Store, doomed: Sequence[Checkpoint], members: list[Checkpoint]
) -> None:
    free = set(_unprotected(store, doomed, members))
    if not free:
        return
    payloads = {row.seq: row.payload for row in repository.checkpoint_rows(doomed[0].run)}
    repository.bury([(one.run, one.seq, payloads[one.seq]) for one in free if one.seq in payloads])


def _drop(
    store: Store,
    candidates: Sequence[Checkpoint],
    policy: Policy,
    kept: Collection[Checkpoint],
    members: list[Checkpoint],
) -> None:
    """Drop what a policy does not choose of the candidates; it counts those in `kept` too."""
    decision = retention.decide(candidates, policy, datetime.now(UTC), everything=members)
    # The newest of the candidates need not be the newest of the line, which `_trash` spares.
    doomed = [
        one
        for one in candidates
        if one not in kept and (one in decision.drop or decision.reasons[one] == ("newest",))
    ]
    _trash(store, doomed, members)


def _trash(store: Store, doomed: Sequence[Checkpoint], members: list[Checkpoint]) -> None:
    for one in _unprotected(store, doomed, members):
        try:
            store._repository.trash([(one.run, one.seq)])
        except NotFound:
            continue  # somebody else dropped it
        room.note_superfluous(store._repository, one.run, one.seq)


def _unprotected(
    store: Store, doomed: Sequence[Checkpoint], members: list[Checkpoint]
) -> list[Checkpoint]:
    if not doomed:
        return []
    protected = set(retention.protections(members))
    begun = {
        line.branch.id
        for record in read_records(store._repository).values()
        for line in record.lines.values()
        if line.branch is not None
    }
    return [one for one in doomed if one not in protected and one.id not in begun]
