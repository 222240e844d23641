"""The LMDB environment: opened once per process, behind one gate. Only importer of lmdb.

Two facts of LMDB shape this module (lmdb.h, "Caveats"): an environment must not be used after a
fork, and must not be open twice in one process. So all transactions run behind a gate that a fork
takes first (`sharing.py`), and every opener in a process shares one `Environment`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar, cast

import lmdb

from casckpt.errors import (
    CasckptError,
    Corrupt,
    NoSpace,
    OperationFailed,
    PermissionRefused,
    StoreBusy,
)
from casckpt.store import files, layout, records, rows

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


Chain = list[tuple[bytes, rows.ObjectRow, rows.PackRow]]
"""An object and what it rests on, down to its keyframe: id, row, and the row of its pack."""


class Transaction:
    """A read or write transaction over the index tables.

    A write transaction keeps the changes to every table but `objects`, `packs` and `meta` in
    `changes`, and the change of the roots checksum; `IndexWriter` turns them into a fact. It also
    counts the rows that keep an object no more, `removed_roots`.
    """

    def __init__(self, handle: lmdb.Transaction, tables: dict[str, lmdb._Database]) -> None:
        self._handle = handle
        self._tables = tables
        self.changes: list[tuple[str, bytes, bytes | None]] = []
        self.roots_count = 0
        self.roots_sum = 0
        self.removed_roots = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of `key`, or None."""
        # Bytes, not memoryviews: every transaction here is begun with buffers=False.
        return cast("bytes | None", self._handle.get(key, db=self._tables[table]))

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Insert or replace a row."""
        self._note(table, key, value)
        self._handle.put(key, value, db=self._tables[table])

    def delete(self, table: str, key: bytes) -> None:
        """Remove a row; not an error if there is none."""
        self._note(table, key, None)
        self._handle.delete(key, db=self._tables[table])

    def insert(self, table: str, pairs: Iterable[tuple[bytes, bytes]]) -> list[bool]:
        """Put live rows of a root table where there are none; return which were put.

        One call into LMDB a row and one hash call for all: stages write thousands a second.
        """
        assert table in layout.ROOT_TABLES, f"rows of {table} are not counted"
        database, changes, put = self._tables[table], self.changes, self._handle.put
        taken, new = [], []
        for pair in pairs:
            key, value = pair
            is_free = put(key, value, overwrite=False, db=database)
            taken.append(is_free)
            if is_free:
                changes.append((table, key, value))
                new.append(pair)
        self.roots_count += len(new)
        self.roots_sum += records.row_hash_sum(table, new)
        return taken

    def _note(self, table: str, key: bytes, value: bytes | None) -> None:
        if table in ("objects", "packs", "meta"):
            return
        self.changes.append((table, key, value))
        if table in layout.ROOT_TABLES:
            old = self.get(table, key)
            if old is not None and rows.is_root(old):
                self.roots_count -= 1
                self.roots_sum -= records.row_hash(table, key, old)
                if not rows.kept_ids(old) <= rows.kept_ids(value):
                    self.removed_roots += 1
            if value is not None and rows.is_root(value):
                self.roots_count += 1
                self.roots_sum += records.row_hash(table, key, value)

    def scan(
        self, table: str, prefix: bytes = b"", start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Yield (key, value) of all keys with `prefix`, in order, from `start` on."""
        with self._handle.cursor(db=self._tables[table]) as cursor:
            if not cursor.set_range(prefix if start is None else start):
                return
            pairs = cast("Iterator[tuple[bytes, bytes]]", iter(cursor))
            if not prefix:
                yield from pairs
                return
            for key, value in pairs:
                if not key.startswith(prefix):
                    return
                yield key, value

    def last(self, table: str, prefix: bytes) -> tuple[bytes, bytes] | None:
        """Return the last row whose key has `prefix`."""
        with self._handle.cursor(db=self._tables[table]) as cursor:
            beyond = cursor.set_range(prefix + b"\xff" * 24)
            found = cursor.prev() if beyond else cursor.last()
            if found:
                key, value = cast("tuple[bytes, bytes]", cursor.item())
                if key.startswith(prefix):
                    return key, value
        return None

    def count(self, table: str) -> int:
        """Return the number of rows of a table."""
        entries: int = self._handle.stat(self._tables[table])["entries"]
        return entries

    # ---- numbers in `meta`

    def number(self, name: str) -> int:
        """Return a number of `meta`, 0 if it was never set."""
        return rows.read_u64(self.get("meta", name.encode()))

    def set_number(self, name: str, value: int) -> None:
        """Set a number of `meta`."""
        self.put("meta", name.encode(), rows.u64(value))

    def object(self, identity: bytes) -> rows.ObjectRow | None:
        """Return the row of an object, whatever the state of its pack."""
        value = self.get("objects", identity)
        return None if value is None else rows.ObjectRow.decode(value)

    def pack(self, number: int) -> rows.PackRow | None:
        """Return the row of a pack."""
        value = self.get("packs", rows.pack_key(number))
        return None if value is None else rows.PackRow.decode(value)

    def chain(self, identity: bytes) -> Chain | None:
        """Return the links from an object down to its keyframe, or None if one is not usable.

        A link is usable if its row's pack is live or condemned (protocol, SAVE 2). A chain that
        meets itself or is longer than the format allows is not usable.
        """
        links: Chain = []
        seen: set[bytes] = set()
        while identity:
            row = self.object(identity)
            pack = None if row is None else self.pack(row.pack)
            if row is None or pack is None or pack.state == rows.DROPPED or identity in seen:
                return None
            if len(links) >= layout.CHAIN_MAX_LINKS:
                return None
            links.append((identity, row, pack))
            seen.add(identity)
            identity = row.base
        return links

    def is_lost(self, identity: bytes) -> bool:
        """Tell whether an object, or one that it rests on, is one that repair found no copy of."""
        for _ in range(layout.CHAIN_MAX_LINKS):
            row = self.object(identity)
            if row is None or row.pack == layout.LOST:
                return row is not None
            identity = row.base
            if not identity:
                return False
        return False


class Environment:
    """One open index; every call runs behind the gate."""

    def __init__(self, path: Path, *, readonly: bool, lock: bool = True) -> None:
        self.path = path
        self.readonly = readonly
        self._lock = lock
        self._identity: tuple[int, int] | None = None
        self._settled = threading.Event()
        self._settled.set()
        self._successor: Environment | None = None
        self._handle: lmdb.Environment | None = None
        self._tables: dict[str, lmdb._Database] = {}
        self._open()

    def _open(self) -> None:
        data = self.path / "data.mdb"
        # LMDB opens a missing or empty file as an empty index, without a word
        # (format.md, section 11).
        try:
            empty = not data.is_file() or data.stat().st_size == 0
        except OSError as exc:
            raise files.translate(exc, f"cannot open the index {self.path.name}") from exc
        if empty:
            raise Corrupt(
                f"the index {self.path.name} is missing or empty",
                "data.mdb was removed or cut off; the packs still hold everything",
                "run `casckpt repair --rebuild-index`",
            )
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
                if not self.readonly:
                    self._handle.reader_check()
        except lmdb.NotFoundError as exc:
            self.close()
            raise Corrupt(
                f"the index {self.path.name} is not one of casckpt",
                f"a table is missing: {exc}",
                "run `casckpt repair --rebuild-index`",
            ) from exc
        except lmdb.Error as exc:
            self.close()
            raise translate(exc, f"cannot open the index {self.path.name}") from exc
        except BaseException:  # LMDB opens an index once in a process
            self.close()
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
        handle, self._handle = self._handle, None
        if handle is not None:
            with gate:
                handle.close()

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
        while here._handle is None:
            here._settled.wait()
            if here._successor is None:
                break
            here = here._successor
        return here

    def _has_left(self) -> bool:
        return self._handle is None and not (self._settled.is_set() and self._successor is None)

    def _begin(self, write: bool) -> lmdb.Transaction:
        if self._handle is None:
            raise OperationFailed(
                "the store is closed", "it was used after close()", "open it again"
            )
        return self._handle.begin(write=write, buffers=False)

    @contextlib.contextmanager
    def read(self) -> Iterator[Transaction]:
        """Give a read transaction; keep it short, everything else in the process waits."""
        while True:
            here = self._here()
            with gate:
                if here._has_left():
                    continue  # since the line above
                try:
                    with here._begin(write=False) as handle:
                        yield Transaction(handle, here._tables)
                except lmdb.Error as exc:
                    raise translate(exc, "cannot read the index") from exc
                return

    def write(self, jobs: Callable[[Transaction], _Result]) -> _Result:
        """Run `jobs` in one durable write transaction; an exception leaves nothing behind.

        After an error of LMDB the environment is opened anew: a failed commit can leave it in a
        state in which LMDB refuses everything.
        """
        with gate:
            try:
                with self._begin(write=True) as handle:
                    return jobs(Transaction(handle, self._tables))
            except lmdb.Error as exc:
                self.close()
                self._open()
                what = "cannot write the index; nothing was saved"
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
        return self._identity == files.identity(self.path / "data.mdb")

    def require_current(self, what: str) -> None:
        """Raise StoreBusy, saying `what` cannot be done, unless `is_current`."""
        if not self.is_current():
            raise StoreBusy(
                what,
                "it was removed, or another put in its place, while this process had it open",
                "close it wherever this process has it open, and open it again; nothing was saved",
            )

    def last_transaction(self) -> int:
        """Return the number of the last committed transaction; 0 once closed."""
        with gate:
            return 0 if self._handle is None else int(self._handle.info()["last_txnid"])
