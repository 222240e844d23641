"""Saves in the background: one in flight per run, errors told once, none lost at exit."""

from __future__ import annotations

import atexit
import os
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase

from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import OperationFailed
from casckpt.logs import logger

_everyone: weakref.WeakSet[BackgroundSaves] = weakref.WeakSet()
_exit_registered = False
_is_over = False


@dataclass(frozen=True, slots=True, eq=False)
class _Failure:
    """What is said at exit of a save that failed, where nobody was told before.

    Not the error itself: its frames hold the store, which may have been dropped unclosed.
    """

    pid: int
    run: str
    text: str


_failures: set[_Failure] = set()
"""Those that nobody was told of."""


class PendingSave:
    """A save that goes on in the background.

    The state it was given may change freely. Thread safe. In a process forked meanwhile it is
    not done, and never will be: the save belongs to the process that began it.
    """

    def __init__(self, run: str) -> None:
        """Stand for a save of `run`; `BackgroundSaves` makes these."""
        self.run = run
        self._pid = os.getpid()
        self._finished = threading.Event()
        self._checkpoint: Checkpoint | None = None
        self._error: BaseException | None = None
        self._told = False
        self._failure: _Failure | None = None

    def done(self) -> bool:
        """Return whether the save has ended, well or not."""
        return self._finished.is_set()

    def result(self, timeout_s: float | None = None) -> Checkpoint:
        """Return the checkpoint, once it is durable.

        Args:
            timeout_s: how long to wait, None for as long as it takes.

        Raises:
            TimeoutError: if it takes longer; the save goes on.
            CasckptError: what the save failed with; it counts as told then.
        """
        self._await(timeout_s)
        self._count_as_told()
        if self._error is not None:
            raise self._error
        assert self._checkpoint is not None
        return self._checkpoint

    def __repr__(self) -> str:
        """Return the run and the state."""
        state = "failed" if self._error else "done" if self.done() else "in flight"
        return f"<PendingSave of {self.run}: {state}>"

    def _await(self, timeout_s: float | None = None) -> None:
        if self._pid != os.getpid() and not self.done():
            raise OperationFailed(
                f"the background save of {self.run} belongs to another process",
                f"process {self._pid} began it, and this one was forked from it",
                "wait for it there",
            )
        if not self._finished.wait(timeout_s):
            raise TimeoutError(f"the save of {self.run} is not durable after {timeout_s} s")

    def _carry_out(self, work: Callable[[], Checkpoint]) -> None:
        try:
            self._checkpoint = work()
        except BaseException as exc:
            # Told by the next call on the run, by result(), wait(), close(), or at exit. Until
            # then its frames must not hold the staged copy, nor views in a cycle (gh-77894).
            traceback.clear_frames(exc.__traceback__)
            self._error = exc
            self._failure = _Failure(self._pid, self.run, str(exc))
            _failures.add(self._failure)
        finally:
            self._finished.set()

    def _untold(self) -> BaseException | None:
        """Return the error if nobody has seen it, and count it as seen."""
        if not self.done() or self._told or self._error is None:
            return None
        self._count_as_told()
        return self._error

    def _count_as_told(self) -> None:
        self._told = True
        if self._failure is not None:
            _failures.discard(self._failure)


class BackgroundSaves:
    """The saves of one store, in turn per run."""

    def __init__(self) -> None:
        """Begin with nothing in flight."""
        self._reset()
        _everyone.add(self)

    @contextmanager
    def turn(self, run: str) -> Iterator[None]:
        """Hold the run for a save: wait for the one in flight, tell its error, keep others out.

        Raises:
            CasckptError: what the save before failed with, if nobody has been told.
        """
        self._own_process()
        lock = self._lock_of(run)
        with lock:
            self.tell(run, wait=True)
            yield

    def start(self, run: str, work: Callable[[], Checkpoint]) -> PendingSave:
        """Begin a save; to be called inside `turn`."""
        pending = PendingSave(run)
        go, claim = threading.Event(), threading.Lock()

        def carry_out() -> None:
            # A thread that began to work at once would keep the GIL for 5 ms from its starter.
            go.wait()
            if claim.acquire(blocking=False):
                pending._carry_out(work)

        # Not a daemon: the interpreter would kill it in the middle.
        thread = threading.Thread(target=carry_out, name=f"casckpt-save-{run}", daemon=False)
        is_waited_for = _register_exit()
        try:
            with self._guard:
                self._pending[run] = pending
            if not is_waited_for:
                raise RuntimeError("the interpreter ends")
            thread.start()
        except BaseException as exc:
            # No more threads (a limit, or the interpreter is leaving), or Ctrl+C before the thread
            # began: save here and now. The next save would wait for this one for ever.
            go.set()
            carry_out()
            if not isinstance(exc, RuntimeError):
                raise
            if not is_waited_for:
                self.log_errors()
        finally:
            go.set()
        return pending

    def tell(self, run: str, *, wait: bool = False) -> None:
        """Raise what a save of the run failed with, if nobody has been told.

        Args:
            run: the run.
            wait: wait for the save in flight first.
        """
        self._own_process()
        with self._guard:
            pending = self._pending.get(run)
        if pending is None or not (wait or pending.done()):
            return
        pending._await()
        with self._guard:
            if self._pending.get(run) is pending:
                del self._pending[run]
        error = pending._untold()
        try:
            if error is not None:
                raise error
        finally:
            del error

    def tell_matching(self, pattern: str) -> None:
        """Raise what a save failed with of a run that a glob matches, if nobody has been told."""
        self._own_process()
        with self._guard:
            runs = [run for run in self._pending if fnmatchcase(run, pattern)]
        for run in runs:
            self.tell(run)

    def wait(self) -> None:
        """Wait for everything in flight.

        Raises:
            CasckptError: the first error that nobody has been told; others are logged.
        """
        errors = list(self._finish_all())
        for run, error in errors[1:]:
            _log_error(run, error)
        try:
            if errors:
                raise errors[0][1]
        finally:
            errors.clear()

    def log_errors(self) -> None:
        """Wait for everything in flight, and log what nobody has been told."""
        for run, error in self._finish_all():
            _log_error(run, error)

    def _finish_all(self) -> Iterator[tuple[str, BaseException]]:
        self._own_process()
        while True:
            with self._guard:
                if not self._pending:
                    return
                run, pending = next(iter(self._pending.items()))
            pending._await()
            with self._guard:
                if self._pending.get(run) is pending:
                    del self._pending[run]
            error = pending._untold()
            if error is not None:
                yield run, error

    def _lock_of(self, run: str) -> threading.RLock:
        with self._guard:
            return self._locks.setdefault(run, threading.RLock())

    def _own_process(self) -> None:
        """Forget what a parent process had in flight: its threads are not in this one."""
        if self._pid != os.getpid():
            self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._locks: dict[str, threading.RLock] = {}
        self._pending: dict[str, PendingSave] = {}


def _log_error(run: str, error: BaseException | str) -> None:
    logger.error("the background save of %s failed and nobody was told: %s", run, error)


def _finish_at_exit() -> None:
    global _is_over
    _is_over = True
    for saves in list(_everyone):
        if saves._pid == os.getpid():
            saves.log_errors()
    # What is left was of stores that are gone by now.
    for failure in list(_failures):
        _failures.discard(failure)
        if failure.pid == os.getpid():
            _log_error(failure.run, failure.text)


def _register_exit() -> bool:
    """Arrange that the interpreter waits for saves before it stops the threads they use.

    Returns:
        Whether it does: in functions that `atexit` calls it is over with that.
    """
    global _exit_registered, _is_over
    if _exit_registered or _is_over:
        return not _is_over
    _exit_registered = True
    # atexit runs after concurrent.futures has refused new work; its own hook runs earlier, in
    # reverse order of registration, so that module must have registered before.
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        import concurrent.futures.thread  # noqa: F401

        register(_finish_at_exit)
    except RuntimeError:
        _is_over = True
    return not _is_over
