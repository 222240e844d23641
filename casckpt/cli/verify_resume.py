"""`casckpt verify-resume`: does a command that is killed and run again end the same?"""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import formatting
from casckpt.cli.ends import orderly_end
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.training.programs.rehearsal import Comparison, Rehearsal

KILLS = 3

_CHANGES_SHOWN = 10


@command(
    "verify-resume",
    examples=(
        "casckpt verify-resume -- python train.py --epochs 3",
        "casckpt verify-resume --kills 10 -- python train.py --checkpoint-dir {store}",
    ),
)
@click.argument("words", nargs=-1, required=True, metavar="-- CMD...", type=click.UNPROCESSED)
@click.option(
    "--kills",
    type=click.IntRange(min=1),
    default=KILLS,
    show_default=True,
    metavar="N",
    help="How often to kill it with SIGKILL.",
)
@click.option("--seed", type=int, metavar="N", help="Of the moments of the kills. Default: random.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep the stores and the output of the command there.",
)
def verify_resume(
    output: Output, words: tuple[str, ...], kills: int, seed: int | None, scratch: Path | None
) -> int:
    """Run CMD whole, and killed and run again, and compare what both leave, tensor by tensor.

    Exit code 0: the same to the bit; 1: not. Each of the two gets a new store: CMD must open the
    one that CASCKPT_STORE names, or take its path where {store} stands. That takes about as long
    as two whole runs; if there are differences a third one, to tell whether it comes out the same
    at all. What CMD writes elsewhere is not looked at.
    """
    from casckpt.training.programs import rehearsal

    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    with orderly_end(), _folder(scratch) as folder:
        found = rehearsal.rehearse(
            words,
            folder,
            kills=kills,
            seed=seed,
            open_store=_open,
            tell=lambda text: output.note(formatting.printable(text)),
        )
    if output.json:
        output.document("verify-resume", **_record(found, kills, seed))
    elif output.quiet:
        output.lines(one.run for one in found.runs if not one.is_same)
    else:
        for one in found.runs:
            output.lines(_lines(output, one))
        output.note(_verdict(found, seed))
    return 0 if found.is_same else 1


@contextmanager
def _folder(scratch: Path | None) -> Iterator[Path]:
    """Make a folder for the stores; one that nobody asked to keep is removed again."""
    if scratch is not None:
        if scratch.is_dir() and any(scratch.iterdir()):
            raise BadRequest(
                f"{scratch} is not empty",
                "the command has to begin in new stores",
                "name a new folder with --scratch",
            )
        scratch.mkdir(parents=True, exist_ok=True)
        folder = scratch.absolute()
    else:
        folder = Path(tempfile.mkdtemp(prefix="casckpt-verify-"))
    try:
        yield folder
    finally:
        _forget(folder)
        if scratch is None:
            shutil.rmtree(folder, ignore_errors=True)


def _forget(folder: Path) -> None:
    """Remove what was recorded of how these runs were started: nobody goes on with them."""
    from casckpt.errors import CasckptError
    from casckpt.training.programs import commands

    for store in folder.glob("*/format.json"):
        with contextlib.suppress(CasckptError), _open(store.parent) as opened:
            for info in opened.runs():
                commands.forget(store.parent, info.name)


def _open(path: Path) -> Any:
    from casckpt.api import Store

    return Store(path, mode="r")


def _lines(output: Output, one: Comparison) -> Iterator[str]:
    """Yield what is said of one run."""
    name = formatting.printable(one.run)
    where = "" if one.step is None else f"@{one.step}"
    if one.is_same:
        count = formatting.count(one.equal_count, "value")
        yield f"{name}{where}  {output.style('same', fg='green')}, {count} to the bit"
        return
    total = len(one.changes) + one.equal_count
    words = output.style("differs", fg="red", bold=True)
    yield f"{name}{where}  {words} in {len(one.changes)} of {formatting.count(total, 'value')}"
    for change in one.changes[:_CHANGES_SHOWN]:
        before, after = change.before or "missing", change.after or "missing"
        text = before if before == after else f"{before} -> {after}"
        yield f"    {formatting.printable(f'{change.path}  {text}')}"
    if len(one.changes) > _CHANGES_SHOWN:
        yield f"    ... and {len(one.changes) - _CHANGES_SHOWN:,} more"


def _verdict(found: Rehearsal, seed: int) -> str:
    """Return the outcome in words."""
    landed = f"{formatting.count(found.kills, 'kill')} landed (--seed {seed})"
    if found.is_same:
        return f"Killed and run again it ends the same. {landed}."
    if found.repeatable is False:
        return (
            f"It differs, but it does so when nothing interrupts it, too: set its seeds first. "
            f"{landed}."
        )
    return (
        "Killed and run again it ends otherwise, and uninterrupted always the same: something "
        f"that decides is not in its state. {landed}."
    )


def _record(found: Rehearsal, kills: int, seed: int) -> dict[str, Any]:
    return {
        "same": found.is_same,
        "repeatable": found.repeatable,
        "kills": kills,
        "kills_landed": found.kills,
        "seed": seed,
        "whole_s": round(found.whole.ran_s, 3),
        "sessions": [
            {"exit_code": one.code, "killed": one.killed, "ran_s": round(one.ran_s, 3)}
            for one in found.sessions
        ],
        "runs": [
            {
                "run": one.run,
                "step": one.step,
                "same": one.is_same,
                "equal_count": one.equal_count,
                "changed": [
                    {"path": change.path, "whole": change.before, "resumed": change.after}
                    for change in one.changes
                ],
            }
            for one in found.runs
        ],
    }
