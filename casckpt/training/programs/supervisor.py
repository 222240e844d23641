"""Keeps a training command running: starts it again after a crash, and passes signals through.

The command is a child in the same process group, so that a terminal's Ctrl+C, Ctrl+Z and its
standard input work as if nobody stood between. Signals are taken with sigtimedwait instead of
handlers, because only their origin tells whether the terminal has given them to the child already.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from casckpt.errors import BadRequest
from casckpt.hostnotes import read_note, write_note
from casckpt.startup import STARTED_IN
from casckpt.supervised import COMMAND_FILE, REPORT_FILE, SUPERVISOR
from casckpt.training.lines import now_text

FIRST_DELAY_S: Final = 1.0
DELAY_MAX_S: Final = 60.0
SETTLED_S: Final = 300.0
"""A command that ran for so long had got going: the next wait is short again."""

STOPPED: Final = 75
"""Exit code of `Stopped`: somebody asked, the state is saved, the same command goes on."""

_SHELL_SIGNAL: Final = 128
_HOPELESS: Final = {
    2: "a bad request: settings, options or state do not fit",
    10: "the store cannot be used",
    11: "another process trains the run",
    14: "the store needs a newer casckpt",
    126: "the command cannot be executed",
    127: "the command was not found",
}
"""Exit codes after which the same command fails the same way again."""

_BY_REQUEST: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
_PASSED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_WAITED: Final = frozenset({*_PASSED, signal.SIGCHLD})
_FROM_KERNEL: Final = 0x80  # SI_KERNEL of <asm-generic/siginfo.h>: the terminal's own

_LOOK_S: Final = 0.5


@dataclass(frozen=True)
class Event:
    """What happened to the command.

    Attributes:
        kind: "start", "exit", "restart" (after a wait of `delay_s`) or "end".
        text: why, in words.
        pid: process of the command.
        code: its exit code, or minus the signal that ended it.
        delay_s: seconds until it is started again.
        restarts: how often it was, so far.
        ran_s: how long it ran.
    """

    kind: Literal["start", "exit", "restart", "end"]
    text: str = ""
    pid: int = 0
    code: int | None = None
    delay_s: float = 0.0
    restarts: int = 0
    ran_s: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How supervision ended.

    Attributes:
        code: what the supervisor leaves with; 128 + the number of a signal that ended the command.
        restarts: how often the command was started again.
        text: why it was not started once more; empty if it ended well.
    """

    code: int
    restarts: int
    text: str = ""


@dataclass(frozen=True)
class Verdict:
    """Whether to start a command again, and why not."""

    restart: bool
    text: str


def judge(code: int, *, told: int | None, asked: bool, restarts: int, max_restarts: int) -> Verdict:
    """Return whether a command that ended is started again.

    Args:
        code: its exit code, or minus the signal that ended it.
        told: exit code of the casckpt error that ended it, of which Python says 1.
        asked: whether the supervisor passed a signal on that asks to end.
        restarts: how often it was started again already.
        max_restarts: how often it may be.
    """
    if code == 0:
        return Verdict(False, "")
    if code == STOPPED:
        return Verdict(False, "stopped by request; its state is saved")
    if asked or code == _SHELL_SIGNAL + signal.SIGINT or (code < 0 and -code in _BY_REQUEST):
        return Verdict(False, "ended by a signal that asked for it")
    meaning = code if code in _HOPELESS else told
    if meaning in _HOPELESS:
        return Verdict(False, f"{_HOPELESS[meaning]}; starting it again would not help")
    how = f"it was killed by {name_of(-code)}" if code < 0 else f"it failed with exit code {code}"
    if restarts >= max_restarts:
        times = f"{restarts} restart{'' if restarts == 1 else 's'}"
        limit = f"after {times}" if restarts else "and restarts are off"
        return Verdict(False, f"{how}, {limit}")
    return Verdict(True, how)


def delay_s(crashes: int) -> float:
    """Return how long to wait before a restart after so many crashes in a row: 1 to 60 s."""
    return float(min(DELAY_MAX_S, FIRST_DELAY_S * 2 ** min(crashes - 1, 16)))


def name_of(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def supervise(
    argv: Sequence[str],
    *,
    max_restarts: int,
    tell: Callable[[Event], None],
    is_stopped: Callable[[str], bool] = lambda since: False,
    cwd: str | None = None,
    environment: Mapping[str, str | None] | None = None,
    stdout: int | None = None,
) -> Outcome:
    """Run a command until it ends well, is asked to end, or crashes too often.

    For the main thread: it takes the signals of the process while it works.

    Args:
        argv: program and arguments; no shell.
        max_restarts: how often it is started again after a crash.
        tell: called with everything that happens.
        is_stopped: asked while it waits to start again, with the time when supervision began (RFC
            3339); True ends it.
        cwd: folder to start in; None for this one.
        environment: variables besides those of this process; None takes one away.
        stdout: descriptor for the command's output; None for this process's own.

    Raises:
        BadRequest: the command cannot be started.
    """
    shared = Path(tempfile.mkdtemp(prefix="casckpt-run-"))
    # Those that we were started to ignore, as under nohup, are not for us: a blocked signal would
    # be waited for all the same.
    waited = frozenset(one for one in _WAITED if signal.getsignal(one) != signal.SIG_IGN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    since = now_text()
    try:
        wanted = {**os.environ, **(environment or {}), SUPERVISOR: str(shared)}
        variables = {key: value for key, value in wanted.items() if value is not None}
        child = _Child(argv, cwd, variables, stdout, before, waited, shared, since)
        return _keep_running(child, max_restarts, tell, lambda: is_stopped(since))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        shutil.rmtree(shared, ignore_errors=True)


class _Child:
    """The command: starts it, and waits for its end while passing signals on."""

    def __init__(
        self,
        argv: Sequence[str],
        cwd: str | None,
        environment: Mapping[str, str],
        stdout: int | None,
        mask: set[signal.Signals | int],
        waited: frozenset[signal.Signals],
        shared: Path,
        since: str,
    ) -> None:
        self._argv, self._cwd, self._environment = list(argv), cwd, environment
        self._stdout, self._mask, self._shared, self._since = stdout, mask, shared, since
        self._waited = waited
        self.requests = _BY_REQUEST & waited
        self._id, self._start_count = uuid.uuid4().hex, 0
        self.asked = False
        self._process: subprocess.Popen[bytes]

    def start(self) -> int:
        """Start it and return its process id."""
        (self._shared / REPORT_FILE).unlink(missing_ok=True)
        about = {"argv": self._argv, "cwd": self._cwd or STARTED_IN, "since": self._since}
        self._start_count += 1
        which = {"id": self._id, "start": self._start_count}
        write_note(self._shared / COMMAND_FILE, {**about, **which})
        mask = self._mask
        try:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._cwd,
                env=self._environment,
                stdout=self._stdout,
                # Masks are inherited: with ours the command would never see a signal. This
                # process has one thread, so code between fork and exec is safe.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, mask),
            )
        except (OSError, subprocess.SubprocessError, ValueError) as exc:
            raise BadRequest(
                f"cannot start {self._argv[0]}",
                str(getattr(exc, "strerror", None) or exc),
                "write the command as in a terminal, after --: `casckpt run NAME -- python t.py`",
            ) from exc
        return self._process.pid

    def wait(self) -> int:
        """Return its exit code, or minus a signal; signals that come meanwhile are passed on."""
        while (code := self._process.poll()) is None:
            found = signal.sigtimedwait(self._waited, _LOOK_S)
            if found is None or found.si_signo == signal.SIGCHLD:
                continue
            self.asked |= found.si_signo in _BY_REQUEST
            if found.si_code != _FROM_KERNEL:  # else the whole group has it already
                self._process.send_signal(found.si_signo)
        return code

    def told(self, code: int) -> int | None:
        """Return the exit code of the casckpt error that ended it, if one did.

        Others below it may have failed as well, such as a helper whose failure it has handled. So
        nothing is believed of a command that a signal ended, nor of a process that is neither the
        command nor started by it, as those of a launcher are.
        """
        report = read_note(self._shared / REPORT_FILE)
        if not 0 < code < _SHELL_SIGNAL or self._process.pid not in (
            report.get("pid"),
            report.get("ppid"),
        ):
            return None
        told = report.get("exit_code")
        return told if isinstance(told, int) else None


def _keep_running(
    child: _Child, max_restarts: int, tell: Callable[[Event], None], is_stopped: Callable[[], bool]
) -> Outcome:
    restarts = crashes = 0
    while True:
        began_s = time.monotonic()
        pid = child.start()
        tell(Event("start", pid=pid, restarts=restarts))
        code = child.wait()
        ran_s = time.monotonic() - began_s
        tell(Event("exit", pid=pid, code=code, restarts=restarts, ran_s=ran_s))
        verdict = judge(
            code,
            told=child.told(code),
            asked=child.asked,
            restarts=restarts,
            max_restarts=max_restarts,
        )
        shown = code if code >= 0 else _SHELL_SIGNAL - code
        if not verdict.restart:
            tell(Event("end", verdict.text, code=shown, restarts=restarts))
            return Outcome(shown, restarts, verdict.text)
        crashes = 1 if ran_s >= SETTLED_S else crashes + 1
        pause_s = delay_s(crashes)
        tell(Event("restart", verdict.text, delay_s=pause_s, restarts=restarts + 1))
        stopped = _pause(pause_s, child.requests, is_stopped)
        if stopped is not None:
            tell(Event("end", "stopped while waiting", code=stopped, restarts=restarts))
            return Outcome(stopped, restarts, "stopped while waiting to start again")
        restarts += 1


def _pause(
    seconds: float, requests: frozenset[signal.Signals], is_stopped: Callable[[], bool]
) -> int | None:
    """Wait; return the code to leave with if somebody asks to stop meanwhile."""
    until_s = time.monotonic() + seconds
    while (left_s := until_s - time.monotonic()) > 0:
        found = signal.sigtimedwait(requests, min(left_s, _LOOK_S))
        if found is not None:
            is_interrupt = found.si_signo == signal.SIGINT
            return _SHELL_SIGNAL + signal.SIGINT if is_interrupt else STOPPED
        if is_stopped():
            return STOPPED
    return None
