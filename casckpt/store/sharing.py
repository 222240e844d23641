"""One open store per process and path, shared and counted; and what happens to it at a fork.

Before a fork the gate is taken, so no transaction is open. The child lets go of every lock without
unlocking, of those held within a call too (`lock_files.py`), closes the inherited environment, and
forgets the rest; its next use opens anew.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from casckpt.errors import CasckptError, NoSpace, NoStore
from casckpt.store import (
    aside,
    creation,
    environment,
    file_systems,
    files,
    layout,
    lock_files,
    opening,
    rows,
)
from casckpt.store.environment import Environment
from casckpt.store.packs import PackFiles
from casckpt.store.transactions import Chain

if TYPE_CHECKING:
    from casckpt.store.index_writer import IndexWriter
    from casckpt.store.own_packs import OwnPacks
    from casckpt.store.recent import RecentChunks
    from casckpt.store.sessions import Session

_log = logging.getLogger("casckpt")
_Result = TypeVar("_Result")
# How often a process looks whether a collection is due; the numbers change with whole saves.
_LOOK_EVERY_S = 10.0

_registry_lock = threading.RLock()
_open: dict[tuple[int, int], SharedStore] = {}
_all: weakref.WeakSet[SharedStore] = weakref.WeakSet()


class SharedStore:
    """The index, locks, writer thread and session of one store in this process."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        self.path = path
        self.pid = os.getpid()
        self.users = 0
        self.writable = writable
        self.format = opening.read_format(path)
        if writable:
            opening.require_features(self.format.write, layout.WRITE_FEATURES, "save")
        self._is_format_lost = False
        file_systems.refuse_remote(path)
        self._session: Session | None = None
        self._session_lock = threading.Lock()
        self._written = False
        self.damaged: set[tuple[int, int]] = set()
        self._looked_at = time.monotonic()
        self._lock, alone = opening.take_store_lock(path, readonly=not writable)
        try:
            self.index = opening.current_index(path)
            opening.refuse_strangers(path, self.index)
            self._open_index(alone)
            try:
                self.packs = PackFiles(path, self.format.uuid)
                self.large_chunk = threading.RLock()
                if writable:
                    self._prepare_to_write()
                _all.add(self)
            except BaseException:
                self.environment.close()
                raise
        except BaseException:
            lock_files.close_lock(self._lock)
            raise

    damaged: set[tuple[int, int]]
    """The (pack number, offset) of records that this process could not read where they stand; the
    offset is -1 where that is so of a whole pack.

    A save takes what rests on one of them for missing, and stores it anew: nothing tells it that
    the record is whole, and its own bytes are."""

    is_copy: bool
    """Whether what is read is a copy of the index, which knows nothing of what came later."""

    large_chunk: threading.RLock
    """Held while a chunk is decoded that `codec.is_large`."""

    own: OwnPacks
    """The packs of this process; only there if the store is open for writing."""

    writer: IndexWriter
    """The thread that writes the index; only there if the store is open for writing."""

    recent: RecentChunks
    """What saves of this process stored last; only there if the store is open for writing."""

    def _prepare_to_write(self) -> None:
        # Not at the top: `ls` only reads, and is waited for.
        from casckpt.store.index_writer import IndexWriter
        from casckpt.store.own_packs import OwnPacks
        from casckpt.store.recent import RecentChunks

        self.recent = RecentChunks()
        self.own = OwnPacks(self.path, self.format.uuid, self.session)
        self.writer = IndexWriter(self.environment, self.path, self.own)
        self.writer.before_first_write = self._before_first_write
        self.own.writer = self.writer

    def _open_index(self, alone: bool) -> None:
        fits = opening.stamp_fits(self.index)
        self.is_copy = not self.writable and not aside.may_write(self.index)
        if self.is_copy:
            self.environment = aside.open_copy(self.index, walk=not fits)
            walked = False
        else:
            # Without a lock nothing tells whether others have looked at it before.
            unseen = alone or self._lock < 0
            walked = unseen and not fits and opening.walk_index(self.index)
            self.environment = self._open_environment()
        try:
            creation.check_index(self.environment, self.format.uuid)
            # Those already in may be readers, whom an old index does no harm.
            if not fits and self.writable:
                opening.refuse_old_index(self.path, self.format.uuid, self.environment)
            if walked and alone:
                self._stamp_walked()
        except BaseException:
            self.environment.close()
            raise
        if alone:
            opening.share_lock(self._lock)

    def require_write_features(self) -> None:
        """Raise NewerFormat if format.json, as it is now, names what saves must know and do not."""
        self._read_format_again()
        opening.require_features(self.format.write, layout.WRITE_FEATURES, "save")

    def require_collect_features(self, verb: str) -> None:
        """Raise NewerFormat if format.json, as it is now, names what `verb` must know."""
        self._read_format_again()
        opening.require_features(self.format.collect, layout.COLLECT_FEATURES, verb)

    def _read_format_again(self) -> None:
        # A newer program may have named features since the store was opened.
        try:
            self.format, self._is_format_lost = opening.read_format(self.path), False
        except NoStore as exc:
            # What is saved all the same is whole, and what a rebuild makes of it too.
            if not self._is_format_lost:
                _log.warning(
                    "the %s of %s cannot be read (%s), and nobody can open the store; once nobody "
                    "has it open, run `casckpt repair --rebuild-index`",
                    layout.FORMAT_FILE, self.path, exc.why,
                )  # fmt: skip
            self._is_format_lost = True

    def rests_on_damage(self, chain: Chain) -> bool:
        """Tell whether a record of a chain is known to be damaged."""
        return bool(self.damaged) and any(
            not self.damaged.isdisjoint([(row.pack, row.offset), (row.pack, -1)])
            for _, row, _ in chain
        )

    def forget_damage_gone(self) -> None:
        """Forget damage in packs that a collector has dropped since."""
        gone = self.dropped({pack for pack, _ in list(self.damaged)})
        self.damaged -= {place for place in list(self.damaged) if place[0] in gone}

    def dropped(self, packs: set[int]) -> set[int]:
        """Return those of some packs, by number, that a collector has dropped."""
        if not packs:
            return set()
        with self.environment.read() as tx:
            return {
                number
                for number in packs
                if (row := tx.pack(number)) is None or row.state == rows.DROPPED
            }

    def _open_environment(self) -> Environment:
        if not self.writable:
            return Environment(self.index, readonly=True)
        # Not at the top: `ls` only reads, and is waited for.
        from casckpt.store import writer_lock

        # LMDB takes its mutex of writers to open an index for writing.
        lock = writer_lock.WriterLock(self.path)
        try:
            with lock.held(f"cannot open the store at {self.path}", writer_lock.OPEN_WAIT_S):
                return Environment(self.index, readonly=False)
        finally:
            lock.close()

    def _stamp_walked(self) -> None:
        """Spare the next opener the walk: we are alone, and the index is as it was walked.

        A stamp also says that the index is not older than its packs.
        """
        with contextlib.suppress(CasckptError, OSError):
            opening.refuse_old_index(self.path, self.format.uuid, self.environment)
            opening.write_stamp(self.index, self.environment.last_transaction())

    def _before_first_write(self) -> None:
        # ORDER: the stamp goes before the first write it would be wrong about
        opening.remove_stamp(self.index)
        self._written = True

    def reopen_writable(self) -> None:
        """Turn a store that only readers have open into one that can be written."""
        self.require_write_features()
        lock, alone = opening.take_store_lock(self.path, readonly=False)
        before = self.environment
        before.leave()
        lock_files.close_lock(self._lock)
        self._lock, self.writable = lock, True
        try:
            self._open_index(alone)
            self._prepare_to_write()
        except BaseException:
            self.writable = False
            self.environment.close()
            self.environment = Environment(self.index, readonly=True)
            if alone:
                opening.share_lock(self._lock)
            raise
        finally:
            before.hand_over(self.environment)

    def collect_if_due(self) -> None:
        """Start a collection in a child process if enough is likely to be dead; never raises."""
        now = time.monotonic()
        if now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        from casckpt.store import autocollect

        with contextlib.suppress(CasckptError):
            autocollect.start_if_due(self)

    def session(self) -> Session:
        """Return this process's session, begun at its first use."""
        with self._session_lock:
            if self._session is None:
                self._session = self._begin_session()
            return self._session

    @property
    def has_session(self) -> bool:
        """Whether this process has begun a session."""
        return self._session is not None

    def _begin_session(self) -> Session:
        from casckpt.store.sessions import Session

        # ORDER: what a reader must know is said before a record needs it
        self._read_format_again()
        if not self._is_format_lost:
            opening.name_features(self.path)
        return Session(self.path)

    def with_ballast(self, work: Callable[[], _Result]) -> _Result:
        """Run what makes room; where the disk is too full even for that, in the ballast's space."""
        try:
            return work()
        except NoSpace:
            creation.free_ballast(self.path)
            return work()

    def close(self) -> None:
        """Finish what waits, seal, and leave the index stamped if nobody else has it open."""
        # Whatever fails, for want of memory say, the next step is taken: a lock or an index that
        # stayed open would keep out whoever opens the store next, in this process too.
        try:
            if self.writable:
                self._end_writing()
        finally:
            try:
                self.packs.close()
            finally:
                try:
                    self._close_index()
                finally:
                    lock_files.close_lock(self._lock)
                    _all.discard(self)

    def _end_writing(self) -> None:
        try:
            if self._written:
                self._looked_at = -math.inf
                self.collect_if_due()
            with contextlib.suppress(CasckptError):
                self.own.close()
        finally:
            self.writer.close()

    def _close_index(self) -> None:
        in_order = False
        try:
            # Not if a person removed the store, or put an older one in its place, meanwhile
            with contextlib.suppress(CasckptError):
                in_order = self.environment.is_in_order()
            transaction = self.environment.last_transaction()
        finally:
            self.environment.close()
            if self._session is not None:
                self._session.close()
        if (
            self.writable
            and in_order
            and self._lock >= 0
            and files.try_lock(self._lock, exclusive=True)
        ):
            with contextlib.suppress(CasckptError, FileNotFoundError):
                if not files.is_there(self.index / layout.CLEAN_FILE):
                    opening.write_stamp(self.index, transaction)

    def abandon(self) -> None:
        """Let go in the child of a fork: close descriptors, unlock nothing."""
        lock_files.close_lock(self._lock)
        if self._session is not None:
            self._session.abandon()
        if self.writable:
            self.own.abandon()
            self.writer.abandon()
        self.packs.abandon()
        self.environment.close()


def acquire(path: Path, *, writable: bool) -> SharedStore:
    """Return the open store of `path`, opening it if nobody in this process has; call `release`."""
    with _registry_lock:
        key = files.identity(path)
        shared = None if key is None else _open.get(key)
        if shared is not None and not shared.is_copy:
            # The folder of a store that was made anew may have the number of the old one.
            shared.environment.require_current(f"cannot open the store at {path}")
        if shared is not None and writable and not shared.writable:
            # Only readers have it: open it again for writing, behind the gate.
            with environment.gate:
                shared.reopen_writable()
        if shared is None:
            shared = SharedStore(path, writable=writable)
            try:
                key = files.identity(path)
                assert key is not None
                _open[key] = shared
            except BaseException:
                shared.close()
                raise
        shared.users += 1
        return shared


def release(shared: SharedStore) -> None:
    """Give back a store; the last one closes it."""
    with _registry_lock:
        if shared.pid != os.getpid():
            return
        shared.users -= 1
        if shared.users <= 0:
            for key, value in list(_open.items()):
                if value is shared:
                    del _open[key]
            shared.close()


def _before_fork() -> None:
    _registry_lock.acquire()
    environment.gate.acquire()
    lock_files.guard.acquire()


def _after_fork_in_parent() -> None:
    lock_files.guard.release()
    environment.gate.release()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    # Also what is held in the midst of a call: no thread of that call is here. ORDER: first, since
    # closing what is noted would unlock it for the parent too.
    with contextlib.suppress(Exception):
        lock_files.let_go()
    for shared in list(_all):
        with contextlib.suppress(Exception):
            shared.abandon()
    _all.clear()
    _open.clear()
    lock_files.guard.release()
    environment.gate.release()
    _registry_lock.release()


def _at_exit() -> None:
    for shared in list(_all):
        if shared.pid == os.getpid():
            with contextlib.suppress(Exception):
                shared.close()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
atexit.register(_at_exit)
