"""Checkpoints as JSON records and as table cells, the same in every command."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.refs import is_glob
from casckpt.cli import formatting
from casckpt.strictjson import plain

if TYPE_CHECKING:
    from casckpt.checkpoint.records import Checkpoint

_by_position = attrgetter("step", "batch")


def record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the JSON record of a checkpoint: sizes in bytes, times RFC 3339 UTC."""
    return {
        "ref": checkpoint.ref,
        "id": checkpoint.id,
        "run": checkpoint.run,
        "line": checkpoint.line,
        "step": checkpoint.step,
        "batch": checkpoint.batch,
        "created": formatting.rfc3339(checkpoint.created),
        "metrics": plain(checkpoint.metrics),
        "tags": list(checkpoint.tags),
        "pinned": checkpoint.pinned,
        "reasons": list(checkpoint.reasons),
        "logical_bytes": checkpoint.logical_bytes,
        "new_bytes": checkpoint.new_bytes,
    }


def place(checkpoint: Checkpoint) -> tuple[str, str]:
    """Return the run, with its line where it has others, and the step, with its batch if any."""
    run, _, step = checkpoint.ref.partition("@")
    return run, step


def newest(checkpoints: Sequence[Checkpoint], pattern: str) -> set[str]:
    """Return the ids of the newest checkpoint of every run and line.

    A run by its name alone is one line: that which is open, with what it began with.
    """
    one_line = "~" not in pattern and not is_glob(pattern)
    ordered = sorted(checkpoints, key=_by_position)
    last = {(each.run, 0 if one_line else each.line): each.id for each in ordered}
    return set(last.values())
