"""Plans of gc: what would go, why, and what that really frees; made first, carried out after.

A plan is a value. The command line, a dry run, JSON and a program look at the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from casckpt.checkpoint import retention
from casckpt.checkpoint.policies import Policy, check_policy
from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import require_metric
from casckpt.errors import BadRequest, Busy, Corrupt

if TYPE_CHECKING:
    from casckpt.store import Repository

_log = logging.getLogger("casckpt")

_LOOKS = 5


@dataclass(frozen=True)
class GcPlan:
    """What a gc, or a delete, keeps and drops.

    Attributes:
        keep: checkpoints that stay, by run and step.
        drop: checkpoints that go.
        reasons: REF of each of both to why.
        freed_bytes: what the disk gets back once the bytes are swept; what other checkpoints
            share is not in it.
        run: the run, or glob over runs, that it was made for.
    """

    keep: tuple[Checkpoint, ...]
    drop: tuple[Checkpoint, ...]
    reasons: Mapping[str, tuple[str, ...]]
    freed_bytes: int
    run: str = "*"


@dataclass(frozen=True)
class GcResult:
    """What a gc did.

    Attributes:
        dropped: checkpoints that were moved to the trash, or removed with `now`.
        skipped: checkpoints of the plan that were left alone, because they were tagged, pinned,
            branched from or removed since it was made.
        freed_bytes: what the disk got back in this run.
        dead_bytes: unreachable bytes that stay in packs with live ones.
    """

    dropped: tuple[Checkpoint, ...]
    skipped: tuple[Checkpoint, ...]
    freed_bytes: int
    dead_bytes: int


def make_plan(
    repository: Repository,
    catalog: Catalog,
    policy: Policy | None,
    run: str = "*",
    *,
    max_bytes: int | None = None,
    now: datetime | None = None,
) -> GcPlan:
    """Return what a policy keeps and drops of the runs that match.

    Args:
        repository: the store.
        catalog: its rows.
        policy: what to keep; None keeps all.
        run: a run or a glob over runs; policies count per line of each.
        max_bytes: drop the oldest of what else stays until the store is at most so big, but none
            of the best that the policy names. Where that cannot be reached, it drops no more than
            it takes to free all that can be freed.
        now: the time ages are counted from; the clock's by default.

    Raises:
        BadRequest: if `policy` is no policy or `max_bytes` is negative.
        NotFound: if no checkpoint of the runs has a metric that the policy goes by: a name that
            is mistyped keeps nothing, and would drop what the right one keeps.
    """
    check_policy(policy)
    everything = catalog.matching()
    chosen = everything if run == "*" else catalog.matching(run.removesuffix("~*"))
    for metric in () if policy is None else policy.metrics:
        require_metric(chosen, metric)
    decision = retention.decide(
        chosen,
        policy,
        now or datetime.now(UTC),
        everything=everything,
        declared={} if policy is None and max_bytes is None else catalog.declared(chosen),
    )
    reasons = dict(decision.reasons)
    dropped = set(decision.drop)
    if max_bytes is not None:
        for checkpoint in _over(repository, decision, max_bytes):
            dropped.add(checkpoint)
            reasons[checkpoint] = (f"oldest above {max_bytes:,} bytes",)
    drop = tuple(ck for ck in chosen if ck in dropped)
    return GcPlan(
        keep=tuple(ck for ck in chosen if ck not in dropped),
        drop=drop,
        reasons={ck.ref: reasons[ck] for ck in chosen},
        freed_bytes=freed_bytes(repository, drop),
        run=run,
    )


def plan_of(repository: Repository, drop: Sequence[Checkpoint], why: str) -> GcPlan:
    """Return the plan that drops just these checkpoints; what waits in the trash is not in it."""
    return GcPlan(
        keep=(),
        drop=tuple(drop),
        reasons={checkpoint.ref: (why,) for checkpoint in drop},
        freed_bytes=freed_bytes(repository, drop) - freed_bytes(repository, ()),
    )


def freed_bytes(repository: Repository, drop: Sequence[Checkpoint]) -> int:
    """Return what the disk would get back if these were gone and swept.

    Raises:
        Corrupt: if something that a checkpoint needs cannot be read.
    """
    going = [(ck.run, ck.seq) for ck in drop]
    said = ""
    for _ in range(_LOOKS):
        try:
            return repository.plan_gc(going).freed_bytes
        except Corrupt as exc:
            # No plan keeps a collection out, which moves and frees what is looked at: from one
            # look to the next that is something else, and what is damaged is the same.
            if str(exc) == said:
                raise
            said = str(exc)
    raise Busy("what this would free is not known", "collections keep moving what is counted")


def still_droppable(
    catalog: Catalog, planned: Sequence[Checkpoint]
) -> tuple[list[Checkpoint], list[Checkpoint]]:
    """Return (what of a plan may still be dropped, what may not any more).

    A plan can be old: since then somebody may have tagged, pinned, removed or branched from a
    checkpoint in it, or removed what was newer.
    """
    if not planned:
        return [], []
    live = catalog.matching()
    allowed = set(live) - set(retention.protections(live, declared=catalog.declared(live)))
    go = [ck for ck in planned if ck in allowed]
    return go, [ck for ck in planned if ck not in allowed]


def _over(repository: Repository, decision: retention.Decision, max_bytes: int) -> list[Checkpoint]:
    """Return the fewest of the oldest checkpoints whose going brings the store under a size.

    Where nothing does, the fewest that bring it as near as it gets.
    """
    if max_bytes < 0:
        raise BadRequest(f"max_bytes={max_bytes}", "a size is a number of bytes from 0 on")
    candidates = retention.oldest_first(decision)
    stored = repository.sizes().stored_bytes

    def stored_after(count: int) -> int:
        return stored - freed_bytes(repository, (*decision.drop, *candidates[:count]))

    # What is freed only grows with what is dropped, so the smallest number is found by halves.
    low, high = 0, len(candidates)
    least = stored_after(high)
    if least > max_bytes:
        _log.warning(
            "the store cannot get under %s bytes: it takes %s with what has to stay, the newest, "
            "the best, tagged and pinned checkpoints",
            f"{max_bytes:,}",
            f"{least:,}",
        )
    reachable = max(least, max_bytes)
    while low < high:
        middle = (low + high) // 2
        if stored_after(middle) <= reachable:
            high = middle
        else:
            low = middle + 1
    return candidates[:low]
