"""Where a user's programs keep notes on this host that are no part of any store."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder(kind: str) -> Path:
    """Return the folder for notes of a kind; it may not be there yet."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "casckpt" / kind
