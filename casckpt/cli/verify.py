"""`casckpt verify`: check that everything stored is whole; exit 1 if not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from casckpt.cli import formatting, quantities, scrub, stores
from casckpt.cli.ends import interrupted_with
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.cli.progress import progress
from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.checkpoint.checks import VerifyResult

FINDINGS = 1
SHOWN = 8


@command(
    "verify",
    examples=(
        "casckpt verify                          every byte is read and hashed",
        "casckpt verify --level refs             only that everything named is there",
        "casckpt verify --max-rate 50MB/s        slowly, beside a training",
        "casckpt verify --resume                 go on where the last one was stopped",
        "casckpt verify --sample 5%              a twentieth of the records, at random",
        "casckpt verify --older-than 30d         what was not read for long: for a daily timer",
    ),
)
@click.option(
    "--level",
    type=click.Choice(["structure", "refs", "bytes"]),
    default="bytes",
    show_default=True,
    help="How deep: the index, what it refers to, or every byte.",
)
@click.option(
    "--max-rate",
    metavar="RATE",
    callback=quantities.rate,
    help="Read at most this much a second, as in 50MB/s.",
)
@click.option(
    "--sample",
    metavar="SHARE",
    callback=quantities.share,
    help="Read this share of the records, chosen at random, as in 5%.",
)
@click.option("--resume", is_flag=True, help="Go on where your last verify was stopped.")
@click.option(
    "--older-than",
    metavar="AGE",
    callback=quantities.age,
    help="Read what your verifies with this option have not read for so long, as in 30d.",
)
def verify(
    output: Output,
    level: Literal["structure", "refs", "bytes"],
    max_rate: int | None,
    sample: float | None,
    resume: bool,
    older_than: float | None,
) -> int:
    """Check that everything stored is whole; change nothing.

    Exit code 0: all is whole. 1: something is damaged; the checkpoints it belongs to and those
    that are still whole are listed, newest first.
    """
    if older_than is not None and (level != "bytes" or sample is not None or resume):
        raise BadRequest(
            "--older-than chooses what is read",
            "--level, --sample and --resume choose otherwise",
            "give --older-than, and --max-rate if you like",
        )
    with (
        interrupted_with(_left_off(level, sample, older_than)),
        stores.opened(output.settings) as store,
        progress(output, "verifying") as report,
    ):
        if older_than is not None:
            found = scrub.verify(store, older_than, max_rate, report)
        else:
            found = store.verify(
                level=level,
                sample=1.0 if sample is None else sample,
                max_rate=max_rate,
                resume=resume,
                progress=report,
            )
    if output.json:
        output.document("verify", **record_of(found), sample=sample)
    elif output.quiet:
        output.lines(found.lost)
    else:
        show(output, found, in_turns=older_than is not None, sample=sample)
        if not found.ok:
            output.note("Nothing was changed. `casckpt repair` puts back what has another copy.")
    return 0 if found.ok else FINDINGS


def _left_off(level: str, sample: float | None, older_than: float | None) -> str:
    """Return what to do after Ctrl+C."""
    if older_than is not None:
        return "what was read has had its turn, the same command goes on with the rest"
    if level == "bytes" and sample is None:
        return "`casckpt verify --resume` goes on from here"
    return "nothing was changed"


def record_of(found: VerifyResult) -> dict[str, Any]:
    """Return the findings as JSON holds them."""
    return {
        "level": found.level,
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
        "tensors": {ref: list(paths) for ref, paths in found.tensors.items()},
        "whole": list(found.whole),
    }


def show(
    output: Output, found: VerifyResult, *, in_turns: bool = False, sample: float | None = None
) -> None:
    """Write what is damaged, and whom it concerns, or that nothing is."""
    was_read = found.checked_bytes or sample is not None
    checked = f"{formatting.size(found.checked_bytes)} checked" if was_read else found.level
    if sample is not None:
        checked += f", a sample of {100 * sample:.3g} %"
    if in_turns:
        checked = f"{formatting.size(found.checked_bytes)} were due and checked"
    whole = formatting.count(len(found.whole), "checkpoint")
    if found.ok:
        what = "whole" if sample is None else "no damage met"
        output.line(output.style(f"{what}: {whole}, {checked}", fg="green"))
        return
    if found.damaged:
        rows = [
            (
                damage.pack or f"id:{damage.id[:10]}",
                f"{damage.offset:,}",
                formatting.count(len(damage.checkpoints), "checkpoint"),
                damage.message,
            )
            for damage in found.damaged
        ]
        columns = [
            Column("PACK", rank=1),
            Column("OFFSET", right=True, rank=2),
            Column("NEEDED BY"),
            Column("DAMAGE"),
        ]
        output.table(columns, rows)
        output.line()
    if found.lost:
        lost = [(ref, ", ".join(found.tensors[ref]) or "its manifest") for ref in found.lost]
        output.table([Column("CHECKPOINT", color="red"), Column("CANNOT BE READ")], lost)
        output.line()
    output.line(
        f"{formatting.count(len(found.damaged), 'damaged record')} in "
        f"{formatting.count(len(found.lost), 'checkpoint')}; {whole} whole; {checked}"
    )
    if found.whole:
        more = " ..." if len(found.whole) > SHOWN else ""
        output.note(f"Whole, newest first: {', '.join(found.whole[:SHOWN])}{more}")
