"""Retention: from checkpoints to keep or drop, with reasons. Pure: no store, no clock.

Whatever the policy, these are never dropped: the newest of each line, its best where its loop has
declared what is best, tagged and pinned ones, and branch points (what another line continued from).
`plans.py` turns the decision into a plan
with bytes; only applying that plan changes anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from casckpt.checkpoint.lines import branch_points, by_line
from casckpt.checkpoint.policies import Policy, joined
from casckpt.checkpoint.records import Checkpoint


@dataclass(frozen=True)
class Decision:
    """What to do with each checkpoint.

    Attributes:
        keep: what stays, in the order given.
        drop: what may go, in the order given.
        reasons: for every one of both, why; keyed by the checkpoint.
        protected: those that a limit of bytes may not drop either: what no policy may drop, and
            the best that this one names.
    """

    keep: tuple[Checkpoint, ...]
    drop: tuple[Checkpoint, ...]
    reasons: Mapping[Checkpoint, tuple[str, ...]]
    protected: frozenset[Checkpoint]


def decide(
    checkpoints: Sequence[Checkpoint],
    policy: Policy | None,
    now: datetime,
    *,
    everything: Sequence[Checkpoint] | None = None,
    declared: Mapping[Checkpoint, tuple[str, ...]] | None = None,
) -> Decision:
    """Return what a policy keeps and drops.

    Args:
        checkpoints: all live checkpoints of each run that is looked at.
        policy: what to keep; None keeps all.
        now: the time from which ages count.
        everything: all live checkpoints of the store, where other runs may have branched from
            these; defaults to `checkpoints`.
        declared: what must stay by what runs have declared, with reasons.
    """
    protected = protections(checkpoints, everything, declared)
    ages_s = _ages_s(checkpoints, now)
    reasons: dict[Checkpoint, tuple[str, ...]] = {}
    kept: set[Checkpoint] = set()
    firm = set(protected)
    for line in by_line(checkpoints).values():
        ages = [ages_s[ck] for ck in line]
        chosen = policy.keep(line, ages) if policy is not None else {}
        if policy is not None:
            firm.update(line[at] for at in policy.keep_at_any_size(line, ages))
        for at, checkpoint in enumerate(line):
            why = joined(chosen.get(at, ()), protected.get(checkpoint, ()))
            if why or policy is None:
                kept.add(checkpoint)
                reasons[checkpoint] = why or ("no policy",)
            else:
                reasons[checkpoint] = (f"not {policy}",)
    return Decision(
        keep=tuple(ck for ck in checkpoints if ck in kept),
        drop=tuple(ck for ck in checkpoints if ck not in kept),
        reasons=reasons,
        protected=frozenset(firm),
    )


def protections(
    checkpoints: Sequence[Checkpoint],
    everything: Sequence[Checkpoint] | None = None,
    declared: Mapping[Checkpoint, tuple[str, ...]] | None = None,
) -> dict[Checkpoint, tuple[str, ...]]:
    """Return the checkpoints that no policy may drop, with reasons.

    Args:
        checkpoints: all live checkpoints of each run that is looked at.
        everything: all live checkpoints of the store; defaults to `checkpoints`.
        declared: what must stay by what runs have declared, with reasons.
    """
    branches = branch_points(checkpoints if everything is None else everything)
    newest = {line[-1] for line in by_line(checkpoints).values()}
    found: dict[Checkpoint, tuple[str, ...]] = {}
    for checkpoint in checkpoints:
        why = [f"tag {tag}" for tag in checkpoint.tags]
        if checkpoint.pinned:
            why.append("pinned")
        if checkpoint in newest:
            why.append("newest")
        if checkpoint.id in branches:
            why.append("branch point")
        why += [reason for reason in (declared or {}).get(checkpoint, ()) if reason not in why]
        if why:
            found[checkpoint] = tuple(why)
    return found


def oldest_first(decision: Decision) -> list[Checkpoint]:
    """Return what a limit of bytes may drop next: kept but not protected, oldest first."""
    return sorted(
        (ck for ck in decision.keep if ck not in decision.protected),
        key=lambda ck: (ck.created, ck.seq),
    )


def _ages_s(checkpoints: Sequence[Checkpoint], now: datetime) -> dict[Checkpoint, float]:
    # A clock that jumped back must not make what came later look older: the time of a commit
    # is the latest time seen up to it, and a time in the future is age 0.
    ages: dict[Checkpoint, float] = {}
    latest: datetime | None = None
    for checkpoint in sorted(checkpoints, key=lambda ck: ck.seq):
        latest = checkpoint.created if latest is None else max(latest, checkpoint.created)
        ages[checkpoint] = max(0.0, (now - latest).total_seconds())
    return ages
