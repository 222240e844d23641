"""Descriptors whose locks a child of a fork must not keep, and must not end.

A lock belongs to the open file, which a child shares: as long as its descriptor is open there, the
file is locked, though the parent has closed it. So whoever took a lock unlocks it: a child between
fork and exec, which may be that of any library, has no say in it. And a child of a fork, whose
unlocking would end the lock of its parent, lets go of all that is noted here (`sharing.py`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from casckpt.store import files

guard = threading.RLock()
"""Held while a file is opened or closed, and at a fork, which so finds every descriptor noted.

It is the last lock to be taken: who holds it waits for no other.
"""

_noted: set[int] = set()


def open_to_lock(path: Path, flags: int) -> int:
    """Open a file that is to be locked; see `files.open_file`. Close it with `close_lock`."""
    with guard:
        descriptor = files.open_file(path, flags)
        try:
            _noted.add(descriptor)
        except BaseException:
            files.close_file(descriptor)
            raise
        return descriptor


def close_lock(descriptor: int) -> None:
    """Close a descriptor that `open_to_lock` gave, which ends its lock.

    In the child of a fork the lock is the parent's, and stays: `let_go` has forgotten it.
    """
    with guard:
        if descriptor in _noted:
            files.release_lock(descriptor)
        _noted.discard(descriptor)
        files.close_file(descriptor)


def let_go() -> None:
    """Give up every lock without unlocking it: in the child of a fork, where the parent lives on.

    Each number stays taken until its owner closes it, so that this never closes anything else.
    """
    try:
        for descriptor in _noted:
            _give_up(descriptor)
    finally:
        # What is noted still would be unlocked when its owner closes it.
        _noted.clear()


def _give_up(descriptor: int) -> None:
    try:
        nothing = os.eventfd(0)
    except Exception:  # no descriptors are left, or no memory
        files.close_file(descriptor)
        return
    with contextlib.suppress(OSError):
        os.dup2(nothing, descriptor, inheritable=False)
    files.close_file(nothing)
