"""Disk space: what a full disk lacks, what could be freed, and what training is likely to need."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt.errors import CasckptError, NoSpace
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.store import Repository

_AGAIN_S: Final = 60.0
"""A disk that stays full is not collected on for every save."""

_in_vain: dict[Path, float] = {}
"""By store, when a save last failed although what could be freed was."""


def free_bytes(path: Path) -> int:
    """Return what an ordinary user may still write on the file system of a path."""
    from casckpt.store import files

    return files.free_bytes(path)


def make_room(repository: Repository) -> bool:
    """Free what is dead already and what has been in the trash for its grace; tell if it helped.

    What retention planned goes before a save fails. What is in the trash for less stays: to undo
    a removal is a promise, and `casckpt gc --now` takes it back.
    """
    if time.monotonic() - _in_vain.get(repository.path, -math.inf) < _AGAIN_S:
        return False
    try:
        report = repository.gc()
    except CasckptError as exc:
        logger.debug("no room was made in %s: %s", repository.path, exc.what)
        return False
    if report.freed_bytes > 0:
        logger.warning("the disk was full: %s of dead bytes were freed", size(report.freed_bytes))
    return report.freed_bytes > 0


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
        f"`casckpt gc --now` would free {size(freeable)}"
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
