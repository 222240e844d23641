"""Where a run puts a checkpoint, and what goes with it: what a plain save leaves to defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from casckpt.checkpoint.records import Checkpoint


@dataclass(frozen=True)
class Placement:
    """The place of a checkpoint in its run, given by the training floor.

    Attributes:
        line: number of the line.
        batch: position inside the step; 0 at its boundary.
        reasons: why it is saved, in order of weight.
        parent: hex id of the checkpoint that it continued from; None for the one before it.
        beside: what a resume needs beside the state, as bytes.
        captured: what a resume will find besides the state.
        missing: what it will not.
        before_commit: makes durable what the checkpoint relies on; may run more than once.
        after_commit: called with the checkpoint once it is durable, on the thread that saved.
    """

    line: int
    batch: int = 0
    reasons: tuple[str, ...] = ()
    parent: str | None = None
    beside: bytes = b""
    captured: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    before_commit: Callable[[], None] | None = None
    after_commit: Callable[[Checkpoint], None] | None = None
