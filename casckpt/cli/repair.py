"""`casckpt repair`: rebuild what can be rebuilt."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from casckpt.cli import formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.api import RepairResult


@command(
    "repair",
    examples=(
        "casckpt repair --rebuild-index          a new index, from the packs alone",
        "casckpt repair --accept                 the result is right: gc may work again",
    ),
)
@click.option("--rebuild-index", is_flag=True, help="Make a new index from the packs alone.")
@click.option("--accept", is_flag=True, help="Allow gc again after a rebuild was looked at.")
def repair(output: Output, rebuild_index: bool, accept: bool) -> None:
    """Rebuild what can be rebuilt; nothing is ever deleted.

    --rebuild-index reads every pack and makes a new index beside the old one. Until --accept, gc
    frees nothing, so that a mistake can still be undone.
    """
    if not rebuild_index and not accept:
        raise BadRequest(
            "repair: nothing to do was named",
            "",
            "pass --rebuild-index, or --accept after looking at a rebuilt store",
        )
    path = stores.locate(output.settings)
    from casckpt.api import repair_store

    done = repair_store(path, rebuild_index=rebuild_index, accept=accept)
    if output.json:
        output.document(
            "repair",
            rebuilt=done.rebuilt,
            accepted=done.accepted,
            checkpoint_count=done.checkpoint_count,
            recovered=list(done.recovered),
            messages=list(done.messages),
        )
    elif output.quiet:
        output.lines(done.recovered)
    else:
        _show(output, done)


def _show(output: Output, done: RepairResult) -> None:
    """Say what was done, and what is to be looked at."""
    checkpoints = formatting.count(done.checkpoint_count, "checkpoint")
    if done.rebuilt:
        output.line(f"a new index was made from the packs: {checkpoints}")
        output.lines(f"    {message}" for message in done.messages)
        output.lines(f"    recovered without its row: {ref}" for ref in done.recovered)
    if done.accepted:
        output.line(f"accepted: gc works again ({checkpoints})")
    elif done.rebuilt:
        output.note(
            "Look with `casckpt ls` and `casckpt verify`; gc frees nothing until "
            "`casckpt repair --accept`."
        )
