"""`casckpt diff`: what differs between two checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.strictjson import plain

if TYPE_CHECKING:
    from casckpt.checkpoint.diffs import Change, Diff

FOLDED_ABOVE = 40
"""Paths listed on a terminal before the rest is counted."""


@command(
    "diff",
    examples=(
        "casckpt diff bpm/nn@40 bpm/nn@60",
        "casckpt diff bpm/nn@60 id:7c1e09ab12 --exit-code",
    ),
)
@click.argument("a", shell_complete=completers.refs)
@click.argument("b", shell_complete=completers.refs)
@click.option("--exit-code", is_flag=True, help="Exit 1 if the states differ, 0 if not.")
def diff(output: Output, a: str, b: str, exit_code: bool) -> int:
    """Show which tensors and values differ between checkpoints A and B, and what they share.

    Large tensors are compared by the ids of their bytes, so nothing large is read.
    """
    first, second = stores.split(output.settings, a, b)
    with stores.opened(output.settings) as store:
        found = store.diff(first, second)
    if output.json:
        output.document("diff", **_record(found))
    elif output.quiet:
        output.lines(change.path for change in _changes(found))
    else:
        _show(output, found)
    return 1 if exit_code and not found.same_state else 0


def _changes(found: Diff) -> Sequence[Change]:
    """Return all changes, by path."""
    return sorted((*found.added, *found.removed, *found.changed), key=lambda change: change.path)


def _record(found: Diff) -> dict[str, Any]:
    """Return the diff as JSON holds it."""

    def change(change: Change) -> dict[str, Any]:
        return {
            "path": change.path,
            "before": change.before,
            "after": change.after,
            "changed_bytes": change.changed_bytes,
        }

    return {
        "a": views.record(found.a),
        "b": views.record(found.b),
        "same_state": found.same_state,
        "added": [change(each) for each in found.added],
        "removed": [change(each) for each in found.removed],
        "changed": [change(each) for each in found.changed],
        "equal_count": found.equal_count,
        "metrics": plain(found.metrics),
        "environment": plain(found.environment),
        "shared_bytes": found.shared_bytes,
    }


def _show(output: Output, found: Diff) -> None:
    """Write metrics, then paths, then what is shared."""
    output.line(f"{found.a.ref}  ->  {found.b.ref}")
    _pairs(output, "METRIC", found.metrics)
    _pairs(output, "ENVIRONMENT", found.environment)
    changes = _changes(found)
    shown = changes[:FOLDED_ABOVE] if output.is_terminal else changes
    rows = [
        (
            "+" if each.before is None else "-" if each.after is None else "~",
            each.path or "(the root)",
            _words(each),
            formatting.size(each.changed_bytes) if each.changed_bytes else "",
        )
        for each in shown
    ]
    if rows:
        output.line()
    output.table(
        [
            Column(""),
            Column("PATH", color="yellow"),
            Column("VALUE"),
            Column("CHANGED", right=True),
        ],
        rows,
    )
    if len(shown) < len(changes):
        output.note(f"... and {len(changes) - len(shown):,} more; `| less` shows all")
    output.line()
    output.line(
        f"{len(found.changed):,} changed, {len(found.added):,} added, "
        f"{len(found.removed):,} removed, {found.equal_count:,} equal; "
        f"{formatting.size(found.shared_bytes)} on disk shared"
    )


def _words(change: Change) -> str:
    """Return what became of a value, in one cell."""
    before, after = (
        None if text is None else formatting.value_text(text)
        for text in (change.before, change.after)
    )
    if before is None or after is None:
        return after or before or ""
    if change.before == change.after:
        return after
    if before == after:  # an array of numpy's and a tensor
        before, after = str(change.before), str(change.after)
    return f"{before} -> {after}"


def _pairs(output: Output, title: str, pairs: Mapping[str, tuple[Any, Any]]) -> None:
    """Write a small table of names with a value in A and one in B."""

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        return formatting.number(value) if isinstance(value, int | float) else str(value)

    if pairs:
        output.line()
        output.table(
            [Column(title, color="yellow"), Column("A", right=True), Column("B", right=True)],
            [(name, cell(before), cell(after)) for name, (before, after) in pairs.items()],
        )
