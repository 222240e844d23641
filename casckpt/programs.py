"""How a module of this package is started as a process of its own.

The folder that a user works in is no part of it: a `random.py` there, or a checkout without the
built C core, must not take the place of what this process has imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_HOME = str(Path(__file__).resolve().parent.parent)


def command_of(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `python -m module`, deaf to the working folder."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment_of(**extra: str) -> dict[str, str]:
    """Return the environment in which it finds the very package that runs here.

    Args:
        extra: variables to set beside those of this process.
    """
    paths = [_HOME, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra}
