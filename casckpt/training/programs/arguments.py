"""The command-line options that every training script needs, for argparse."""

from __future__ import annotations

import argparse
import os

from casckpt.checkpoint.places import ENVIRONMENT, STORE_FOLDER
from casckpt.errors import BadRequest
from casckpt.training import guards
from casckpt.training.resume import AUTO, NEVER

_LATEST = "auto"
_NAMES = ("checkpoint_dir", "checkpoint_freq", "resume", "resume_from", "ignore_checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --checkpoint-dir, --checkpoint-freq, --resume, --resume-from and --ignore-checkpoint.

    Each is also accepted with `_` in place of `-`. `resume_choice` reads the last three. They say
    how a program goes on, not what it computes: `config=vars(args)` of a run leaves them out.

    Args:
        parser: an argparse parser, or a group of one.
    """
    guards.leave_out(_NAMES)
    group = parser.add_argument_group("checkpoints") if hasattr(parser, "prog") else parser
    group.add_argument(
        *_spelled("checkpoint-dir"),
        default=os.environ.get(ENVIRONMENT) or STORE_FOLDER,
        metavar="DIR",
        help="folder of the store",
    )
    group.add_argument(
        *_spelled("checkpoint-freq"), type=int, default=None, metavar="N",
        help="keep a checkpoint every N epochs",
    )  # fmt: skip
    group.add_argument(
        "--resume", nargs="?", const=_LATEST, default=None, metavar="REF",
        help="go on where the run was (what happens anyway), or from REF",
    )  # fmt: skip
    group.add_argument(
        *_spelled("resume-from"), default=None, metavar="REF",
        help="go on from a checkpoint, a run, or an experiment's folder",
    )  # fmt: skip
    group.add_argument(
        *_spelled("ignore-checkpoint"), action="store_true",
        help="begin afresh on a new line; what is there stays",
    )  # fmt: skip


def resume_choice(args: argparse.Namespace) -> str:
    """Return what `Store.run(resume=)` takes for parsed options.

    Args:
        args: as parsed; options that the parser does not have count as not given.

    Returns:
        "auto" without an option or with a bare --resume; a REF; or "never".

    Raises:
        BadRequest: two of them contradict each other.
    """
    resume = getattr(args, "resume", None)
    origin = getattr(args, "resume_from", None)
    ignore = bool(getattr(args, "ignore_checkpoint", False))
    if ignore and (resume is not None or origin is not None):
        flag = "--resume" if resume is not None else "--resume-from"
        raise BadRequest(
            f"--ignore-checkpoint and {flag} contradict each other",
            "one begins afresh, the other goes on",
            "leave one of them out",
        )
    if ignore:
        return NEVER
    if origin is not None:
        if resume not in (None, _LATEST, origin):
            raise BadRequest(
                f"--resume {resume} and --resume-from {origin} name two places",
                "a run goes on from one",
                "leave one of them out",
            )
        return str(origin)
    return AUTO if resume is None else str(resume)


def _spelled(name: str) -> tuple[str, ...]:
    return f"--{name}", f"--{name.replace('-', '_')}"
