"""`casckpt stop`: ask a run to save and leave."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.records import RunInfo

_LOOK_S = 0.5


@command(
    "stop",
    examples=(
        "casckpt stop bpm/nn",
        "casckpt stop bpm/nn --wait             return when it has left",
    ),
)
@click.argument("name", shell_complete=completers.runs)
@click.option("--wait", is_flag=True, help="Return when nobody is at work on it any more.")
def stop(output: Output, name: str, wait: bool) -> None:
    """Ask whoever trains NAME, or a run below it, to save and leave; NAME may be a pattern.

    It looks at the request between batches, items and epochs, saves, and leaves with exit code 75;
    the same command, or `casckpt resume NAME`, goes on there. Not an error if nobody is at work:
    a `casckpt run` that is about to start it, or start it again, heeds it all the same.
    """
    from casckpt.checkpoint.refs import is_glob
    from casckpt.training.stops import request_stop

    (name,) = stores.split(output.settings, name)
    with stores.opened(output.settings, "a") as store:
        family = _family(store, name)
        if not family:
            raise store._catalog.no_run(name)
        working = _working(family)
        own = next((one.status for one in family if one.name == name), "")
        # Whoever is at work or not: a supervised command may be between its start and its loop.
        for one in sorted({run.name for run in family} if is_glob(name) else {name}):
            request_stop(store._repository, one)
        if working and wait:
            family = _wait(store, name)
    still = _working(family)
    if output.json:
        output.document("stop", run=name, asked=True, was_running=working, running=still)
    elif output.quiet:
        output.lines(working)
    elif not working:
        output.note(f"Nobody is at work on {name}{f': it is {own}' if own else ''}.")
        output.note("A `casckpt run` that is starting it now heeds the request; later ones do not.")
    elif wait:
        output.line(f"{name} has stopped")
    else:
        what = "" if working == [name] else f" ({formatting.count(len(working), 'run')} at work)"
        output.line(f"{name} is asked to stop{what}")
        output.note(f"It saves at its next boundary; `casckpt status {name}` tells.")


def _family(store: Store, name: str) -> list[RunInfo]:
    return [*store.runs(name), *store.runs(f"{name}/*")]


def _working(family: list[RunInfo]) -> list[str]:
    return [one.name for one in family if one.status == "running"]


def _wait(store: Store, name: str) -> list[RunInfo]:
    """Return how the run and those below it stand when none of them is at work."""
    from casckpt.training import runlock

    while True:
        family = _family(store, name)
        # The status is written before the process lets go; only then it can be started again.
        if not any(runlock.is_held(store.path, one.name) for one in family):
            return family
        time.sleep(_LOOK_S)
