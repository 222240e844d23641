"""Row 8: no memory, the OOM killer, a stopped holder of locks, forks, and clocks that jump.

A point is `alloc:WORKLOAD:N` (allocation N of Python fails), `oom:WORKLOAD:KIB` (so much memory in
a control group), `stop:WORKLOAD:N` (stopped before operation N while others work),
`clock:WORKLOAD:SEED` or `fork:SEED`.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import pkgutil
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from casckpt.errors import Busy, Corrupt
from casckpt.store import opening, writer_lock
from tests.crash import oracle, scale, shim
from tests.crash.acks import AckLog, Expected
from tests.crash.job import Job
from tests.crash.points import Lab
from tests.crash.workloads import WORKLOADS, User, open_store, state

ALLOCATING = ("first_save", "dedup_save", "delete", "gc", "compact", "rebuild", "reopen")
_GROUPS = Path("/sys/fs/cgroup/memory")
_PYTHON_WAITS = "Python waits for itself"
_JUMPS_S = (-20 * 365 * 86400, -30 * 86400, -3600, -1, 1, 3600, 30 * 86400, 20 * 365 * 86400)


def point(lab: Lab, text: str) -> str:
    """Carry a point out; return "" or what went wrong."""
    said = _point(lab, text)
    return "" if said == _PYTHON_WAITS else said


def _point(lab: Lab, text: str) -> str:
    kind, name, *rest = text.split(":")
    if kind == "fork":
        return _fork(lab, int(name))
    lab.reset(name)
    return _KINDS[kind](lab, name, int(rest[0]))


def _child(lab: Lab, workload: str, before: Callable[[], None], after: Callable[[], None]) -> str:
    def work() -> None:
        scale.walk_here()
        log = AckLog(lab.log)
        shim.arm(lab.place, shim.COUNT)
        before()
        try:
            WORKLOADS[workload].run(lab.place, log)
        finally:
            after()
            shim.disarm()

    return oracle.in_child(work, lab.folder / "said")


def _alloc(lab: Lab, workload: str, number: int) -> str:
    import _testcapi

    _import_all()
    said = _child(
        lab,
        workload,
        lambda: _testcapi.set_nomemory(number, number + 1),
        _testcapi.remove_mem_hooks,
    )
    # Memory may be missing where the test itself notes what it was told.
    waits = said.startswith("I8: it hung") and _waits_for_python(lab.folder / "said.stack")
    if "MemoryError" in said or waits:
        said = ""
    return said or lab.judge(workload) or (_PYTHON_WAITS if waits else "")


@functools.cache
def _import_all() -> None:
    """Import what a workload may come to need: without memory Python miscompiles, or crashes."""
    for name in ("native", "store", "checkpoint", "training"):
        package = importlib.import_module(f"casckpt.{name}")
        for module in pkgutil.iter_modules(package.__path__, f"casckpt.{name}."):
            importlib.import_module(module.name)


def _waits_for_python(stack: Path) -> bool:
    """Tell from the stacks of a child that hung whether nobody but Python could have gone on.

    `Thread.start` does not hear of a thread that had no memory to begin with, nor a future of a
    worker of Python's pool that had none to take its work, or to say that it is done. And the
    lock of a condition stays taken where `Condition.__exit__` had none for its arguments.
    """
    parts = re.split(r"(?:Current thread|Thread) 0x", stack.read_text())[1:]
    threads = [re.findall(r'File ".*/(.+?)", line (\d+) in (\S+)', part) for part in parts]
    frames = {(file, function) for thread in threads for file, _, function in thread}
    awaits = {("_base.py", "result"), ("_base.py", "exception")} & frames
    return (
        ("threading.py", "start") in frames
        or (bool(awaits) and ("thread.py", "run") not in frames)
        or _lock_is_nobodys(threads)
    )


def _lock_is_nobodys(threads: list[list[tuple[str, str, str]]]) -> bool:
    """Tell whether a condition's lock is taken, and nobody is where it is held.

    Only methods of the module that has a condition hold its lock, and none while it waits for an
    event.
    """
    stuck = [thread for thread in threads if thread[:1] == [_TAKES_BACK]]
    for thread in stuck:
        module = thread[1][0]
        others = [other for other in threads if other is not thread]
        inside = [other for other in others if module in {file for file, _, _ in other}]
        waits = [[function for _, _, function in other[:2]] == ["wait", "wait"] for other in inside]
        if inside and all(waits):
            return True
    return False


def _takes_back() -> tuple[str, str, str]:
    lines, first = inspect.getsourcelines(threading.Condition.wait)
    at = next(number for number, line in enumerate(lines) if "_acquire_restore(" in line)
    return "threading.py", str(first + at), "wait"


_TAKES_BACK = _takes_back()
"""Where a thread stands that has been woken, and has not got its condition's lock back."""


def _oom(lab: Lab, workload: str, kib: int) -> str:
    group = _GROUPS / f"casckpt-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(str(kib * 1024))
        said = _child(lab, workload, lambda: _enter(group), lambda: None)
    finally:
        group.rmdir()
    if said and "SIGKILL" not in said and "MemoryError" not in said:
        return said
    return lab.judge(workload)


def _enter(group: Path) -> None:
    (group / "cgroup.procs").write_text(str(os.getpid()))


def _stop(lab: Lab, workload: str, at: int) -> str:
    """Others work beside a process that stands still: they succeed, or say that it is busy."""

    def run() -> None:
        scale.walk_here()
        log = AckLog(lab.log)
        shim.arm(lab.place, shim.STOP, at, at)
        WORKLOADS[workload].run(lab.place, log)
        shim.disarm()

    def beside() -> None:
        scale.walk_here()
        # A minute for users, with a warning before.
        vars(opening)["_LOCK_WAIT_S"] = 2.0
        vars(writer_lock)["WRITE_WAIT_S"] = vars(writer_lock)["OPEN_WAIT_S"] = 2.0
        try:
            with open_store(lab.place) as store:
                store.save("beside", state(70), 0)
        except Busy:
            return
        except Corrupt:
            if not WORKLOADS[workload].repair:
                raise

    child = oracle.start(run, lab.folder / "said-stopped")
    _, status = os.waitpid(child, os.WUNTRACED)
    said = ""
    if os.WIFSTOPPED(status):
        if (lab.place / "format.json").exists():
            said = oracle.in_child(beside, lab.folder / "said")
        os.kill(child, signal.SIGCONT)
        _, status = os.waitpid(child, 0)
    said = said or oracle.verdict(status, lab.folder / "said-stopped")
    return said or lab.judge(workload)


def _clock(lab: Lab, workload: str, seed: int) -> str:
    draw = random.Random(f"{workload} {seed}")
    real = time.time_ns
    offset_ns = 0

    def jumping() -> int:
        nonlocal offset_ns
        if draw.random() < 0.2:
            offset_ns = int(draw.choice(_JUMPS_S) * 1e9)
        return real() + offset_ns

    def jump() -> None:
        vars(time)["time_ns"] = jumping
        vars(time)["time"] = lambda: jumping() / 1e9

    return _child(lab, workload, jump, lambda: None) or lab.judge(workload)


def _fork(lab: Lab, seed: int) -> str:
    """Fork while a store is open and a save is under way; both sides go on to save."""
    draw = random.Random(seed)
    lab.reset("first_save")

    def work() -> None:
        scale.walk_here()
        log = AckLog(lab.log)
        user = User(lab.place, log)
        user.open()
        assert user.store is not None
        user.save(0, draw.randrange(40))
        pending = user.store.save_async("other", state(draw.randrange(40)), 0)
        time.sleep(draw.random() * 0.01)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                user.save(0, draw.randrange(40), run="child")
                user.save(1, draw.randrange(40), run="child")
                user.close()
                status = 0
            finally:
                os._exit(status)
        pending.result()
        user.save(1, draw.randrange(40))
        if draw.random() < 0.3:
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        user.close()

    said = oracle.in_child(work, lab.folder / "said")
    expected = Expected.read(lab.log)
    # Who meets the other's transaction may be told that it is busy; nobody may lose anything.
    strange = [text for text in expected.errors if "(11)" not in text]
    return said or (f"I8: {strange[0]}" if strange else "") or lab.judge("first_save")


_KINDS: dict[str, Callable[[Lab, str, int], str]] = {
    "alloc": _alloc,
    "oom": _oom,
    "stop": _stop,
    "clock": _clock,
}


def row(job: Job) -> None:
    """Failing allocations by draw; operations to stop at by place; the rest by seed."""
    names = list(WORKLOADS)
    kinds: dict[str, int | None] = dict.fromkeys(("alloc", "stop", "clock", "fork"))
    try:
        import _testcapi  # noqa: F401
    except ImportError:
        del kinds["alloc"]
        job.skipped("failing allocations", "this Python comes without its test helpers")
    if os.geteuid() == 0 and (_GROUPS / "memory.limit_in_bytes").exists():
        kinds["oom"] = None
    else:
        job.skipped("the OOM killer", "needs root and the memory controller of cgroup v1")
    for kind, number in job.turns(kinds):
        draw = random.Random(f"{kind} {number}")
        if kind == "alloc":
            most = int(2 ** draw.uniform(4, 17))
            text = f"alloc:{draw.choice(ALLOCATING)}:{draw.randrange(1, most)}"
        elif kind == "stop":
            name = draw.choice(names)
            text = f"stop:{name}:{draw.randint(1, len(job.lab.operations(name)))}"
        elif kind == "oom":
            text = f"oom:{draw.choice(ALLOCATING)}:{draw.randrange(512, 12_288, 128)}"
        elif kind == "clock":
            text = f"clock:{draw.choice(names)}:{number}"
        else:
            text = f"fork:{number}"
        said = _point(job.lab, text)
        if said == _PYTHON_WAITS:
            job.count(name="waits within Python")
        elif said:
            job.found(f"--replay {text}", said)
        job.count()
        job.count(name=kind)
