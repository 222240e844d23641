"""`casckpt du` and `stats`: where the bytes are, and what was saved."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output

if TYPE_CHECKING:
    from casckpt.checkpoint.codings import CodingStats
    from casckpt.checkpoint.stats import RunStats, Stats

_HELP = """Show where the bytes are, of RUN or of all runs, and what was saved.

    LOGICAL is what restoring everything would write. UNIQUE is what only that run holds: bytes on
    disk that no other run shares. STORED is what is on disk: of the store all its files, but for
    what is set aside for a full disk, of a run all it reaches, so runs that share do not add up.
    SAVED is 1 - stored/logical, and 0 where more is stored, as in a new store, whose index takes
    its room before much is saved.

    --codings tells how the chunks are stored: what is coded (the numbers, or their difference to
    another checkpoint: sub, xor, dictionary), and the coder of each byte plane.
    """

_EXAMPLES = ("casckpt du", "casckpt du 'bpm/*' --json", "casckpt stats bpm/nn --codings")


def _show(output: Output, run: str | None, codings: bool) -> None:
    name = str(click.get_current_context().info_name)
    pattern = stores.split(output.settings, run)[0] if run else "*"
    with stores.opened(output.settings) as store:
        found = store.stats(pattern, codings=codings)
        if not found.runs and pattern != "*":
            raise store._catalog.no_run(pattern)
    if output.json:
        more = {"codings": [_coding_record(each) for each in found.codings]} if codings else {}
        output.document(name, **_record(found), **more)
    elif output.quiet:
        output.lines(each.run for each in found.runs)
    else:
        _table(output, found, whole=run is None)
        if codings:
            _codings(output, found.codings)


def _record(found: Stats) -> dict[str, Any]:
    """Return the sizes as JSON holds them."""
    return {
        "checkpoint_count": found.checkpoint_count,
        "trash_count": found.trash_count,
        "logical_bytes": found.logical_bytes,
        "unique_bytes": found.unique_bytes,
        "stored_bytes": found.stored_bytes,
        "saved": found.saved,
        "quarantine_bytes": found.quarantine_bytes,
        "runs": [
            {
                "run": each.run,
                "checkpoint_count": each.checkpoint_count,
                "logical_bytes": each.logical_bytes,
                "unique_bytes": each.unique_bytes,
                "stored_bytes": each.stored_bytes,
                "saved": each.saved,
            }
            for each in found.runs
        ],
    }


def _table(output: Output, found: Stats, *, whole: bool) -> None:
    """Write one line per run and the sum."""
    size = formatting.size
    rows = [
        (
            each.run,
            f"{each.checkpoint_count:,}",
            size(each.logical_bytes),
            size(each.unique_bytes),
            size(each.stored_bytes),
            _saved(each),
        )
        for each in found.runs
    ]
    rows.append(
        (
            "whole store" if whole else "together",
            f"{found.checkpoint_count:,}",
            size(found.logical_bytes),
            size(found.unique_bytes),
            size(found.stored_bytes),
            _saved(found),
        )
    )
    columns = [
        Column("RUN"),
        Column("CHECKPOINTS", right=True, rank=1),
        Column("LOGICAL", right=True),
        Column("UNIQUE", right=True, rank=2),
        Column("STORED", right=True),
        Column("SAVED", right=True, color="green"),
    ]
    output.table(columns, rows, bold_rows=frozenset({len(rows) - 1}))
    more_bytes = found.stored_bytes - found.logical_bytes
    if whole and found.checkpoint_count and more_bytes > 0:
        also = "the index, the trash, bases of what is kept and what gc has yet to free count"
        output.note(f"The store takes {size(more_bytes)} more than restoring would write: {also}.")
    if found.trash_count:
        trash = formatting.count(found.trash_count, "checkpoint")
        take = "takes" if found.trash_count == 1 else "take"
        output.note(f"{trash} in the trash still {take} space; `casckpt gc --now` frees it.")
    if found.quarantine_bytes:
        aside = size(found.quarantine_bytes)
        output.note(f"{aside} of damaged packs are in `quarantine`; they are yours to remove.")


def _saved(found: Stats | RunStats) -> str:
    """Return the share that was saved, none where bookkeeping outweighs it."""
    return formatting.saved(min(found.stored_bytes, found.logical_bytes), found.logical_bytes)


def _coding_record(each: CodingStats) -> dict[str, Any]:
    """Return the chunks that are stored in one way as JSON holds them."""
    return {
        "type": each.type,
        "predictor": each.predictor,
        "layout": each.layout,
        "coder": each.coder,
        "chunk_count": each.chunk_count,
        "logical_bytes": each.logical_bytes,
        "stored_bytes": each.stored_bytes,
        "ratio": round(each.ratio, 4),
        "depth": each.depth,
    }


def _codings(output: Output, codings: Sequence[CodingStats]) -> None:
    """Write one line per way in which chunks are stored."""
    columns = [
        Column("TYPE"),
        Column("STORED AS"),
        Column("CHUNKS", right=True, rank=1),
        Column("LOGICAL", right=True),
        Column("STORED", right=True),
        Column("RATIO", right=True, color="green"),
        Column("DEPTH", right=True, rank=2),
    ]
    rows = [
        (
            formatting.dtype_name(each.type),
            f"{each.predictor}, {each.layout}: {each.coder}",
            f"{each.chunk_count:,}",
            formatting.size(each.logical_bytes),
            formatting.size(each.stored_bytes),
            f"{each.ratio:.3f}",
            str(each.depth),
        )
        for each in codings
    ]
    output.line()
    output.table(columns, rows)


def _make(name: str) -> Any:
    def show(output: Output, run: str | None, codings: bool) -> None:
        _show(output, run, codings)

    show.__doc__ = _HELP
    argument = click.argument("run", required=False, shell_complete=completers.runs)
    option = click.option("--codings", is_flag=True, help="Also show how the chunks are stored.")
    return command(name, examples=_EXAMPLES)(argument(option(show)))


du = _make("du")
stats = _make("stats")
