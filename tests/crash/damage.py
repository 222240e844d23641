"""Flipped bits, cut files and swapped sectors: never wrong data, never a signal, a typed error.

`flip:SEED` draws damages of a store; `flip:SEED:NUMBER` repeats one. After each a child, as a
user's program would, opens the store, restores everything, verifies and saves. What it reads is
the state that was saved, or an error of casckpt with an exit code. `rot:SEED` only reads, many
damages a child.
"""

from __future__ import annotations

import functools
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from casckpt.api import Store
from casckpt.errors import CasckptError, Corrupt
from casckpt.store import layout
from tests.crash import batch, oracle, scale
from tests.crash.acks import Expected
from tests.crash.points import Lab
from tests.crash.workloads import open_store, same, state

WORKLOAD = "compact"
_SECTOR = 512
# What holds no data: the lock files, and space kept free.
_SKIP = frozenset({layout.BALLAST_FILE, layout.LOCK_FILE, layout.GC_LOCK_FILE, "lock.mdb"})


def targets(place: Path) -> list[Path]:
    """Return the files whose damage may matter, in a fixed order."""
    found = (path for path in sorted(place.rglob("*")) if path.is_file())
    return [path for path in found if path.name not in _SKIP and path.stat().st_size > 0]


def _flip(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data))
    data[at] ^= 1 << draw.randrange(8)


def _many(data: bytearray, draw: random.Random) -> None:
    for _ in range(8):
        data[draw.randrange(len(data))] = draw.randrange(256)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _zero_sector(data: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(data)) // _SECTOR * _SECTOR
    end = min(at + _SECTOR, len(data))
    data[at:end] = bytes(end - at)


def _swap_sectors(data: bytearray, draw: random.Random) -> None:
    last = len(data) // _SECTOR
    if last < 2:
        _zero_sector(data, draw)
        return
    a, b = (_SECTOR * draw.randrange(last) for _ in range(2))
    data[a : a + _SECTOR], data[b : b + _SECTOR] = data[b : b + _SECTOR], data[a : a + _SECTOR]


def _page_head(data: bytearray, draw: random.Random) -> None:
    """Flip in the first bytes of a 4 KiB page: where LMDB keeps what it never checks."""
    at = draw.randrange(max(len(data) // 4096, 1)) * 4096 + draw.randrange(64)
    data[min(at, len(data) - 1)] ^= 1 << draw.randrange(8)


WAYS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _flip,
    _flip,
    _many,
    _cut,
    _zero_sector,
    _swap_sectors,
    _page_head,
)


def harm(place: Path, draw: random.Random) -> str:
    """Damage one file of a store; return what was done."""
    path, data, what = harmed(place, draw)
    path.write_bytes(data)
    return what


def harmed(place: Path, draw: random.Random) -> tuple[Path, bytearray, str]:
    """Return a file, what it holds after a damage, and words for that; small files as often."""
    kinds: dict[str, list[Path]] = {}
    for path in targets(place):
        kinds.setdefault(path.suffix or path.parent.name + path.name[:3], []).append(path)
    path = draw.choice(kinds[draw.choice(sorted(kinds))])
    data = bytearray(path.read_bytes())
    way = draw.choice(WAYS)
    way(data, draw)
    return path, data, f"{way.__name__} of {path.relative_to(place)}"


def run(
    lab: Lab, point: str, deadline: float | None, *, count: int = 200, first: bool = False
) -> tuple[list[tuple[str, str]], int]:
    """Carry out `flip:SEED` or `flip:SEED:NUMBER`; return the findings and how many were tried."""
    _, seed, *rest = point.split(":")
    numbers = [int(rest[0])] if rest else list(range(count))
    lab.reset(WORKLOAD)
    whole = lab.place.rename(lab.folder / "whole")
    bad: list[tuple[str, str]] = []
    done = 0
    try:
        for number in numbers:
            shutil.rmtree(lab.place, ignore_errors=True)
            shutil.copytree(whole, lab.place)
            what = harm(lab.place, random.Random(f"{seed} {number}"))
            said = oracle.in_child(lambda: _use(lab), lab.folder / "said")
            done += 1
            if said:
                bad.append((f"flip:{seed}:{number}", f"{said} after {what}"))
                if first:
                    break
            if deadline is not None and time.monotonic() > deadline:
                break
    finally:
        shutil.rmtree(whole)
    return bad, done


def rot(lab: Lab, point: str, *, count: int = 256) -> tuple[list[tuple[str, str]], int]:
    """Carry out `rot:SEED` or `rot:SEED:NUMBER`: damage, read everything, put back."""
    _, seed, *rest = point.split(":")
    numbers = [int(rest[0])] if rest else list(range(count))
    lab.reset(WORKLOAD)
    whole = {path: path.read_bytes() for path in targets(lab.place)}
    expected = Expected.read(lab.log)
    bad = []

    def look(number: int, walk: Callable[[], None]) -> None:
        path, data, _ = harmed(lab.place, random.Random(f"{seed} {number}"))
        walk()
        if lab.mutant is not None:
            lab.mutant()
        path.write_bytes(data)
        try:
            with open_store(lab.place, "r") as store:
                said = _restore_all(store, expected)
                if said and number % 8 == 0 and not store.verify("bytes").damaged:
                    raise oracle.Violation(f"I5: verify is clean, and a restore says: {said}")
        except CasckptError as exc:
            typed(exc)
        finally:
            path.write_bytes(whole[path])

    def put_back() -> None:
        for path, content in whole.items():
            if path.read_bytes() != content:
                path.write_bytes(content)

    def carry_out(these: list[int], walk: Callable[[], None]) -> list[str]:
        looks = [functools.partial(look, number, walk) for number in these]
        answers = batch.each(looks, lab.folder / "said", before=put_back)
        put_back()
        return answers

    for number, said in zip(numbers, carry_out(numbers, scale.walk_here), strict=True):
        # The product reads the index in a child first: what kills that one is found in time.
        again = carry_out([number], scale.fork_to_walk)[0] if "I5: signal" in said else said
        if again:
            bad.append((f"rot:{seed}:{number}", again))
    return bad, len(numbers)


def _use(lab: Lab) -> None:
    if lab.mutant is not None:
        lab.mutant()
    expected = Expected.read(lab.log)
    for mode in ("r", "a"):
        try:
            store = open_store(lab.place, mode)
        except CasckptError as exc:
            typed(exc)
            return
        harmed = _restore_all(store, expected)
        try:
            report = store.verify("bytes")
            if harmed and not report.damaged:
                raise oracle.Violation(f"I5: verify is clean, and a restore says: {harmed}")
            if mode == "a":
                store.save("after", state(70), 0)
                store.gc(now=True)
                if not same(store.restore("after@0"), state(70)):
                    raise oracle.Violation("I7: the save after the damage came back changed")
                later = _restore_all(store, expected)
                if later and not harmed:
                    raise oracle.Violation(f"I1: whole before the next save and gc, then: {later}")
        except CasckptError as exc:
            typed(exc)
        try:
            store.close()
        except CasckptError as exc:
            typed(exc)


def _restore_all(store: Store, expected: Expected) -> str:
    """Restore what was acknowledged; return the first typed error."""
    said = ""
    for (run, step), allowed in expected.live.items():
        seeds = [seed for seed in allowed if seed is not None]
        try:
            restored = store.restore(f"{run}@{step}")
        except CasckptError as exc:
            typed(exc)
            said = said or (f"{type(exc).__name__}: {exc}" if seeds else "")
            continue
        if not any(same(restored, state(seed)) for seed in seeds or range(100)):
            raise oracle.Violation(f"I7: {run}@{step} was restored, and is not what was saved")
    return said


def typed(exc: CasckptError) -> None:
    """Raise Violation unless an error has a class, and a way out where it needs one."""
    if exc.exit_code == CasckptError.exit_code:
        raise oracle.Violation(f"I5: an error without a class: {exc}")
    if isinstance(exc, Corrupt) and not exc.hint:
        raise oracle.Violation(f"I5: no way out in: {exc}")
