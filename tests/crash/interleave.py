"""Two collections and a save, step by step: what rules of the protocol are for.

`beside:NAME` runs a scenario: a save that another process's gc overtakes at a chosen step.
"""

from __future__ import annotations

import os
from pathlib import Path

from casckpt.store import files
from tests.crash import oracle, scale
from tests.crash.workloads import open_store, same, state


def _collect_elsewhere(place: Path) -> None:
    """In another process: remove run@1 and collect; what only it needed is condemned."""

    def work() -> None:
        scale.repeatable("elsewhere")
        with open_store(place) as store:
            store.delete("run@1")
            store.gc(now=True)

    said = oracle.in_child(work, place.with_name("said-elsewhere"))
    if said:
        raise oracle.Violation(said)


def _prepare(place: Path) -> None:
    for step, seed in ((0, 10), (1, 20)):
        with open_store(place) as store:  # a pack each
            store.save("run", state(seed), step)


def _judge(place: Path) -> None:
    for _ in range(2):
        with open_store(place) as store:
            store.gc(now=True)
    with open_store(place) as store:
        for step, seed in ((0, 10), (2, 21)):
            if not same(store.restore(f"run@{step}"), state(seed)):
                raise oracle.Violation(f"I1: run@{step} is not what was saved")


def overtaken_before_commit(place: Path) -> None:
    """A save found chunks, then their pack was condemned, then the save commits."""
    _prepare(place)
    overtaken = False

    def hook(name: str, path: str) -> None:
        nonlocal overtaken
        if name == "records durable" and not overtaken:
            overtaken = True
            files.set_crash_hook(None)
            _collect_elsewhere(place)

    with open_store(place) as store:
        files.set_crash_hook(hook)
        store.save("run", state(21), 2)
    if not overtaken:
        raise oracle.Violation("the crash point before the commit was not reached")
    _judge(place)


def found_condemned(place: Path) -> None:
    """A save finds chunks in a pack that was condemned before the save began."""
    _prepare(place)
    # An older lease keeps the condemned pack from being swept.
    with open_store(place) as store, store._repository.saver():
        _collect_elsewhere(place)
        store.save("run", state(21), 2)
    _judge(place)


def folder_of_a_dead_session(place: Path) -> None:
    """A process died between making a folder of packs and flushing its name; the next uses it."""
    with open_store(place):
        pass
    flushed: list[str] = []

    def hook(name: str, path: str) -> None:
        if name == "fsync folder":
            flushed.append(path)
        if name == "mkdir" and "packs" in path:
            Path(path).mkdir()  # as if another process had been here a moment ago

    with open_store(place) as store:
        files.set_crash_hook(hook)
        store.save("run", state(10), 0)
        files.set_crash_hook(None)
    if str(place.resolve() / "packs") not in flushed:
        raise oracle.Violation("I1: the folder of an acknowledged pack was not made durable")


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (overtaken_before_commit, found_condemned, folder_of_a_dead_session)
}


def run(place: Path, name: str) -> None:
    """Run a scenario in this process; it ends with os._exit of the caller."""
    assert not place.exists(), os.fspath(place)
    SCENARIOS[name](place)
