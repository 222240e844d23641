"""The one thread of a process that writes the index, joining what waits into one transaction.

A durable LMDB transaction costs two flushes whatever it holds, so transactions that wait are
joined (at most 2,000 rows). Each job runs in a nested transaction: its exception undoes its own
changes only. Changes to anything but objects and packs take the next seq and become a fact.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from casckpt.errors import CasckptError, OperationFailed, StoreBusy
from casckpt.store import layout, opening, rows, writer_lock
from casckpt.store.environment import Environment, is_engine_error
from casckpt.store.transactions import Transaction
from casckpt.store.writer_lock import WriterLock

_Result = TypeVar("_Result")
_log = logging.getLogger("casckpt")
_FACT_SYNC_S = 1.0
# Where memory is short, the thread may fail to say that a job is over: look again.
_LOOK_AGAIN_S = 1.0


class FactSink(Protocol):
    """Where the writer puts facts: the packs of this process's session."""

    def fact_pack(self) -> int:
        """Return the number of a pack that takes a fact now; its row exists."""

    def pack_gone(self) -> None:
        """Open another pack for the next fact: a collector has dropped this one."""

    def append_fact(
        self, pack: int, seq: int, changes: list[tuple[str, bytes, bytes | None]]
    ) -> None:
        """Append the fact of a committed transaction."""

    def sync_facts(self) -> None:
        """Make the appended facts durable."""

    def beat(self) -> None:
        """Write the session's heartbeat."""


@dataclass(eq=False)
class _Job:
    run: Callable[[Transaction], Any]
    row_count: int
    facts: bool
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None
    is_over: bool = False


class IndexWriter:
    """Runs write transactions for all threads of a process, one after the other."""

    def __init__(self, environment: Environment, store: Path, sink: FactSink) -> None:
        self._store = store
        self.environment = environment
        self._sink = sink
        self._jobs: deque[_Job] = deque()
        # Waited on by `_wake`, but taken and let go by itself: that calls nothing of Python, which
        # may fail where memory is short, and a signal cannot come between it and its `with`.
        self._gate = threading.RLock()
        self._wake = threading.Condition(self._gate)
        self._closing = False
        self._dirty_since: float | None = None
        self._beat_at = time.monotonic() + layout.HEARTBEAT_S
        self._lock = WriterLock(store)
        self._thread: threading.Thread | None = None
        self._works_here = False
        self.before_first_write: Callable[[], None] | None = None

    def run(
        self, job: Callable[[Transaction], _Result], *, row_count: int = 1, facts: bool = True
    ) -> _Result:
        """Run `job` in a durable transaction and return its result; it is committed on return.

        The job makes LMDB calls only, and may be run again if its transaction is given up. Its
        exception is raised here and leaves nothing behind. Pass `facts=False` for a job that
        changes `objects`, `packs` and `meta` only.
        """
        entry = _Job(job, row_count, facts)
        if threading.current_thread() is self._thread:
            self._execute([entry])
        else:
            self._hand_over(entry)
            while not entry.is_over:
                entry.done.wait(_LOOK_AGAIN_S)
        error, entry.error = entry.error, None
        if error is not None:
            try:
                raise error
            finally:
                # No frame of an error's traceback may name it (see reading.py).
                del error
        result: _Result = entry.result
        return result

    def _hand_over(self, entry: _Job) -> None:
        """Give a job to the thread, or do it here where none can be begun."""
        with self._gate:
            if self._closing:
                raise OperationFailed("the store is closed", "it was used after close()")
            if self._start():
                self._jobs.append(entry)
                self._wake.notify_all()
            elif self._works_here:  # a job that another needs
                self._execute([entry])
            else:
                self._works_here = True
                try:
                    self._execute([entry])
                    # Nobody comes by later. What the job did is committed, whatever this meets.
                    with contextlib.suppress(Exception):
                        self._tend(fact_sync_s=0.0)
                finally:
                    self._works_here = False

    def _start(self) -> bool:
        """Begin the thread if it has not begun, and may; return whether it is there."""
        if self._works_here:
            return False  # it may be possible by now, but the thread would wait for this one
        if self._thread is None:
            thread = threading.Thread(target=self._loop, name="casckpt-index", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter ends, or there are as many as there may be
                return False
            self._thread = thread
        return True

    def _loop(self) -> None:
        self._beat_at = time.monotonic() + layout.HEARTBEAT_S
        batch: list[_Job] = []
        while True:
            try:
                batch = []
                if not self._take(batch):
                    return
                if batch:
                    self._execute(batch)
                self._tend(fact_sync_s=_FACT_SYNC_S)
            except Exception as exc:
                # No memory, say. Without this thread whoever writes would wait for ever.
                for job in batch:
                    if not job.is_over:
                        job.error = exc
                        job.is_over = True
                with contextlib.suppress(Exception):
                    _log.warning("the thread of the index goes on after an error", exc_info=True)

    def _tend(self, *, fact_sync_s: float) -> None:
        """Do what is due: make facts durable that are older than that, write the heartbeat."""
        now = time.monotonic()
        if self._dirty_since is not None and now - self._dirty_since >= fact_sync_s:
            self._dirty_since = None
            self._quietly(self._sink.sync_facts, "the last facts are not durable yet")
        if now >= self._beat_at:
            self._beat_at = now + layout.HEARTBEAT_S
            self._quietly(self._sink.beat, "the heartbeat was not written")
            # Openers do too, but who trains for weeks may be the only one.
            forget = self.environment.forget_dead_readers
            self._quietly(forget, "readers of the index that died keep its pages")

    def _take(self, batch: list[_Job]) -> bool:
        """Wait for jobs and move them to `batch`; return False when closed, and none is left."""
        with self._gate:
            if not self._jobs and not self._closing:
                timeout = self._beat_at - time.monotonic()
                if self._dirty_since is not None:
                    timeout = min(timeout, self._dirty_since + _FACT_SYNC_S - time.monotonic())
                self._wake.wait(max(timeout, 0.0))
            total = 0
            while self._jobs and (
                not batch or total + self._jobs[0].row_count <= layout.TRANSACTION_MAX_ROWS
            ):
                batch.append(self._jobs[0])
                self._jobs.popleft()  # ORDER: after the list has room for it
                total += batch[-1].row_count
            return bool(batch) or not self._closing

    @staticmethod
    def _quietly(action: Callable[[], None], message: str) -> None:
        try:
            action()
        except CasckptError as exc:
            _log.warning("%s: %s", message, exc)

    def _execute(self, batch: list[_Job]) -> None:
        try:
            self._commit(batch)
        except BaseException as exc:
            for job in batch:
                if job.error is None:
                    job.result, job.error = None, exc
        finally:
            for job in batch:
                job.is_over = True
            for job in batch:
                job.done.set()

    def _commit(self, batch: list[_Job]) -> None:
        if self.before_first_write is not None:
            self.before_first_write()
            self.before_first_write = None
        outcome = None
        while True:
            # A fact needs a pack whose row is there, and that row a transaction of its own.
            number = self._sink.fact_pack() if any(job.facts for job in batch) else None
            try:
                with self._lock.held("cannot write the index", writer_lock.WRITE_WAIT_S):
                    self._check_current()
                    outcome = self.environment.write(
                        partial(self._run_all, batch=batch, number=number)
                    )
                break
            except _PackGone:
                self._sink.pack_gone()
        if outcome is not None:
            self._sink.append_fact(*outcome)
            self._dirty_since = self._dirty_since or time.monotonic()

    def _run_all(
        self, tx: Transaction, batch: list[_Job], number: int | None
    ) -> tuple[int, int, list[tuple[str, bytes, bytes | None]]] | None:
        for job in batch:
            job.error = None
            if len(batch) == 1:
                job.result = job.run(tx)
                continue
            try:
                job.result = self.environment.nested(tx, job.run)
            except Exception as exc:
                if is_engine_error(exc):
                    raise
                job.error = exc
        if not tx.changes:
            return None
        assert number is not None, "a job that changes rows was run with facts=False"
        seq = tx.number("seq") + 1
        tx.set_number("seq", seq)
        if tx.roots_count or tx.roots_sum:
            tx.set_number("root_seq", tx.number("root_seq") + 1)
            add_to_roots(tx, tx.roots_count, tx.roots_sum)
        if tx.removed_roots:
            # Whoever collects must know why less is needed than before.
            tx.set_number("removed_roots", tx.number("removed_roots") + tx.removed_roots)
        pack = tx.pack(number)
        if pack is None or pack.state == rows.DROPPED:
            raise _PackGone(number)
        changed = replace(pack, state=rows.LIVE, epoch=0, highest_fact=seq)
        tx.put("packs", rows.pack_key(number), changed.encode())
        return number, seq, tx.changes

    def _check_current(self) -> None:
        """Refuse to write to an index that a rebuild, or a person, has replaced.

        A rebuild holds the store exclusively, so this needs a lost lock, or a store that was
        removed and made anew; but a commit into the old index would be acknowledged and gone.
        """
        if opening.current_index(self._store) != self.environment.path:
            raise StoreBusy(
                f"cannot write the index of {self._store}",
                "it was rebuilt while this process had the store open",
                "close the store and open it again; nothing was committed",
            )
        self.environment.require_current(f"cannot write the index of {self._store}")

    def close(self) -> None:
        """Run what waits, then stop the thread."""
        self._closing = True
        with contextlib.suppress(MemoryError), self._gate:
            self._wake.notify_all()
        if self._thread is not None and threading.current_thread() is not self._thread:
            # Were it still at work, the index would be closed under it.
            while self._thread.is_alive():
                with contextlib.suppress(MemoryError):
                    self._thread.join(_LOOK_AGAIN_S)
        self._lock.close()

    def abandon(self) -> None:
        """Forget everything without unlocking: in the child of a fork."""
        self._lock.close()


class _PackGone(OperationFailed):
    """The pack meant for the fact was dropped by a collector that took this session for dead."""

    def __init__(self, number: int) -> None:
        super().__init__("cannot write the index", f"pack {number} was dropped", number=number)


def add_to_roots(tx: Transaction, count: int, total: int) -> None:
    """Add to the roots checksum: number of root rows and the sum of their hashes."""
    old_count, old_total = read_roots(tx)
    new_count, new_total = old_count + count, (old_total + total) % 2**128
    tx.put("meta", b"roots", rows.u64(new_count) + new_total.to_bytes(16, "little"))


def read_roots(tx: Transaction) -> tuple[int, int]:
    """Return the roots checksum of the index: (number of root rows, sum of hashes)."""
    value = tx.get("meta", b"roots") or bytes(24)
    return rows.read_u64(value[:8]), int.from_bytes(value[8:24], "little")
