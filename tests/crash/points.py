"""One fault at one operation of one workload, and what was left of the store.

A point is a line of text that repeats it: `kill:gc:17`, `again:gc:17:5`, `error:gc:17:ENOSPC:once`,
`short:gc:17:ever`, `lie:gc:17:once`, `none:gc`.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from casckpt.store import layout
from tests.crash import batch, interleave, oracle, scale, shim, threadless
from tests.crash.acks import AckLog, Expected
from tests.crash.workloads import WORKLOADS, Repair, rebuild, state

if TYPE_CHECKING:
    from tests.crash.job import Job

ERRNOS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "EROFS", "EMFILE", "ESTALE")
_EINTR_TIMES = 40  # Python and LMDB repeat an interrupted call, so "for ever" would be for ever
_TOGETHER = 16
Mutant = Callable[[], None]
Look = Callable[[Path], None]


def scratch_folder() -> Path:
    """Return a new folder, in memory where there is such a file system: flushes are free there."""
    memory = Path("/dev/shm")
    base = memory if memory.is_dir() and os.access(memory, os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="casckpt-crash-", dir=base))


@dataclass
class Lab:
    """Templates of prepared stores, and a place to break copies of them."""

    folder: Path = field(default_factory=scratch_folder)
    mutant: Mutant | None = None
    _kinds: dict[str, list[str]] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The store of the point at work."""
        return self.folder / "store"

    @property
    def log(self) -> Path:
        """What its workload was told."""
        return self.folder / "acks"

    def close(self) -> None:
        """Remove everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def template(self, workload: str) -> Path:
        """Return the prepared store of a workload, with its ack log beside it."""
        made = self.folder / f"template-{workload}"
        log = made.with_suffix(".acks")
        if not log.exists():

            def prepare() -> None:
                scale.repeatable(f"prepare {workload}")
                WORKLOADS[workload].prepare(made, AckLog(log))

            log.touch()
            said = oracle.in_child(prepare, self.folder / "said")
            warm(log)
            if said or Expected.read(log).errors:
                why = said or Expected.read(log).errors
                raise RuntimeError(f"cannot prepare {workload}: {why}")
        return made

    def reset(self, workload: str) -> None:
        """Put a fresh copy of the prepared store in place."""
        made = self.template(workload)
        shutil.rmtree(self.place, ignore_errors=True)
        if made.exists():
            shutil.copytree(made, self.place)
        shutil.copyfile(made.with_suffix(".acks"), self.log)
        for leftover in self.folder.glob("store-*"):
            leftover.unlink()

    def run(self, workload: str, fault: tuple[int, int, int, int], trace: str = "") -> str:
        """Run a workload in a child under a fault; return "" or why that alone is a finding."""
        kind, first, last, number = fault

        def work() -> None:
            scale.repeatable(f"run {workload}")
            if self.mutant is not None:
                self.mutant()
            log = AckLog(self.log)
            shim.arm(self.place, kind, first, last, number, trace)
            WORKLOADS[workload].run(self.place, log)
            operations = shim.count()
            shim.disarm()
            log.finish(operations)

        said = oracle.in_child(work, self.folder / "said")
        if said == f"I5: signal {signal.SIGKILL.name}" and kind == shim.KILL:
            return ""
        return said

    def operations(self, workload: str) -> list[str]:
        """Return what kind of call each operation of a workload is when nothing goes wrong."""
        if workload not in self._kinds:
            self.reset(workload)
            trace = self.folder / "operations"
            trace.unlink(missing_ok=True)
            said = self.run(workload, (shim.COUNT, 1, shim.EVER, 0), str(trace))
            expected = Expected.read(self.log)
            if said or expected.operations is None or expected.errors:
                raise RuntimeError(f"{workload} fails without a fault: {said or expected.errors}")
            warm(self.log)
            kinds = [entry.path for entry in shim.read_log(trace) if entry.name == "op"]
            self._kinds[workload] = kinds
        return self._kinds[workload]

    def judge(self, workload: str, *, repair: Repair | None = None) -> str:
        """Return "" if the store at `place` is as it must be, else what is wrong."""
        look = self._look(workload, repair=repair)
        return oracle.in_child(lambda: look(self.place), self.folder / "said")

    def _look(self, workload: str, *, repair: Repair | None = None) -> Look:
        """Return what looks at a store, wherever it is by then, with what the log says now."""
        expected = Expected.read(self.log)

        def look(place: Path) -> None:
            scale.walk_here()
            threadless.switch_off()
            scale.repeatable(f"look {workload}")
            if self.mutant is not None:
                self.mutant()
            must = repair or WORKLOADS[workload].repair
            oracle.check(place, expected, repair=must)

        return look

    # ---- points

    def point(self, text: str) -> str:
        """Carry a point out; return "" or what went wrong."""
        return self.points([text])[0]

    def points(self, texts: list[str]) -> list[str]:
        """Carry points out, each in a process of its own, and look at what they left in one.

        A look that ends in a signal or hangs is told from the others, and the rest go on in the
        next process (`batch.py`).
        """
        answers, looks, looked = [], [], []
        for number, text in enumerate(texts):
            said, look = self._strike(text)
            answers.append(said)
            if look is not None and not said:
                struck = self.folder / f"struck-{number}"
                shutil.rmtree(struck, ignore_errors=True)
                if self.place.exists():
                    self.place.rename(struck)
                looks.append(functools.partial(look, struck))
                looked.append(number)
        for number, said in zip(looked, batch.each(looks, self.folder / "said"), strict=True):
            answers[number] = said
        return answers

    def _strike(self, text: str) -> tuple[str, Look | None]:
        """Let the fault happen; return what was wrong already, and who looks at what it left."""
        kind, workload, *rest = text.split(":")
        if kind == "beside":
            return self._beside(workload), None
        self.reset(workload)
        if kind == "lost":
            return self._lose_index(workload, int(rest[0]))
        if kind == "none":
            said = self.run(workload, (shim.COUNT, 1, shim.EVER, 0))
        elif kind == "again":
            return self._kill_again(workload, int(rest[0]), int(rest[1]))
        elif kind == "kill":
            said = self.run(workload, (shim.KILL, int(rest[0]), int(rest[0]), 0))
        else:
            said = self.run(workload, _fault(kind, int(rest[0]), rest[1:]))
        return said, self._look(workload)

    def _kill_again(self, workload: str, first: int, second: int) -> tuple[str, Look]:
        """Kill the workload, then kill whoever comes after it (I6)."""
        said = self.run(workload, (shim.KILL, first, first, 0))
        expected = Expected.read(self.log)

        def recover() -> None:
            scale.repeatable(f"recover {workload}")
            if self.mutant is not None:
                self.mutant()
            shim.arm(self.place, shim.KILL, second, second)
            oracle.check(self.place, expected, repair=WORKLOADS[workload].repair)

        said = said or oracle.in_child(recover, self.folder / "said")
        if said == f"I5: signal {signal.SIGKILL.name}":
            said = ""
        # The recovery that was killed may have saved: then the next one's own save finds it there.
        with self.log.open("a") as log:
            log.write('{"event": "begin", "call": "save", "run": "after", "step": 0, "seed": 70}\n')
        return said, self._look(workload)

    def _lose_index(self, workload: str, at: int) -> tuple[str, Look]:
        """Kill the workload and lose the index too, which is then rebuilt from the packs."""
        said = self.run(workload, (shim.KILL, at, at, 0))
        if said or not (self.place / layout.FORMAT_FILE).exists():
            return said, self._look(workload)
        for index in self.place.glob(f"{layout.INDEX_PREFIX}*"):
            shutil.rmtree(index)
        after = WORKLOADS[workload].repair

        def repair(place: Path) -> None:
            rebuild(place)
            if after is not None:
                after(place)

        return "", self._look(workload, repair=repair)

    def _beside(self, scenario: str) -> str:
        """Run a scenario of `interleave.py`."""

        def work() -> None:
            scale.repeatable(f"beside {scenario}")
            if self.mutant is not None:
                self.mutant()
            interleave.run(self.place, scenario)

        shutil.rmtree(self.place, ignore_errors=True)
        return oracle.in_child(work, self.folder / "said")


def warm(log: Path) -> None:
    """Make the states that a log names, here and not in every child."""
    for line in log.read_text().splitlines():
        if "seed" in (facts := json.loads(line)):
            state(facts["seed"])
    state(70)


def _fault(kind: str, at: int, rest: list[str]) -> tuple[int, int, int, int]:
    last = at if rest[-1] == "once" else shim.EVER
    if kind == "lie":
        return shim.LIE, at, last, 0
    if kind == "short":
        return shim.SHORT, at, last, 0
    number = getattr(errno, rest[0])
    if number == errno.EINTR and last != at:
        last = at + _EINTR_TIMES
    return shim.ERROR, at, last, number


def points_of(kind: str, lab: Lab, workload: str) -> list[str]:
    """Return every point of a kind in a workload; for `again` one second kill in eight."""
    calls = lab.operations(workload)
    every = range(1, len(calls) + 1)
    if kind == "lost":
        if WORKLOADS[workload].harmed:
            return []
        # One past the end: nothing was killed, and the index is lost all the same.
        return [f"lost:{workload}:{at}" for at in (*every, len(every) + 50)]
    if kind == "kill":
        return [f"kill:{workload}:{at}" for at in every]
    if kind == "none":
        return [f"none:{workload}"]
    if kind in ("short", "lie"):
        struck = "write" if kind == "short" else "sync"
        return [
            f"{kind}:{workload}:{at}:{how}"
            for at in every
            for how in ("once", "ever")
            if calls[at - 1] == struck
        ]
    if kind == "error":
        return [
            f"error:{workload}:{at}:{name}:{how}"
            for at in every
            for name in ERRNOS
            for how in ("once", "ever")
        ]
    return [f"again:{workload}:{a}:{b}" for a in every for b in range(1 + a % 8, 140, 8)]


# ---- rows 1 and 4 of the campaign


def kills_row(job: Job) -> None:
    """Row 1: a kill before every operation, a second one in the recovery, and a lost index."""
    points = {kind: _shuffled(kind, job.lab) for kind in ("kill", "again", "lost")}
    _every_point(job, points)


def errors_row(job: Job) -> None:
    """Row 4: every operation and error, short writes, flushes that fail and lose what they held."""
    points = {kind: _shuffled(kind, job.lab) for kind in ("error", "short", "lie")}
    _every_point(job, points)


def _shuffled(kind: str, lab: Lab) -> list[str]:
    """Return every point of a kind in all workloads, in an order that is the same each time."""
    points = [point for name in WORKLOADS for point in points_of(kind, lab, name)]
    random.Random(kind).shuffle(points)
    return points


def _every_point(job: Job, points: dict[str, list[str]]) -> None:
    totals: dict[str, int | None] = {kind: len(entries) for kind, entries in points.items()}
    for units in job.batches(totals, _TOGETHER):
        texts = [points[kind][number] for kind, number in units]
        for text, said in zip(texts, job.lab.points(texts), strict=True):
            if said:
                job.found(f"--replay {text}", said)
        for kind, _ in units:
            job.count()
            job.count(name=kind)
