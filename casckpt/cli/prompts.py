"""Asking a person, and what happens when there is none."""

from __future__ import annotations

import sys

import click

from casckpt.cli.output import Output
from casckpt.errors import BadRequest


def agreed(output: Output, question: str, *, yes: bool, command: str) -> bool:
    """Return whether to go on: --yes, or a person who types y at a terminal.

    Raises:
        BadRequest: if there is nobody to ask and no --yes.
    """
    if yes:
        return True
    # Under --json a program reads; a question would hang it.
    if output.json or not sys.stdin.isatty():
        raise BadRequest(
            f"{command}: nobody to ask: {question}",
            "no terminal" if not output.json else "--json is read by a program",
            "add -n to see what would go, --yes to let it go",
        )
    return click.confirm(question, default=False, err=True)
