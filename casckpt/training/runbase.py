"""What every part of a Run shares: where it stands, its session, and how it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from casckpt.checkpoint.records import Checkpoint, RunInfo
from casckpt.errors import BadRequest, RunBusy, Stopped
from casckpt.logs import logger
from casckpt.training import guards, series
from casckpt.training.lines import Line, read_record, scope
from casckpt.training.loops import keeping
from casckpt.training.resume import Extra, read_extra
from casckpt.training.state import tree_of
from casckpt.training.watching import status

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.store import Repository
    from casckpt.training.loops.epochs import Loop
    from casckpt.training.loops.monitor import Monitor
    from casckpt.training.opening import Opened
    from casckpt.training.run import Run
    from casckpt.training.session import Session
    from casckpt.training.stops import StopRequest

open_runs: Final[weakref.WeakSet[Run]] = weakref.WeakSet()
"""Runs of this process that may still have to say goodbye."""

_entering = threading.Lock()
_Unit = TypeVar("_Unit")


def parent_of(checkpoint: Checkpoint | None, run: str, line: int) -> str | None:
    """Return the id of what the next checkpoint continues from: one that stays."""
    if checkpoint is None:
        return None
    if (checkpoint.run, checkpoint.line) != (run, line):
        return checkpoint.id
    is_rolling = bool(checkpoint.reasons) and keeping.ROLLING.issuperset(checkpoint.reasons)
    return checkpoint.parent if is_rolling else checkpoint.id


def open_as(store: Store, name: str) -> list[Run]:
    """Return the Runs of a name that this process has open, and leads."""
    return [
        run
        for run in list(open_runs)
        if run.name == name
        and run._peers.leads  # the others of its processes train with it
        and not run._closed
        and run._session._pid == os.getpid()
        and run.repository.path == store._repository.path
    ]


def wait_for_left(store: Store, name: str) -> None:
    """Wait for what loops that were left are still saving: work goes on from it."""
    for run in open_as(store, name):
        if run._loop is not None and not run._is_looping:
            run._loop.saver.wait()


class RunBase:
    """Where a run stands; the calls are in the classes above."""

    def __init__(self, store: Store, name: str, opened: Opened) -> None:
        """Stand for a run; `opening.open_run` makes these."""
        self.store = store
        self.name = name
        self.line = opened.line
        self.resumed = opened.checkpoint
        self.grace_s = opened.grace_s
        self._peers = opened.peers
        self._extra = opened.extra
        self._facts = opened.facts
        self._is_changed, self._came_from = opened.is_changed, opened.came_from
        self._policy = opened.policy
        self._session: Session = opened.session
        self._finished = opened.is_finished
        self._parent_id = parent_of(opened.checkpoint, name, opened.line)
        self._loop: Loop | None = None
        self._is_entering = False
        self._iterator: Callable[[], Any] = lambda: None
        self._saved: Checkpoint | None = None
        self._saved_by_hand: set[str] = set()
        self._before: tuple[Checkpoint | None, dict[str, float]] | None = None
        self._row: dict[str, float] | None = None
        self._row_at = opened.checkpoint.step if opened.checkpoint is not None else 0
        self._strict = True
        self._broken = False
        self._part_done = False
        self._in_body = False
        self._is_entered = False
        self._closed = False
        self._children: list[Run] = []
        open_runs.add(cast("Run", self))

    @property
    def repository(self) -> Repository:
        """The store below, for the modules of this floor."""
        return self.store._repository

    @property
    def scope(self) -> bytes:
        """Prefix of the keys of what belongs to this line."""
        return scope(self.name, self.line)

    @property
    def finished(self) -> bool:
        """Whether the run was finished, in this session or an earlier one."""
        return self._finished

    @property
    def stopping(self) -> bool:
        """Whether somebody has asked the run to stop."""
        return self._session.watch.look() is not None

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric that was logged, in all sessions."""
        if self._before is None or self._before[0] is not self.resumed:
            self._before = (self.resumed, self._logged_before())
        return {**self._before[1], **self._session.log.last}

    @property
    def info(self) -> RunInfo:
        """What is known of the run: status, progress, last and best checkpoint, bytes."""
        return status.info_of(self.repository, self.store._catalog, self.name)

    def __repr__(self) -> str:
        """Return name and line."""
        return f"<casckpt.Run {self.name}~{self.line}>"

    # ---- for the modules of this floor

    def _logged_before(self) -> dict[str, float]:
        """Return the last values that the work logged on which this session goes on."""
        if self.resumed is None:
            return {}
        count = self._extra.log if self._on_own_line() else None
        record = read_record(self.repository, self.name)
        found = series.logged(self.repository, record, self.name, self.line, count)
        return {**{name: points[-1][1] for name, points in found.items()}, **self.resumed.metrics}

    def _begin(self, state: Any, *, watch: bool = True) -> None:
        """Lock the line and make it running; compare the structure of models.

        Signals are watched for whoever leaves on them: a program that only logs does not.
        """
        if self._closed:
            raise BadRequest(
                f"the run {self.name} is closed",
                "its `with`, or that of its parent, has ended, or close() was called",
                "call store.run again",
            )
        if self._loop is not None:
            self._loop.saver.settle()
        if not self._peers.leads:
            self._session.begin({}, log_count=None, watch=watch)
            return
        self._check_alone()
        if not self._session.is_begun:
            self._session.lock()
            self._catch_up()
        elif state is not None:
            self._check_newest()
        facts = dict(self._facts)
        if state is not None:
            facts.update(self._compare_model(state))
        log_count = self._extra.log if self._on_own_line() else None
        if log_count is None and state is not None:
            log_count = 0  # a loop that begins its line anew logs all of it again
        self._session.begin(facts, log_count=log_count, watch=watch)

    @property
    def _is_looping(self) -> bool:
        """Whether a loop is under way: neither at its end nor left by break or an exception."""
        # Python ends the generator of a loop that is left; one that ended has no frame.
        iterator = self._iterator()
        return self._is_entering or (iterator is not None and iterator.gi_frame is not None)

    def _enter(self, make: Callable[[], Iterator[_Unit]]) -> Iterator[_Unit]:
        """Return the iterator of a loop, and know from now on whether it is under way."""
        with _entering:
            if self._peers.size == 1:  # else the first process looks, and tells the others
                self._check_alone()
            self._is_entering = True
        try:
            iterator = make()
            self._iterator = weakref.ref(iterator)
        finally:
            self._is_entering = False
        return iterator

    def _loop_left(self, is_at_end: bool) -> None:
        """Take note that the generator of a loop has ended, at its end or because it was left."""
        self._broken = not is_at_end
        self._session.watch.loop_ended()
        if self._broken:
            self._unwatch()

    def _unwatch(self) -> None:
        """Stop watching after a loop or a stage, unless a `with` tells when the run itself ends.

        A cell of a notebook closes nothing. What is asked of the process later is not for its
        run, and would stay asked for as long as that watches.
        """
        if not self._is_entered:
            self._session.watch.end()

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        """Stop watching after the body, unless that was done before it, as inside a loop."""
        was_on = self._session.watch.is_on
        try:
            yield
        finally:
            if not was_on:
                self._unwatch()

    def _check_alone(self) -> None:
        """Refuse to work beside a loop of the same run: the lock only tells processes apart.

        Of a loop that was left, the save in flight is waited for: work goes on from it.

        Raises:
            RunBusy: another Run of this process trains it.
        """
        for other in open_as(self.store, self.name):
            if other is not self and other._is_looping:
                line = read_record(self.repository, self.name).lines.get(other.line)
                raise RunBusy(
                    f"{self.name} is being trained by this process already",
                    "a loop of another Run of that name is under way",
                    "use that one, close() it first, or use another name",
                    run=self.name,
                    pid=os.getpid(),
                    host=socket.gethostname(),
                    since=line.started if line is not None else "",
                )
        wait_for_left(self.store, self.name)

    def _begin_together(self, state: Any) -> tuple[Checkpoint | None, Extra]:
        """Begin, and return where all processes of the run go on; each of them makes this call."""

        def lead() -> dict[str, Any]:
            self._begin(state)
            named = self._peers.name_of(self.store, self._position()[0])
            return {"line": self.line, "strict": self._strict, "checkpoint": named}

        told = self._peers.lead(lead)
        if not self._peers.leads:
            from casckpt.training.opening import found

            self._begin(None)
            self.line, self._strict, self._saved = told["line"], told["strict"], None
            self.resumed, self._extra = found(self.store, told["checkpoint"])
        checkpoint, extra = self._position()
        mine = extra.of_rank(self._peers.rank, self._peers.size)
        if extra.middle is not None and mine.middle is None and self._peers.leads:
            logger.warning(
                "%s: %d processes saved inside an epoch, and %d go on: it begins anew, with the"
                " state as it was then", self.name, len(extra.peers) + 1, self._peers.size,
            )  # fmt: skip
        return checkpoint, mine

    def _alone(self, what: str) -> None:
        """Refuse what only a run of one process can do.

        Raises:
            BadRequest: several processes train it.
        """
        if self._peers.size > 1:
            raise BadRequest(
                f"{what} over the {self._peers.size} processes of {self.name}",
                "it belongs to one process",
                "do it in the first one, in a run of its own: store.run(NAME, world_size=1)",
            )

    def _catch_up(self) -> None:
        """Go on from what another process has saved since this run was opened."""
        newest = self.store._catalog.newest(self.name, self.line)
        expected = self.resumed if self._on_own_line() else None
        if newest == expected or (newest is None and expected is not None):
            return
        from casckpt.training.opening import moved

        self.resumed, self._extra = moved(cast("Run", self))
        self._parent_id = parent_of(self.resumed, self.name, self.line)
        self._row_at = 0 if self.resumed is None else self.resumed.step

    def _check_newest(self) -> None:
        """Refuse to train again what another Run of this process has saved meanwhile."""
        newest, last = self.store._catalog.newest(self.name, self.line), self._last()
        if newest is None or (last is not None and newest.position <= last.position):
            return
        stands = "at its beginning" if last is None else f"at {last.ref}"
        raise BadRequest(
            f"this Run of {self.name} is not the newest",
            f"another has saved {newest.ref} since, and this one stands {stands}",
            "call store.run again",
        )

    def _compare_model(self, state: Any) -> guards.Facts:
        model = guards.model_facts(state)
        if not model:
            return {}
        from casckpt.training.opening import obey, recorded_facts

        old = recorded_facts(self.store, self.name, self.line, self.resumed)
        differences = guards.compare(
            {"model": old["model"]} if "model" in old else {}, {"model": model}, self._policy
        )
        if obey(cast("Run", self), differences):
            self._restart()
        self._strict = not differences
        return {"model": model}

    def _restart(self) -> None:
        """Go on with a new empty line instead of this one."""
        from casckpt.training.opening import restarted

        opened = restarted(cast("Run", self))
        self.line, self._session = opened.line, opened.session
        self.resumed, self._extra, self._parent_id, self._row_at = None, Extra(), None, 0

    def _on_own_line(self) -> bool:
        return (
            self.resumed is not None
            and self.resumed.run == self.name
            and self.resumed.line == self.line
            # A run of another store may have the same name.
            and getattr(self.resumed.source, "path", None) == self.repository.path
        )

    def _last(self) -> Checkpoint | None:
        """Return the last checkpoint of this line, of this session or the one before."""
        return self.resumed if self._saved is None and self._on_own_line() else self._saved

    def _position(self) -> tuple[Checkpoint | None, Extra]:
        """Return where the next loop goes on."""
        if self._saved is not None:
            return self._saved, read_extra(self.store, self._saved)
        return self.resumed, self._extra

    def _restore_from(self, checkpoint: Checkpoint, into: Any, only: Any) -> Any:
        return self.store.restore(
            checkpoint, into=None if into is None else tree_of(into), only=only
        )

    def _members(self) -> list[Checkpoint]:
        """Return the checkpoints of this line with what it inherited, oldest first."""
        return self.store._catalog.inherited(self.name, self.line)

    def _newest(self) -> Checkpoint | None:
        members = self._members()
        return members[-1] if members else self.resumed

    def _monitor(self) -> Monitor | None:
        loop = self._loop
        return loop._options.monitor if loop is not None and loop._options.monitor.metric else None

    def _declare(self, monitor: Monitor) -> None:
        """Record what is best on the line, for those who look from outside while it trains."""
        line = read_record(self.repository, self.name).lines.get(self.line)
        if not monitor.metric or (
            line is not None and (line.monitor, line.mode) == (monitor.metric, monitor.mode)
        ):
            return

        def change(line: Line) -> None:
            line.monitor, line.mode = monitor.metric, monitor.mode

        self._session.edit(change)

    def _settle(self) -> None:
        if self._loop is not None:
            self._loop.saver.settle()

    def _part_ended(self) -> None:
        """Take note that a loop came to its end."""
        reason = self._call_reason()
        self._part_done, self._broken = reason is None, False
        self._session.flush()
        if reason is None and not self._in_body:
            self._finished = True
            self._set_status("finished")
        elif reason is not None:
            self._set_status("stopped", reason)
        self._unwatch()

    def _call_reason(self) -> str | None:
        request, loop = self._session.watch.asked, self._loop
        is_over = loop is not None and loop.is_over
        return None if request is None or is_over else request.reason

    def _leave(self, request: StopRequest, *, is_over: bool = False) -> None:
        """Leave on a request to stop, with everything written; `run.stop()` only ends the loop."""
        self._session.watch.heeded()
        if request.kind == "call":
            return
        self._settle()
        reason = "" if is_over else request.reason
        self._set_status("stopped", reason or request.reason)
        where = "" if self._saved is None else f", saved as {self._saved.ref}"
        if self._peers.leads:
            logger.info("%s stopped by %s%s", self.name, request.reason, where)
        # ORDER: a launcher kills those that are left when the first one leaves
        self._peers.most([0])
        if request.kind == "interrupt":
            raise KeyboardInterrupt
        raise Stopped(self.name, request.reason)

    def _set_status(self, text: str, reason: str = "") -> None:
        def change(line: Line) -> None:
            line.status, line.reason = text, reason
            line.loop = line.loop if self._loop is None else self._loop.counters()
            monitor = self._monitor()
            if monitor is not None:
                line.monitor, line.mode = monitor.metric, monitor.mode

        if self._session.is_begun:
            self._session.edit(change)

    def _end(self, text: str, reason: str = "") -> None:
        asked = self._call_reason() if text == "stopped" else None
        self._session.end(text, asked or reason)

    def _abandon(self, text: str, reason: str) -> None:
        """End because of an error, which nothing here may hide."""
        self._closed = True
        try:
            self._settle()
        except Exception as exc:
            logger.error("the last save of %s failed: %s", self.name, exc)
        for child in self._children:
            if not child._closed:
                child._abandon(text, reason)
        try:
            self._end(text, reason)
        except Exception as exc:
            logger.error("the end of %s could not be written: %s", self.name, exc)
