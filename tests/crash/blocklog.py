"""Row 3: power loss on real file systems, from the log of the blocks that they wrote.

A workload runs on ext4, XFS or btrfs over a disk that keeps a log (`blockdevice.py`). What a power
failure may leave is the disk at a flush, with any of the writes since then: none, all, some, in
sectors of 512 bytes. The kernel mounts each such disk, which replays the file system's journal,
and the store on it is looked at. `blocks:SYSTEM:WORKLOAD:SEED:NUMBER` repeats one.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash import batch, blockdevice, oracle, scale, shim
from tests.crash.acks import AckLog, Expected
from tests.crash.job import Job
from tests.crash.points import Lab, warm
from tests.crash.replay import Part, Replay
from tests.crash.workloads import WORKLOADS

MIB = 1 << 20
_BATCH = 32
WORKLOADS_HERE = ("first_save", "dedup_save", "delete", "gc", "compact", "save_and_gc", "reopen")
MAKE = {
    "ext4": (16, ["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
    "xfs": (32, ["mkfs.xfs", "-q", "-f"]),
    # Above 64 MiB there is room for a second superblock.
    "btrfs": (66, ["mkfs.btrfs", "-q", "-f", "--mixed", "-m", "single", "-d", "single"]),
}
# A superblock of several sectors that was torn has a wrong checksum until this program comes; its
# status is not above `_MENDED` then.
_MENDERS = {
    "ext4": ({errno.EBADMSG, errno.EUCLEAN}, ["e2fsck", "-fy"]),
    "btrfs": ({errno.EINVAL}, ["btrfs", "rescue", "super-recover", "-y"]),
}
_MENDED = 2
_UNMOUNTABLE = "I5: UnmountableError: "  # as the child that looked words it
# mkfs.xfs makes no file system below 300 MB but for its own tests, which say so like this.
_SMALL_XFS = {"TEST_DIR": "1", "TEST_DEV": "1", "QA_CHECK_FS": "1"}


def missing(system: str) -> str:
    """Return why a file system cannot be tried here, or an empty string."""
    if why := blockdevice.missing():
        return why
    if system not in Path("/proc/filesystems").read_text().split():
        return f"needs a kernel with {system}"
    program = MAKE[system][1][0]
    return "" if shutil.which(program) else f"needs {program}"


class UnmountableError(Exception):
    """A torn superblock that the file system's own program does not mend: no store to look at."""


class _CountingLog(AckLog):
    """Notes with each line how many records the disk had seen by then."""

    def __init__(self, path: Path, disk: blockdevice.LoggedDisk, notes: Path) -> None:
        super().__init__(path)
        self._disk = disk
        self._notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def _line(self, **facts: Any) -> None:
        os.write(self._notes, f"{self._disk.count}\t{json.dumps(facts)}\n".encode())
        super()._line(**facts)


@dataclass
class Recording:
    """What one workload wrote to a disk with one file system."""

    lab: Lab
    system: str
    workload: str
    start: Path
    records: list[tuple[int, bytes]]
    lines: list[str]
    notes: list[tuple[int, str]]

    @staticmethod
    def make(lab: Lab, system: str, workload: str) -> Recording:
        """Run the workload once; its prepared store was on the disk before."""
        lab.reset(workload)
        start = _folder(lab, f"start-{system}-{workload}")
        image = start / "disk"
        size, command = MAKE[system]
        with image.open("wb") as file:
            file.truncate(size * MIB)
        how = {**os.environ, **_SMALL_XFS}
        subprocess.run([*command, image], check=True, capture_output=True, env=how)
        target = _folder(lab, "mounted")
        with blockdevice.mounted(image, target, system):
            if lab.place.exists():
                shutil.copytree(lab.place, target / "store")
            os.sync()
        lines = lab.log.read_text().splitlines()
        disk = blockdevice.LoggedDisk(image, lab.folder)
        notes = lab.folder / "notes"

        def work() -> None:
            scale.repeatable(f"run {workload}")
            if lab.mutant is not None:
                lab.mutant()
            log = _CountingLog(lab.log, disk, notes)
            WORKLOADS[workload].run(target / "store", log)

        with disk.serving() as file, blockdevice.mounted(file, target, system):
            said = oracle.in_child(work, lab.folder / "said")
            os.sync()
        if said:
            raise RuntimeError(f"{workload} fails on {system}: {said}")
        warm(lab.log)
        told = [line.split("\t", 1) for line in notes.read_text().splitlines()]
        return Recording(
            lab,
            system,
            workload,
            start,
            list(disk.records()),
            lines,
            [(int(count), text) for count, text in told],
        )

    def states(
        self, seed: int, seen: set[bytes], share: float
    ) -> Iterator[tuple[int, Replay, tuple[Part, ...], list[str]]]:
        """Yield (number, replay, parts, answers) of states that are not in `seen`; adds them."""
        draw = random.Random(f"{self.system} {self.workload} {seed}")
        replay = Replay(self.lab.folder / "disk-root", draw)
        replay.start_from(self.start)
        path = str(replay.root / "disk")
        number = 0
        for done, (offset, data) in enumerate(self.records, 1):
            name = "write" if data else "sync"
            replay.step(shim.Operation(name, path, "", offset, data))
            if data and draw.random() > share:
                continue
            lines = [*self.lines, *(text for count, text in self.notes if count <= done)]
            for parts in replay.crashes(2):
                number += 1
                key = f"{self.system} {self.workload} {len(lines)} {replay.flushes} {parts}"
                short = hashlib.blake2b(key.encode(), digest_size=8).digest()
                if short not in seen:
                    seen.add(short)
                    yield number, replay, parts, lines


@contextmanager
def _as_found(image: Path, target: Path, system: str) -> Iterator[bool]:
    """Mount a disk as it was found, or where its superblock was torn, after the system's repair.

    Yields whether that went back behind what was flushed: the copy of its superblock that btrfs
    takes then is of its last full commit, and knows nothing of the log that flushes go to.
    """
    went_back = False
    with ExitStack() as stack:
        try:
            stack.enter_context(blockdevice.mounted(image, target, system))
        except OSError as exc:
            went_back = system == "btrfs"
            signs, program = _MENDERS.get(system, (set(), []))
            if exc.errno not in signs:
                raise
            done = subprocess.run([*program, image], capture_output=True, check=False)
            try:
                if done.returncode > _MENDED:
                    raise
                stack.enter_context(blockdevice.mounted(image, target, system))
            except OSError as still:
                raise UnmountableError(
                    f"after {program[0]}, which ended with {done.returncode}"
                ) from still
        yield went_back


def _folder(lab: Lab, name: str) -> Path:
    folder = lab.folder / name
    folder.mkdir(exist_ok=True)
    return folder


@dataclass
class Looker:
    """Looks at the states of one recording."""

    recording: Recording
    share: float = 0.3
    only: int | None = None
    count: int = 0
    unmountable: int = 0

    def __post_init__(self) -> None:
        self.seen: set[bytes] = set()

    def pass_over(self, seed: int) -> None:
        """Take the states of a seed as looked at."""
        for _ in self.recording.states(seed, self.seen, self.share):
            pass

    def looks(self, seed: int) -> Iterator[list[tuple[str, str]]]:
        """Look at the states of a seed; yield the findings, one batch at a time."""
        names: list[str] = []
        looks: list[batch.Look] = []
        about = f"blocks:{self.recording.system}:{self.recording.workload}:{seed}"
        for number, replay, parts, lines in self.recording.states(seed, self.seen, self.share):
            if self.only is not None and number != self.only:
                continue
            content = replay.disk(parts).files[1]
            names.append(f"{about}:{number}")
            looks.append(functools.partial(self._look, content, tuple(lines), number))
            if len(looks) == _BATCH:
                yield self._batch(names, looks)
                names, looks = [], []
        yield self._batch(names, looks)

    def _batch(self, names: list[str], looks: list[batch.Look]) -> list[tuple[str, str]]:
        lab = self.recording.lab
        target = lab.folder / "mounted"
        said = lab.folder / "said"
        answers = batch.each(looks, said, before=lambda: blockdevice.unmount(target))
        lost = [answer.startswith(_UNMOUNTABLE) for answer in answers]
        self.unmountable += sum(lost)
        self.count += len(answers) - sum(lost)
        told = zip(names, answers, lost, strict=True)
        return [(name, answer) for name, answer, gone in told if answer and not gone]

    def _look(self, content: bytearray, lines: tuple[str, ...], number: int) -> None:
        lab = self.recording.lab
        if lab.mutant is not None:
            lab.mutant()
        scale.walk_here()
        # A new file each time: the device over the last one goes when it is no longer in use.
        image = lab.folder / "image"
        image.unlink(missing_ok=True)
        image.write_bytes(content)
        told = [json.loads(line) for line in lines]
        target = lab.folder / "mounted"
        with _as_found(image, target, self.recording.system) as went_back:
            if went_back:
                told = [_unanswered(line) for line in told]
            oracle.check(
                target / "store",
                Expected(told),
                repair=WORKLOADS[self.recording.workload].repair,
                thorough=number % 4 == 0,
                verify=number % 2 == 0,
            )


def _unanswered(line: dict[str, Any]) -> dict[str, Any]:
    """Return what a call was, as if it had not returned: what it did may be there, or not."""
    return {**line, "event": "begin"} if line["event"] == "done" else line


def replay(lab: Lab, point: str) -> tuple[list[tuple[str, str]], int]:
    """Carry out `blocks:SYSTEM:WORKLOAD:SEED` or one state of it, `...:NUMBER`."""
    _, system, workload, seed, *rest = point.split(":")
    shim.disarm()
    looker = Looker(Recording.make(lab, system, workload), only=int(rest[0]) if rest else None)
    found = [bad for bads in looker.looks(int(seed)) for bad in bads]
    return found, looker.count


def row(job: Job) -> None:
    """Seeds of every workload on every file system by turns; ext4 ten times as often."""
    shim.disarm()
    systems: dict[str, int | None] = {}
    for system in MAKE:
        if why := missing(system):
            job.skipped(f"the block log of {system}", why)
        elif job.limit is None or system == "ext4":
            systems[system] = None
    lookers: dict[tuple[str, str], Looker] = {}
    for system, number in job.turns(systems):
        if system != "ext4" and number % 8:
            continue
        turn = number if system == "ext4" else number // 8
        workload = WORKLOADS_HERE[turn % len(WORKLOADS_HERE)]
        looker = lookers.get((system, workload))
        if looker is None:
            looker = Looker(Recording.make(job.lab, system, workload))
            lookers[system, workload] = looker
        before, unmountable = looker.count, looker.unmountable
        for bads in looker.looks(turn):
            for where, said in bads:
                job.found(f"--replay {where}", said)
            if job.limit is not None and looker.count - before > job.limit:
                break
        job.count(looker.count - before)
        job.count(looker.count - before, system)
        if looker.unmountable > unmountable:
            job.count(looker.unmountable - unmountable, f"{system} that does not mount")
