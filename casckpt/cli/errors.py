"""The one place that turns an error into an exit code and three lines."""

from __future__ import annotations

import errno
import json
import sys
from dataclasses import asdict, dataclass

import click

from casckpt.cli import formatting
from casckpt.cli.output import SCHEMA, wants_color
from casckpt.errors import CasckptError, NoSpace, OperationFailed

USAGE = 2
INTERNAL = 70
INTERRUPTED = 130
BROKEN_PIPE = 141
"""128 + SIGPIPE, what a shell reports of any program whose reader left."""


@dataclass(frozen=True)
class Report:
    """An error as it is shown: its name in `docs/errors.md`, its exit code, its three lines."""

    error: str
    exit_code: int
    what: str
    why: str
    hint: str


def report(error: BaseException) -> Report:
    """Return what to show of an error.

    A `CasckptError` brings its own text and code. Usage errors of the parser are 2, operating
    system errors 3 (16 for a full disk), and anything else is a bug: 70.
    """
    if isinstance(error, CasckptError):
        # What Python can be asked for instead no command can; that one may simply be named.
        whole = error.details.get("newest_whole")
        hint = f"the newest whole checkpoint is {whole}" if whole else error.hint
        return Report(type(error).__name__, error.exit_code, error.what, error.why, hint)
    if isinstance(error, click.UsageError):
        return _of_usage(error)
    if isinstance(error, click.ClickException):
        return Report("Usage", USAGE, error.format_message(), "", "see `casckpt --help`")
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        mapped = NoSpace if full else OperationFailed
        where = f": {error.filename}" if error.filename else ""
        return Report(
            mapped.__name__,
            mapped.exit_code,
            f"the operating system refused{where}",
            error.strerror or str(error),
            mapped.default_hint,
        )
    return Report(
        type(error).__name__,
        INTERNAL,
        "internal error in casckpt",
        f"{type(error).__name__}: {error}".strip().splitlines()[0],
        "run it again with --debug, and report what that prints",
    )


def _of_usage(error: click.UsageError) -> Report:
    """Return what to show where the parser did not understand the command line."""
    command = error.ctx.command_path if error.ctx else "casckpt"
    what, _, remedy = error.format_message().partition("\n")
    why = ""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        what, remedy = "a command of it has to be named", ""
    elif isinstance(error, click.MissingParameter):
        what = what.removesuffix(" Choose from:")
        remedy = remedy and f"choose from {' '.join(remedy.split())}"
    if isinstance(error, click.BadParameter) and ": " in what:
        what, _, why = what.partition(": ")
    # Of these two the parser does not say in which command they were met.
    if what.endswith("requires an argument.") and isinstance(error, click.BadOptionUsage):
        why = f"a value has to follow it: `{error.option_name} VALUE`"
    elif what.endswith("does not take a value."):
        why = "it is on when it is named, and off when it is not"
    elif error.ctx and not why:
        why = f"it is used as `{' '.join(error.ctx.get_usage().split()[1:])}`"
    name = command.removeprefix("casckpt").strip()
    what = f"{name}: {what}" if name else what
    return Report("Usage", USAGE, what, why, remedy or f"see `{command} --help`")


def show(error: BaseException, *, as_json: bool, debug: bool, color: str) -> int:
    """Write the error to stderr and return its exit code.

    Three lines for a person; one line of JSON with --json; the traceback before either with
    --debug only.
    """
    if debug:
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    shown = report(error)
    if as_json:
        document = {"schema": SCHEMA, **asdict(shown)}
        # Not as stdout has it: what stderr's encoding lacks would be escaped as JSON does not.
        print(json.dumps(document), file=sys.stderr)
        return shown.exit_code
    prefix = "casckpt: "
    if wants_color(color, sys.stderr):
        prefix = click.style(prefix, fg="red", bold=True)
    print(prefix + formatting.printable_lines(shown.what), file=sys.stderr)
    for label, text in (("why", shown.why), ("try", shown.hint)):
        if text:
            lines = formatting.printable_lines(text).replace("\n", "\n         ")
            print(f"    {label}: {lines}", file=sys.stderr)
    return shown.exit_code
