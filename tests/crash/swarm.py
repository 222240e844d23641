"""Many processes on one store: savers that are killed at random, gc and readers beside.

Each saver writes its own run and its own ack log. In the end every acknowledged checkpoint that was
not removed must come back to the last bit, and verify must be clean.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from casckpt.errors import Busy, CasckptError, Corrupt
from tests.crash import oracle
from tests.crash.acks import AckLog, Expected
from tests.crash.job import Job
from tests.crash.points import Lab
from tests.crash.workloads import User, open_store, same, state

_SEEDS = 60
# Seconds between two kills, at most: every other swarm lets its processes grow older.
_OFTEN, _SELDOM = 0.15, 1.0


def _saver(place: Path, log: AckLog, number: int, seed: int) -> None:
    """Save and delete in a run of our own until killed."""
    draw = random.Random(f"{seed} {number} {os.getpid()}")
    user = User(place, log)
    if not user.open():
        return
    assert user.store is not None
    run = f"run{number}"
    newest = user.store.latest(run)
    step = 0 if newest is None else newest.step + 1
    alive: list[int] = []
    while True:
        user.save(step, draw.randrange(_SEEDS), run=run)
        alive.append(step)
        step += 1
        if len(alive) > 3:
            user.delete(alive.pop(0), run=run)
        if draw.random() < 0.1:
            user.close()
            if not user.open():
                return


def _collector(place: Path, seed: int) -> None:
    draw = random.Random(seed)
    while True:
        try:
            with open_store(place) as store:
                for _ in range(3):
                    store.gc(now=True)
                    time.sleep(draw.random() * 0.05)
        except Busy:
            time.sleep(0.02)


def _reader(place: Path, seed: int) -> None:
    """Restore whatever is listed; what is removed meanwhile is gone, never damaged."""
    draw = random.Random(seed)
    while True:
        with open_store(place, "r") as store:
            found = store.checkpoints("*")
            for checkpoint in draw.sample(found, min(len(found), 5)):
                try:
                    restored = store.restore(checkpoint)
                except Corrupt:
                    raise
                except CasckptError:
                    continue
                if not any(same(restored, state(seed)) for seed in range(_SEEDS)):
                    raise oracle.Violation(f"I7: {checkpoint.ref} was read changed")
        time.sleep(0.01)


@dataclass
class Swarm:
    """The processes of one run."""

    lab: Lab
    seed: int
    savers: int = 3
    kills: int = 0
    bad: list[str] = field(default_factory=list)

    def run(self, seconds: float, saves: int | None = None) -> tuple[int, int, list[str]]:
        """Return (acknowledged saves, kills, findings); `saves` are enough to stop earlier."""
        place = self.lab.place
        with open_store(place):
            pass
        draw = random.Random(self.seed)
        jobs = [f"saver{number}" for number in range(self.savers)] + ["gc", "reader"]
        children = {job: self._start(job, 0) for job in jobs}
        until = time.monotonic() + seconds
        generation = 0
        longest = _SELDOM if self.seed % 2 else _OFTEN
        while time.monotonic() < until and (saves is None or self._acknowledged() < saves):
            time.sleep(draw.uniform(0.02, longest))
            self._notice(children)
            job = draw.choice(jobs)
            os.kill(children[job], signal.SIGKILL)
            os.waitpid(children[job], 0)
            self.kills += 1
            generation += 1
            children[job] = self._start(job, generation)
        for child in children.values():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        return self._judge()

    def _acknowledged(self) -> int:
        logs = [self.lab.folder / f"acks-{number}" for number in range(self.savers)]
        done = b'{"event": "done", "call": "save"'
        return sum(log.read_bytes().count(done) for log in logs if log.exists())

    def _start(self, job: str, generation: int) -> int:
        said = self.lab.folder / f"said-{job}"
        child = os.fork()
        if child:
            return child
        try:
            oracle._quiet()
            if self.lab.mutant is not None:
                self.lab.mutant()
            place = self.lab.place
            if job == "gc":
                _collector(place, self.seed + generation)
            elif job == "reader":
                _reader(place, self.seed + generation)
            else:
                number = int(job.removeprefix("saver"))
                log = AckLog(self.lab.folder / f"acks-{number}")
                _saver(place, log, number, self.seed + generation)
        except BaseException as exc:
            said.write_text(oracle._words(exc))
        finally:
            sys.stdout.flush()
            os._exit(1)

    def _notice(self, children: dict[str, int]) -> None:
        """A child never ends by itself but by an error, which is a finding."""
        generation = 10**6
        for job, child in children.items():
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                said = self.lab.folder / f"said-{job}"
                words = said.read_text() if said.exists() else f"wait status {status}"
                self.bad.append(f"{job} ended: {words}")
                children[job] = self._start(job, generation)

    def _judge(self) -> tuple[int, int, list[str]]:
        logs = [self.lab.folder / f"acks-{number}" for number in range(self.savers)]
        everything = [Expected.read(log) for log in logs]
        saves = sum(expected.done.count("save") for expected in everything)
        for expected in everything:
            self.bad += [f"I5: {text}" for text in expected.untyped]
            self.bad += [text for text in expected.errors if not _may_happen(text)]
        said = oracle.in_child(lambda: self._look(everything), self.lab.folder / "said", 120)
        return saves, self.kills, self.bad + ([said] if said else [])

    def _look(self, everything: list[Expected]) -> None:
        for expected in everything:
            oracle.check(self.lab.place, expected, thorough=False)
        with open_store(self.lab.place) as store:
            store.gc(now=True)
            store.gc(now=True)
        for expected in everything:
            oracle.check(self.lab.place, expected, thorough=False)


def _may_happen(error: str) -> bool:
    """A call may be told that somebody else holds the store; that is no loss."""
    return "(11)" in error.split(":")[1]


def run(lab: Lab, point: str, seconds: float) -> tuple[list[tuple[str, str]], int]:
    """Carry out `swarm:SEED`; return the findings and the number of acknowledged saves."""
    seed = int(point.partition(":")[2])
    _clear(lab)
    saves, kills, bad = Swarm(lab, seed).run(seconds)
    sys.stdout.write(f"{point}: {saves} acknowledged saves, {kills} kills\n")
    return [(point, said) for said in bad], saves


def row(job: Job) -> None:
    """Row 7: swarms of 8 savers, a collector and a reader, 200 acknowledged saves each at least."""
    savers = 4 if job.limit is not None else 8
    for _, seed in job.turns({"swarm": None}):
        _clear(job.lab)
        saves, kills, bad = Swarm(job.lab, seed, savers).run(60.0, saves=200)
        for said in bad:
            job.found(f"--replay swarm:{seed}", said)
        job.count(saves)
        job.count(kills, "kills")
        job.count(1, "swarms")


def _clear(lab: Lab) -> None:
    for old in (*lab.folder.glob("acks-*"), *lab.folder.glob("said-*")):
        old.unlink()
    shutil.rmtree(lab.place, ignore_errors=True)
