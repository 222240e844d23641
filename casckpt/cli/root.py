"""The command `casckpt`: its commands by name, and how a run of it ends."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from casckpt import __version__
from casckpt.cli import errors
from casckpt.cli.options import LazyGroup, global_options
from casckpt.cli.output import Settings

_COMMANDS = {
    "init": ("casckpt.cli.init:init", "Make a store."),
    "ls": ("casckpt.cli.ls:ls", "List checkpoints; rank them by a metric."),
    "show": ("casckpt.cli.show:show", "Show one checkpoint: metrics, sizes, what is in it."),
    "history": ("casckpt.cli.history:history", "Show a run's metrics over its steps."),
    "diff": ("casckpt.cli.diff:diff", "Show what differs between two checkpoints."),
    "tree": ("casckpt.cli.tree:tree", "Show the runs, and where each began."),
    "tag": ("casckpt.cli.names:tag", "Give a checkpoint a name."),
    "untag": ("casckpt.cli.names:untag", "Take a name away."),
    "pin": ("casckpt.cli.names:pin", "Keep a checkpoint whatever a policy says."),
    "unpin": ("casckpt.cli.names:unpin", "Let policies decide again."),
    "rm": ("casckpt.cli.remove:rm", "Move a checkpoint, or a run, to the trash."),
    "cache": ("casckpt.cli.cache:cache", "Show or drop what runs share: cache ls, cache rm."),
    "undelete": ("casckpt.cli.remove:undelete", "Bring a checkpoint back from the trash."),
    "gc": ("casckpt.cli.gc:gc", "Drop checkpoints by policy and free the disk."),
    "compact": ("casckpt.cli.compact:compact", "Store old checkpoints in less space."),
    "du": ("casckpt.cli.du:du", "Show where the bytes are, and what was saved."),
    "stats": ("casckpt.cli.du:stats", "The same as du."),
    "verify": ("casckpt.cli.verify:verify", "Check that everything stored is whole."),
    "repair": ("casckpt.cli.repair:repair", "Put back or set aside what is damaged."),
    "torture": ("casckpt.cli.torture:torture", "Test this disk, and casckpt on it, by crashing."),
    "verify-resume": (
        "casckpt.cli.verify_resume:verify_resume",
        "Check that a killed command goes on exactly.",
    ),
    "restore": ("casckpt.cli.restore:restore", "Write a checkpoint out as files."),
    "export": ("casckpt.cli.exchange:export", "Write a checkpoint in another format."),
    "import": ("casckpt.cli.exchange:import_", "Take files in as checkpoints."),
    "run": ("casckpt.cli.run:run", "Run a training command; start it again if it crashes."),
    "resume": ("casckpt.cli.resume:resume", "Start the command that trained a run again."),
    "status": ("casckpt.cli.status:status", "Show how far runs are, and whether all is well."),
    "top": ("casckpt.cli.top:top", "Show runs live in the terminal."),
    "stop": ("casckpt.cli.stop:stop", "Ask a run to save and leave."),
    "completion": ("casckpt.cli.completion:completion", "Print a shell completion script."),
    "demo": ("casckpt.cli.demo:demo", "Train, kill, resume and compare, in under a minute."),
}

_SECTIONS = (
    ("Look", ("ls", "show", "history", "diff", "tree", "du", "stats")),
    ("Train", ("run", "resume", "status", "top", "stop")),
    ("Name and protect", ("tag", "untag", "pin", "unpin")),
    ("Free the disk", ("gc", "compact", "rm", "undelete", "cache")),
    ("In and out", ("restore", "export", "import")),
    ("Trust", ("verify", "repair", "verify-resume", "torture")),
    ("Begin", ("init", "demo", "completion")),
)

_COMPLETE = "_CASCKPT_COMPLETE"
"""Set by the scripts of `casckpt completion` when a shell asks what could come next."""

_EXAMPLES = (
    "casckpt ls --best val_loss              the best checkpoints first",
    "casckpt gc --keep-last 3                plan, ask, free",
    "casckpt restore bpm/nn@best:val_loss:min -o best/",
)


@click.group(
    "casckpt",
    cls=LazyGroup,
    table=_COMMANDS,
    sections=_SECTIONS,
    examples=_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="COMMAND ...",
)
@click.version_option(__version__, "--version", prog_name="casckpt")
@global_options
def casckpt() -> None:
    """A content-addressed checkpoint store for machine-learning training.

    A checkpoint is named by a REF: RUN (its newest), RUN@STEP, RUN@best:METRIC:min, RUN@TAG, or
    id:HEX with four digits or more; STORE:: before it names the store.
    """


def run(words: list[str]) -> int:
    """Run one command line and return its exit code; no error leaves this function.

    Args:
        words: what follows the program's name.
    """
    settings = Settings()
    _prepare_streams()
    if _COMPLETE in os.environ:
        casckpt.main(words, prog_name="casckpt", complete_var=_COMPLETE)
    try:
        try:
            # Not casckpt.main: it turns a closed pipe into exit code 1, which means findings.
            with casckpt.make_context("casckpt", words or ["--help"], obj=settings) as context:
                code = casckpt.invoke(context)
            sys.stdout.flush()
        finally:
            # Options after a mistake are not read by the parser any more.
            settings.json = settings.json or "--json" in words
            settings.debug = settings.debug or "--debug" in words
    except click.exceptions.Exit as leaving:  # --help and --version
        return leaving.exit_code
    except (KeyboardInterrupt, click.Abort) as interrupt:
        with _told_or_not():
            print("; ".join(["casckpt: interrupted", *interrupt.args]), file=sys.stderr)
        return errors.INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) left. Nothing may be written when the streams are closed.
        _silence(sys.stdout, sys.stderr)
        return errors.BROKEN_PIPE
    except Exception as error:
        with _told_or_not():
            errors.show(error, as_json=settings.json, debug=settings.debug, color=settings.color)
        return errors.report(error).exit_code
    return code if isinstance(code, int) else 0


@contextmanager
def _told_or_not() -> Iterator[None]:
    """Keep the exit code where nobody can be told why: the reader of stderr left, its disk is full.

    An error here would end the program with 1, which means findings.
    """
    try:
        yield
        sys.stderr.flush()
    except OSError:
        _silence(sys.stderr)


def _silence(*streams: TextIO) -> None:
    """Let what is left in streams go nowhere, since Python flushes them at the end."""
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _prepare_streams() -> None:
    """Give each standard stream a place, and let no character stop a command.

    A program that is started with a stream closed would open its next file under that number, and
    whoever writes to the stream would write into that file: here, one of the store.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not every terminal has the strokes of a plot, nor every file a name in this encoding.
        sys.stdout.reconfigure(errors="replace")
