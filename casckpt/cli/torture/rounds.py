"""Crash tests in one folder: workers are killed, and power failures replayed, until time is up."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from casckpt.cli.torture import room, trace
from casckpt.cli.torture.expected import Expected, Line, parse
from casckpt.cli.torture.replay import Replay
from casckpt.errors import NoSpace, OperationFailed
from casckpt.programs import command_of, environment_of

_WORKERS: Final = ("a", "b")
_KILL_AFTER_S: Final = 2.5
_OPERATIONS: Final = 14
_ENDLESS: Final = 1_000_000
_DRAWN: Final = 3
# Of the operations that are neither flush nor answer, so many are followed by failures.
_SHARE: Final = 0.25
_STATES: Final = 150
_LOOK_LIMIT_S: Final = 300.0
_THOROUGH_EVERY: Final = 5
# After so many a new store is begun: the room that the tests take is the same however long they go.
_SAVES_IN_ONE: Final = 250


@dataclass
class Tally:
    """What was tried, and what was found.

    Attributes:
        tried: kills, or states after a power failure.
        acknowledged: saves that had returned before one of them, and were looked for after it.
        problems: what did not hold, one line each.
        skipped: why nothing could be tried, or empty.
    """

    tried: int = 0
    acknowledged: int = 0
    problems: list[str] = field(default_factory=list)
    skipped: str = ""


Report = Callable[[Tally], None]


class Looker:
    """The process that looks at what is left; it is started again if that kills it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[str] | None = None

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command_of("casckpt.cli.torture.looker"),
            env=environment_of(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def look(self, store: Path, lines: list[Line], *, thorough: bool) -> list[str]:
        """Return what is wrong with a store after these lines were said.

        Raises:
            NoSpace: nothing but that there is too little room to look at it.
        """
        child = self._child = self._child or self._start()
        assert child.stdin is not None
        assert child.stdout is not None
        job: dict[str, Any] = {"store": str(store), "lines": lines, "thorough": thorough}
        try:
            child.stdin.write(json.dumps(job) + "\n")
            child.stdin.flush()
            answer = child.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer:
            problems = [str(problem) for problem in json.loads(answer)]
            if problems and all(room.word_of([problem]) for problem in problems):
                raise NoSpace(f"cannot look at {store}", problems[0])
            return problems
        self._child = None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()
        return [f"whoever opens it ends with status {child.wait(_LOOK_LIMIT_S)}"]

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.communicate(timeout=_LOOK_LIMIT_S)
            self._child = None


# ---- kills


def kills(folder: Path, until_s: float, draw: random.Random, report: Report) -> Tally:
    """Kill two programs that save into one store, and look at it; again until `until_s`.

    Raises:
        NoSpace: the room was used up, by whomever.
    """
    tally = Tally()
    store = folder / "killed"
    looker = Looker()
    said: list[Line] = []
    before = 0
    try:
        while not tally.problems and (tally.tried == 0 or time.monotonic() < until_s):
            if tally.acknowledged - before >= _SAVES_IN_ONE:
                shutil.rmtree(store)
                said, before = [], tally.acknowledged
            said += _one_kill(store, draw)
            tally.tried += 1
            thorough = tally.tried % _THOROUGH_EVERY == 0
            tally.problems += looker.look(store, said, thorough=thorough)
            tally.acknowledged = before + Expected(said).acknowledged
            report(tally)
    finally:
        looker.close()
    if not tally.problems:
        shutil.rmtree(store)  # its room is for what comes
    return tally


def _one_kill(store: Path, draw: random.Random) -> list[Line]:
    """Let two workers save, kill both at one moment, and return what they said."""
    workers = [
        subprocess.Popen(
            command_of(
                "casckpt.cli.torture.worker", str(store), run, str(draw.getrandbits(30)),
                str(_ENDLESS),
            ),
            env=environment_of(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for run in _WORKERS
    ]  # fmt: skip
    said = ""
    try:
        # From the first word on: before it there is nothing to be lost.
        assert workers[0].stdout is not None
        said = workers[0].stdout.readline()
        time.sleep(draw.random() ** 2 * _KILL_AFTER_S)
    finally:
        for worker in workers:
            worker.kill()
        texts = [worker.communicate() for worker in workers]
    _refuse_full(store, texts[0][1] + texts[1][1])
    return parse(said + texts[0][0]) + parse(texts[1][0])


def _refuse_full(store: Path, stderr: str) -> None:
    """Raise NoSpace if a program that saves has ended for that, before anybody killed it."""
    word = room.word_of(stderr.splitlines())
    if word:
        raise NoSpace(f"cannot save into {store}", word)


# ---- power failures


def power(folder: Path, until_s: float, draw: random.Random, report: Report) -> Tally:
    """Replay what a power failure may leave of a working store, and look; until `until_s`.

    Raises:
        NoSpace: the room was used up, by whomever.
    """
    tally = Tally(skipped=trace.why_not())
    if tally.skipped:
        return tally
    looker = Looker()
    seen: set[bytes] = set()
    try:
        while not tally.problems and (tally.tried == 0 or time.monotonic() < until_s):
            log = _record(folder, draw.getrandbits(30))
            for disk, lines in _states(folder / "traced", log, draw):
                content = disk.fingerprint() + len(lines).to_bytes(4, "little")
                if content in seen:
                    continue
                seen.add(content)
                store = folder / "failed"
                disk.write_to(store)
                thorough = tally.tried % _THOROUGH_EVERY == 0
                tally.tried += 1
                tally.problems += looker.look(store, lines, thorough=thorough)
                tally.acknowledged += Expected(lines).acknowledged
                report(tally)
                if tally.problems or time.monotonic() > until_s:
                    break
    finally:
        looker.close()
    return tally


def _record(folder: Path, seed: int) -> list[trace.Operation]:
    """Run a worker under the tracer in an empty place; return what it did."""
    store, log = folder / "traced", folder / "log"
    shutil.rmtree(store, ignore_errors=True)
    worker = command_of("casckpt.cli.torture.worker", str(store), "a", str(seed), str(_OPERATIONS))
    done = subprocess.run(
        command_of("casckpt.cli.torture.trace", str(log), str(store), *worker),
        env=environment_of(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1"),
        capture_output=True,  # a pipe as stdout is what the tracer takes answers from
        text=True,
        check=False,
    )
    if done.returncode:
        _refuse_full(store, done.stderr)
        said = done.stderr.splitlines() or [f"it ended with status {done.returncode}"]
        raise OperationFailed("a program that saves could not be recorded", said[-1])
    return list(trace.read_log(log))


def _states(
    store: Path, log: list[trace.Operation], draw: random.Random
) -> Iterator[tuple[Any, list[Line]]]:
    """Yield what may be left, with what had been said by then.

    Failures come after flushes, after answers, and after some of the other operations: so many of
    them, from all over the log, that a recording gives about `_STATES`.
    """
    telling = sum(operation.kind in ("sync", "wsync", "said") for operation in log)
    points = telling + _SHARE * (len(log) - telling)
    chance = min(1.0, _STATES / (points * (_DRAWN + 2)))
    replay = Replay(store)
    said = ""
    for operation in log:
        if operation.kind == "said":
            said += operation.data.decode()
        else:
            replay.step(operation)
            if operation.kind not in ("sync", "wsync") and draw.random() > _SHARE:
                continue
        if draw.random() > chance:
            continue
        lines = parse(said)
        for disk in replay.crashes(draw, _DRAWN):
            yield disk, lines
