"""`casckpt repair`: rebuild what can be rebuilt."""

from __future__ import annotations

from typing import Any

import click

from casckpt.cli import formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import BadRequest


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
        output.document("repair", **formatting.plain(done))
    elif not output.quiet:
        output.lines(_words(done))


def _words(done: Any) -> list[str]:
    return [f"{name}: {value}" for name, value in vars(done).items()]
