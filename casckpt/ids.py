"""Names that every floor shares: object ids, run names, keys of checkpoints."""

from __future__ import annotations

import re
from typing import Final

from casckpt.errors import BadRef

ID_BYTES: Final = 32
"""Length of an object id: BLAKE3-256 of the logical bytes."""

ABBREVIATION: Final = 10
"""Hex digits shown where a person reads an id; commands accept 4 or more."""

RUN_NAME_MAX_BYTES: Final = 200
"""Longest run name; index keys end at 511 bytes (docs/format.md, section 8)."""

STEP_MAX: Final = 2**63 - 1
"""Largest step or batch: what fits a signed 64-bit integer in every reader."""

# Compiled at first use, and kept by `re`: listing what is stored checks no name.
_RUN_NAME: Final = r"[A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*\Z"
_TAG: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*\Z"
RESERVED_SELECTORS: Final = frozenset({"latest", "best"})


def check_run_name(name: str) -> str:
    """Return `name` if it is a run name, else raise.

    Raises:
        BadRef: if it does not match `[A-Za-z0-9._-]+` with `/` between, is longer than 200
            bytes, or has a part made of dots only (which would climb out of a folder).
    """
    if not isinstance(name, str) or not re.match(_RUN_NAME, name):
        raise BadRef(
            f"bad run name {name!r}",
            "a run name is letters, digits, '.', '_' and '-', with '/' between parts",
            "choose a name such as bpm/xgboost",
        )
    if len(name) > RUN_NAME_MAX_BYTES:
        raise BadRef(
            f"run name of {len(name)} bytes: {name[:40]}...",
            f"the limit is {RUN_NAME_MAX_BYTES} bytes",
            "choose a shorter name",
        )
    if any(set(part) == {"."} for part in name.split("/")):
        raise BadRef(
            f"bad run name {name!r}",
            "a part made of dots only could leave the folder it is exported to",
            "choose a name such as bpm/xgboost",
        )
    return name


def check_tag(tag: str) -> str:
    """Return `tag` if it can name a checkpoint, else raise.

    Raises:
        BadRef: if it is all digits, a reserved word, or has other characters than letters,
            digits, '.', '_' and '-'.
    """
    if not isinstance(tag, str) or not re.match(_TAG, tag) or len(tag) > RUN_NAME_MAX_BYTES:
        raise BadRef(
            f"bad tag {tag!r}",
            "a tag is letters, digits, '.', '_' and '-', and starts with a letter or digit",
            "choose a name such as paper-v1",
        )
    if tag.isdigit() or tag in RESERVED_SELECTORS or re.fullmatch(r"\d+\+\d+", tag):
        raise BadRef(
            f"bad tag {tag!r}",
            "numbers, 'latest' and 'best' already select checkpoints",
            "choose a name such as paper-v1",
        )
    return tag


def check_step(step: int, what: str = "step") -> int:
    """Return `step` if it is an integer from 0 to 2**63 - 1, else raise BadRef."""
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        # A state given in the place of its step may be of any length.
        plain = step is None or isinstance(step, bool | float | str)
        shown = repr(step) if plain else f"of type {type(step).__name__}"
        raise BadRef(f"bad {what} {shown}", f"a {what} is an integer from 0 on", "pass 12, say")
    number = step.__index__()
    if not 0 <= number <= STEP_MAX:
        raise BadRef(
            f"bad {what} {step!r}", f"a {what} is an integer from 0 to 2**63 - 1", "pass 12, say"
        )
    return number
