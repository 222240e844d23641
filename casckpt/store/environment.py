"""The LMDB environment: opened once per process, behind one gate. Only user of lmdb itself.

Two facts of LMDB shape this module (lmdb.h, "Caveats"): an environment must not be used after a
fork, and must not be open twice in one process. So all transactions run behind a gate that a fork
takes first (`sharing.py`), and every opener in a process shares one `Environment`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import lmdb

from casckpt.errors import (
    CasckptError,
    Corrupt,
    NoSpace,
    OperationFailed,
    PermissionRefused,
    StoreBusy,
)
from casckpt.store import files, layout
from casckpt.store.engine_locks import LOCK_FILE, EngineLocks
from casckpt.store.transactions import Transaction

_Result = TypeVar("_Result")

gate = threading.RLock()
"""Held while any transaction of this process is open; taken before a fork."""

_CORRUPT = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.VersionMismatchError,
    lmdb.PanicError,
)

# LMDB writes at most 64 pages at a time (mdb.c, MDB_COMMIT_PAGES): a short one leaves less free
_SHORT_WRITE_BYTES = 64 * 64 * layout.KIB
_DENIED = ("Permission denied", "Read-only file system", "Operation not permitted")


def translate(error: lmdb.Error, what: str) -> CasckptError:
    """Return the casckpt error for an error of LMDB."""
    reason = str(error)
    if isinstance(error, lmdb.MapFullError) or "No space left" in reason or "quota" in reason:
        return NoSpace(what, reason)
    if isinstance(error, lmdb.ReadonlyError) or any(word in reason for word in _DENIED):
        return PermissionRefused(
            what, reason, "even a reader writes to lock.mdb: ask for write permission there"
        )
    if isinstance(error, _CORRUPT):
        return Corrupt(what, reason, "run `casckpt repair --rebuild-index`")
    if isinstance(error, lmdb.ReadersFullError | lmdb.LockError):
        return StoreBusy(
            what,
            reason,
            "containers that share a store must share a PID namespace (--pid=host)",
        )
    return OperationFailed(what, reason)


def is_engine_error(error: BaseException) -> bool:
    """Tell whether an error is one of LMDB, after which a whole transaction is lost."""
    return isinstance(error, lmdb.Error)


def _replaced(what: str) -> StoreBusy:
    return StoreBusy(
        what,
        "it was moved or removed, or another put in its place, while this process had it open",
        "close it wherever this process has it open, and open it again; nothing was saved",
    )


class Environment:
    """One open index; every call runs behind the gate."""

    def __init__(self, path: Path, *, readonly: bool, lock: bool = True) -> None:
        self.path = path
        self.readonly = readonly
        self._lock = lock
        self._identity: tuple[int, int] | None = None
        self._locks: EngineLocks | None = None
        self._closed = False
        # The newest transaction that was seen: an older index may be put in the place of this one
        self._seen = 0
        self._settled = threading.Event()
        self._settled.set()
        self._successor: Environment | None = None
        self._handle: lmdb.Environment | None = None
        self._tables: dict[str, lmdb._Database] = {}
        self._open()

    def _open(self) -> None:
        what = f"cannot open the index {self.path.name}"
        data = self.path / "data.mdb"
        # LMDB opens a missing or empty file as an empty index, without a word
        # (format.md, section 11).
        try:
            empty = not data.is_file() or data.stat().st_size == 0
        except OSError as exc:
            raise files.translate(exc, what) from exc
        if empty:
            raise Corrupt(
                f"the index {self.path.name} is missing or empty",
                "data.mdb was removed or cut off; the packs still hold everything",
                "run `casckpt repair --rebuild-index`",
            )
        lock_file = files.identity(self.path / LOCK_FILE)  # None where LMDB makes it
        try:
            self._handle = lmdb.open(
                str(self.path),
                map_size=layout.MAP_BYTES,
                readonly=self.readonly,
                create=False,
                lock=self._lock,
                max_dbs=len(layout.TABLES) + 4,
                max_readers=layout.MAX_READERS,
                max_spare_txns=0,
                sync=True,
                metasync=True,
                writemap=False,
                map_async=False,
                readahead=False,
                lib_version=0,
            )
            # Opened anew after an error it may be another: then it stays the wrong one.
            self._identity = self._identity or files.identity(data)
            with gate:
                self._tables = {
                    name: self._handle.open_db(name.encode(), create=False)
                    for name in layout.TABLES
                }
                if self._lock:
                    self._handle.begin().abort()  # at its first LMDB takes its lock of readers
                    self._locks = EngineLocks(self.path)
                    if lock_file not in (None, self._locks.identity()):
                        raise _replaced(what)
                if not self.readonly:
                    self._handle.reader_check()
        except lmdb.NotFoundError as exc:
            self._let_go()
            raise Corrupt(
                f"the index {self.path.name} is not one of casckpt",
                f"a table is missing: {exc}",
                "run `casckpt repair --rebuild-index`",
            ) from exc
        except lmdb.Error as exc:
            self._let_go()
            raise translate(exc, what) from exc
        except FileNotFoundError as exc:
            self._let_go()
            raise _replaced(what) from exc
        except BaseException:  # LMDB opens an index once in a process
            self._let_go()
            raise

    @staticmethod
    def create(path: Path) -> None:
        """Make a new, empty index in the existing folder `path`."""
        try:
            handle = lmdb.open(
                str(path),
                map_size=layout.MAP_BYTES,
                max_dbs=len(layout.TABLES) + 4,
                max_readers=layout.MAX_READERS,
                max_spare_txns=0,
                readahead=False,
                mode=files.permissions_in(path) & 0o666,
                lib_version=0,
            )
            try:
                for name in layout.TABLES:
                    handle.open_db(name.encode(), create=True)
                handle.sync(True)
            finally:
                handle.close()
        except lmdb.Error as exc:
            raise translate(exc, f"cannot make the index {path.name}") from exc
        except OSError as exc:
            # py-lmdb makes the folder itself, and reports that as the operating system does.
            raise files.translate(exc, f"cannot make the index {path.name}") from exc

    def close(self) -> None:
        """Close the environment; not an error if it is closed."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        handle, self._handle = self._handle, None
        locks, self._locks = self._locks, None
        if handle is not None:
            with gate:
                handle.close()
        if locks is not None:
            locks.close()

    def leave(self) -> None:
        """Close the environment for another one; who reads meanwhile waits for `hand_over`.

        Another thread may be about to read when the store is opened for writing.
        """
        self._settled.clear()
        self.close()

    def hand_over(self, successor: Environment) -> None:
        """Let another environment answer who asks this one from now on; not if it is itself."""
        self._successor = None if successor is self else successor
        self._settled.set()

    def _here(self) -> Environment:
        """Return the environment that answers: this one, or the one that took its place."""
        here: Environment = self
        while here._closed:
            here._settled.wait()
            if here._successor is None:
                break
            here = here._successor
        return here

    def _has_left(self) -> bool:
        return self._closed and not (self._settled.is_set() and self._successor is None)

    @contextlib.contextmanager
    def _transaction(self, what: str, *, write: bool) -> Iterator[Transaction]:
        """Give a transaction of LMDB, committed if `write`; `what` cannot be done without it."""
        if self._closed:
            raise OperationFailed(
                "the store is closed", "it was used after close()", "open it again"
            )
        if self._handle is None:
            self._open()  # after an error the last one to try could not
        assert self._handle is not None
        with self._handle.begin(write=write, buffers=False) as handle:
            number = handle.id()
            # A writer's is one more than the last that was committed, by whatever process: if it
            # is not, others count by another lock.mdb.
            newest = int(self._handle.info()["last_txnid"]) if write else number
            if newest < self._seen or (write and number != newest + 1):
                raise _replaced(what)
            self._seen = newest
            yield Transaction(handle, self._tables)
        if write:
            # Not `number`: one that changes nothing leaves it to the next.
            self._seen = self.last_transaction()

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """Give a read transaction; keep it short, everything else in the process waits."""
        while True:
            here = self._here()
            with gate:
                if here._has_left():
                    continue  # since the line above
                what = "cannot read the index"
                try:
                    with here._transaction(what, write=False) as transaction:
                        yield transaction
                except lmdb.Error as exc:
                    raise translate(exc, what) from exc
                return

    def write(self, jobs: Callable[[Transaction], _Result]) -> _Result:
        """Run `jobs` in one durable write transaction; an exception leaves nothing behind.

        After an error of LMDB the environment is opened anew, by whoever uses it next: a failed
        commit can leave it in a state in which LMDB refuses everything.
        """
        what = "cannot write the index; nothing was saved"
        with gate:
            try:
                with self._transaction(what, write=True) as transaction:
                    return jobs(transaction)
            except lmdb.Error as exc:
                self._let_go()
                if self._was_full(exc):
                    raise NoSpace(what, "the disk is full") from exc
                raise translate(exc, what) from exc

    def _was_full(self, error: lmdb.Error) -> bool:
        """Tell whether an error is that of a full disk: LMDB calls a short write an I/O error."""
        if "Input/output error" not in str(error):
            return False
        return files.free_bytes(self.path) < _SHORT_WRITE_BYTES

    def nested(self, parent: Transaction, job: Callable[[Transaction], _Result]) -> _Result:
        """Run `job` in a transaction inside `parent`: its exception undoes only its own changes."""
        assert self._handle is not None
        try:
            with self._handle.begin(write=True, parent=parent._handle) as handle:
                child = Transaction(handle, self._tables)
                result = job(child)
        except lmdb.BadValsizeError as exc:
            # Refused before anything was changed: the fault of this job, not of the index.
            raise translate(exc, "cannot write the index; nothing was saved") from exc
        parent.changes += child.changes
        parent.roots_count += child.roots_count
        parent.roots_sum += child.roots_sum
        parent.removed_roots += child.removed_roots
        return result

    def forget_dead_readers(self) -> None:
        """Free what readers that were killed looked at: the index grows while it is kept."""
        with gate:
            try:
                if self._handle is not None:
                    self._handle.reader_check()
            except lmdb.Error as exc:
                raise translate(exc, "cannot look for readers that died") from exc

    def is_current(self) -> bool:
        """Tell whether the index that was opened is the one at its path still."""
        if self._identity != files.identity(self.path / "data.mdb"):
            return False
        return self._locks is None or self._locks.are_of(self.path / LOCK_FILE)

    def is_in_order(self) -> bool:
        """Tell whether it is open, current, and no older than it was seen to be."""
        with gate:
            number = self.last_transaction()
            return self._handle is not None and number >= self._seen and self.is_current()

    def require_current(self, what: str) -> None:
        """Raise StoreBusy, saying `what` cannot be done, unless `is_current`."""
        if not self.is_current():
            raise _replaced(what)

    def last_transaction(self) -> int:
        """Return the number of the last committed transaction; 0 while the index is not open."""
        with gate:
            return 0 if self._handle is None else int(self._handle.info()["last_txnid"])
