"""Checkpoints as JSON records and as table cells, the same in every command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from casckpt.cli import formatting

if TYPE_CHECKING:
    from casckpt.checkpoint.records import Checkpoint


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
        "metrics": formatting.plain(checkpoint.metrics),
        "tags": list(checkpoint.tags),
        "pinned": checkpoint.pinned,
        "reasons": list(checkpoint.reasons),
        "logical_bytes": checkpoint.logical_bytes,
        "new_bytes": checkpoint.new_bytes,
    }


def run_name(checkpoint: Checkpoint) -> str:
    """Return the run, with its line where the run has more than one."""
    return checkpoint.ref.partition("@")[0]


def step(checkpoint: Checkpoint) -> str:
    """Return the step, with the batch of a save inside an epoch."""
    return f"{checkpoint.step}+{checkpoint.batch}" if checkpoint.batch else str(checkpoint.step)


def newest(checkpoints: Sequence[Checkpoint]) -> set[str]:
    """Return the ids of the newest checkpoint of every run and line."""
    last: dict[tuple[str, int], Checkpoint] = {}
    for checkpoint in checkpoints:
        key = (checkpoint.run, checkpoint.line)
        there = last.get(key)
        if there is None or (checkpoint.step, checkpoint.batch) >= (there.step, there.batch):
            last[key] = checkpoint
    return {checkpoint.id for checkpoint in last.values()}
