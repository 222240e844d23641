"""Where stores are: the folder a REF or the environment means. Looks at names only, opens none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

STORE_FOLDER: Final = ".casckpt"
"""Name of a store that is found from the folders below the one it is in."""

ENVIRONMENT: Final = "CASCKPT_STORE"
"""Environment variable that names the store."""

_INSIDE: Final = ("", STORE_FOLDER, "checkpoints")
"""Where a folder that is named as a REF may have its store, in this order."""


def is_store(path: Path) -> bool:
    """Return whether a folder looks like a store; opening it tells for sure."""
    try:
        return (path / "format.json").is_file()
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Tell whether a folder is there; one that may not be seen, or no path can name, is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def at_or_inside(path: Path) -> Path:
    """Return a path that names a store, or the `.casckpt` in it if only that is one."""
    inside = path / STORE_FOLDER
    return inside if not is_store(path) and is_store(inside) else path


def nearest(start: Path) -> Path | None:
    """Return the store `.casckpt` in a folder or the nearest above it, or None."""
    for folder in (start, *start.parents):
        if is_store(folder / STORE_FOLDER):
            return folder / STORE_FOLDER
    return None


def store_in(folder: Path) -> Path | None:
    """Return the store that a folder is or holds, or None."""
    for inside in _INSIDE:
        if is_store(folder / inside):
            return folder / inside
    return None


def folder_of_ref(text: str) -> tuple[Path, str, str] | None:
    """Return (store, run that is tried first, selector with its `@`) of a folder as a REF.

    Args:
        text: a REF without `STORE::` that names no run; `FOLDER` or `FOLDER@SEL`.

    Returns:
        None if there is no such folder, or no store in it.
    """
    head, _, selector = text.rpartition("@")
    for name, rest in ((text, ""), (head, f"@{selector}")):
        folder = Path(name).expanduser() if name else None
        if folder is not None and is_folder(folder):
            store = store_in(folder)
            if store is not None:
                return store, folder.resolve().name, rest
    return None


def default_store(start: Path | None = None) -> Path:
    """Return the store at hand: CASCKPT_STORE, the nearest `.casckpt` upward, or `./.casckpt`.

    Args:
        start: the folder to look from; the working directory by default.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        return at_or_inside(Path(named).expanduser())
    here = Path.cwd() if start is None else start
    return nearest(here) or here / STORE_FOLDER
