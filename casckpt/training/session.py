"""One process at work on one line of a run: lock, signals, status, and the writer of its rows."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from casckpt.errors import CasckptError, OperationFailed
from casckpt.logs import logger
from casckpt.supervised import supervised_start
from casckpt.training import runlock
from casckpt.training.guards import Facts
from casckpt.training.lines import Line, RunRecord, edit_record, now_text, read_record
from casckpt.training.peers import ALONE, Peers
from casckpt.training.series import FollowerLog, Log
from casckpt.training.stops import StopWatch
from casckpt.training.watching.progress import Tracker

if TYPE_CHECKING:
    from casckpt.store import Repository

FLUSH_S: Final = 0.8
"""What is logged is visible to others within a second, a transaction on a busy disk included."""

LineChange = Callable[[Line], None]

_ROW_S: Final = 30.0
"""How often the time worked goes into the run's row: what a death can lose of it."""


class Session:
    """The work of this process on a line. Thread safe but for `begin` and `end`.

    Attributes:
        log: what is logged.
        tracker: how far the parts are.
        watch: who asks to stop.
        is_begun: whether the line is locked and counts as running.
    """

    def __init__(
        self,
        repository: Repository,
        run: str,
        line: int,
        elapsed_s: float,
        peers: Peers = ALONE,
    ) -> None:
        """Prepare; nothing is written before `begin`."""
        self._repository = repository
        self._run = run
        self._line = line
        self._base_s = elapsed_s
        self._began_s = 0.0
        self._lock: runlock.RunLock | None = None
        self._pid = os.getpid()
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._closing = False
        self._failing = False
        self.log: Log = Log(repository, run, line)
        self.tracker = Tracker(run, line)
        self.watch = StopWatch(repository, run, peers)
        self.is_begun = False
        self._is_noted = False

    @property
    def is_used(self) -> bool:
        """Whether anything was done on the line in this session."""
        return self.is_begun or self._is_noted

    @property
    def elapsed_s(self) -> float:
        """Work on the line so far, all sessions."""
        return self._base_s + (time.monotonic() - self._began_s if self.is_begun else 0.0)

    def lock(self) -> None:
        """Lock the run, if it is not locked yet.

        Raises:
            RunBusy: another live process has it.
        """
        self.check_process()
        if self._lock is None:
            self._lock = runlock.take(self._repository.path, self._run)

    def begin(self, facts: Facts, *, log_count: int | None, watch: bool = True) -> None:
        """Lock the run and make it running.

        Args:
            facts: the settings to record; groups that are missing stay as they were.
            log_count: how many pieces of the log belong to what the line goes on from;
                None keeps all.
            watch: watch for requests to stop, also again where that has ended with a loop.
        """
        self.check_process()
        if not self.is_begun:
            self.lock()
        if watch:
            self.watch.begin()
        if self.is_begun:
            return
        self.log.begin(log_count)
        self._began_s = time.monotonic()
        self.is_begun = True

        def change(line: Line) -> None:
            line.guarded = {**line.guarded, **facts}
            line.status, line.reason = "running", ""
            line.pid, line.host = os.getpid(), socket.gethostname()[:64]
            line.started, line.started_by = now_text(), supervised_start()

        self.edit(change)

    def note(self, facts: Facts) -> None:
        """Give the line a row with its settings, without a lock: its children have their own."""
        if self.is_begun or self._is_noted:
            return
        self._is_noted = True

        def change(line: Line) -> None:
            line.guarded = {**line.guarded, **facts}
            line.started = line.started or now_text()

        self.edit(change)

    def edit(self, change: LineChange) -> RunRecord:
        """Change the line's part of the run's row; durable when this returns."""

        def all_of(record: RunRecord) -> None:
            line = record.line(self._line)
            change(line)
            line.updated = now_text()
            line.elapsed_s = max(line.elapsed_s, self.elapsed_s)

        return edit_record(self._repository, self._run, all_of)

    def end(self, status: str, reason: str = "") -> None:
        """Write everything, set the status and let the run go; again does nothing."""
        if self._pid != os.getpid():
            return
        try:
            self._stop_thread()
            if self.is_begun or self._is_noted:
                self.flush()

                def change(line: Line) -> None:
                    line.status, line.reason = status, reason[:500]

                self.edit(change)
        finally:
            self.is_begun = self._is_noted = False
            self.watch.end()
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def stir(self) -> None:
        """Have what is new written within a second; with the next save if no thread can begin."""
        if self._thread is None and self._pid == os.getpid() and not self._closing:
            thread = threading.Thread(
                target=self._loop, name=f"casckpt-log-{self._run}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError as exc:
                self._fails(exc)
            else:
                self._thread = thread

    def flush(self) -> None:
        """Write log and progress; durable when this returns."""
        self.log.flush()
        writes = self.tracker.take()
        if writes:
            self._repository.write_rows(writes)

    def check_process(self) -> None:
        """Raise in the child of a fork: a run belongs to the process that opened it."""
        if self._pid != os.getpid():
            raise OperationFailed(
                f"the run {self._run} belongs to another process",
                f"process {self._pid} opened it, and this one was forked from it",
                "call store.run in this process",
            )

    def _loop(self) -> None:
        next_row_s = time.monotonic() + _ROW_S
        while not self._wake.wait(FLUSH_S):
            try:
                self.flush()
                if self.is_begun and time.monotonic() >= next_row_s:
                    next_row_s = time.monotonic() + _ROW_S
                    self.edit(lambda line: None)
                self._failing = False
            except Exception as exc:  # no memory, say: there may be some later
                with contextlib.suppress(Exception):
                    self._fails(exc)

    def _fails(self, error: Exception) -> None:
        if not self._failing:
            words = error if isinstance(error, CasckptError) else repr(error)  # MemoryError()
            logger.error("the log of %s cannot be written: %s", self._run, words)
        self._failing = True

    def _stop_thread(self) -> None:
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._closing = False
        self._wake.clear()


class Follower(Session):
    """The work of a process that does not lead: it is stopped like any other, and writes nothing.

    What is logged to it is known to this process, and to nobody else.
    """

    def __init__(
        self, repository: Repository, run: str, line: int, elapsed_s: float, peers: Peers
    ) -> None:
        """Prepare."""
        super().__init__(repository, run, line, elapsed_s, peers)
        self.log = FollowerLog(repository, run, line)

    def lock(self) -> None:
        """Leave the lock to the first process."""
        self.check_process()

    def begin(self, facts: Facts, *, log_count: int | None, watch: bool = True) -> None:
        """Watch for requests to stop."""
        self.check_process()
        if watch:
            self.watch.begin()
        if not self.is_begun:
            self._began_s = time.monotonic()
            self.is_begun = True

    def note(self, facts: Facts) -> None:
        """Leave the row to the first process."""

    def edit(self, change: LineChange) -> RunRecord:
        """Leave the row as it is, and return it."""
        return read_record(self._repository, self._run)

    def end(self, status: str, reason: str = "") -> None:
        """Stop watching."""
        if self._pid == os.getpid():
            self.is_begun = False
            self.watch.end()

    def stir(self) -> None:
        """Leave the writing to the first process."""

    def flush(self) -> None:
        """Leave the writing to the first process."""
