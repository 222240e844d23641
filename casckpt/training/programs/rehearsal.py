"""Whether a command resumes exactly: run whole, and killed and run again, it must end the same.

Each time it gets a store of its own through CASCKPT_STORE, and `{store}` in its arguments stands
for that store's path.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.diffs import Change, diff_of
from casckpt.checkpoint.places import ENVIRONMENT, is_store
from casckpt.errors import BadRequest, OperationFailed
from casckpt.supervised import SUPERVISOR
from casckpt.training import results
from casckpt.training.lines import read_record
from casckpt.training.stages import rows as stage_rows

if TYPE_CHECKING:
    from typing import BinaryIO

    from casckpt.api import Store
    from casckpt.checkpoint.records import Checkpoint

PLACEHOLDER: Final = "{store}"

_POLL_S: Final = 0.02
_SHARES: Final = (0.3, 1.3)
"""When a kill comes, in parts of the work: each start loads again, so most get on by less."""

_TAIL_BYTES: Final = 2000

_EXCEPTION: Final = re.compile(r"[A-Za-z_][\w.]*: \S")

Tell = Callable[[str], None]
Opener = Callable[[Path], "Store"]


@dataclass(frozen=True)
class Session:
    """One start of the command.

    Attributes:
        code: exit code, or minus the signal that ended it.
        ran_s: how long it ran.
        ready_s: how long it took until the store was there.
        killed: whether our kill ended it.
    """

    code: int
    ran_s: float
    ready_s: float
    killed: bool = False


@dataclass(frozen=True)
class Comparison:
    """One run, as it ended in both stores.

    Attributes:
        run: its name.
        step: step of its last checkpoint in the whole run; None without one.
        equal_count: paths of the state, and results of stages, that are the same.
        changes: those that are not; None in one of them says that it is missing there.
    """

    run: str
    step: int | None
    equal_count: int
    changes: tuple[Change, ...]

    @property
    def is_same(self) -> bool:
        """Whether every bit is the same."""
        return not self.changes


@dataclass(frozen=True)
class Rehearsal:
    """What came of it.

    Attributes:
        whole: the uninterrupted run.
        sessions: the interrupted one, start by start.
        runs: the comparison, run by run.
        repeatable: whether two uninterrupted runs are the same; None if that was not tried.
    """

    whole: Session
    sessions: tuple[Session, ...]
    runs: tuple[Comparison, ...]
    repeatable: bool | None = None

    @property
    def kills(self) -> int:
        """How many kills ended the command at work."""
        return sum(one.killed for one in self.sessions)

    @property
    def is_same(self) -> bool:
        """Whether the interrupted run ended as the uninterrupted one."""
        return all(one.is_same for one in self.runs)


def rehearse(
    argv: Sequence[str],
    folder: Path,
    *,
    kills: int,
    seed: int,
    open_store: Opener,
    tell: Tell = lambda text: None,
) -> Rehearsal:
    """Run a command whole, then killed and run again, and compare what both leave.

    Args:
        argv: the command.
        folder: for stores and logs; exists.
        kills: how often to kill it.
        seed: of the moments.
        open_store: opens a store for reading.
        tell: called with what happens.

    Raises:
        BadRequest: it cannot be started, or leaves nothing in the store it is given.
        OperationFailed: it fails when nothing interrupts it, or no kill came in time.
    """
    whole = _run(argv, folder, "whole")
    _check(whole, folder, "whole", "the command failed by itself")
    if not is_store(folder / "whole"):
        raise BadRequest(
            "the command did not use the store it was given",
            f"nothing is at the place that {ENVIRONMENT} named",
            f"open os.environ[{ENVIRONMENT!r}] in it, or pass its path: --checkpoint-dir {{store}}",
        )
    if not _is_anything_left(folder / "whole", open_store):
        raise BadRequest(
            "nothing to compare",
            "the command saved no checkpoint and no result of a stage in the store it was given",
            "train in run.epochs or save with run.save, long enough for one save",
        )
    tell(f"whole: {whole.ran_s:.1f} s")
    dice = random.Random(seed)
    part_s = max(0.0, whole.ran_s - whole.ready_s) / (kills + 1)
    sessions: list[Session] = []
    for number in range(1, kills + 1):
        moment_s = whole.ready_s + part_s * dice.uniform(*_SHARES)
        sessions.append(_run(argv, folder, "killed", kill_after_s=moment_s))
        if not sessions[-1].killed:
            _check(sessions[-1], folder, "killed", "the command failed when it was run again")
            break
        tell(f"kill {number} of {kills} landed after {sessions[-1].ran_s:.1f} s")
    if sessions[-1].killed:
        sessions.append(_run(argv, folder, "killed"))
        _check(sessions[-1], folder, "killed", "the command failed when it was run again")
        tell(f"run again to its end: {sessions[-1].ran_s:.1f} s")
    if not any(one.killed for one in sessions):
        raise OperationFailed(
            "no kill landed",
            f"the command takes {whole.ran_s:.1f} s, most of it before it opens its store",
            "make it work longer, such as more epochs",
        )
    runs = compare(folder / "whole", folder / "killed", open_store)
    repeatable = None
    if not all(one.is_same for one in runs):
        tell("there are differences: is it the same when nothing interrupts it?")
        again = _run(argv, folder, "again")
        _check(again, folder, "again", "the command failed by itself")
        repeated = compare(folder / "whole", folder / "again", open_store)
        repeatable = all(one.is_same for one in repeated)
    return Rehearsal(whole, tuple(sessions), runs, repeatable)


def _is_anything_left(path: Path, open_store: Opener) -> bool:
    """Return whether a store holds anything that `compare` looks at."""
    with open_store(path) as store:
        return any(
            info.last is not None or _stage_results(store, info.name) for info in store.runs()
        )


def compare(first: Path, second: Path, open_store: Opener) -> tuple[Comparison, ...]:
    """Return how the runs of two stores ended, run by run, those of the first one's names."""
    with contextlib.ExitStack() as stack:
        a, b = (stack.enter_context(open_store(path)) for path in (first, second))
        names = {one.name for one in a.runs()}
        names |= {one.name for one in b.runs()}
        return tuple(_compare_run(a, b, name) for name in sorted(names))


def _compare_run(a: Store, b: Store, name: str) -> Comparison:
    changes: list[Change] = []
    equal_count = 0
    last_a, last_b = _last(a, name), _last(b, name)
    if last_a is not None and last_b is not None:
        found = diff_of(
            a._repository, a._catalog, last_a, last_b, other=(b._repository, b._catalog)
        )
        changes += [*found.changed, *found.added, *found.removed]
        equal_count += found.equal_count
        if last_a.position != last_b.position:
            changes.append(Change("(last step)", str(last_a.step), str(last_b.step)))
    elif last_a is not last_b:
        before, after = (None if last is None else last.ref for last in (last_a, last_b))
        changes.append(Change("(last checkpoint)", before, after))
    stages_a, stages_b = _stage_results(a, name), _stage_results(b, name)
    for key in sorted({*stages_a, *stages_b}):
        if stages_a.get(key) == stages_b.get(key):
            equal_count += 1
        else:
            before, after = (one[key][0] if key in one else None for one in (stages_a, stages_b))
            changes.append(Change("(result of a stage)", before, after))
    step = last_a.step if last_a is not None else None
    return Comparison(name, step, equal_count, tuple(changes))


def _last(store: Store, name: str) -> Checkpoint | None:
    info = next(iter(store.runs(name)), None)
    return None if info is None else info.last


def _stage_results(store: Store, name: str) -> dict[bytes, tuple[str, object, object]]:
    """Return the results of a run's stages, without the numbers beside them: those may be times."""
    repository = store._repository
    line = read_record(repository, name).current
    found: dict[bytes, tuple[str, object, object]] = {}
    for key, row in stage_rows.result_rows(repository, name, line):
        _, about = results.parse(row)
        found[key] = about[0], about[2:], row.roots
    return found


def _run(
    argv: Sequence[str], folder: Path, name: str, *, kill_after_s: float | None = None
) -> Session:
    store = folder / name
    words = [word.replace(PLACEHOLDER, str(store)) for word in argv]
    variables = {key: value for key, value in os.environ.items() if key != SUPERVISOR}
    with (
        (folder / f"{name}.log").open("ab") as log,
        _started(words, variables, store, log) as child,
    ):
        began_s = time.monotonic()
        ready_s: float | None = None
        killed = False
        while (code := child.poll()) is None:
            ran_s = time.monotonic() - began_s
            if ready_s is None and is_store(store):
                ready_s = ran_s
            if kill_after_s is not None and ran_s >= kill_after_s:
                killed = _kill(child)
                code = child.wait()
                break
            time.sleep(_POLL_S)
        ran_s = time.monotonic() - began_s
    # The command may have ended by itself in the same moment.
    return Session(code, ran_s, ready_s or 0.0, killed and code == -signal.SIGKILL)


@contextmanager
def _started(
    words: Sequence[str], variables: dict[str, str], store: Path, log: BinaryIO
) -> Iterator[subprocess.Popen[bytes]]:
    """Start the command in a group of its own, and leave nothing of it behind."""
    try:
        child = subprocess.Popen(
            words,
            env={**variables, ENVIRONMENT: str(store)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except (OSError, ValueError) as exc:
        reason = str(getattr(exc, "strerror", None) or exc)
        raise BadRequest(
            f"cannot start {words[0]}", reason, "write the command as in a terminal, after --"
        ) from exc
    try:
        yield child
    finally:
        _kill(child)
        child.wait()


def _kill(child: subprocess.Popen[bytes]) -> bool:
    """Kill the command and everything it started; return whether it was there."""
    was_alive = child.poll() is None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    return was_alive


def _check(session: Session, folder: Path, name: str, what: str) -> None:
    if session.code == 0:
        return
    raise OperationFailed(
        f"{what}: exit code {session.code}",
        _last_words(folder / f"{name}.log"),
        "run it by hand; with --scratch DIR its output stays in DIR",
    )


def _last_words(log: Path) -> str:
    """Return the line of a log that most likely says what went wrong: an exception's first."""
    lines = log.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip().splitlines()
    found = [line for line in lines if _EXCEPTION.match(line)]
    return (found or lines or ["it printed nothing"])[-1]
