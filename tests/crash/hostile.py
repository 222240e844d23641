"""Row 10: stores made to harm whoever opens them, and the same stores damaged at random.

An attack changes a whole store of three checkpoints. Then a child does to it what a user might:
list, restore, verify, save, collect, export, rebuild. Each call must give what was saved, or raise
an error with a class; nothing outside the store may change, no signal, no hang, and memory stays
within the size of the store and 64 MiB. `hostile:NAME` repeats an attack;
`hostile:NAME:SEED` damages it further first.
"""

from __future__ import annotations

import functools
import os
import random
import resource
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casckpt.api import repair_store
from casckpt.errors import CasckptError
from casckpt.store import layout
from tests.crash import attacks, batch, damage, oracle, scale, shim
from tests.crash.job import Job
from tests.crash.points import Lab
from tests.crash.workloads import open_store, same
from tests.crash.workloads import state as large_state

SPARE_BYTES = 64 * layout.MIB
_HANG_S = 60
_SEEDS = {0: 10, 1: 20, 2: 11}
_SWEPT = 128


def state(seed: int) -> dict[str, Any]:
    """Return a tenth of the state of a seed: every part of it, in a chunk or two each."""
    return {
        name: value[: len(value) // 10] if hasattr(value, "__len__") else value
        for name, value in large_state(seed).items()
    }


@dataclass
class Range:
    """A place for attacks: the store, and a folder beside it that nobody may touch."""

    lab: Lab
    healthy_bytes: int = 0

    def __post_init__(self) -> None:
        self.place = self.lab.place
        self.outside = self.lab.folder / "outside"
        self.whole = self.lab.folder / "whole"
        said = oracle.in_child(self._prepare, self.lab.folder / "said")
        if said:
            raise RuntimeError(f"cannot prepare the store to attack: {said}")
        for seed in (*_SEEDS.values(), 70):
            state(seed)
        said, self.healthy_bytes = self._exercise(rewrites=False)
        if said:
            raise RuntimeError(f"the store fails without an attack: {said}")

    def _prepare(self) -> None:
        with open_store(self.whole) as store:
            for step, seed in _SEEDS.items():
                store.save("run", state(seed), step)

    def _fresh(self) -> None:
        for folder in (self.place, self.outside):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.whole, self.place)
        self.outside.mkdir()
        (self.outside / "precious").write_bytes(b"precious" * 1000)
        (self.outside / "folder").mkdir()

    def attack(self, name: str, seed: int | None = None) -> str:
        """Carry out one attack; return "" or what went wrong."""
        if said := self._make(name):
            return said
        attack = attacks.ATTACKS[name]
        if seed is not None and (whole := _damageable(self.place)):
            path, data = _damaged(whole, name, seed)
            path.write_bytes(data)
        before = _facts(self.outside)
        said, grown = self._exercise(rewrites=attack.rewrites)
        allowed = _size(self.place) + SPARE_BYTES + self.healthy_bytes
        if _facts(self.outside) != before:
            return "what lies outside the store was changed"
        if not said and grown > allowed:
            return f"memory grew by {grown >> 20} MiB, {allowed >> 20} MiB are allowed"
        return said

    def _make(self, name: str) -> str:
        """Attack a fresh store; return "" or why that is not possible."""
        self._fresh()
        target = attacks.Target(self.place, self.outside)
        work = attacks.ATTACKS[name].work
        said = oracle.in_child(lambda: work(target), self.lab.folder / "said")
        return f"cannot make the attack: {said}" if said else ""

    def sweep(self, name: str, seeds: range) -> list[tuple[int, str]]:
        """Make one attack and read the store with each damage on top; return what was found.

        What is found is done again alone, and in full, before it counts.
        """
        if said := self._make(name):
            return [(seeds[0], said)]
        whole = _damageable(self.place)
        if not whole:
            return []
        before = _facts(self.outside)
        allowed = _size(self.place) + SPARE_BYTES + self.healthy_bytes

        def look(seed: int) -> None:
            scale.walk_here()
            path, data = _damaged(whole, name, seed)
            path.write_bytes(data)
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            began = _peak_bytes()
            try:
                _read(self.place, attacks.ATTACKS[name].rewrites)
            except CasckptError as exc:
                damage.typed(exc)
            finally:
                path.write_bytes(whole[path])
            if (grown := _peak_bytes() - began) > allowed:
                raise oracle.Violation(f"memory grew by {grown >> 20} MiB")

        def put_back() -> None:
            for path, content in whole.items():
                path.write_bytes(content)

        looks = [functools.partial(look, seed) for seed in seeds]
        answers = batch.each(looks, self.lab.folder / "said", _HANG_S, put_back)
        suspects = [seed for seed, said in zip(seeds, answers, strict=True) if said]
        if _facts(self.outside) != before:
            suspects = list(seeds)
        # The product reads an index in a child first: what kills that one is found in time.
        return [(seed, said) for seed in suspects if (said := self.attack(name, seed))]

    def _exercise(self, *, rewrites: bool) -> tuple[str, int]:
        """Use the store at `place` in a child; return what went wrong, and its growth in bytes."""
        if self.healthy_bytes == 0 and not self.place.exists():
            self._fresh()
        report = self.lab.folder / "grown"
        report.write_text("0")

        def work() -> None:
            scale.fork_to_walk()
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
            began = _peak_bytes()
            try:
                use(self.place, rewrites=rewrites)
            finally:
                report.write_text(str(_peak_bytes() - began))

        said = oracle.in_child(work, self.lab.folder / "said", _HANG_S)
        return said, int(report.read_text() or 0)


def _peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _facts(folder: Path) -> list[object]:
    return [
        (path, path.lstat().st_mtime_ns, path.lstat().st_mode, path.lstat().st_size)
        for path in sorted(folder.rglob("*"))
    ]


def _size(place: Path) -> int:
    return sum(p.lstat().st_blocks * 512 for p in place.rglob("*") if not p.is_symlink())


def _damageable(place: Path) -> dict[Path, bytes]:
    """Return what the files hold that random damage may strike."""
    whole = (p for p in damage.targets(place) if not p.is_symlink() and p.stat().st_size < 1 << 24)
    return {path: path.read_bytes() for path in whole}


def _damaged(whole: dict[Path, bytes], name: str, seed: int) -> tuple[Path, bytearray]:
    draw = random.Random(f"{name} {seed}")
    path = draw.choice(list(whole))
    data = bytearray(whole[path])
    draw.choice(damage.WAYS)(data, draw)
    return path, data


# ---- what a user does


def use(place: Path, *, rewrites: bool) -> None:
    """Do everything; each step on its own, so that one that is refused hides no other."""
    for step in (_read, _write, _export, _rebuild, _read):
        try:
            step(place, rewrites)
        except CasckptError as exc:
            damage.typed(exc)


def _each(*calls: Callable[[], object]) -> None:
    for call in calls:
        try:
            call()
        except CasckptError as exc:
            damage.typed(exc)


def _read(place: Path, rewrites: bool) -> None:
    with open_store(place, "r") as store:
        found = store.checkpoints("*")

        def restore(checkpoint: object) -> None:
            restored = store.restore(checkpoint)
            here = _SEEDS.get(checkpoint.step) if checkpoint.run == "run" else None
            if here is not None and not rewrites and not same(restored, state(here)):
                raise oracle.Violation(f"I7: {checkpoint.ref} came back changed")

        _each(*(lambda c=c: restore(c) for c in found[:20]))
        _each(lambda: store.runs(), lambda: store.verify("bytes"))
        _each(*(lambda c=c: store.get(c.ref) for c in found[:20]))


def _write(place: Path, rewrites: bool) -> None:
    with open_store(place) as store:
        store.save("after", state(70), 0)
        if not same(store.restore("after@0"), state(70)):
            raise oracle.Violation("I7: the save after the attack came back changed")
        _each(lambda: store.gc(now=True), lambda: store.delete("run@0"), lambda: store.gc(now=True))
        if not same(store.restore("after@0"), state(70)):
            raise oracle.Violation("I1: the save after the attack did not survive a collection")


def _export(place: Path, rewrites: bool) -> None:
    with open_store(place, "r") as store:
        for checkpoint in store.checkpoints("*")[:5]:
            out = place.with_name("exported")
            shutil.rmtree(out, ignore_errors=True)
            _each(lambda c=checkpoint, o=out: store.export(c, o / "x.npz"))
            shutil.rmtree(out, ignore_errors=True)


def _rebuild(place: Path, rewrites: bool) -> None:
    repair_store(place, rebuild_index=True)


# ---- the row


def row(job: Job) -> None:
    """Every attack once, then each with damage on top, seed by seed."""
    if os.geteuid() != 0:
        job.skipped("attacks with device files", "needs root")
    target = Range(job.lab)
    names = sorted(attacks.ATTACKS)
    for kind, number in job.turns({"attack": len(names), "fuzz": None}):
        name, found, count = names[number % len(names)], [], 1
        if kind == "attack":
            found += [(f"hostile:{name}", said)] if (said := target.attack(name)) else []
        else:
            seeds = range(number // len(names) * _SWEPT, (number // len(names) + 1) * _SWEPT)
            bad = target.sweep(name, seeds) if job.limit is None else []
            # One of them in full: it saves, collects, exports and rebuilds as well.
            alone = seeds[number % _SWEPT]
            bad += [(alone, said)] if (said := target.attack(name, alone)) else []
            found += [(f"hostile:{name}:{seed}", said) for seed, said in bad]
            count = len(seeds) if job.limit is None else 1
        for point, said in found:
            job.found(f"--replay '{point}'", said)
        job.count(count)
        job.count(count, kind)


def replay(lab: Lab, point: str) -> list[tuple[str, str]]:
    """Carry out `hostile:NAME` or `hostile:NAME:SEED`."""
    shim.disarm()
    _, name, *seed = point.split(":")
    said = Range(lab).attack(name, int(seed[0]) if seed else None)
    return [(point, said)] if said else []
