"""Who asks a run to stop, and when it is noticed.

SIGTERM, Ctrl+C and a row in the store (`casckpt stop RUN`) set a flag; loops and stages look at
it between batches or items, save, and leave. A second signal leaves at once.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Final

from casckpt.store import rows
from casckpt.supervised import supervised_since
from casckpt.training import runlock
from casckpt.training.lines import now_text
from casckpt.training.peers import ALONE, Peers
from casckpt.training.signals import SIGNALS
from casckpt.training.signals import StopRequest as StopRequest

if TYPE_CHECKING:
    from casckpt.store import Repository

LOOK_EVERY_S: Final = 0.5
"""How often the row in the store is looked at; a look takes some 20 microseconds."""

KINDS: Final = ("call", "term", "interrupt")
"""What a request can be, the gravest last."""

_STOP_PART: Final = b"stop"

_LAUNCHED: Final = "TORCHELASTIC_RUN_ID"
"""Set by torchrun for the processes that it starts, and watches over."""


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
        self._user = object()  # by which the process's handlers know whom they are installed for
        self._above: StopWatch | None = None
        self._has_begun = self.by_hand = False
        self._own: StopRequest | None = None
        self._seen: dict[str, bytes] = {}
        self._is_heeded = False

    @property
    def is_on(self) -> bool:
        """Whether the signals of the process are watched."""
        return SIGNALS.is_used_by(self._user)

    def begin(self, *, by_hand: bool = False) -> None:
        """Watch from now on, or go on; a request that work was left on is over."""
        self.by_hand = by_hand
        if self._is_heeded:
            self._own, self._is_heeded = None, False
            self._over.update(self._seen)
        SIGNALS.install(self._user)
        if not self._has_begun:
            self._has_begun = True
            for name, payload in self._over.items():
                # Not where others work, who may not have seen it yet; they began before it came.
                if _request(self._repository, name) == payload and not self._others_work(name):
                    _delete(self._repository, _key(name))

    def follow(self, above: StopWatch) -> None:
        """Take what is asked of the runs above as their own watch does, which began earlier.

        Signals too: a child that trains in another thread has only the watch above to see them.
        """
        self._above = above
        for name in above._names:
            self._over.pop(name, None)
        self._over.update(above._over)

    def end(self) -> None:
        """Stop watching; the process's own handlers come back."""
        if self.is_on:
            SIGNALS.remove(self._user)

    def heeded(self) -> None:
        """Take note that work was left on the request at hand: what begins later is not meant."""
        self._is_heeded = self._own is not None

    def loop_ended(self) -> None:
        """Take note that a loop has ended: the program's own wish was for that one."""
        self._is_heeded |= self._own is not None and self._own.kind == "call"

    def ask(self, reason: str) -> None:
        """Stop by the program's own wish."""
        self._is_heeded = False
        self._own = StopRequest("call", reason, time.monotonic())

    def adopt(self, request: StopRequest) -> None:
        """Take note of a request that another process of the run has seen."""
        if self.asked is None:
            self._own, self._is_heeded = request, False

    @property
    def asked(self) -> StopRequest | None:
        """The request that is known already; costs next to nothing."""
        return SIGNALS.request if SIGNALS.request and self._heeds_signals else self._own

    @property
    def _heeds_signals(self) -> bool:
        return self.is_on or (self._above is not None and self._above._heeds_signals)

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
                    self._seen[name] = payload
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
