"""Who asks a run to stop, and when it is noticed.

SIGTERM, Ctrl+C and a row in the store (`casckpt stop RUN`) set a flag; loops and stages look at
it between batches or items, save, and leave. A second signal leaves at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal

from casckpt.logs import logger
from casckpt.store import rows
from casckpt.supervised import SUPERVISOR, supervised_since
from casckpt.training import runlock
from casckpt.training.lines import now_text
from casckpt.training.peers import ALONE, Peers

if TYPE_CHECKING:
    from casckpt.store import Repository

LOOK_EVERY_S: Final = 0.5
"""How often the row in the store is looked at; a look takes some 20 microseconds."""

ECHO_S: Final = 0.5
"""Two signals closer than this are one, under a supervisor; it passes them on in milliseconds."""

KINDS: Final = ("call", "term", "interrupt")
"""What a request can be, the gravest last."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_STOP_PART: Final = b"stop"

_LAUNCHED: Final = "TORCHELASTIC_RUN_ID"
"""Set by torchrun for the processes that it starts, and watches over."""


@dataclass(frozen=True)
class StopRequest:
    """A wish to stop.

    Attributes:
        kind: "term" (a signal, or the store), "interrupt" (Ctrl+C), or "call" (`run.stop`).
        reason: in words.
        at_s: when it came, on the monotonic clock.
    """

    kind: Literal["term", "interrupt", "call"]
    reason: str
    at_s: float


class _Signals:
    """The handlers of the process, installed while any run is at work on the main thread."""

    def __init__(self) -> None:
        self.request: StopRequest | None = None
        self._users = 0
        self._previous: dict[int, Any] = {}
        self._pid = os.getpid()

    def install(self) -> bool:
        """Install the handlers, counted; False off the main thread, where that is impossible."""
        if threading.current_thread() is not threading.main_thread():
            return False
        if self._pid != os.getpid():
            self.__init__()  # type: ignore[misc]
        self._users += 1
        if self._users == 1:
            self.request = None
            for number in _SIGNALS:
                before = signal.getsignal(number)
                # A program that ignores a signal, or whose handler is not Python's, keeps it.
                if before is not signal.SIG_IGN and before is not None:
                    self._previous[number] = before
                    signal.signal(number, self._on_signal)
        return True

    def remove(self) -> None:
        """Put the handlers back when the last user goes."""
        if self._pid != os.getpid():
            return
        self._users -= 1
        if self._users > 0:
            return
        self._users = 0
        self._restore()
        self.request = None

    def _restore(self) -> None:
        for number, before in self._previous.items():
            with contextlib.suppress(ValueError):
                signal.signal(number, before)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.request is not None:
            if self._is_echo(number, time.monotonic()):
                return
            self._leave(number)
        if number == signal.SIGINT:
            self.request = StopRequest("interrupt", "Ctrl+C", time.monotonic())
            text = "stopping at the next boundary to save; Ctrl+C again leaves at once"
        else:
            self.request = StopRequest("term", "SIGTERM", time.monotonic())
            text = "SIGTERM: stopping at the next boundary to save"
        logger.warning("%s", text)

    def _is_echo(self, number: int, now_s: float) -> bool:
        """Return whether a second signal is the first one, passed on by the supervisor.

        Whoever ends a whole group or container signals both at once.
        """
        request = self.request
        kind = "interrupt" if number == signal.SIGINT else "term"
        if request is None or request.kind != kind or SUPERVISOR not in os.environ:
            return False
        return now_s - request.at_s < ECHO_S

    def _leave(self, number: int) -> None:
        self._restore()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


_signals = _Signals()


class StopWatch:
    """Looks for a request to stop one run: signals, the store, its own `stop` call.

    Attributes:
        by_hand: nothing looks but the saves of a program whose loop is its own.
    """

    def __init__(self, repository: Repository, run: str, peers: Peers = ALONE) -> None:
        """Watch for `run` and the runs above it; the first process alone looks at the store.

        What was asked before is over, since it was meant for those at work then. What was asked
        since `casckpt run` began is not: it is meant for the command, however often that starts.
        """
        self._repository = repository
        self._run = run
        self._names = _with_those_above(run) if peers.leads else []
        since = supervised_since()
        self._over = {
            name: payload
            for name in self._names
            if (payload := _request(repository, name)) and not (since and _is_since(payload, since))
        }
        # A launcher that dies leaves its processes behind, where nobody would see them train.
        launched = peers.size > 1 and _LAUNCHED in os.environ
        self._launcher = os.getppid() if launched else 0
        self._next_look_s = 0.0
        self._installed = self._has_begun = False
        self.by_hand = False
        self._own: StopRequest | None = None

    @property
    def is_on(self) -> bool:
        """Whether the signals of the process are watched."""
        return self._installed

    def begin(self, *, by_hand: bool = False) -> None:
        """Watch from now on, or go on."""
        self.by_hand = by_hand
        if not self._installed:
            self._installed = _signals.install()
        if not self._has_begun:
            self._has_begun = True
            for name, payload in self._over.items():
                # Not where others work, who may not have seen it yet; they began before it came.
                if _request(self._repository, name) == payload and not self._others_work(name):
                    _delete(self._repository, _key(name))

    def follow(self, above: StopWatch) -> None:
        """Take what was asked of the runs above as their own watch does, which began earlier."""
        for name in above._names:
            self._over.pop(name, None)
        self._over.update(above._over)

    def end(self) -> None:
        """Stop watching; the process's own handlers come back."""
        if self._installed:
            self._installed = False
            _signals.remove()

    def ask(self, reason: str) -> None:
        """Stop by the program's own wish."""
        self._own = StopRequest("call", reason, time.monotonic())

    def adopt(self, request: StopRequest) -> None:
        """Take note of a request that another process of the run has seen."""
        if self.asked is None:
            self._own = request

    @property
    def asked(self) -> StopRequest | None:
        """The request that is known already; costs next to nothing."""
        return _signals.request if self._installed and _signals.request else self._own

    def look(self) -> StopRequest | None:
        """Return a request to stop, looking at the store at most every half second."""
        found = self.asked
        if found is not None:
            return found
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + LOOK_EVERY_S
            for name in self._names:
                payload = _request(self._repository, name)
                if payload and payload != self._over.get(name):
                    self._own = StopRequest("term", "casckpt stop", now_s)
                    return self._own
            if self._launcher and os.getppid() != self._launcher:
                self._own = StopRequest("term", "the death of the launcher", now_s)
        return self._own

    def _others_work(self, name: str) -> bool:
        """Return whether a live process trains another run of those that a request is for."""
        path = self._repository.path
        below = [run for run, _ in self._repository.run_rows(f"{name}/")]
        return any(runlock.is_held(path, run) for run in (name, *below) if run != self._run)


def request_stop(repository: Repository, run: str) -> None:
    """Ask whoever trains `run`, or a run below it, to save and stop; durable on return.

    It is meant for those at work, and for a `casckpt run` that is about to start one again. Who
    starts later does not heed it.
    """
    from casckpt.store.commits import RowWrite

    payload = json.dumps({"version": 1, "at": now_text(), "pid": os.getpid()}).encode()
    repository.write_rows([RowWrite("progress", _key(run), payload)])


def is_requested(repository: Repository, run: str, since: str) -> bool:
    """Return whether a request to stop the run, or one above it, waits to be seen.

    Args:
        repository: the store.
        run: its name.
        since: older ones do not count; RFC 3339.
    """
    payloads = (_request(repository, name) for name in _with_those_above(run))
    return any(_is_since(payload, since) for payload in payloads if payload)


def _with_those_above(run: str) -> list[str]:
    parts = run.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _key(run: str) -> bytes:
    return rows.name_part(run) + b"\0" + _STOP_PART


def _request(repository: Repository, run: str) -> bytes:
    """Return the request to stop just this run, as it was written; empty without one."""
    row = repository.row("progress", _key(run))
    return b"" if row is None else row.payload


def _is_since(payload: bytes, since: str) -> bool:
    try:
        return str(json.loads(payload)["at"]) >= since
    except (ValueError, KeyError, TypeError):
        return False


def _delete(repository: Repository, key: bytes) -> None:
    from casckpt.store.commits import RowWrite

    repository.write_rows([RowWrite("progress", key, None)])
