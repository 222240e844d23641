"""The room that crash tests need, and how to tell that what failed has failed for want of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from casckpt.cli import formatting
from casckpt.errors import NoSpace
from casckpt.store import files

NEEDED_BYTES: Final = 64 << 20
"""Beside each other lie a store, a recording of what made it, and a copy of it. All three take a
third of this on a small disk; on a large one a store sets more aside, of what is free."""

NEEDED_FILES: Final = 1000

_LEAST_BYTES: Final = 4 << 20
# As a program of ours says it in its last line, and as Python does.
_WORDS: Final = ("NoSpace", "[Errno 28]", "[Errno 122]")


def require(folder: Path) -> None:
    """Raise NoSpace if a folder has less room than the tests need.

    A quota is not seen here: it shows as `refusal` when it is reached.
    """
    free, names = files.free_bytes(folder), files.free_inodes(folder)
    if free < NEEDED_BYTES:
        raise refusal(folder, f"{formatting.size(free)} are free")
    if names < NEEDED_FILES:
        raise refusal(folder, f"its file system takes {formatting.count(names, 'more file')}")


def refusal(folder: Path, why: str) -> NoSpace:
    """Return the error for tests that cannot begin, or go on, for want of room."""
    return NoSpace(
        f"no room to torture {folder}",
        f"{why}; {formatting.size(NEEDED_BYTES)} and {NEEDED_FILES:,} files are needed, "
        "for as long as it goes on",
        "free as much there, or name a folder on another disk; nothing is wrong with this one",
    )


def is_short(folder: Path) -> bool:
    """Tell whether so little is free that whatever fails there may fail for that."""
    return files.free_bytes(folder) < _LEAST_BYTES


def word_of(lines: Iterable[str]) -> str:
    """Return the last of the lines that says that a disk or quota is full; empty if none does."""
    said = [line for line in lines if any(word in line for word in _WORDS)]
    return said[-1].strip() if said else ""
