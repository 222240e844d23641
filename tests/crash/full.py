"""Row 5: file systems that are really full, with free space in steps of 4 KiB, or out of inodes.

A point is `full:SYSTEM:STEP`. A store is filled up to the step; a save then works or says that
there is no room; removing and collecting work; and with the space back, so does the next save.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from casckpt.errors import CasckptError, NoSpace
from tests.crash import oracle, scale
from tests.crash.job import Job
from tests.crash.points import Lab
from tests.crash.workloads import open_store, same, state

STEPS = 65
_KIB = 1024
_TMPFS = ["mount", "-t", "tmpfs", "-o"]
_SEEDS = {0: 10, 1: 20, 2: 30, 3: 11}
_KEPT = {step: seed for step, seed in _SEEDS.items() if step != 1}


def missing(system: str) -> str:
    """Return why a file system cannot be tried here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    kind = system.partition("-")[0]
    if kind != "tmpfs" and shutil.which(f"mkfs.{kind}") is None:
        return f"needs mkfs.{kind}"
    return ""


@contextmanager
def mounted(lab: Lab, system: str) -> Iterator[Path]:
    """Yield a folder on a small new file system of a kind: tmpfs, ext4, btrfs, or NAME-inodes."""
    kind, _, few_inodes = system.partition("-")
    place = lab.folder / "disk"
    place.mkdir(exist_ok=True)
    if kind == "tmpfs":
        limit = "size=8M,nr_inodes=90" if few_inodes else "size=8M"
        command = [*_TMPFS, limit, "casckpt", str(place)]
    else:
        image = lab.folder / "image"
        with image.open("wb") as file:
            file.truncate((120 if kind == "btrfs" else 16) << 20)
        how = ["-q", "-F", "-O", "^has_journal", *(["-N", "96"] if few_inodes else [])]
        make = [f"mkfs.{kind}", *(how if kind == "ext4" else []), str(image)]
        subprocess.run(make, check=True, capture_output=True)
        command = ["mount", "-o", "loop", str(image), str(place)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(disk: Path, system: str, step: int) -> None:
    filler = disk / "filler"
    filler.mkdir()
    if system.endswith("inodes"):
        free = os.statvfs(disk).f_ffree
        for number in range(max(free - step, 0)):
            (filler / f"{number}").touch()
        return
    with (filler / "space").open("wb", buffering=0) as file:
        length = 0
        for size in (1024 * _KIB, 64 * _KIB, 4 * _KIB):
            with suppress(OSError):
                while True:
                    os.posix_fallocate(file.fileno(), length, size)
                    length += size
        file.truncate(max(length - step * 4 * _KIB, 0))


def point(lab: Lab, text: str) -> str:
    """Carry out `full:SYSTEM:STEP`; return "" or what went wrong."""
    _, system, step = text.split(":")
    if why := missing(system):
        return f"SKIPPED: {why}"
    with mounted(lab, system) as disk:
        place, said = disk / "store", lab.folder / "said"
        parts = (
            lambda: _prepare(place),
            lambda: _fill(disk, system, int(step)),
            lambda: _work_on_full(place),
        )
        for part in parts:
            if words := oracle.in_child(part, said):
                return words
        shutil.rmtree(disk / "filler")
        return oracle.in_child(lambda: _work_again(place), said)


def _prepare(place: Path) -> None:
    for step, seed in _SEEDS.items():
        with open_store(place) as store:  # a pack each
            store.save("run", state(seed), step)


def _work_on_full(place: Path) -> None:
    scale.fork_to_walk()
    saved = _try(place, lambda store: store.save("more", state(40), 0))
    _all_there(place, _SEEDS)
    removed = _try(place, lambda store: store.delete("run@1"))
    collected = _try(place, lambda store: store.gc(now=True))
    if not (removed and collected):
        what = "collected" if removed else "removed"
        raise oracle.Violation(f"I8: nothing can be {what} on a full disk")
    _all_there(place, _KEPT)
    if saved:
        with open_store(place, "r") as store:
            if not same(store.restore("more@0"), state(40)):
                raise oracle.Violation("I1: the save on the full disk is not what was saved")


def _try(place: Path, work: object) -> bool:
    """Return whether the work was done; False if there was no room for it."""
    try:
        with open_store(place) as store:
            work(store)
    except NoSpace:
        return False
    return True


def _all_there(place: Path, steps: dict[int, int]) -> None:
    with open_store(place, "r") as store:
        for step, seed in steps.items():
            if not same(store.restore(f"run@{step}"), state(seed)):
                raise oracle.Violation(f"I1: run@{step} is not what was saved")
        for problem in store._repository.verify("bytes").damaged:
            raise oracle.Violation(f"I5: verify says: {problem.pack} {problem.message}")


def _work_again(place: Path) -> None:
    scale.fork_to_walk()
    try:
        with open_store(place) as store:
            store.save("after", state(70), 0)
            store.gc(now=True)
            if not same(store.restore("after@0"), state(70)):
                raise oracle.Violation("I1: the save after the full disk is not what was saved")
    except CasckptError as exc:
        raise oracle.Violation(f"I8: no save although there is space again: {exc}") from exc
    _all_there(place, _KEPT)


def row(job: Job) -> None:
    """Every step of free space, or of free inodes, on every file system that can be had here."""
    totals: dict[str, int | None] = {}
    for system in ("tmpfs", "ext4", "btrfs", "tmpfs-inodes", "ext4-inodes"):
        if job.limit is not None and system != "tmpfs":
            continue
        if why := missing(system):
            job.skipped(f"a full {system}", why)
        else:
            totals[system] = STEPS
    for system, number in job.turns(totals):
        text = f"full:{system}:{number}"
        try:
            said = point(job.lab, text)
        except subprocess.CalledProcessError as exc:
            job.skipped(f"a full {system}", f"cannot mount it: {exc.stderr!r}")
            return
        if said:
            job.found(f"--replay {text}", said)
        job.count()
        job.count(name=system)
