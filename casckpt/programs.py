"""How a module of this package is started as a process of its own.

The folder that a user works in is no part of it: a `random.py` there, or a checkout without the
built C core, must not take the place of what this process has imported.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_START = """\
import os, runpy, sys
del sys.argv[0]
module, paths = sys.argv[0], sys.argv.pop(1)
sys.path += [path for path in paths.split(os.pathsep) if path not in sys.path]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
_HOME = str(Path(__file__).resolve().parent.parent)


def command_of(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs `python -m module`, deaf to the working folder."""
    # Behind the paths of the child, where they take the place of nothing: what this process has
    # found on a path of its own making (`python -I`, an embedded interpreter) the child finds too.
    paths = [str(Path(entry).resolve()) for entry in sys.path if entry]
    return [sys.executable, "-P", "-c", _START, module, os.pathsep.join(paths), *arguments]


def environment_of(**extra: str) -> dict[str, str]:
    """Return the environment in which it finds the very package that runs here.

    Args:
        extra: variables to set beside those of this process.
    """
    paths = [_HOME, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **extra}
