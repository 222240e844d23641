"""`casckpt restore`: write a checkpoint out as files."""

from __future__ import annotations

from pathlib import Path

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output


@command(
    "restore",
    examples=(
        "casckpt restore bpm/nn -o newest/",
        "casckpt restore bpm/nn@best:val_loss:min -o best/",
    ),
)
@click.argument("ref", shell_complete=completers.refs)
@click.option(
    "-o",
    "--output",
    "destination",
    required=True,
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="A new or empty folder.",
)
def restore(output: Output, ref: str, destination: Path) -> None:
    """Write a checkpoint into a new or empty folder, every byte verified.

    Files that were saved as files come back as they were. A state tree becomes
    DIR/state.safetensors, which other programs read, and DIR/tree.json; together they
    hold every type and value, and `casckpt import DIR` takes them in again.
    """
    (target,) = stores.split(output.settings, ref)
    with stores.opened(output.settings) as store:
        checkpoint = store.get(target)
        if store.holds_files(checkpoint):
            files = store.restore_files(checkpoint, destination, into_folder=True)
        else:
            files = store.export(checkpoint, destination, format="tree")
    if output.json:
        output.document(
            "restore",
            checkpoint=views.record(checkpoint),
            files=[str(path) for path in files],
        )
    else:
        output.lines(
            str(path) if output.quiet else f"{path}  {formatting.size(path.lstat().st_size)}"
            for path in files
        )
