"""The commands that train runs, as this user started them on this host, so that a run can go on.

`store.run` records the command of its process. It never goes into the store: what comes with a
store from elsewhere is never executed. One file per run, readable by its owner only, below
`$XDG_STATE_HOME/casckpt/commands` (`~/.local/state` by default).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casckpt import native
from casckpt.errors import NotFound, PermissionRefused
from casckpt.hostnotes import state_folder, write_private
from casckpt.logs import logger
from casckpt.startup import STARTED_IN
from casckpt.supervised import supervision
from casckpt.training.lines import now_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORKERS: Final = ("multiprocessing.spawn", "multiprocessing.forkserver", "popen_loky")

VERSION: Final = 1
"""FORMAT: version of a recorded command; a reader passes over others."""

KEPT_VARIABLES: Final = (
    "CASCKPT_STORE",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PYTHONHASHSEED",
    "PYTHONPATH",
    "VIRTUAL_ENV",
)
"""What decides which code runs on which data and device; anything else may be a secret."""


@dataclass(frozen=True)
class Command:
    """How a run was started.

    Attributes:
        run: name of the run.
        store: path of its store.
        argv: program and arguments; no shell is involved.
        cwd: folder it was started in.
        environment: variables that it needs, of those in `KEPT_VARIABLES`.
        host: machine.
        recorded: when, RFC 3339.
    """

    run: str
    store: str
    argv: tuple[str, ...]
    cwd: str
    environment: Mapping[str, str] = field(default_factory=dict)
    host: str = ""
    recorded: str = ""


def record(store: Path, run: str) -> None:
    """Record how this process was started, as the way to go on with a run.

    Nothing is recorded for a notebook, a Python prompt, or one of many processes that a launcher
    started: run again, they would not be the same. A failure is no reason not to train.
    """
    try:
        typed = supervision()
        argv = _typed(typed) or _own()
        if argv is None:
            return
        path = path_of(store, run)
        command = Command(
            run=run,
            store=str(store),
            argv=tuple(argv),
            # Not where it is now: a script may change its folder, as those of Hydra do.
            cwd=str(typed.get("cwd") or STARTED_IN or Path.cwd()),
            environment={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
            host=socket.gethostname(),
            recorded=now_text(),
        )
        text = json.dumps({"version": VERSION, **asdict(command)}, indent=1) + "\n"
        write_private(path, text)
    except (OSError, ValueError, RuntimeError) as exc:
        logger.debug("the command of %s is not recorded: %s", run, exc)


def read(store: Path, run: str) -> Command:
    """Return the command that this user recorded for a run on this host.

    Raises:
        NotFound: there is none.
        PermissionRefused: others could have written it.
    """
    path = path_of(store, run)
    try:
        about = path.stat()
        text = path.read_bytes()
    except OSError:
        raise _nothing(store, run) from None
    if about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise PermissionRefused(
            f"the recorded command of {run} is not trusted",
            f"{path} must belong to you, and be closed to others",
            "run the training command once by hand: it is recorded anew",
        )
    try:
        document: dict[str, Any] = json.loads(text)
        if document["version"] != VERSION or document["run"] != run:
            raise ValueError(f"version {document['version']} of {document['run']}")
        names = {one.name for one in fields(Command)}
        known = {name: value for name, value in document.items() if name in names}
        return Command(**{**known, "argv": tuple(known["argv"])})
    except (ValueError, KeyError, TypeError) as exc:
        logger.debug("%s does not decode: %s", path, exc)
        raise _nothing(store, run) from exc


def forget(store: Path, run: str) -> None:
    """Remove the recorded command of a run, if there is one."""
    with contextlib.suppress(OSError):
        path_of(store, run).unlink(missing_ok=True)


def path_of(store: Path, run: str) -> Path:
    """Return where the command of a run is recorded: host, store and run decide."""
    key = "\0".join((socket.gethostname(), str(store.resolve()), run))
    name = native.blake3(key.encode("utf-8", "surrogateescape")).hex()[:32]
    return state_folder("commands") / f"{name}.json"


def _typed(about: Mapping[str, Any]) -> list[str] | None:
    """Return what was given to `casckpt run`, if this process runs under it."""
    argv = about.get("argv")
    return [str(word) for word in argv] if isinstance(argv, list) and argv else None


def _own() -> list[str] | None:
    """Return the command line of this process, or None if it cannot be run again alone."""
    words = list(sys.orig_argv)
    is_prompt = hasattr(sys, "ps1") or bool(sys.flags.interactive) or len(words) < 2
    is_prompt |= sys.argv[:1] == ["-"]  # a program that was piped in is gone
    # What libraries start their workers by names pipes, which end with whoever has opened them.
    is_prompt |= any(one in word for one in _WORKERS for word in words[1:])
    if is_prompt or "ipykernel" in sys.modules or not sys.executable:
        return None
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return None
    return [sys.executable, *words[1:]]


def _nothing(store: Path, run: str) -> NotFound:
    parts = run.split("/")
    above = ("/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    parent = next((name for name in above if path_of(store, name).exists()), None)
    return NotFound(
        f"no command of {run} is recorded",
        "a command is recorded when this user starts it on this host, and it opens the run",
        f"it is a part of {parent}: `casckpt resume {parent}`"
        if parent
        else f"start it once: `casckpt run {run} -- python train.py`",
        run=run,
    )
