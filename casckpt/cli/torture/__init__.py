"""`casckpt torture`: crash tests on the user's own disk and file system, with a verdict."""

from __future__ import annotations

import os
import platform
import random
import secrets
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli.formatting import count
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import NoStore

if TYPE_CHECKING:
    from casckpt.cli.torture.rounds import Tally

FINDINGS = 1
_KILLS_SHARE = 0.5
_SHOWN = 5


@command(
    "torture",
    examples=(
        "casckpt torture /data                   a minute on the disk that holds /data",
        "casckpt torture /data --minutes 60      an hour",
        "casckpt torture /data --json            one line of JSON for each result",
    ),
)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.05),
    metavar="N",
    default=1.0,
    show_default=True,
    help="How long.",
)
@click.option("--seed", type=int, metavar="N", help="Repeat a run: the number that it printed.")
def torture(output: Output, folder: Path, minutes: float, seed: int | None) -> int:
    """Test this disk and file system, and casckpt on them, by crashing.

    In a new folder below DIR, which is removed afterwards: what the file system promises is tried;
    programs that save are killed at random moments, and the store is looked at; the system calls
    of a program that saves are recorded, and what a power failure may leave of them is looked at,
    hundreds of times. No checkpoint of yours is touched, and the power stays on.

    Exit code 0: all held. 1: something did not; the folder is kept, and the text can be pasted
    into an issue.
    """
    from casckpt.cli.torture import probes, rounds
    from casckpt.store import files

    if not folder.is_dir():
        raise NoStore(f"cannot torture {folder}", "there is no such folder", "name a folder")
    files.refuse_remote(folder)
    seed = secrets.randbits(32) if seed is None else seed
    place = folder.resolve() / f"casckpt-torture-{os.getpid()}"
    place.mkdir(mode=0o700)
    began = time.monotonic()
    kept = False
    try:
        _tell(output, "place", _about(folder, seed))
        failed = False
        for found in probes.run(place):
            failed |= found.verdict == "fails"
            _tell(
                output,
                "probe",
                {"name": found.name, "verdict": found.verdict, "text": found.text},
            )
        half = began + 60 * minutes * _KILLS_SHARE
        kills = rounds.kills(place, half, random.Random(f"kills {seed}"), _follow(output, "kills"))
        _tell(output, "kills", _record(kills))
        end = began + 60 * minutes
        power = rounds.power(place, end, random.Random(f"power {seed}"), _follow(output, "power"))
        _tell(output, "power", _record(power))
        broken = bool(kills.problems or power.problems)
        kept = broken
        verdict = "FAILED" if broken else "the file system FAILED a probe" if failed else "passed"
        if not (broken or failed or kills.acknowledged):
            verdict = "passed, but no kill came after a save: give it more --minutes"
        _tell(
            output,
            "verdict",
            {
                "passed": not (broken or failed),
                "text": verdict,
                "seconds": round(time.monotonic() - began),
                "kept": str(place) if kept else None,
            },
        )
        return FINDINGS if broken or failed else 0
    finally:
        if not kept:
            shutil.rmtree(place, ignore_errors=True)


def _about(folder: Path, seed: int) -> dict[str, Any]:
    import casckpt
    from casckpt.cli.torture import probes

    return {
        "casckpt": casckpt.__version__,
        "folder": str(folder),
        "file_system": probes.file_system(folder),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": seed,
    }


def _record(tally: Tally) -> dict[str, Any]:
    return {
        "tried": tally.tried,
        "acknowledged": tally.acknowledged,
        "problems": tally.problems,
        "skipped": tally.skipped,
    }


def _follow(output: Output, event: str) -> Any:
    """Return what shows how far a test is, on a terminal."""
    import sys

    shows = sys.stderr.isatty() and not output.settings.quiet and not output.json

    def report(tally: Tally) -> None:
        if shows:
            words = f"{event}: {tally.tried} tried, {tally.acknowledged} saves looked for"
            sys.stderr.write(f"\r{words}\x1b[K")
            sys.stderr.flush()

    def nothing(tally: Tally) -> None:
        return

    return report if shows else nothing


def _tell(output: Output, event: str, facts: dict[str, Any]) -> None:
    """Write one result: a line of JSON, or text."""
    if output.json:
        output.document("torture", event=event, **facts)
        return
    if output.settings.quiet:
        if event == "verdict":
            output.line(facts["text"])
        return
    if event == "place":
        output.line(
            f"casckpt {facts['casckpt']} on {facts['file_system']}, {facts['system']}, "
            f"Python {facts['python']}, {facts['date']}, seed {facts['seed']}"
        )
    elif event == "probe":
        output.line(f"  {facts['verdict']:6} {facts['name']:19} {facts['text']}")
    elif event == "verdict":
        colour = "green" if facts["passed"] else "red"
        output.line(output.style(f"{facts['text']}, {facts['seconds']} s", fg=colour))
        if facts["kept"]:
            output.note(f"What is left is in {facts['kept']}; please report it with the above.")
    else:
        _tell_tally(output, event, facts)


def _tell_tally(output: Output, event: str, facts: dict[str, Any]) -> None:
    noun, rest = {
        "kills": ("kill", "of two programs that save into one store"),
        "power": ("state", "that a power failure may leave"),
    }[event]
    if facts["skipped"]:
        output.line(f"  not tried: power failures: {facts['skipped']}")
        return
    output.line(
        f"  {count(facts['tried'], noun)} {rest}; "
        f"{count(facts['acknowledged'], 'acknowledged save')} looked for, "
        f"{count(len(facts['problems']), 'problem')}"
    )
    for problem in facts["problems"][:_SHOWN]:
        output.line(f"    {problem}")
