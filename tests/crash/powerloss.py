"""A workload's operations, the stores that a power failure in their midst may leave, and a look.

The states come from `replay.py`. Each is looked at once, whatever seed draws it again, and is told
from the others by its bytes as well.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.crash import batch, oracle, scale, shim
from tests.crash.acks import Expected
from tests.crash.job import Job
from tests.crash.points import Lab, warm
from tests.crash.replay import FOLDER, Disk, Part, Replay
from tests.crash.workloads import WORKLOADS

_BATCH = 96
# What writes in an order that matters; the rest goes through the same code.
POWER_WORKLOADS = (
    "init",
    "first_save",
    "dedup_save",
    "delete",
    "gc",
    "compact",
    "turn_chains",
    "save_and_gc",
    "rebuild",
    "reopen",
)


@dataclass
class Recording:
    """The operations of one workload, and the store they began with."""

    lab: Lab
    workload: str
    start: Path
    lines: list[str]
    operations: list[shim.Operation]

    @staticmethod
    def make(lab: Lab, workload: str) -> Recording:
        """Run the workload once, without a fault."""
        lab.reset(workload)
        lines = lab.log.read_text().splitlines()
        trace = lab.folder / "trace"
        trace.unlink(missing_ok=True)
        said = lab.run(workload, (shim.COUNT, 1, shim.EVER, 0), str(trace))
        if said:
            raise RuntimeError(f"{workload} fails without a fault: {said}")
        start = lab.template(workload)
        warm(lab.log)
        operations = [entry for entry in shim.read_log(trace) if entry.name != "op"]
        return Recording(lab, workload, start, lines, operations)

    def states(
        self, seed: int, seen: set[bytes], share: float, drawn: int = 2
    ) -> Iterator[tuple[int, Replay, tuple[Part, ...], list[str]]]:
        """Yield (number, replay, parts, answers) of states that are not in `seen`; adds them.

        Crashes follow every flush, every answer that the workload got, and `share` of the other
        operations. What is drawn depends on the seed and the order of operations alone.
        """
        draw = random.Random(f"{self.workload} {seed}")
        replay = Replay(self.lab.place, draw)
        replay.start_from(self.start)
        lines = list(self.lines)
        number = 0
        for operation in self.operations:
            if operation.name == "note":
                lines.append(operation.path)
            else:
                replay.step(operation)
                if operation.name != "sync" and draw.random() > share:
                    continue
            for parts in replay.crashes(drawn):
                number += 1
                key = f"{self.workload} {len(lines)} {replay.flushes} {parts}".encode()
                short = hashlib.blake2b(key, digest_size=8).digest()
                if short not in seen:
                    seen.add(short)
                    yield number, replay, parts, lines


def run(
    lab: Lab, point: str, deadline: float | None, *, share: float = 0.15, first: bool = False
) -> tuple[list[tuple[str, str]], int]:
    """Carry out `power:WORKLOAD:SEED`; return the findings, and how many states were looked at.

    `power:WORKLOAD:SEED:NUMBER` repeats the state with that number alone.
    """
    _, workload, seed, *rest = point.split(":")
    only = int(rest[0]) if rest else None
    looker = Looker(lab, Recording.make(lab, workload), share, only)
    bad: list[tuple[str, str]] = []
    for found in looker.looks(int(seed)):
        bad += found
        if (first and bad) or (deadline is not None and time.monotonic() > deadline):
            break
    return bad, looker.count


@dataclass
class Looker:
    """Looks at the states of one recording, each once, whatever the seed that drew it."""

    lab: Lab
    recording: Recording
    share: float = 0.15
    only: int | None = None
    count: int = 0

    def __post_init__(self) -> None:
        self.seen: set[bytes] = set()
        self._contents: set[bytes] = set()

    def pass_over(self, seed: int) -> None:
        """Take the states of a seed as looked at."""
        for _ in self.recording.states(seed, self.seen, self.share):
            pass

    def looks(self, seed: int) -> Iterator[list[tuple[str, str]]]:
        """Look at the states of a seed; yield the findings, one batch at a time."""
        names: list[str] = []
        looks: list[batch.Look] = []
        workload = self.recording.workload
        for number, replay, parts, lines in self.recording.states(seed, self.seen, self.share):
            if self.only is not None and number != self.only:
                continue
            disk = replay.disk(parts)
            content = disk.fingerprint() + len(lines).to_bytes(4, "big")
            if content in self._contents:
                continue
            self._contents.add(content)
            names.append(f"power:{workload}:{seed}:{number}")
            looks.append(functools.partial(self._look, disk, tuple(lines), number))
            if len(looks) == _BATCH:
                yield self._batch(names, looks)
                names, looks = [], []
        yield self._batch(names, looks)

    def _batch(self, names: list[str], looks: list[batch.Look]) -> list[tuple[str, str]]:
        answers = batch.each(looks, self.lab.folder / "said")
        self.count += len(answers)
        return [(name, said) for name, said in zip(names, answers, strict=True) if said]

    def _look(self, disk: Disk, lines: tuple[str, ...], number: int) -> None:
        if self.lab.mutant is not None:
            self.lab.mutant()
        scale.walk_here()
        disk.write_to(self.lab.place)
        expected = Expected([json.loads(line) for line in lines])
        oracle.check(
            self.lab.place,
            expected,
            repair=WORKLOADS[self.recording.workload].repair,
            thorough=number % 12 == 0,
            verify=number % 4 == 0,
        )


def unseen(lab: Lab, workload: str) -> list[str]:
    """Return the files in which a whole replay differs from the disk: calls the shim missed."""
    recording = Recording.make(lab, workload)
    replay = Replay(lab.place, random.Random(0))
    replay.start_from(recording.start)
    for operation in recording.operations:
        if operation.name != "note":
            replay.step(operation)
    real = {str(p.relative_to(lab.place)): p for p in lab.place.rglob("*") if p.is_file()}
    replayed = {name for name, inode in replay.now.names.items() if inode != FOLDER}
    changed = [
        name
        for name in replayed & real.keys()
        if replay.now.files.get(replay.now.names[name], b"") != real[name].read_bytes()
    ]
    # LMDB writes its lock file through a memory map; nothing in it outlives a boot.
    different = {*changed, *(replayed ^ real.keys())}
    return sorted(name for name in different if not name.endswith("lock.mdb"))


def row(job: Job) -> None:
    """Row 2: seeds of every workload by turns."""
    lookers: dict[str, Looker] = {}
    for workload, seed in job.turns(dict.fromkeys(POWER_WORKLOADS)):
        if workload not in lookers:
            for name in unseen(job.lab, workload):
                job.found(f"--replay power:{workload}:0", f"the log of {workload} misses {name}")
            lookers[workload] = Looker(job.lab, Recording.make(job.lab, workload))
            for earlier in job.done(workload):
                lookers[workload].pass_over(earlier)
        looker = lookers[workload]
        before = looker.count
        for bad in looker.looks(seed):
            for where, said in bad:
                job.found(f"--replay {where}", said)
        job.count(looker.count - before)
        job.count(looker.count - before, workload)
