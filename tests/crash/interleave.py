"""Two collections and a save, step by step: what rules of the protocol are for.

`beside:NAME` runs a scenario: a save that another process's gc overtakes at a chosen step.
"""

from __future__ import annotations

import os
from pathlib import Path

from casckpt.api import repair_store
from casckpt.errors import Corrupt, StoreBusy
from casckpt.store import files, layout
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


def _compact_elsewhere(place: Path) -> None:
    """In another process: turn the chains round."""

    def work() -> None:
        scale.repeatable("compacts elsewhere")
        with open_store(place) as store:
            if not store.compact().recoded_count:
                raise oracle.Violation("there was nothing to compact")

    said = oracle.in_child(work, place.with_name("said-elsewhere"))
    if said:
        raise oracle.Violation(said)


def _judge_all(place: Path, seeds: range) -> None:
    for _ in range(2):
        with open_store(place) as store:
            store.gc(now=True)
            store.compact()
    with open_store(place) as store:
        for step, seed in enumerate(seeds):
            if not same(store.restore(f"run@{step}"), state(seed)):
                raise oracle.Violation(f"I1: run@{step} is not what was saved")
        if not store.verify().ok:
            raise oracle.Violation("I5: verify finds damage")


def compacted_before_commit(place: Path) -> None:
    """A save coded its chunks against bases that another process turns round before it commits."""
    with open_store(place) as store:
        for step in range(4):
            store.save("run", state(500 + step), step)
    met = False

    def hook(name: str, path: str) -> None:
        nonlocal met
        if name == "records durable" and not met:
            met = True
            files.set_crash_hook(None)
            _compact_elsewhere(place)

    with open_store(place) as store:
        files.set_crash_hook(hook)
        store.save("run", state(504), 4)
        store.save("run", state(505), 5)
    if not met:
        raise oracle.Violation("the crash point before the commit was not reached")
    _judge_all(place, range(500, 506))


def saved_while_compacting(place: Path) -> None:
    """Chunks are about to be moved, and another process saves on them, removes, and collects."""
    with open_store(place) as store:
        for step in range(4):
            store.save("run", state(500 + step), step)
    met = 0

    def save_elsewhere() -> None:
        scale.repeatable(f"saves elsewhere {met}")
        with open_store(place) as store:
            store.save("run", state(503 + met), 3 + met)

    def hook(name: str, path: str) -> None:
        nonlocal met
        if name == "compacted records durable" and met < 2:
            met += 1
            said = oracle.in_child(save_elsewhere, place.with_name("said-elsewhere"))
            if said:
                raise oracle.Violation(said)

    with open_store(place) as store:
        files.set_crash_hook(hook)
        store.compact()
        files.set_crash_hook(None)
    if met < 2:
        raise oracle.Violation("there were no two transactions to save between")
    _judge_all(place, range(500, 506))


def index_from_a_backup(place: Path) -> None:
    """The index is put back as it was two saves ago: it must not be taken for the newest."""
    with open_store(place) as store:
        store.save("run", state(10), 0)
    backup = place.with_name(f"{place.name}-backup")
    backup.write_bytes((place / "index.0" / "data.mdb").read_bytes())
    with open_store(place) as store:
        store.save("run", state(20), 1)
        store.save("run", state(30), 2)
    (place / "index.0" / "data.mdb").write_bytes(backup.read_bytes())
    backup.unlink()
    try:
        open_store(place).close()
    except Corrupt:
        return
    raise oracle.Violation("I1: an index without the last two saves was opened")


def rebuilt_while_open(place: Path) -> None:
    """Somebody has the store open: its index must not be replaced under him."""
    _prepare(place)
    busy = place.with_name(f"{place.name}-said")
    with open_store(place):
        said = oracle.in_child(lambda: _rebuild(place), busy)
    if "StoreBusy" not in said:
        raise oracle.Violation(f"I1: an open store was rebuilt ({said or 'and nothing said'})")


def copied_by_itself(place: Path) -> None:
    """Who reads the index copies the store, which drops POSIX locks; others write meanwhile."""
    _prepare(place)
    (reads, is_read), (goes, go) = os.pipe(), os.pipe()

    def read() -> None:
        scale.repeatable("reads")
        with open_store(place) as store:
            index = store._repository._shared().environment
            with index.read() as tx:
                before = {table: list(tx.scan(table)) for table in layout.TABLES}
                for file in (place / "index.0").iterdir():
                    file.read_bytes()
                os.write(is_read, b"x")
                os.read(goes, 1)
                if {table: list(tx.scan(table)) for table in layout.TABLES} != before:
                    raise oracle.Violation("I3: rows changed under a reader")
            store.save("run", state(21), 2)

    said = place.with_name("said-reader")
    reader = oracle.start(read, said)
    os.close(is_read)
    os.read(reads, 1)
    for _ in range(6):  # pages that nobody is known to read are written again
        with open_store(place) as store:
            store.save("other", state(30))
    os.write(go, b"x")
    if words := oracle.verdict(os.waitpid(reader, 0)[1], said):
        raise oracle.Violation(words)
    for descriptor in (reads, goes, go):
        os.close(descriptor)
    _judge(place)


def put_back_while_open(place: Path) -> None:
    """The index is put back as it was, into the same files, while a process has it open."""
    with open_store(place) as store:
        store.save("run", state(10), 0)
    names = ("data.mdb", "lock.mdb")
    backup = {name: (place / "index.0" / name).read_bytes() for name in names}
    with open_store(place) as store:
        store.save("run", state(20), 1)
        for name, data in backup.items():
            with (place / "index.0" / name).open("r+b") as file:
                file.write(data)
        try:
            store.save("run", state(30), 2)
        except StoreBusy:
            pass
        else:
            raise oracle.Violation("I1: a save into an older index was acknowledged")
    repair_store(place, rebuild_index=True)
    with open_store(place) as store:
        if not same(store.restore("run@1"), state(20)):
            raise oracle.Violation("I1: run@1 is not what was saved")


def _rebuild(place: Path) -> None:
    repair_store(place, rebuild_index=True)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        overtaken_before_commit,
        found_condemned,
        folder_of_a_dead_session,
        compacted_before_commit,
        saved_while_compacting,
        index_from_a_backup,
        rebuilt_while_open,
        copied_by_itself,
        put_back_while_open,
    )
}


def run(place: Path, name: str) -> None:
    """Run a scenario in this process; it ends with os._exit of the caller."""
    assert not place.exists(), os.fspath(place)
    SCENARIOS[name](place)
