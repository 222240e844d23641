"""The errors of foreign files, and how much a file may grow while it is read."""

from __future__ import annotations

from typing import Final

from casckpt.errors import BadRequest, Corrupt, PickleRefused

MIB: Final = 1 << 20

EXPANSION_FREE_BYTES: Final = 256 * MIB
"""Every file may grow to this much in memory: small files of zeros compress a thousandfold."""

EXPANSION_FACTOR: Final = 64
"""Past that, a file may grow this many times its own size; deflate's worst case is 1032."""

_NAME_SHOWN: Final = 120


def allowed_bytes(file_bytes: int) -> int:
    """Return how many bytes of data a file of `file_bytes` bytes may turn into."""
    return max(EXPANSION_FREE_BYTES, EXPANSION_FACTOR * file_bytes)


def shown(text: object) -> str:
    """Return hostile text fit for a message: one line, printable, at most 120 characters."""
    line = ascii(str(text)[: 2 * _NAME_SHOWN])[1:-1]
    return line if len(line) <= _NAME_SHOWN else line[:_NAME_SHOWN] + "..."


def damaged(path: str, why: str) -> Corrupt:
    """Return the error for a file that contradicts its own format."""
    return Corrupt(
        f"cannot read {path}",
        why,
        "the file is damaged, or was made to look like one; get it again from where it came",
        path=path,
    )


def too_large(path: str, what_bytes: int, file_bytes: int) -> Corrupt:
    """Return the error for a file that would grow beyond `allowed_bytes`."""
    return damaged(
        path,
        f"it claims {what_bytes} bytes of data from a file of {file_bytes} bytes; "
        f"the limit is {allowed_bytes(file_bytes)}",
    )


def refused(path: str, name: str, hint: str = "") -> PickleRefused:
    """Return the error for a pickle that names something outside the allow-list."""
    return PickleRefused(
        f"refused to unpickle {path}: it names {shown(name)}",
        "loading that could run code; only tensors, arrays and plain values are read",
        hint
        or "if you trust the file, load it where it was written and save plain values, "
        "for example model.state_dict()",
        path=path,
        name=shown(name),
    )


def unreadable(path: str, why: str, hint: str, *, is_known: bool = True) -> BadRequest:
    """Return the error for a sound file that holds something casckpt does not import.

    Args:
        path: the file.
        why: what it holds.
        hint: the way out.
        is_known: whether it has a format that casckpt imports.
    """
    return BadRequest(f"cannot import {path}", why, hint, path=path, is_known=is_known)
