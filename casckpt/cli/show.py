"""`casckpt show`: one checkpoint, whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.strictjson import plain

if TYPE_CHECKING:
    from casckpt.checkpoint.codings import Coding
    from casckpt.checkpoint.records import Checkpoint

FOLDED_ABOVE = 40
"""Tensors listed on a terminal before the rest is counted; --all lists them."""


@command(
    "show",
    examples=("casckpt show bpm/nn", "casckpt show bpm/nn@best:val_loss:min --all"),
)
@click.argument("ref", shell_complete=completers.refs)
@click.option("--all", "show_all", is_flag=True, help="List every tensor, however many.")
def show(output: Output, ref: str, show_all: bool) -> None:
    """Show one checkpoint: metrics, names, sizes, where it came from, and what is in it.

    UNIQUE is what the disk would get back if only this checkpoint went. RATIO is stored/logical.
    STORED AS says what is coded (the numbers, or their difference to the save before: sub, xor,
    dictionary), how deep that chain of saves is, and the coder of each byte plane.
    """
    from casckpt.checkpoint.tree_paths import told_apart

    (target,) = stores.split(output.settings, ref)
    with stores.opened(output.settings) as store:
        checkpoint = store.get(target)
        if output.quiet:
            output.ids([checkpoint.id])
            return
        unique_bytes = checkpoint.unique_bytes
        entries = store.entries(checkpoint)
        by_path = store.codings(checkpoint)
        codings = [by_path.get(path) for path in told_apart(entry.path for entry in entries)]
        if output.json:
            output.document(
                "show",
                checkpoint={**_record(checkpoint), "unique_bytes": unique_bytes},
                entries=[
                    _entry_record(entry, coding)
                    for entry, coding in zip(entries, codings, strict=True)
                ],
            )
            return
        facts = list(_facts(checkpoint, unique_bytes))
    width = max(len(name) for name, _ in facts)
    output.lines(
        f"{output.style(name.ljust(width), dim=True)}  {formatting.printable(text)}"
        for name, text in facts
    )
    _entries(output, entries, codings, show_all)


def _record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the whole record: that of a list, and what only `show` tells."""
    return {
        **views.record(checkpoint),
        "parent": checkpoint.parent,
        "stored_bytes": checkpoint.stored_bytes,
        "stall_s": checkpoint.stall_s,
        "durable_s": checkpoint.durable_s,
        "captured": list(checkpoint.captured),
        "missing": list(checkpoint.missing),
        "environment": plain(checkpoint.environment),
    }


def _facts(checkpoint: Checkpoint, unique_bytes: int) -> Iterator[tuple[str, str]]:
    """Yield what is known of a checkpoint, a name and a text each; what is empty is left out."""
    size = formatting.size
    yield "checkpoint", checkpoint.ref
    yield "id", checkpoint.id
    moment = formatting.local_time(checkpoint.created, seconds=True)
    yield "saved at", f"{moment} ({formatting.ago(checkpoint.created)})"
    for name, value in checkpoint.metrics.items():
        yield "metric", f"{name} {value:.8g}"
    if checkpoint.tags:
        yield "tags", ", ".join(checkpoint.tags)
    if checkpoint.pinned:
        yield "pinned", "yes"
    if checkpoint.reasons:
        yield "saved as", ", ".join(checkpoint.reasons)
    if checkpoint.parent:
        yield "parent", f"id:{checkpoint.parent}"
    logical = checkpoint.logical_bytes
    yield "logical", f"{size(logical)} ({formatting.exact(logical)}): what a restore writes"
    new, stored = checkpoint.new_bytes, checkpoint.stored_bytes
    yield "new", f"{size(new)}: what this save had to write, {size(stored)} on disk"
    yield "unique", f"{size(unique_bytes)}: on disk for this checkpoint only"
    took = f"{formatting.duration(checkpoint.durable_s)} until durable"
    yield "took", f"{took}, {formatting.duration(checkpoint.stall_s)} of it the caller waited"
    if checkpoint.captured:
        yield "captured", ", ".join(checkpoint.captured)
    if checkpoint.missing:
        yield "missing", ", ".join(checkpoint.missing)
    environment = checkpoint.environment
    if environment:
        yield "environment", ", ".join(f"{key} {value}" for key, value in environment.items())


def _entry_record(entry: Any, coding: Coding | None) -> dict[str, Any]:
    """Return one entry as JSON holds it; `stored` is of the blob that the entry is in."""
    return {
        "path": entry.path,
        "kind": entry.kind,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "length_bytes": entry.length,
        "stored": coding
        and {
            "predictor": coding.predictor,
            "layout": coding.layout,
            "coder": coding.coder,
            "ratio": round(coding.ratio, 4),
            "depth": coding.depth,
        },
    }


def _entries(
    output: Output, entries: Sequence[Any], codings: Sequence[Coding | None], show_all: bool
) -> None:
    """Write one line per tensor, array or text."""
    folded = output.is_terminal and not show_all
    shown = entries[:FOLDED_ABOVE] if folded else entries
    rows = [
        (
            entry.path,
            formatting.dtype_name(entry.dtype) or entry.kind,
            "x".join(map(str, entry.shape)) if entry.dtype else "",
            formatting.size(entry.length),
            *_stored(coding),
        )
        for entry, coding in zip(shown, codings, strict=False)
    ]
    if rows:
        output.line()
    output.table(
        [
            Column("PATH", color="yellow"),
            Column("TYPE"),
            Column("SHAPE", right=True),
            Column("SIZE", right=True),
            Column("RATIO", right=True, rank=1),
            Column("STORED AS", rank=2),
        ],
        rows,
    )
    if len(shown) < len(entries):
        output.note(f"... and {len(entries) - len(shown):,} more; --all lists them")


def _stored(coding: Coding | None) -> tuple[str, str]:
    if coding is None:
        return "", ""
    chain = f" {coding.depth} deep" if coding.depth else ""
    return f"{coding.ratio:.3f}", f"{coding.predictor}{chain}, {coding.layout}: {coding.coder}"
