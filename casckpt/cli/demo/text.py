"""Real data that every Python has: the sources of its own standard library, as characters."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 96
"""Printable ASCII from the space on, and one code for everything else (mostly the newline)."""

TEXT_BYTES = 2_000_000
"""Enough for a minute's training to see every character at most a few times."""

VALIDATION_SHARE = 0.1

CLASSES = ("letter", "digit", "space", "bracket", "other")
"""Kinds of characters that the booster tells apart."""


def library_text() -> NDArray[np.uint8]:
    """Return the first 2 MB of the standard library's modules, as codes below VOCABULARY."""
    folder = Path(sysconfig.get_path("stdlib"))
    parts: list[bytes] = []
    missing_bytes = TEXT_BYTES
    for path in sorted(folder.glob("*.py")):
        part = path.read_bytes()[:missing_bytes]
        parts.append(part)
        missing_bytes -= len(part)
        if missing_bytes <= 0:
            break
    codes = np.frombuffer(b"".join(parts), np.uint8)
    return np.where((codes >= 32) & (codes < 127), codes - 32, VOCABULARY - 1).astype(np.uint8)


def split(codes: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the training part and, from the end, the validation part."""
    cut = int(len(codes) * (1 - VALIDATION_SHARE))
    return codes[:cut], codes[cut:]


def windows(
    codes: NDArray[np.uint8], length: int, count: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `count` random windows and, shifted by one character, what follows.

    Returns:
        Two arrays of shape (count, length).
    """
    starts = np.random.default_rng(seed).integers(0, len(codes) - length - 1, count)
    places = starts[:, None] + np.arange(length + 1)
    taken = codes[places].astype(np.int64)
    return taken[:, :-1], taken[:, 1:]


def next_kinds(
    codes: NDArray[np.uint8], length: int, count: int, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return windows of characters, and the kind of the character that follows each.

    Returns:
        Features of shape (count, length) and classes of shape (count,), numbers in CLASSES.
    """
    before, after = windows(codes, length, count, seed)
    return before.astype(np.float32), _kinds()[after[:, -1]]


def _kinds() -> NDArray[np.int64]:
    kinds = np.full(VOCABULARY, CLASSES.index("other"), np.int64)
    for code in range(VOCABULARY - 1):
        character = chr(code + 32)
        if character.isalpha() or character == "_":
            kinds[code] = CLASSES.index("letter")
        elif character.isdigit():
            kinds[code] = CLASSES.index("digit")
        elif character in "()[]{}":
            kinds[code] = CLASSES.index("bracket")
    kinds[[0, VOCABULARY - 1]] = CLASSES.index("space")
    return kinds
