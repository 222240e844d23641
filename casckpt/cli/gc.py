"""`casckpt gc`: a plan with reasons and the bytes it really frees, a question, then the deed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, quantities, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.cli.progress import waiting
from casckpt.cli.prompts import agreed
from casckpt.ids import ABBREVIATION

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.plans import GcPlan, GcResult
    from casckpt.checkpoint.policies import Policy
    from casckpt.checkpoint.records import Checkpoint
    from casckpt.checkpoint.refs import Mode

FOLDED_ABOVE = 30
"""Dropped checkpoints listed on a terminal before the rest is counted: one screen."""

_NOTED_ABOVE = 1024 * 1024
"""Bytes that a collection may free less than planned before it says why."""


@command(
    "gc",
    examples=(
        "casckpt gc --keep-last 3                plan, ask, drop",
        "casckpt gc --keep-last 3 -n             only the plan",
        "casckpt gc 'bpm/*' --keep-last 1 --keep-best val_loss:min:2 --yes",
        "casckpt gc --keep-newer-than 7d --max-bytes 50G --yes --now",
        "casckpt gc                              drop nothing; free what nothing reaches",
    ),
)
@click.argument("run", required=False, shell_complete=completers.runs)
@click.option("--keep-last", callback=quantities.count, metavar="N", help="The newest N.")
@click.option(
    "--keep-best",
    callback=quantities.best,
    metavar="METRIC[:min|max][:N]",
    multiple=True,
    shell_complete=completers.metrics,
    help="The best N (1) by a metric; may be given more than once. Without min or max: by what "
    "the loops of the runs have declared.",
)
@click.option("--keep-every", callback=quantities.count, metavar="N", help="Steps divisible by N.")
@click.option("--keep-newer-than", metavar="AGE", help="Saved within: 12h, 7d, 2w.")
@click.option(
    "--max-bytes",
    callback=quantities.size,
    metavar="SIZE",
    help="Drop the oldest above, but none of --keep-best: 50G.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Show the plan, change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--now", is_flag=True, help="Free the bytes at once: no undelete.")
@click.option(
    "--force", is_flag=True, help="Collect even if far more would go than was removed since."
)
def gc(
    output: Output,
    run: str | None,
    keep_last: int | None,
    keep_best: list[tuple[str, Mode | None, int]],
    keep_every: int | None,
    keep_newer_than: str | None,
    max_bytes: int | None,
    dry_run: bool,
    yes: bool,
    now: bool,
    force: bool,
) -> None:
    """Drop checkpoints by policy, of RUN or of all runs, and free the disk.

    Policies count per line of a run, and a checkpoint stays if any of them keeps it. The newest
    of a line, the best by its loop's monitor, pinned and tagged ones always stay. What is dropped
    goes to the trash, where `undelete` finds it for at least an hour; a gc after that frees its
    bytes. --now does so at once, with what RUN, or every run, has in the trash. Without a policy
    nothing is dropped.
    """
    pattern = stores.split(output.settings, run)[0] if run else "*"
    with stores.opened(output.settings, "r" if dry_run else "a") as store:
        keep_best = [_with_mode(output, store, pattern, *wanted) for wanted in keep_best]
        policy = _policy(keep_last, keep_best, keep_every, keep_newer_than)
        with waiting(output, "planning"):
            plan = store.plan_gc(policy, pattern, max_bytes=max_bytes)
        # What was removed within the hour goes with --now only, and only that of the runs meant.
        ending = _waiting(store, pattern) if now else []
        if not output.json and not output.quiet:
            if policy is not None or plan.drop:
                _show(output, plan)
            if ending:
                output.lines(f"{one.ref}  in the trash, goes for good" for one in ending)
            _sum(output, plan, now, len(_waiting(store, "*")) - len(ending))
        if dry_run:
            _dry(output, plan, ending)
            return
        question = _question(plan, ending, now)
        if (plan.drop or ending) and not agreed(output, question, yes=yes, command="gc"):
            output.note("Nothing was changed.")
            return
        with waiting(output, "collecting"):
            done = store.gc(plan, now=now, force=force)
        trash = {one.id for one in store.checkpoints(trash=True)}
    purged = [one for one in ending if one.id not in trash]
    _report(output, plan, done, now, purged, len(trash))


def _with_mode(
    output: Output, store: Store, pattern: str, metric: str, mode: Mode | None, number: int
) -> tuple[str, Mode | None, int]:
    """Return a --keep-best with the mode that the loops of the runs have declared, if it lacks one.

    Without a mode, and where they declared none or not the same, the policy will refuse it.
    """
    if mode is not None:
        return metric, mode, number
    from casckpt.checkpoint.lines import declared_mode
    from casckpt.checkpoint.refs import require_metric

    catalog = store._catalog
    checkpoints = catalog.matching(pattern.removesuffix("~*"))
    require_metric(checkpoints, metric)  # of a mistyped mode it is a part
    mode = declared_mode(map(catalog.view, {checkpoint.run for checkpoint in checkpoints}), metric)
    if mode is None:
        return metric, None, number
    output.note(f"--keep-best {metric}: {mode}, as declared by its loop")
    return metric, mode, number


def _waiting(store: Store, pattern: str) -> list[Checkpoint]:
    """Return what runs have put into the trash within the hour: only --now frees these."""
    from datetime import UTC, datetime

    from casckpt.store.layout import GRACE_S

    now = datetime.now(UTC)
    trash = store._catalog.matching(pattern.removesuffix("~*"), trash=True)
    return [
        one
        for one in trash
        if one.trashed_at is not None and (now - one.trashed_at).total_seconds() < GRACE_S
    ]


def _policy(
    keep_last: int | None,
    keep_best: list[tuple[str, Mode | None, int]],
    keep_every: int | None,
    keep_newer_than: str | None,
) -> Policy | None:
    """Return the policy that keeps what any of the options keeps, or None without one."""
    from casckpt.checkpoint.policies import KeepBest, KeepEvery, KeepLast, KeepNewerThan

    chosen: list[Policy] = []
    if keep_last is not None:
        chosen.append(KeepLast(keep_last))
    chosen += [KeepBest(metric, mode, number) for metric, mode, number in keep_best]
    if keep_every is not None:
        chosen.append(KeepEvery(keep_every))
    if keep_newer_than is not None:
        chosen.append(KeepNewerThan(keep_newer_than))
    if not chosen:
        return None
    policy = chosen[0]
    for other in chosen[1:]:
        policy = policy | other
    return policy


def _show(output: Output, plan: GcPlan) -> None:
    """Write the plan: what stays, what goes, and why."""
    entries = [("keep", checkpoint) for checkpoint in plan.keep]
    dropped = list(plan.drop)
    folded = max(0, len(dropped) - FOLDED_ABOVE) if output.is_terminal else 0
    entries += [("drop", checkpoint) for checkpoint in dropped[folded:]]
    entries.sort(key=lambda entry: (entry[1].run, entry[1].line, entry[1].position))
    times = formatting.local_times(checkpoint.created for _, checkpoint in entries)
    rows = [
        (
            verb,
            checkpoint.id[:ABBREVIATION],
            *views.place(checkpoint),
            time,
            formatting.size(checkpoint.logical_bytes),
            ", ".join(_reasons(plan, checkpoint)),
        )
        for time, (verb, checkpoint) in zip(times, entries, strict=True)
    ]
    columns = [
        Column("PLAN"),
        Column("ID", color="yellow"),
        Column("RUN"),
        Column("STEP", right=True),
        Column("SAVED AT", rank=1),
        Column("SIZE", right=True),
        Column("BECAUSE", color="cyan"),
    ]
    dropped_rows = frozenset(i for i, row in enumerate(rows) if row[0] == "drop")
    output.table(columns, rows, dim_rows=dropped_rows)
    if folded:
        output.note(f"... and {folded:,} more to drop; `casckpt gc ... -n | less` shows all")
    if rows:
        output.line()


def _sum(output: Output, plan: GcPlan, now: bool, waiting: int) -> None:
    """Write what the plan amounts to, and when that is not now."""
    drops = formatting.count(len(plan.drop), "checkpoint")
    most = later = ""
    if plan.drop and not now:
        later = " once it leaves the trash"
    elif waiting > 0:
        stay = "stays" if waiting == 1 else "stay"
        most = "at most "
        later = f", since {formatting.count(waiting, 'checkpoint')} {stay} in the trash"
    output.line(
        f"keeps {len(plan.keep):,}, drops {drops}; frees {most}"
        f"{formatting.size(plan.freed_bytes)} ({formatting.exact(plan.freed_bytes)}){later}"
    )
    held_bytes = sum(checkpoint.logical_bytes for checkpoint in plan.drop) - plan.freed_bytes
    if held_bytes > max(_NOTED_ABOVE, 4 * plan.freed_bytes):
        output.note(
            "Most of what these hold is shared with checkpoints that stay, or is what those are "
            "differences to; `casckpt compact` may store these in less."
        )


def _reasons(plan: GcPlan, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Return why a checkpoint is kept or dropped."""
    return tuple(plan.reasons.get(checkpoint.ref, ()))


def _plan_record(
    plan: GcPlan, drop: Sequence[Checkpoint], purge: Sequence[Checkpoint]
) -> dict[str, Any]:
    """Return the plan as JSON holds it, with what it drops and purges of the trash, or has so."""
    return {
        "keep": [
            {**views.record(checkpoint), "reasons": list(_reasons(plan, checkpoint))}
            for checkpoint in plan.keep
        ],
        "drop": [views.record(checkpoint) for checkpoint in drop],
        "purge": [views.record(checkpoint) for checkpoint in purge],
    }


def _dry(output: Output, plan: GcPlan, ending: Sequence[Checkpoint]) -> None:
    """Finish a dry run."""
    if output.json:
        document = _plan_record(plan, plan.drop, ending)
        output.document("gc", **document, freed_bytes=plan.freed_bytes, dry_run=True)
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in plan.drop)
    else:
        output.note("Dry run: nothing was changed.")


def _question(plan: GcPlan, ending: Sequence[Checkpoint], now: bool) -> str:
    """Return what is asked before acting; `ending` is in the trash already."""
    if now:
        drops = formatting.count(len(plan.drop) + len(ending), "checkpoint")
        return f"Drop {drops} for good and free {formatting.size(plan.freed_bytes)}?"
    return f"Move {formatting.count(len(plan.drop), 'checkpoint')} to the trash?"


def _report(
    output: Output,
    plan: GcPlan,
    done: GcResult,
    now: bool,
    purged: Sequence[Checkpoint] = (),
    left: int = 0,
) -> None:
    """Say what was done, and why it is less than planned; `left` are still in the trash."""
    freed_bytes = done.freed_bytes
    if output.json:
        # Not the plan: what was pinned, tagged or dropped by others since was left alone.
        document = _plan_record(plan, done.dropped, purged)
        output.document("gc", **document, freed_bytes=freed_bytes, dry_run=False)
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in done.dropped)
    else:
        if done.dropped and not now:
            output.line(
                f"moved {formatting.count(len(done.dropped), 'checkpoint')} to the trash; "
                f"freed {formatting.size(freed_bytes)}"
            )
            output.note(
                "`casckpt undelete REF` brings one back, for at least an hour; "
                "`casckpt gc --now` frees the bytes at once."
            )
        else:
            output.line(f"freed {formatting.size(freed_bytes)} ({formatting.exact(freed_bytes)})")
            if left and plan.freed_bytes > freed_bytes:
                them = "them" if left > 1 else "it"
                output.note(
                    f"{formatting.count(left, 'checkpoint')} in the trash can still come back "
                    "within the hour after the removal; "
                    f"`casckpt gc --now` frees {them} at once."
                )
            elif not done.skipped and plan.freed_bytes - freed_bytes > max(
                _NOTED_ABOVE, freed_bytes
            ):
                output.note(
                    f"That is less than the {formatting.size(plan.freed_bytes)} planned: the rest "
                    "is in packs that also hold what stays, and to rewrite those the disk needs "
                    "room for what stays. Make room, then run `casckpt gc --now` again."
                )
