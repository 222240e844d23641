"""Where a user's programs keep notes on this host that are no part of any store."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any


def state_folder(kind: str) -> Path:
    """Return the folder for notes of a kind; it may not be there yet."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "casckpt" / kind


def read_note(path: Path) -> dict[str, Any]:
    """Return a note; empty if it is not there, or damaged."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def write_note(path: Path, document: dict[str, Any]) -> None:
    """Write a note; one that cannot be written is as good as lost."""
    with contextlib.suppress(OSError):
        write_private(path, json.dumps(document))


def write_private(path: Path, text: str) -> None:
    """Replace a file whole, for its owner only. No flush: what a power cut takes is made again."""
    # Parents that mkdir makes by itself are as the umask has them; those of ours are private too.
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    fresh.replace(path)
