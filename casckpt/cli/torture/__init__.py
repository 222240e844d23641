"""`casckpt torture`: crash tests on the user's own disk and file system, with a verdict."""

from __future__ import annotations

import errno
import os
import platform
import random
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli.ends import interrupted_with, orderly_end
from casckpt.cli.formatting import count
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.errors import NoSpace, NoStore

if TYPE_CHECKING:
    from casckpt.cli.torture.rounds import Tally

FINDINGS = 1
_KILLS_SHARE = 0.5
_SHOWN = 5
_REMOVALS, _REMOVAL_S = 20, 0.05


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
    hundreds of times. No checkpoint of yours is touched, and the power stays on. It needs 64 MiB.

    Exit code 0: all held. 1: something did not; the folder is kept, and the text can be pasted
    into an issue.
    """
    from casckpt.cli.torture import probes, room, rounds
    from casckpt.store import file_systems

    if not folder.is_dir():
        raise NoStore(f"cannot torture {folder}", "there is no such folder", "name a folder")
    file_systems.refuse_remote(folder)
    room.require(folder)
    seed = secrets.randbits(32) if seed is None else seed
    place = folder.resolve() / f"casckpt-torture-{os.getpid()}"
    began = time.monotonic()
    with _place(folder, place) as keep:
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
        if broken:
            keep()
        verdict = "FAILED" if broken else "the file system FAILED a probe" if failed else "passed"
        if not (broken or failed) and (early := _too_early(kills, power)):
            verdict = f"passed, but {early} came after a save: give it more --minutes"
        _tell(
            output,
            "verdict",
            {
                "passed": not (broken or failed),
                "text": verdict,
                "seconds": round(time.monotonic() - began),
                "kept": str(place) if broken else None,
            },
        )
        return FINDINGS if broken or failed else 0


@contextmanager
def _place(folder: Path, place: Path) -> Iterator[Callable[[], None]]:
    """Make a place in a folder, and remove it again, however that ends; yields what keeps it.

    Raises:
        NoSpace: the room came to its end meanwhile.
    """
    from casckpt.cli.torture import room

    kept: list[bool] = []
    with interrupted_with("its folder is removed"), orderly_end():
        try:
            place.mkdir(mode=0o700)
            yield lambda: kept.append(True)
        except NoSpace as exc:
            raise room.refusal(folder, exc.why) from exc
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise room.refusal(folder, exc.strerror or str(exc)) from exc
        finally:
            if not kept:
                _remove(place)


def _remove(place: Path) -> None:
    """Remove a place in which programs that were killed just now may still end a system call."""
    for _ in range(_REMOVALS):
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(_REMOVAL_S)


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


def _too_early(kills: Tally, power: Tally) -> str:
    """Return which tests lost nothing because nothing had been saved yet, in words."""
    tallies = {"no kill": kills, "no power failure": power}
    none = [word for word, one in tallies.items() if not (one.acknowledged or one.skipped)]
    return " and ".join(none)


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
