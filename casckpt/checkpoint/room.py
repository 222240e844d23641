"""Disk space: what a full disk lacks, what could be freed, and what training is likely to need."""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt.errors import CasckptError, NoSpace
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.store import Repository

_AGAIN_S: Final = 60.0
"""A disk that stays full is not collected on for every save."""

_LITTLE_BYTES: Final = 1 << 20
"""What a failed save may leave behind until the next collection."""

_in_vain: dict[Path, float] = {}
"""By store, when a save last failed although what could be freed was."""

_superfluous: defaultdict[Path, deque[tuple[str, int]]] = defaultdict(lambda: deque(maxlen=1000))
"""By store, what retention has put into the trash in this process: (run, commit seq)."""


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write on the file system of a path."""
    from casckpt.store import files

    return files.free_bytes(path)


def note_superfluous(repository: Repository, run: str, seq: int) -> None:
    """Remember that a retention policy, and no person, put a checkpoint into the trash."""
    _superfluous[repository.path].append((run, seq))


def make_room(repository: Repository, left_bytes: int, again: bool = False) -> bool:
    """Free what nothing needs before a save fails for want of room; tell if it helped.

    First what is dead or has been in the trash for its grace. If that was not enough, what
    policies of this process have put there. What a person has removed stays: to undo that is a
    promise, and `casckpt gc --now` takes it back.

    Args:
        repository: the store.
        left_bytes: what the save itself has left behind: to free that helps nobody.
        again: room was made for this save before.
    """
    was_in_vain = time.monotonic() - _in_vain.get(repository.path, -math.inf) < _AGAIN_S
    if was_in_vain and left_bytes < _LITTLE_BYTES:
        return False
    # Rounding, and the tails of packs: to try again for so little only fills the disk anew.
    little = left_bytes // 64
    try:
        buried = _bury_superfluous(repository) if again and not was_in_vain else 0
        freed = repository.gc().freed_bytes - left_bytes
        if (
            freed <= left_bytes // 64
            and not was_in_vain
            and (buried := buried or _bury_superfluous(repository))
        ):
            freed += repository.gc().freed_bytes
    except CasckptError as exc:
        logger.debug("no room was made in %s: %s", repository.path, exc.what)
        return False
    if was_in_vain or freed <= little:
        return False
    noun = "checkpoint" if buried == 1 else "checkpoints"
    also = f", with {buried} {noun} that keep= left out" if buried else ""
    logger.warning("the disk was full: %s of dead bytes were freed%s", size(freed), also)
    return True


def _bury_superfluous(repository: Repository) -> int:
    """Remove what policies have put into the trash past it; return how many there were."""
    buried = 0
    waiting = _superfluous[repository.path]
    with contextlib.suppress(IndexError):  # all are taken, by this thread or by another
        while True:
            run, seq = waiting.popleft()
            try:
                buried += _bury(repository, run, seq)
            except CasckptError:
                waiting.appendleft((run, seq))
                raise
    return buried


def _bury(repository: Repository, run: str, seq: int) -> bool:
    row = repository.checkpoint_row(run, seq)
    # It may have been brought back, or its step saved again.
    if row is None or row.state != "trash":
        return False
    if repository.commit_at(run, row.line, row.step, row.batch) != seq:
        return False
    repository.bury([(run, seq, row.payload)], state="trash")
    return True


def full_disk(repository: Repository, run: str, state_bytes: int, error: NoSpace) -> NoSpace:
    """Return the error of a save that found no room, with how much is missing.

    Args:
        repository: the store.
        run: what was saved.
        state_bytes: of the state: what the save takes if nothing of it is stored already.
        error: what the store said.
    """
    _in_vain[repository.path] = time.monotonic()
    try:
        free = free_bytes(repository.path)
        freeable = repository.plan_gc(()).freed_bytes
    except CasckptError:
        return error
    missing = max(state_bytes - free, 0)
    why = f"the state has {size(state_bytes)} and {size(free)} are free"
    return NoSpace(
        f"cannot save {run}: the disk is full",
        # With room enough on the file system it is a quota, or others are quicker.
        f"{why}: up to {size(missing)} are missing" if missing else f"{error.why}; {why}",
        f"`casckpt gc --now` would free up to {size(freeable)}"
        if freeable
        else "gc would free nothing: remove checkpoints with `casckpt rm`, or other files",
        missing_bytes=missing,
        freeable_bytes=freeable,
    )


@dataclass(frozen=True)
class Need:
    """What training is likely to add to a store, and the room there is.

    Attributes:
        needed_bytes: about so much more is written and kept.
        free_bytes: of the file system.
    """

    needed_bytes: int
    free_bytes: int

    @property
    def is_short(self) -> bool:
        """Whether the room will not do."""
        return self.needed_bytes > self.free_bytes

    def __str__(self) -> str:
        """Return both in words."""
        return f"about {size(self.needed_bytes)} more, {size(self.free_bytes)} are free"


def size(byte_count: int) -> str:
    """Return a number of bytes for people, in powers of 1024."""
    value, units = float(byte_count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        del units[0]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.3g} {units[0]}"
