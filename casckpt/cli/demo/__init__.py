"""`casckpt demo`: the main job on real data, measured, in under a minute."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click

from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import BadRequest


@command("demo", examples=("casckpt demo", "casckpt demo --keep tried        keep the store"))
@click.option(
    "--keep",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Work in this new or empty folder, and leave the store and the files there.",
)
def demo(output: Output, keep: Path | None) -> None:
    """Train a network and a booster, kill the training, go on, and compare with torch.save.

    The data are the sources of Python's own standard library. Everything printed is measured in
    this run. It takes under a minute on two cores and about 1 GB of disk while it runs.
    """
    from casckpt.cli.demo.story import tell_story

    with _folder(keep) as folder:
        tell_story(output, folder)
        if keep is not None:
            output.note(f"Kept: {folder / 'store'} (the store), {folder / 'files'} (the files).")


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Yield an empty folder; one that was not asked for is removed at the end."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="casckpt-demo-") as name:
            yield Path(name)
        return
    if keep.exists() and any(keep.iterdir()):
        raise BadRequest(f"{keep} is not empty", "the demo overwrites nothing", "name a new folder")
    keep.mkdir(parents=True, exist_ok=True)
    yield keep
