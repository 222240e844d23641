"""`casckpt compact`: old checkpoints in less space, and what that has won, run by run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from casckpt.cli import formatting, stores
from casckpt.cli.ends import interrupted_with
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.cli.progress import progress

if TYPE_CHECKING:
    from casckpt.checkpoint.compacting import CompactResult


@command(
    "compact",
    examples=(
        "casckpt compact -n                      what it is likely to win, from a sample",
        "casckpt compact                         store old checkpoints in less space",
        "casckpt compact --level balanced        leave alone what is stored whole: quicker",
    ),
)
@click.option(
    "--level",
    type=click.Choice(["balanced", "small"]),
    default="small",
    show_default=True,
    help="How hard to look for what can be stored in less.",
)
@click.option("-n", "--dry-run", is_flag=True, help="Estimate from a sample, change nothing.")
def compact(output: Output, level: Literal["balanced", "small"], dry_run: bool) -> None:
    """Store old checkpoints in less space; each restores to the same bits as before.

    The newest checkpoint of a line is stored whole, which makes it the fastest to restore. Older
    ones become differences to newer ones where that wins, so restoring an old one takes longer
    than before. Others may save, read and list meanwhile. It may be stopped at any moment, and
    goes on from there when it is called again.
    """
    with stores.opened(output.settings, "r" if dry_run else "a") as store:
        if dry_run:
            result = store.plan_compact(level=level)
        else:
            remark = "nothing is lost, the same command goes on from here"
            with interrupted_with(remark), progress(output, "compacting") as report:
                result = store.compact(level=level, progress=report)
    if output.json:
        output.document("compact", **_record(result))
    elif output.quiet:
        output.lines(run.run for run in result.runs if run.after_bytes < run.before_bytes)
    else:
        _show(output, result)


def _record(result: CompactResult) -> dict[str, Any]:
    """Return the result as JSON holds it."""
    return {
        "level": result.level,
        "dry_run": result.planned,
        "before_bytes": result.before_bytes,
        "after_bytes": result.after_bytes,
        "looked_count": result.looked_count,
        "recoded_count": result.recoded_count,
        "trash_bytes": result.trash_bytes,
        "runs": [
            {
                "run": run.run,
                "checkpoint_count": run.checkpoint_count,
                "logical_bytes": run.logical_bytes,
                "before_bytes": run.before_bytes,
                "after_bytes": run.after_bytes,
            }
            for run in result.runs
        ],
    }


def _show(output: Output, result: CompactResult) -> None:
    """Write what was won, by run and in all."""
    about = "~" if result.planned else ""
    rows = [
        (
            run.run,
            f"{run.checkpoint_count:,}",
            formatting.size(run.logical_bytes),
            formatting.size(run.before_bytes),
            about + formatting.size(run.after_bytes),
            formatting.share(run.after_bytes, run.logical_bytes),
        )
        for run in result.runs
    ]
    if rows:
        columns = [
            Column("RUN"),
            Column("CHECKPOINTS", right=True, rank=1),
            Column("LOGICAL", right=True),
            Column("BEFORE", right=True),
            Column("AFTER", right=True),
            Column("AFTER/LOGICAL", right=True, rank=2),
        ]
        output.table(columns, rows)
        output.line()
    chunks = formatting.count(result.recoded_count, "chunk")
    won = result.before_bytes - result.after_bytes
    output.line(
        f"the store took {formatting.size(result.before_bytes)}, "
        f"{'would take about' if result.planned else 'takes'} "
        f"{formatting.size(result.after_bytes)}: "
        f"{formatting.size(won) if won > 0 else 'nothing'} won"
    )
    if result.planned:
        output.note(f"Estimated from {chunks} of a sample; nothing was changed.")
        if result.trash_bytes:
            kept = formatting.size(result.trash_bytes)
            output.note(f"{kept} more would go with the trash: `casckpt gc --now` empties it.")
    else:
        output.note(f"{chunks} of {result.looked_count:,} stored anew.")
