"""The process's handlers of SIGTERM and Ctrl+C, while a run is at work.

The handlers that the program has are put back when the last run goes, and in the children that it
forks. One that it installed meanwhile stays. What ours still gets when nobody is at work any more,
it passes on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final, Literal

from casckpt.logs import logger
from casckpt.supervised import SUPERVISOR

ECHO_S: Final = 0.5
"""Two signals closer than this are one, under a supervisor; it passes them on in milliseconds."""

_PYTHONS_OWN: Final = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


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


class _Masks(threading.local):
    """Signals that waited already in this thread before each fork under way; a handler may fork."""

    def __init__(self) -> None:
        self.before: list[set[signal.Signals | int] | None] = []


class Signals:
    """The handlers of the process, installed while any run is at work on the main thread.

    Attributes:
        request: what a signal asked for, until the last user goes.
    """

    def __init__(self) -> None:
        """Install nothing yet."""
        self.request: StopRequest | None = None
        self._users: set[object] = set()
        self._previous: dict[int, Any] = {}
        self._forked_from = self._group = 0
        self._masks = _Masks()

    def is_used_by(self, user: object) -> bool:
        """Return whether signals are watched for a user; not in the child of a fork."""
        return user in self._users

    def install(self, user: object) -> None:
        """Watch for a user; off the main thread nothing happens, since it is impossible there."""
        if threading.current_thread() is not threading.main_thread():
            return
        is_first = not self._users
        if is_first:
            self.request = None
        self._users.add(user)
        if is_first:
            for number in _PYTHONS_OWN:
                self._take(number)

    def remove(self, user: object) -> None:
        """Watch no longer for a user; the handlers go back when the last one goes."""
        self._users.discard(user)
        if not self._users:
            self._give_back()
            self.request = None

    def _take(self, number: int) -> None:
        before = signal.getsignal(number)
        # A program that ignores a signal, or whose handler is not Python's, keeps it.
        if before is signal.SIG_IGN or before is None or before == self._on_signal:
            return
        self._previous[number] = before  # ORDER: our handler looks here
        signal.signal(number, self._on_signal)

    def _give_back(self) -> None:
        """Put back what was there before, where nobody has put another handler over ours."""
        for number in list(self._previous):
            if signal.getsignal(number) == self._on_signal:
                self._give_back_one(number)

    def _give_back_one(self, number: int) -> None:
        try:
            signal.signal(number, self._previous.get(number, _PYTHONS_OWN[signal.Signals(number)]))
        except ValueError:
            return  # off the main thread; our handler does it when a signal comes
        self._previous.pop(number, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self._users:
            self._pass_on(number, frame)
            return
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
        self._give_back()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Do what would be done without us: nobody is at work here."""
        if number == signal.SIGINT and self._is_of_the_parent():
            self._forked_from = 0
        elif signal.getsignal(number) == self._on_signal:
            self._give_back_one(number)
            os.kill(os.getpid(), number)
        else:
            # A handler was put over ours, and calls it. It may be what ours was put over before:
            # without an entry it cannot call us round and round.
            before = self._previous.pop(number, signal.SIG_DFL)
            if not callable(before):
                self._leave(number)
                return
            try:
                before(number, frame)
            finally:
                self._previous.setdefault(number, before)

    # ---- forks

    def _is_of_the_parent(self) -> bool:
        """Return whether Ctrl+C is for the parent, too: a terminal signals whole groups."""
        return self._forked_from == os.getppid() and self._group == os.getpgrp()

    def before_fork(self) -> None:
        """Let signals wait: Python forgets those that reach a child while it is being made."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ()) if self._previous else None
        self._masks.before.append(before)  # ORDER: a handler may raise where signals are blocked
        if before is not None:
            signal.pthread_sigmask(signal.SIG_BLOCK, _PYTHONS_OWN)

    def after_in_parent(self) -> None:
        """Let them come."""
        before = self._masks.before.pop()
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def after_in_child(self) -> None:
        """Give a child the program's own handlers, so that whoever made it can end it.

        A first Ctrl+C alone passes it by, as long as its parent lives: the parent has it too, and
        needs its workers until it has saved.
        """
        self.request = None
        if self._users or self._forked_from:
            self._forked_from, self._group = os.getppid(), os.getpgrp()
        self._users.clear()
        if signal.getsignal(signal.SIGTERM) == self._on_signal:
            self._give_back_one(signal.SIGTERM)
        self.after_in_parent()


SIGNALS: Final = Signals()

os.register_at_fork(
    before=SIGNALS.before_fork,
    after_in_parent=SIGNALS.after_in_parent,
    after_in_child=SIGNALS.after_in_child,
)
