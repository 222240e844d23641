"""The store as the floors above see it: one handle, from which saves, reads and rows are had."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from casckpt.errors import BadRequest, NotFound, OperationFailed, PermissionRefused
from casckpt.store import creation, layout, rows, sharing
from casckpt.store.rows import CheckpointRow, Row, RowState
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

if TYPE_CHECKING:
    from casckpt.store.codings import ChunkCoding
    from casckpt.store.collection import GcReport, SpacePlan
    from casckpt.store.commits import CommitRequest, Guard, RowWrite
    from casckpt.store.effort import Effort
    from casckpt.store.reading import BlobRead
    from casckpt.store.rebuilding import RebuildReport
    from casckpt.store.repairing import RepairReport
    from casckpt.store.saving import Saver
    from casckpt.store.usage import StoreSizes
    from casckpt.store.verification import VerifyReport
    from casckpt.store.workers import Workers

Mode = Literal["a", "r"]
_LIVE_ONLY: tuple[RowState, ...] = ("live",)


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a store is used by this process; nothing here changes what is on disk for others.

    `level`: fast, balanced or small. `memory_bytes`: bound above the state being saved or
    restored. `workers`: threads that code and read; None for one a core. `max_delta_depth`: how
    many bases a chunk may rest on; 0 stores every chunk whole.
    """

    level: str = "balanced"
    memory_bytes: int = 256 * layout.MIB
    workers: int | None = None
    max_delta_depth: int = 3

    def __post_init__(self) -> None:
        """Refuse values that cannot work."""
        if self.level not in ("fast", "balanced", "small"):
            raise BadRequest(f"bad level {self.level!r}", "", "use fast, balanced or small")
        if self.memory_bytes < 16 * layout.MIB:
            raise BadRequest("memory_bytes is too small", "", "give at least 16 MiB")
        if not 0 <= self.max_delta_depth <= layout.CHAIN_MAX_LINKS // 2:
            raise BadRequest("bad max_delta_depth", "", "give 0 to 500; 3 is the default")
        if self.workers is not None and self.workers < 1:
            raise BadRequest("workers is too small", "", "give at least 1, or None")


class Repository:
    """A handle on an open store. Thread safe; after a fork it opens the store again by itself."""

    def __init__(self, path: Path, mode: Mode, options: StoreOptions) -> None:
        self.path = Path(path).resolve()
        self.mode = mode
        self.options = options
        self._lock = threading.Lock()
        _handles.add(self)
        self._closed = False
        self._pool: Workers | None = None
        self._shared_store: SharedStore | None = sharing.acquire(self.path, writable=mode == "a")

    @staticmethod
    def init(path: Path | str) -> None:
        """Make an empty store at `path`."""
        creation.create_store(Path(path))

    @staticmethod
    def open(path: Path | str, mode: Mode = "a", options: StoreOptions | None = None) -> Repository:
        """Open the store at `path`.

        Raises:
            NoStore, FileSystemRefused, PermissionRefused: it cannot be used as a store.
            NewerFormat: it needs a newer casckpt.
            Corrupt: the index is missing, empty, damaged, another store's, or older than the packs.
            StoreBusy: it is held exclusively.
        """
        if mode not in ("a", "r"):
            raise BadRequest(f"bad mode {mode!r}", "", "use 'a' to save and read, 'r' to read only")
        return Repository(Path(path), mode, options or StoreOptions())

    def close(self) -> None:
        """Give the store back; the last handle of the process closes it. Not an error twice."""
        with self._lock:
            self._closed = True
            shared, self._shared_store = self._shared_store, None
            pool, self._pool = self._pool, None
        if pool is not None and (shared is None or shared.pid == os.getpid()):
            pool.shutdown()
        if shared is not None:
            sharing.release(shared)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def uuid(self) -> bytes:
        """16 bytes that name the store."""
        return self._shared().format.uuid

    def _shared(self, *, write: bool = False) -> SharedStore:
        """Return the open store, opened anew in the child of a fork."""
        if write and self.mode == "r":
            raise PermissionRefused(
                f"cannot write to {self.path}",
                "it was opened with mode 'r'",
                "open it with mode 'a'",
            )
        with self._lock:
            if self._closed:
                raise OperationFailed(
                    "the store is closed", "it was used after close()", "open it again"
                )
            shared = self._shared_store
            if shared is None or shared.pid != os.getpid():
                shared = sharing.acquire(self.path, writable=self.mode == "a")
                self._shared_store, self._pool = shared, None
            return shared

    def _workers(self) -> Workers:
        # Not at the top: `ls` has no use for it, and is waited for.
        from casckpt.store.workers import Workers

        with self._lock:
            if self._pool is None:
                count = self.options.workers or os.cpu_count() or 1
                self._pool = Workers(count, "casckpt-work")
            return self._pool

    # ---- saving and reading

    def saver(self, level: str | None = None) -> Saver:
        """Return a save to be used as a context; leaving it uncommitted leaves nothing behind."""
        from casckpt.store.saving import Saver

        shared = self._shared(write=True)
        level = StoreOptions(level=level).level if level else self.options.level
        options = self.options
        return Saver(shared, self._workers(), level, options.memory_bytes, options.max_delta_depth)

    def read_manifest(self, manifest_id: bytes) -> tuple[list[bytes], bytes]:
        """Return (ids of its blobs, body) of a manifest, checked against its id."""
        from casckpt.store.reading import Reader

        refs, body = Reader(self._shared(), self._workers()).read_object(
            manifest_id, layout.TYPE_MANIFEST
        )
        return list(refs), body

    def read_blobs(self, wishes: Sequence[BlobRead], *, verify: bool = True) -> None:
        """Fill the destinations of `wishes`; see `Reader.read_blobs`."""
        from casckpt.store.reading import Reader

        Reader(self._shared(), self._workers()).read_blobs(wishes, verify=verify)

    # ---- rows

    def checkpoint_rows(
        self, run: str | None = None, *, states: Collection[RowState] = _LIVE_ONLY
    ) -> list[CheckpointRow]:
        """Return the checkpoints of one run or of all, ordered by run and commit."""
        prefix = b"" if run is None else rows.run_prefix(run)
        with self._shared().environment.read() as tx:
            found = [
                rows.decode_checkpoint(key, value) for key, value in tx.scan("checkpoints", prefix)
            ]
        return [row for row in found if row.state in states]

    def checkpoint_row(self, run: str, seq: int) -> CheckpointRow | None:
        """Return the checkpoint of one commit, whatever its state, or None."""
        key = rows.checkpoint_key(run, seq)
        with self._shared().environment.read() as tx:
            value = tx.get("checkpoints", key)
        return None if value is None else rows.decode_checkpoint(key, value)

    def head(self, run: str, line: int | None) -> int | None:
        """Return the commit seq at the largest step of a line, None for the last one, or None."""
        from casckpt.store.commits import line_head

        with self._shared().environment.read() as tx:
            return line_head(tx, run, line)

    def commit_at(self, run: str, line: int, step: int, batch: int) -> int | None:
        """Return the seq of the last commit at a place, or None."""
        with self._shared().environment.read() as tx:
            value = tx.get("steps", rows.step_key(run, line, step, batch))
        return None if value is None else rows.read_u64(value)

    def edit_checkpoint(
        self, run: str, seq: int, edit: Callable[[bytes], bytes], guard: Guard | None = None
    ) -> bytes:
        """Replace the payload of a checkpoint by `edit` of it; durable when this returns.

        `edit` runs outside the transaction and may run again if another writer was faster;
        `guard` looks at the run inside, and forbids the change by what it raises.
        """
        from casckpt.store.commits import ask

        key = rows.checkpoint_key(run, seq)

        def change(old: bytes | None) -> tuple[bytes, bytes]:
            row = None if old is None else Row.decode(old)
            if row is None or row.state == "tombstone" or old is None:
                raise NotFound(f"no checkpoint {run} with commit {seq}", "it was removed")
            payload = edit(rows.decode_checkpoint(key, old).payload)
            return rows.with_checkpoint_payload(row, payload).encode(), payload

        return self._edit("checkpoints", key, change, partial(ask, guard))

    def edit_run(self, run: str, edit: Callable[[bytes | None], bytes]) -> bytes:
        """Replace the payload of a run's row, None if there is none yet, by `edit` of it."""

        def change(old: bytes | None) -> tuple[bytes, bytes]:
            payload = edit(None if old is None else rows.named(Row.decode(old).payload)[1])
            return Row("live", (), rows.with_name(run, payload)).encode(), payload

        return self._edit("runs", rows.name_part(run), change)

    def edit_row(self, table: str, key: bytes, edit: Callable[[bytes | None], bytes]) -> bytes:
        """Replace the payload of a row without roots, None if there is none, by `edit` of it.

        Durable when this returns. `edit` may run again if another writer was faster; an error
        that it raises leaves the row as it is.
        """

        def change(old: bytes | None) -> tuple[bytes, bytes]:
            payload = edit(None if old is None else Row.decode(old).payload)
            return Row("live", (), payload).encode(), payload

        return self._edit(table, key, change)

    def _edit(
        self,
        table: str,
        key: bytes,
        change: Callable[[bytes | None], tuple[bytes, bytes]],
        before: Callable[[Transaction], None] | None = None,
    ) -> bytes:
        shared = self._shared(write=True)
        while True:
            with shared.environment.read() as tx:
                old = tx.get(table, key)
            new, payload = change(old)

            def swap(tx: Transaction, old: bytes | None = old, new: bytes = new) -> bool:
                if tx.get(table, key) != old:
                    return False
                if before is not None:
                    before(tx)
                if new != old:
                    tx.put(table, key, new)
                return True

            if shared.writer.run(swap):
                return payload

    def run_row(self, run: str) -> bytes | None:
        """Return the payload of a run's row, or None."""
        row = self.row("runs", rows.name_part(run))
        return None if row is None else rows.named(row.payload)[1]

    def run_rows(self, prefix: str = "") -> list[tuple[str, bytes]]:
        """Return (run, payload) of the rows of `runs` whose name begins with `prefix`."""
        with self._shared().environment.read() as tx:
            found = [rows.named(Row.decode(value).payload) for _, value in tx.scan("runs")]
        return sorted((name, payload) for name, payload in found if name.startswith(prefix))

    def rows(self, table: str, prefix: bytes = b"") -> list[tuple[bytes, Row]]:
        """Return (key, row) of runs, history, progress or cache, in order of key."""
        with self._shared().environment.read() as tx:
            return [(key, Row.decode(value)) for key, value in tx.scan(table, prefix)]

    def row(self, table: str, key: bytes) -> Row | None:
        """Return one row of runs, history, progress or cache, or None."""
        with self._shared().environment.read() as tx:
            value = tx.get(table, key)
        return None if value is None else Row.decode(value)

    def write_rows(self, writes: Sequence[RowWrite]) -> None:
        """Put and remove rows that name no objects, in one transaction; durable on return.

        Rows with roots are committed by the save that put them: `Saver.add_rows`.
        """
        from casckpt.store.commits import write_rows

        if any(write.roots for write in writes):
            raise ValueError("rows with roots are committed by Saver.add_rows")
        self._shared(write=True).writer.run(
            lambda tx: write_rows(tx, writes), row_count=len(writes)
        )

    def add_rows(self, writes: Sequence[RowWrite]) -> list[bool]:
        """Put rows where there are none, and remove rows, in one transaction; durable on return.

        Returns:
            For each write whether it took effect: the first of two processes wins.
        """
        from casckpt.store.commits import add_rows

        if any(write.roots for write in writes):
            raise ValueError("rows with roots are committed by Saver.add_rows")
        return self._shared(write=True).writer.run(
            lambda tx: add_rows(tx, writes), row_count=len(writes)
        )

    def trash(self, checkpoints: Sequence[tuple[str, int]], guard: Guard | None = None) -> None:
        """Put live checkpoints, given as (run, commit seq), into the trash, all or none.

        `guard` looks at what the transaction finds, and forbids it all by what it raises.
        """
        from casckpt.store.commits import trash_checkpoints

        shared = self._shared(write=True)
        move = partial(trash_checkpoints, checkpoints=checkpoints, guard=guard)
        shared.with_ballast(lambda: shared.writer.run(move, row_count=len(checkpoints)))

    def bury(
        self,
        checkpoints: Sequence[tuple[str, int, bytes]],
        guard: Guard | None = None,
        *,
        state: Literal["live", "trash"] = "live",
    ) -> None:
        """Remove checkpoints, given as (run, commit seq, payload), for good.

        One whose payload is not this any more (it was tagged or pinned meanwhile) stays, and so
        does one that is not in this `state` any more.
        """
        from casckpt.store.commits import bury_checkpoints

        shared = self._shared(write=True)
        remove = partial(bury_checkpoints, checkpoints=checkpoints, guard=guard, state=state)
        shared.with_ballast(lambda: shared.writer.run(remove, row_count=len(checkpoints)))

    def untrash(self, checkpoints: Sequence[tuple[str, int]], guard: Guard | None = None) -> None:
        """Bring checkpoints, as (run, commit seq), back; see `commits.untrash_checkpoints`."""
        from casckpt.store.commits import untrash_checkpoints

        move = partial(untrash_checkpoints, checkpoints=checkpoints, guard=guard)
        self._shared(write=True).writer.run(move, row_count=2 * len(checkpoints))

    # ---- space and trust

    def plan_gc(self, drop: Collection[tuple[str, int]]) -> SpacePlan:
        """Return what `gc(now=True)` would free if the checkpoints in `drop` were gone."""
        from casckpt.store import collection

        return collection.plan(self._shared(), drop)

    def gc(self, *, now: bool | Collection[str] = False, force: bool = False) -> GcReport:
        """Free what nothing reaches; see `collection.collect`. True for `now` means all runs."""
        from casckpt.store import collection

        runs = (None if now else ()) if isinstance(now, bool) else now
        return collection.collect(self._shared(write=True), now=runs, force=force)

    def sizes(self) -> StoreSizes:
        """Return what the store takes on disk."""
        from casckpt.store import usage

        return usage.sizes(self._shared())

    def codings(self, blob: bytes) -> list[ChunkCoding]:
        """Return how the chunks of a blob are stored, in order; see `codings.codings_of`."""
        from casckpt.store import codings

        return codings.codings_of(self._shared(), self._workers(), blob)

    def closure(self, manifest_ids: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
        """Return every object reachable from manifests: id -> (logical bytes, stored bytes)."""
        from casckpt.store import usage

        return usage.closure(self._shared(), manifest_ids)

    def verify(
        self,
        level: str = "bytes",
        progress: Callable[[int, int], None] | None = None,
        effort: Effort | None = None,
    ) -> VerifyReport:
        """Check the store and change nothing; see `verification.verify`."""
        from casckpt.store import verification

        return verification.verify(self._shared(), self._workers(), level, progress, effort)

    def repair(
        self,
        source: Repository | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RepairReport:
        """Refill what is damaged from other copies, set aside the rest; see `repairing.repair`."""
        from casckpt.store import repairing

        other = None if source is None else source._shared()
        return repairing.repair(self._shared(write=True), self._workers(), other, progress)

    @staticmethod
    def rebuild_index(
        path: Path | str,
        progress: Callable[[int, int], None] | None = None,
        recover: Callable[[bytes, bytes], CommitRequest | None] | None = None,
    ) -> RebuildReport:
        """Make a new index from the packs alone; see `rebuilding.rebuild`."""
        from casckpt.store import rebuilding

        return rebuilding.rebuild(Path(path).resolve(), progress, recover)

    def accept_rebuild(self) -> None:
        """Allow retention and gc again after a rebuild: what was recovered is what is wanted."""
        self._shared(write=True).writer.run(lambda tx: tx.set_number("rebuilt", 0), facts=False)


_handles: weakref.WeakSet[Repository] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for handle in list(_handles):  # a thread of the parent may have held the old lock
        handle._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
