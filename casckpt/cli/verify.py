"""`casckpt verify`: check that everything stored is whole; exit 1 if not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from casckpt.cli import formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.cli.progress import progress

if TYPE_CHECKING:
    from casckpt.checkpoint.checks import VerifyResult

FINDINGS = 1


@command(
    "verify",
    examples=(
        "casckpt verify                          every byte is read and hashed",
        "casckpt verify --level refs             only that everything named is there",
    ),
)
@click.option(
    "--level",
    type=click.Choice(["structure", "refs", "bytes"]),
    default="bytes",
    show_default=True,
    help="How deep: the index, what it refers to, or every byte.",
)
def verify(output: Output, level: Literal["structure", "refs", "bytes"]) -> int:
    """Check that everything stored is whole; change nothing.

    Exit code 0: all is whole. 1: something is damaged; the checkpoints it belongs to and those
    that are still whole are listed.
    """
    with stores.opened(output.settings) as store, progress(output, "verifying") as report:
        found = store.verify(level=level, progress=report)
    if output.json:
        output.document("verify", **_record(found, level))
    elif output.quiet:
        output.lines(found.lost)
    else:
        _show(output, found, level)
    return 0 if found.ok else FINDINGS


def _record(found: VerifyResult, level: str) -> dict[str, Any]:
    """Return the findings as JSON holds them."""
    return {
        "level": level,
        "checked_bytes": found.checked_bytes,
        "damaged": [
            {
                "pack": damage.pack,
                "offset": damage.offset,
                "id": damage.id,
                "message": damage.message,
                "tensors": list(damage.tensors),
                "checkpoints": list(damage.checkpoints),
            }
            for damage in found.damaged
        ],
        "lost": list(found.lost),
        "whole": list(found.whole),
    }


def _show(output: Output, found: VerifyResult, level: str) -> None:
    """Write what is damaged, and whom it concerns, or that nothing is."""
    checked = f"{formatting.size(found.checked_bytes)} checked" if found.checked_bytes else level
    whole = formatting.count(len(found.whole), "checkpoint")
    if found.ok:
        output.line(output.style(f"whole: {whole}, {checked}", fg="green"))
        return
    rows = [
        (
            damage.pack,
            f"{damage.offset:,}",
            ", ".join(damage.checkpoints) or "none",
            ", ".join(damage.tensors) or damage.message,
        )
        for damage in found.damaged
    ]
    columns = [
        Column("PACK", rank=1),
        Column("OFFSET", right=True, rank=2),
        Column("CHECKPOINTS", color="red"),
        Column("DAMAGED"),
    ]
    output.table(columns, rows)
    output.line()
    output.line(
        f"{formatting.count(len(found.damaged), 'damaged record')} in "
        f"{formatting.count(len(found.lost), 'checkpoint')}; {whole} whole; {checked}"
    )
    if found.whole:
        output.note(f"Whole: {', '.join(found.whole[:8])}{' ...' if len(found.whole) > 8 else ''}")
    output.note("Nothing was changed. `casckpt repair` sets aside what cannot be read.")
