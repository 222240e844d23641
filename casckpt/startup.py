"""Where this process was, before a script could change its folder as those of Hydra do."""

from __future__ import annotations

import os
from typing import Final


def _folder() -> str:
    try:
        return os.getcwd()  # noqa: PTH109 - pathlib is a third of what importing casckpt takes
    except OSError:
        return ""


STARTED_IN: Final = _folder()
"""The working folder when casckpt was imported; empty if that was gone."""
