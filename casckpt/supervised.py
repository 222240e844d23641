"""What a process under `casckpt run` and its supervisor tell each other, by files they share."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

from casckpt.errors import CasckptError
from casckpt.hostnotes import read_note, write_private

SUPERVISOR: Final = "CASCKPT_SUPERVISOR"
"""Names the folder that `casckpt run` shares with its command: what was typed, and how it ended."""

COMMAND_FILE: Final = "command.json"
"""What was typed, where, since when and by which supervision it is kept running, and the number of
this start: argv, cwd, since, id, start."""

REPORT_FILE: Final = "report.json"


def supervision() -> dict[str, Any]:
    """Return what `casckpt run` tells of itself; empty without it."""
    folder = os.environ.get(SUPERVISOR)
    return read_note(Path(folder) / COMMAND_FILE) if folder else {}


def supervised_since() -> str:
    """Return when `casckpt run` began to keep this command running, RFC 3339; empty without it."""
    return str(supervision().get("since") or "")


def supervised_start() -> str:
    """Return which start this is, of which supervision: "ID/NUMBER"; empty without `casckpt run`.

    Clocks may be set back between two starts, as after a boot; this tells them apart all the same.
    """
    about = supervision()
    return f"{about['id']}/{about.get('start')}" if about.get("id") else ""


def report_at_exit() -> None:
    """Have the supervisor told which error of ours ends this process.

    Python's exit code is 1 for all; with this a wrong setting, which no restart mends, is told
    from a crash.
    """
    atexit.register(_report)


def _report() -> None:
    folder = os.environ.get(SUPERVISOR)
    if not folder:
        return
    path = Path(folder) / REPORT_FILE
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    with contextlib.suppress(OSError):
        if isinstance(error, CasckptError):
            document = {"error": type(error).__name__, "exit_code": error.exit_code}
            document |= {"pid": os.getpid(), "ppid": os.getppid()}
            write_private(path, json.dumps(document))
        elif read_note(path).get("ppid") == os.getpid():
            # A process that it has started failed, and it went on: that is not how it ended.
            path.unlink(missing_ok=True)
