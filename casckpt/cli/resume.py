"""`casckpt resume`: the command that trained a run, started again where it was."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from casckpt.cli import completers, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.cli.run import keep_running, refuse_second
from casckpt.errors import OperationFailed


@command(
    "resume",
    examples=(
        "casckpt resume bpm/nn",
        "casckpt resume bpm/nn -n                show the command, do not start it",
    ),
)
@click.argument("name", shell_complete=completers.runs)
@click.option("-n", "--dry-run", is_flag=True, help="Show the command, start nothing.")
@click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="How often to start it again after a crash.",
)
def resume(output: Output, name: str, dry_run: bool, max_restarts: int) -> int | None:
    """Start the command again that this user last trained NAME with, on this host.

    It runs in the folder it was started in, with the same arguments and the variables that decide
    about code, data and device as they were, and goes on where the run was.
    Commands are kept outside the store, for their owner only: one that came with a store from
    elsewhere is never started. Its exit code comes back.
    """
    from casckpt.training.programs import commands

    (name,) = stores.split(output.settings, name)
    store = stores.locate(output.settings)
    recorded = commands.read(store, name)
    # What was not set then is not set now: another store or device than that of the run, say.
    unset = [key for key in commands.KEPT_VARIABLES if key not in recorded.environment]
    about: dict[str, Any] = {
        "run": name,
        "argv": list(recorded.argv),
        "cwd": recorded.cwd,
        "environment": dict(recorded.environment),
        "unset": unset,
        "recorded": recorded.recorded,
        "dry_run": dry_run,
    }
    if dry_run:
        if output.json:
            output.document("resume", **about)
        else:
            present = [key for key in unset if key in os.environ]
            output.line(_shell_line(recorded.cwd, present, recorded.environment, recorded.argv))
        return None
    if not Path(recorded.cwd).is_dir():
        raise OperationFailed(
            f"the folder that {name} was started in is gone",
            recorded.cwd,
            f"start it from another one: {shlex.join(recorded.argv)}",
        )
    refuse_second(output, name)
    output.note(f"{name}: {shlex.join(recorded.argv)}  (in {recorded.cwd})")
    outcome = keep_running(
        output,
        name,
        recorded.argv,
        max_restarts,
        cwd=recorded.cwd,
        environment={**dict.fromkeys(unset), **recorded.environment},
    )
    if output.json:
        output.document("resume", **about, exit_code=outcome.code, restarts=outcome.restarts)
    return outcome.code


def _shell_line(
    cwd: str, unset: Sequence[str], environment: Mapping[str, str], argv: Sequence[str]
) -> str:
    """Return what to type in a shell for the same."""
    without = f"env {''.join(f'-u {key} ' for key in unset)}" if unset else ""
    variables = "".join(f"{key}={shlex.quote(value)} " for key, value in environment.items())
    return f"cd {shlex.quote(cwd)} && {without}{variables}{shlex.join(argv)}"
