"""One live process per line of work: a lock that its holder's death frees at once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt import native
from casckpt.errors import RunBusy
from casckpt.store import files, layout
from casckpt.training.lines import now_text

if TYPE_CHECKING:
    from collections.abc import Mapping

_ABOUT_BYTES: Final = 4096
_ATTEMPTS: Final = 5
_PAUSE_S: Final = 0.02
"""A look at the lock by `status` takes microseconds; five tries outlast it."""

_guard = threading.Lock()
_held: dict[Path, RunLock] = {}


class RunLock:
    """The lock of one run, held by this process. Made by `take`; counted within the process."""

    def __init__(self, path: Path, descriptor: int) -> None:
        """Hold the lock that `descriptor` has."""
        self.path = path
        self._descriptor = descriptor
        self._pid = os.getpid()
        self.users = 1

    def release(self) -> None:
        """Give the lock back; the last user frees it. Not an error twice, or after a fork."""
        with _guard:
            if self._descriptor < 0 or self._pid != os.getpid():
                return
            self.users -= 1
            if self.users > 0:
                return
            _held.pop(self.path, None)
            _let_go(self._descriptor, self.path)
            self._descriptor = -1


def take(store: Path, run: str) -> RunLock:
    """Lock a run for this process.

    Raises:
        RunBusy: another live process has it; the message names process, host and time.
    """
    path = lock_path(store, run)
    with _guard:
        held = _held.get(path)
        if held is not None and held._pid == os.getpid():
            held.users += 1
            return held
        for attempt in range(_ATTEMPTS):
            descriptor, is_ours = files.open_file(path, os.O_RDWR | os.O_CREAT), False
            try:
                is_ours = files.try_lock(descriptor, exclusive=True) and _is_named(descriptor, path)
                if is_ours:
                    _write_about(descriptor, path, run)
                    lock = _held[path] = RunLock(path, descriptor)
                    return lock
                about = _about(descriptor, path)
            except BaseException:  # a full disk, say: what is not begun is not locked
                _let_go(descriptor, path) if is_ours else files.close_file(descriptor)
                raise
            files.close_file(descriptor)
            if attempt < _ATTEMPTS - 1:
                time.sleep(_PAUSE_S)
        raise _busy(run, about)


def is_held(store: Path, run: str) -> bool:
    """Return whether a live process, this one included, trains the run."""
    path = lock_path(store, run)
    with _guard:
        if path in _held:
            return True
        try:
            descriptor = files.open_file(path, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            return not files.try_lock(descriptor, exclusive=False)
        finally:
            files.close_file(descriptor)


def lock_path(store: Path, run: str) -> Path:
    """Return the lock file of a run: a hash, since a name may be longer than a file's."""
    return store / layout.SESSIONS_FOLDER / f"run-{native.blake3(run.encode()).hex()[:32]}.lock"


def _let_go(descriptor: int, path: Path) -> None:
    # ORDER: the name goes while the lock is held, so nobody locks a file without a name
    with contextlib.suppress(Exception):
        if _is_named(descriptor, path):  # and not made anew by another
            files.unlink(path, missing_ok=True)
    files.close_file(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Return whether the file that was locked is still the one of that name."""
    return files.identity_of(descriptor) == files.identity(path)


def _write_about(descriptor: int, path: Path, run: str) -> None:
    about = {"run": run, "pid": os.getpid(), "host": socket.gethostname(), "since": now_text()}
    files.write_at(descriptor, json.dumps(about).encode().ljust(_ABOUT_BYTES), 0, path)


def _about(descriptor: int, path: Path) -> Mapping[str, object]:
    try:
        about = json.loads(files.read_at(descriptor, _ABOUT_BYTES, 0, path) or b"{}")
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}


def _busy(run: str, about: Mapping[str, object]) -> RunBusy:
    pid, host, since = (about.get(name, "?") for name in ("pid", "host", "since"))
    return RunBusy(
        f"{run} is being trained by another process",
        f"process {pid} on {host}, since {since}",
        f"wait for it, stop it with `casckpt stop {run}`, or use another name",
        run=run,
        pid=pid,
        host=host,
        since=since,
    )


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    for lock in _held.values():
        # Closing here frees nothing: the parent's descriptor holds the same lock.
        files.close_file(lock._descriptor)
        lock._descriptor = -1
    _held.clear()


os.register_at_fork(after_in_child=_after_fork)
