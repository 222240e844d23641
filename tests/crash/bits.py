"""Row 6: every bit of a small store, every truncation, and sectors that are zero, swapped or stale.

A child opens the damaged store, restores everything and, now and then, verifies it. What it gets
is what was saved, or an error with a class. `bits:WAY:NUMBER` repeats one damage: for `bit` the
number is that of the bit, counted through all files in the order of their names.
"""

from __future__ import annotations

import functools
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from casckpt.errors import CasckptError
from tests.crash import batch, damage, oracle, scale
from tests.crash.job import Job
from tests.crash.points import Lab
from tests.crash.workloads import open_store, same

_SECTOR = 512
_BATCH = 256
_STEPS = 2
_VERIFY_EVERY = 16


def _small(step: int) -> dict[str, Any]:
    return {"w": np.arange(step, step + 700, dtype=np.int32), "step": step, "text": "abc" * 20}


@dataclass
class SmallStore:
    """A whole store of a few kilobytes, as it is and as it was one save earlier."""

    lab: Lab

    def __post_init__(self) -> None:
        self.place = self.lab.place
        self.older: dict[Path, bytes] = {}
        shutil.rmtree(self.place, ignore_errors=True)
        said = oracle.in_child(lambda: self._save(range(_STEPS - 1)), self.lab.folder / "said")
        self.older = {path: path.read_bytes() for path in damage.targets(self.place)}
        said += oracle.in_child(lambda: self._save([_STEPS - 1]), self.lab.folder / "said")
        if said:
            raise RuntimeError(f"cannot make the small store: {said}")
        self.whole = {path: path.read_bytes() for path in damage.targets(self.place)}
        self._copy = self.lab.folder / "small"
        shutil.copytree(self.place, self._copy)

    def _save(self, steps: Any) -> None:
        scale.repeatable(f"small {steps}")
        with open_store(self.place) as store:
            for step in steps:
                store.save("run", _small(step), step)

    def locate(self, number: int, width: int = 1) -> tuple[Path, int]:
        """Return the file and the place in it of the unit `number`, `width` bytes each."""
        for path, content in self.whole.items():
            count = -(-len(content) // width)
            if number < count:
                return path, number
            number -= count
        raise IndexError(number)

    def count(self, width: int = 1) -> int:
        """Return how many units of `width` bytes all files have."""
        return sum(-(-len(content) // width) for content in self.whole.values())

    # ---- ways to damage: each returns the file and what it holds instead

    def bit(self, number: int) -> tuple[Path, bytes]:
        """Flip one bit."""
        path, at = self.locate(number // 8)
        data = bytearray(self.whole[path])
        data[at] ^= 1 << number % 8
        return path, bytes(data)

    def cut(self, number: int) -> tuple[Path, bytes]:
        """Cut a file at one byte."""
        path, at = self.locate(number)
        return path, self.whole[path][:at]

    def zero(self, number: int) -> tuple[Path, bytes]:
        """Lose a sector."""
        return self._sector(number, lambda path, at: bytes(_SECTOR))

    def swapped(self, number: int) -> tuple[Path, bytes]:
        """Put a sector's content where the next one belongs, and the other way round."""
        path, at = self.locate(number, _SECTOR)
        content = self.whole[path]
        a, b = content[at * _SECTOR : (at + 1) * _SECTOR], content[(at + 1) * _SECTOR :][:_SECTOR]
        end = at * _SECTOR + len(a) + len(b)
        return path, content[: at * _SECTOR] + b + a + content[end:]

    def stale(self, number: int) -> tuple[Path, bytes]:
        """Bring back what a sector held one save earlier."""
        return self._sector(
            number, lambda path, at: self.older.get(path, b"")[at : at + _SECTOR] or bytes(_SECTOR)
        )

    def misplaced(self, number: int) -> tuple[Path, bytes]:
        """Write a sector of another file over this one."""
        others = b"".join(content[-_SECTOR:].ljust(_SECTOR) for content in self.whole.values())
        at = number * 7919 % (len(others) - _SECTOR + 1)
        return self._sector(number, lambda path, _: others[at : at + _SECTOR])

    def _sector(self, number: int, other: Callable[[Path, int], bytes]) -> tuple[Path, bytes]:
        path, sector = self.locate(number, _SECTOR)
        content, at = self.whole[path], sector * _SECTOR
        length = len(content[at : at + _SECTOR])
        fresh = other(path, at)[:length].ljust(length, b"\0")
        return path, content[:at] + fresh + content[at + length :]

    # ---- looking

    def look(self, way: str, number: int, *, in_a_fork: bool) -> None:
        """Damage, open, restore, put back; raises Violation."""
        path, content = getattr(self, way)(number)
        if content == self.whole[path]:
            return
        if in_a_fork:
            scale.fork_to_walk()
        else:
            scale.walk_here()
        path.write_bytes(content)
        try:
            self._use(verify=number % _VERIFY_EVERY == 0)
        except CasckptError as exc:
            damage.typed(exc)
        finally:
            path.write_bytes(self.whole[path])

    def _use(self, *, verify: bool) -> None:
        with open_store(self.place, "r") as store:
            harmed = ""
            found = {checkpoint.step: checkpoint for checkpoint in store.checkpoints("run")}
            for step in range(_STEPS):
                if step not in found:
                    raise oracle.Violation(f"I1: run@{step} is gone without a word")
                try:
                    restored = store.restore(found[step])
                except CasckptError as exc:
                    damage.typed(exc)
                    harmed = f"{type(exc).__name__}: {exc}"
                    continue
                if not same(restored, _small(step)):
                    raise oracle.Violation(f"I7: run@{step} came back changed")
            if verify and harmed and not store.verify("bytes").damaged:
                raise oracle.Violation(f"I5: verify is clean, and a restore says: {harmed}")

    def lay_out(self) -> None:
        """Put the whole store in place again, where other damages were tried meanwhile."""
        if not all(path.exists() for path in self.whole):
            shutil.rmtree(self.place, ignore_errors=True)
            shutil.copytree(self._copy, self.place)

    def restore(self) -> None:
        """Undo what a child that died has left."""
        for path, content in self.whole.items():
            if path.read_bytes() != content:
                path.write_bytes(content)


WAYS = ("bit", "cut", "zero", "swapped", "stale", "misplaced")


def run(small: SmallStore, way: str, numbers: range) -> Iterator[tuple[str, str]]:
    """Try damages of one way; yield what was found with the point that repeats it."""
    looks = [functools.partial(small.look, way, number, in_a_fork=False) for number in numbers]
    answers = batch.each(looks, small.lab.folder / "said", before=small.restore)
    small.restore()
    for number, said in zip(numbers, answers, strict=True):
        if said.startswith("I5: signal"):
            # The index is read in a child first: what kills that child is found, not a finding.
            said = batch.each(
                [functools.partial(small.look, way, number, in_a_fork=True)],
                small.lab.folder / "said",
            )[0]
            small.restore()
        if said:
            path = getattr(small, way)(number)[0].relative_to(small.place)
            yield f"bits:{way}:{number}", f"{said} after {way} in {path}"


def total(small: SmallStore, way: str) -> int:
    """Return how many damages of a way there are."""
    if way in ("bit", "cut"):
        return small.count() * (8 if way == "bit" else 1)
    return small.count(_SECTOR)


def row(job: Job) -> None:
    """Every damage of the small store in runs of 256, then random ones of a larger store."""
    small = SmallStore(job.lab)
    every: dict[str, int | None] = {way: -(-total(small, way) // _BATCH) for way in WAYS}
    random: dict[str, int | None] = {"rot": None, "flip": None}
    short = job.limit is not None
    turns = (
        job.turns({**every, **random})
        if short
        else itertools.chain(job.turns(every), job.turns(random))
    )
    for way, number in turns:
        if way in WAYS:
            small.lay_out()
            numbers = range(number * _BATCH, min((number + 1) * _BATCH, total(small, way)))
            found, tried = list(run(small, way, numbers)), len(numbers)
        elif way == "rot":
            found, tried = damage.rot(job.lab, f"rot:{number}")
        else:
            found, tried = damage.run(job.lab, f"flip:{number}", None, count=8)
        for where, said in found:
            job.found(f"--replay {where}", said)
        job.count(tried)
        job.count(tried, way)


def replay(lab: Lab, point: str) -> list[tuple[str, str]]:
    """Carry out `bits:WAY:NUMBER`."""
    _, way, number = point.split(":")
    return list(run(SmallStore(lab), way, range(int(number), int(number) + 1)))
