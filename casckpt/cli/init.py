"""`casckpt init`: make a store."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from casckpt.checkpoint.places import STORE_FOLDER
from casckpt.cli import formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import BadRequest


@command(
    "init",
    examples=(
        "casckpt init                            ./.casckpt, found from every folder below",
        "casckpt init /data/ckpts                then: export CASCKPT_STORE=/data/ckpts",
    ),
)
@click.argument("path", required=False, type=click.Path(path_type=Path))
def init(output: Output, path: Path | None) -> None:
    """Make a store at PATH; without PATH at --store or CASCKPT_STORE, else in ./.casckpt."""
    chosen = path or stores.named(output.settings) or Path(STORE_FOLDER)
    if (chosen / "format.json").exists():
        raise BadRequest(
            f"there is a store already at {chosen}",
            "init never touches an existing store",
            f"use it: `casckpt ls --store {shlex.quote(str(chosen))}`",
        )
    from casckpt.api import Store
    from casckpt.store import layout

    Store(chosen, mode="a").close()
    place = str(chosen.absolute())
    if output.json:
        output.document("init", store=place)
    elif output.quiet:
        output.line(place)
    else:
        output.line(f"store made at {place}")
        ballast = chosen / layout.BALLAST_FILE
        if ballast.exists():
            aside = formatting.size(ballast.stat().st_size)
            output.note(f"{aside} are set aside, so that removing works on a full disk.")
        else:
            needed = formatting.size(layout.BALLAST_MIN_BYTES)
            output.note(f"the disk is nearly full: saving begins when {needed} are free.")
        if path is not None and path.name != STORE_FOLDER:
            given, there = shlex.quote(str(path)), shlex.quote(place)
            output.note(f"Commands find it with --store {given}, or export CASCKPT_STORE={there}")
