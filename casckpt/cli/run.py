"""`casckpt run`: a training command, started again after a crash."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from casckpt.checkpoint.places import ENVIRONMENT
from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output, json_line
from casckpt.errors import CasckptError, RunBusy

if TYPE_CHECKING:
    from casckpt.training.programs.supervisor import Event, Outcome

MAX_RESTARTS = 3

OPENED_NAMED = 3
"""Runs that are named where a command has opened others than it was started for."""


@command(
    "run",
    examples=(
        "casckpt run bpm/nn -- python train.py --lr 0.01",
        "casckpt run bpm/nn --max-restarts 10 -- torchrun --nproc-per-node 2 train.py",
    ),
)
@click.argument("name", shell_complete=completers.runs)
@click.argument("words", nargs=-1, required=True, metavar="-- CMD...", type=click.UNPROCESSED)
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=MAX_RESTARTS,
    show_default=True,
    metavar="N",
    help="How often to start it again after a crash.",
)
def run(output: Output, name: str, words: tuple[str, ...], max_restarts: int) -> int:
    """Run the command that trains NAME, and start it again if it crashes.

    A crash is a signal such as SIGKILL, or an exit code other than 0; it is waited 1, 2, 4 ... 60 s
    before each restart. What a restart cannot mend ends at once: wrong settings or options (exit
    code 2), a store that cannot be used, a run that another process trains. A stop that somebody
    asked for (SIGTERM, Ctrl+C, `casckpt stop`) is obeyed: exit code 75, and the same command goes
    on later. Signals go through to the command, and its exit code comes back.

    NAME is the run that the command opens; a command that takes its store from CASCKPT_STORE gets
    the one of --store.
    """
    from casckpt.ids import check_run_name

    (name,) = stores.split(output.settings, name)
    check_run_name(name)
    environment: dict[str, str | None] = {}
    if stores.named(output.settings) is not None:
        environment[ENVIRONMENT] = str(stores.locate(output.settings).absolute())
    refuse_second(output, name)
    before = _runs(output)
    outcome = keep_running(output, name, words, max_restarts, environment=environment, lines=True)
    if remark := _misnamed(name, before, _runs(output), outcome.code):
        output.note(remark)
    return outcome.code


def _runs(output: Output) -> dict[str, object]:
    """Return something of each run that changes when a command opens it or saves to it."""
    store = _store(output)
    if store is None:
        return {}
    from casckpt.store import Repository

    try:
        with Repository.open(store, mode="r") as repository:
            newest = {row.run: row.seq for row in repository.checkpoint_rows()}
            rows = dict(repository.run_rows())
            return {run: (rows.get(run), newest.get(run)) for run in {*newest, *rows}}
    except CasckptError:
        return {}


def _misnamed(
    name: str, before: Mapping[str, object], after: Mapping[str, object], code: int
) -> str:
    """Return what to say if the command has opened other runs than the one it was started for.

    Nothing if there is such a run: a finished one is opened without a trace, while others that
    share the store train on. Those are named too, where there is none.
    """
    if any(run == name or run.startswith(f"{name}/") for run in after):
        return ""
    changed = sorted(run for run, rows in after.items() if before.get(run) != rows)
    tops = [run for run in changed if not any(run.startswith(f"{top}/") for top in changed)]
    use = "`status`, `stop` and `resume` know it by the name that it opens"
    if tops:
        more = f" and {len(tops) - OPENED_NAMED} more" if len(tops) > OPENED_NAMED else ""
        return (
            f"There is no run {name}: while the command ran, "
            f"{', '.join(tops[:OPENED_NAMED])}{more} changed. {use[0].upper()}{use[1:]}."
        )
    if code == 0 and after:
        return f"The command opened no run in this store, and there is no {name}; {use}."
    return ""


def refuse_second(output: Output, name: str) -> None:
    """Raise if somebody trains the run already: the command would only fail later.

    Raises:
        RunBusy: it is being trained.
    """
    store = _store(output)
    if store is None:
        return
    from casckpt.training import runlock

    if runlock.is_held(store, name):
        raise RunBusy(
            f"{name} is being trained already",
            f"a live process holds it in {store}",
            f"see `casckpt status {name}`, or stop it: `casckpt stop {name}`",
            run=name,
        )


def keep_running(
    output: Output,
    name: str,
    words: Sequence[str],
    max_restarts: int,
    *,
    cwd: str | None = None,
    environment: Mapping[str, str | None] | None = None,
    lines: bool = False,
) -> Outcome:
    """Supervise a command, and say what happens.

    Args:
        output: with --json, the command's own output goes to stderr.
        name: the run.
        words: the command.
        max_restarts: how often to start it again.
        cwd: folder to start it in.
        environment: variables besides those here; None takes one away.
        lines: whether --json writes a line for each event.
    """
    from casckpt.training.programs.supervisor import supervise

    def tell(event: Event) -> None:
        as_json = output.json and lines
        try:
            if as_json:
                json_line("run", **_record(name, words, event))
            elif text := _sentence(name, words, event):
                output.note(text)
        except BrokenPipeError:
            # Supervision goes on without its reader, and nothing else may fail for its absence:
            # what is left to flush, or a command that is started again and inherits the stream.
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), (sys.stdout if as_json else sys.stderr).fileno())
        except OSError:
            pass  # a full disk, say: it is said to nobody, and supervision goes on

    return supervise(
        words,
        max_restarts=max_restarts,
        tell=tell,
        is_stopped=lambda since: _is_stopped(output, name, since),
        cwd=cwd,
        environment=environment,
        stdout=sys.stderr.fileno() if output.json else None,
    )


def _record(name: str, words: Sequence[str], event: Event) -> dict[str, Any]:
    about: dict[str, Any] = {"event": event.kind, "run": name, "restarts": event.restarts}
    if event.kind == "start":
        about |= {"argv": list(words), "pid": event.pid}
    elif event.kind == "exit":
        code = event.code or 0
        about |= {"exit_code": code if code >= 0 else None, "signal": -code if code < 0 else None}
        about["ran_s"] = round(event.ran_s, 3)
    elif event.kind == "restart":
        about |= {"reason": event.text, "delay_s": event.delay_s}
    else:
        about |= {"reason": event.text, "exit_code": event.code}
    return about


def _sentence(name: str, words: Sequence[str], event: Event) -> str:
    """Return what a person is told; nothing of what goes without saying."""
    if event.kind == "start" and event.restarts:
        return f"{name}: started again ({event.restarts}): {shlex.join(words)}"
    if event.kind == "restart":
        wait = formatting.duration(event.delay_s)
        return f"{name}: {event.text}; starting it again in {wait}"
    if event.kind == "end" and event.text:
        more = f", run again with `casckpt resume {name}`" if event.code == 75 else ""
        return f"{name}: {event.text}{more}"
    return ""


def _store(output: Output) -> Path | None:
    """Return the store, if there is one: the command may make it only now, or elsewhere."""
    try:
        path = stores.locate(output.settings)
    except CasckptError:
        return None
    return path if (path / "format.json").is_file() else None


def _is_stopped(output: Output, name: str, since: str) -> bool:
    """Return whether `casckpt stop` has asked since, while nobody is at work who could see it."""
    store = _store(output)
    if store is None:
        return False
    from casckpt.store import Repository
    from casckpt.training.stops import is_requested

    try:
        with Repository.open(store, mode="r") as repository:
            return is_requested(repository, name, since)
    except CasckptError:
        return False
