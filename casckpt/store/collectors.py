"""What gc, compaction and repair share: one of them at a time, and none over a live session.

All three are collectors (docs/protocol.md, GC 0): they hold `gc.lock`, and each of their
transactions checks that no other began meanwhile, since a lock can be lost.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from casckpt.errors import StoreBusy
from casckpt.store import files, layout, lock_files, rows, sessions
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction


@contextlib.contextmanager
def gc_lock(shared: SharedStore) -> Iterator[None]:
    """Be the only collector of a store for the length of a `with`; StoreBusy if there is one."""
    descriptor = lock_files.open_to_lock(shared.path / layout.GC_LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        if not files.try_lock(descriptor, exclusive=True):
            raise StoreBusy(f"cannot collect in {shared.path}", "another collector is at work")
        yield
    finally:
        lock_files.close_lock(descriptor)


def begin_run(shared: SharedStore) -> bytes:
    """Seal our own packs, and make a new collector the one; return what names it."""
    run = os.urandom(16)
    # What follows replaces many rows, and needs the room of those it replaced.
    shared.environment.forget_dead_readers()
    shared.own.seal_all()
    shared.writer.run(lambda tx: tx.put("meta", b"gc_run", run), facts=False)
    return run


def fence(tx: Transaction) -> None:
    """End the collection that goes on, if there is one: its next transaction is not its own."""
    tx.put("meta", b"gc_run", os.urandom(16))


def check_run(tx: Transaction, run: bytes) -> None:
    """Raise StoreBusy unless the collector `run` is still the one (a lost gc.lock is no harm)."""
    if tx.get("meta", b"gc_run") != run:
        raise StoreBusy("this collection was overtaken", "another collector began meanwhile")


def open_packs(
    shared: SharedStore, registered: dict[int, rows.PackRow], but: SharedStore | None = None
) -> set[int]:
    """Return the packs that live sessions append to; our own, which gc seals, can be left out."""
    alive = {info.uuid for info in sessions.list_sessions(shared.path) if info.alive}
    if but is not None and but.has_session:
        alive.discard(but.session().uuid)
    return {number for number, row in registered.items() if not row.sealed and row.session in alive}
