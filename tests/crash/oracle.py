"""Look at a store after a fault, as its next user would, and say what breaks I1 to I8."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import select
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from casckpt.api import Store
from casckpt.errors import CasckptError, StoreBusy
from casckpt.store import layout, rows
from tests.crash import shim
from tests.crash.acks import Expected
from tests.crash.workloads import EPOCHS, ITEMS, Repair, open_store, result_of, same, state

HANG_S = 60
_COLLECTION_S = 30
_TICKS = os.sysconf("SC_CLK_TCK")


class Violation(Exception):
    """An invariant does not hold."""


def check(
    place: Path,
    expected: Expected,
    *,
    repair: Repair | None = None,
    thorough: bool = True,
    verify: bool = True,
) -> None:
    """Raise Violation, or whatever the store raised, unless all is well.

    `repair` comes first where the store was broken before the workload began. `verify` reads
    what nobody was promised, too. `thorough` goes on to work in the store: it saves, collects, and
    looks at everything again.
    """
    if expected.untyped:
        raise Violation(f"I5: an error that is not casckpt's: {expected.untyped[0]}")
    if not place.exists() or (not expected.live and not (place / layout.FORMAT_FILE).exists()):
        _fresh(place, expected)
        return
    if repair:
        repair(place)
    with open_store(place) as store:
        _all_there(store, expected)
        if verify:
            _clean(store, "after recovery")
        if not thorough:
            return
        _carried_on(store, expected)
        store.save("after", state(70), 0)
        if repair or expected.rebuilt:
            store._repository.accept_rebuild()
        _collect(store)
        _all_there(store, expected)
        _same_state(store.restore("after@0"), 70, "the save after recovery")
        _clean(store, "after the next save and gc")
    # A file without a whole header belongs to nobody after a rebuild: reported, and kept.
    _accounted(place, strangers=repair is not None or expected.rebuilt)
    with open_store(place, "r") as store:
        _all_there(store, expected)


def _collect(store: Store) -> None:
    """Collect; where a clock was wrong, the save before it may have begun a collection already."""
    until = time.monotonic() + _COLLECTION_S
    while True:
        try:
            store.gc(now=True)
            return
        except StoreBusy:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _fresh(place: Path, expected: Expected) -> None:
    """There is no store, which is right if nobody was told that there is one; make it now."""
    if "open" in expected.done:
        raise Violation("I1: the store that was opened is gone")
    with open_store(place) as store:
        store.save("after", state(70), 0)
    with open_store(place, "r") as store:
        _same_state(store.restore("after@0"), 70, "the first save")


def _all_there(store: Store, expected: Expected) -> None:
    found = {(ck.run, ck.step): ck for ck in store.checkpoints("*")}
    for place, allowed in expected.live.items():
        checkpoint = found.pop(place, None)
        if checkpoint is None:
            if None not in allowed:
                raise Violation(f"I1: {place} was acknowledged and is gone")
            continue
        seeds = sorted(seed for seed in allowed if seed is not None)
        if not seeds:
            raise Violation(f"I2: {place} is live and was removed")
        restored = store.restore(checkpoint)
        if not any(same(restored, state(seed)) for seed in seeds):
            raise Violation(f"I1: {place} is not what was saved")
        for tag, sure in expected.tags.get(place, {}).items():
            if sure and tag not in checkpoint.tags:
                raise Violation(f"I1: {place} has lost its tag {tag}")
        for name, value in expected.metrics.get(place, {}).items():
            if checkpoint.metrics.get(name) != value:
                raise Violation(f"I1: {place} has lost its metric {name}")
    for (run, step), checkpoint in found.items():
        if run == "run":
            raise Violation(f"I2: nobody saved {run}@{step}")
        store.restore(checkpoint)  # I3: whatever is listed can be read


def _carried_on(store: Store, expected: Expected) -> None:
    """Do what is left of a stage and of a training: what was acknowledged is not done again."""
    if "result" in expected.begun:
        with store.run("job") as run:
            stage = run.stage("items", ITEMS)
            for key, item in stage:
                if key in expected.results:
                    raise Violation(f"I1: the result of item {key} was acknowledged and is gone")
                stage.done(key, result_of(item))
            for item, result in zip(ITEMS, stage.results(), strict=True):
                if not np.array_equal(result, result_of(item)):
                    raise Violation(f"I7: the result of item {item} came back changed")
    if "train" in expected.begun:
        if "train" in expected.done and len(store.history("job").get("loss", [])) != EPOCHS:
            raise Violation("I1: rows of the log were acknowledged and are gone")
        kept: dict[str, list[int]] = {"epochs": []}
        with store.run("job") as run:
            for epoch in run.epochs(EPOCHS, kept, save_every=1):
                kept["epochs"].append(epoch)
                run.log(loss=epoch / 2)
        epochs = list(range(1, EPOCHS + 1))
        found = [(step, value) for step, value in store.history("job")["loss"]]
        if found != [(epoch, epoch / 2) for epoch in epochs] or kept["epochs"] != epochs:
            raise Violation(f"I7: the training went on with {found}, {kept['epochs']}")


def _same_state(restored: object, seed: int, what: str) -> None:
    if not same(restored, state(seed)):
        raise Violation(f"I7: {what} came back changed")


def _clean(store: Store, when: str) -> None:
    for problem in store._repository.verify("bytes").damaged:
        raise Violation(f"I5: {when} verify says: {problem.pack} {problem.message}")


def _accounted(place: Path, *, strangers: bool) -> None:
    """I4: once all is closed and collected, every pack is registered, and no session is left."""
    with open_store(place, "r") as store:
        with store._repository._shared().environment.read() as tx:
            packs = [rows.PackRow.decode(value) for _, value in tx.scan("packs")]
        known = {row.uuid.hex() for row in packs}
        for path in (place / layout.PACKS_FOLDER).glob("*/*"):
            if not strangers and path.name.removesuffix(layout.PACK_SUFFIX) not in known:
                raise Violation(f"I4: nobody knows the pack {path.name}")
        for row in packs:
            if row.state != rows.LIVE:
                raise Violation(f"I4: pack {row.uuid.hex()} is left in state {row.state}")
    # The lock of a run stays: who removes it may remove another's.
    names = (path.name for path in (place / layout.SESSIONS_FOLDER).iterdir())
    left = [name for name in names if not name.startswith("run-")]
    if left:
        raise Violation(f"I4: sessions are left: {left}")


# ---- in a child, since a broken store may kill whoever looks at it


def in_child(work: Callable[[], None], said: Path, hang_s: float = HANG_S) -> str:
    """Run `work` in a fork; return "" if it came back, else what went wrong."""
    child = start(work, said)
    if waits(child, hang_s):
        return verdict(os.waitpid(child, 0)[1], said)
    return hung(child, said, hang_s)


def start(work: Callable[[], None], said: Path) -> int:
    """Run `work` in a fork, which leaves in `said` what it raised; return its pid."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        _quiet()
        stack = said.with_suffix(".stack").open("w")
        faulthandler.enable(stack)
        faulthandler.register(signal.SIGUSR1, stack)
        work()
        status = 0
    except BaseException as exc:
        with contextlib.suppress(OSError):
            said.write_text(_words(exc))
    finally:
        os._exit(status)


def verdict(status: int, said: Path) -> str:
    """Return "" for the wait status of a child that came to its end, else what went wrong."""
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        # Of SIGKILL, which most points end by, nobody can tell.
        return f"I5: signal {name}" + ("" if name == "SIGKILL" else f" at {_where(said)}")
    if status != 0:
        return said.read_text() if said.exists() else f"status {status}"
    return ""


def _words(exc: BaseException) -> str:
    where = traceback.extract_tb(exc.__traceback__)
    last = next((f for f in reversed(where) if "casckpt/casckpt" in f.filename), where[-1])
    place = f"{Path(last.filename).name}:{last.lineno}"
    if isinstance(exc, Violation):
        return str(exc)
    if isinstance(exc, CasckptError):
        return f"I8: {type(exc).__name__}: {' / '.join(str(exc).splitlines())} ({place})"
    return f"I5: {type(exc).__name__}: {exc} ({place})"


def waits(child: int, hang_s: float) -> bool:
    """Wait until a child can be reaped; return whether it came to its end in time."""
    with _pidfd(child) as descriptor:
        return readable(descriptor, hang_s, child)


def readable(descriptor: int, hang_s: float, child: int) -> bool:
    """Wait for a descriptor until a child has stood still, or computed, for so long.

    On a busy machine time alone says nothing: while a thread of it is ready to run and is not let,
    only the time that it does get counts. A pause of the whole machine counts as a second.
    """
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    counted, cpu_s = 0.0, 0.0
    while counted < max(hang_s, 1):
        if poller.poll(min(hang_s, 1) * 1000):
            return True
        ready, now_s = _at_work(child)
        counted += now_s - cpu_s if ready else 1.0
        cpu_s = now_s
    return False


def _at_work(process: int) -> tuple[bool, float]:
    """Tell whether a process, or a child of it, is ready to run, and what CPU time it had."""
    ready, ticks = False, 0
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            facts = (thread / "stat").read_text().rpartition(") ")[2].split()
            ready |= facts[0] == "R"
            ticks += int(facts[11]) + int(facts[12])
            for other in (thread / "children").read_text().split():
                below, cpu_s = _at_work(int(other))
                ready |= below
                ticks += round(cpu_s * _TICKS)
    return ready, ticks / _TICKS


def hung(child: int, said: Path, hang_s: float) -> str:
    """Kill a child that hangs, and say where its threads were."""
    os.kill(child, signal.SIGUSR1)
    waits(child, 5)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"I8: it hung for {hang_s:g} s at {_where(said)}"


def _where(said: Path) -> str:
    """Return where the threads of a child were when it was killed, as it has told itself."""
    stack = said.with_suffix(".stack")
    text = stack.read_text() if stack.exists() else ""
    frames = re.findall(r'File ".*/(.+?)", line (\d+) in (\S+)', text)
    return ", ".join(f"{file}:{line} {name}" for file, line, name in frames[:12]) or "no place told"


@contextlib.contextmanager
def _pidfd(child: int) -> Iterator[int]:
    descriptor = os.pidfd_open(child)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _quiet() -> None:
    import logging

    logging.disable(logging.CRITICAL)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    shim.disarm()
