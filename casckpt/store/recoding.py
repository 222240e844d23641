"""Compact: store old chunks anew, as differences to newer ones, as deep as it pays (GC 3).

A column is moved in one transaction, root first, so a chain that runs the other way is turned
round without ever meeting itself. A kill loses what was not moved yet, and leaves nothing to
repair; the next run goes on, since it leaves alone what is where it should be.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from casckpt.native import PrefixSet
from casckpt.store import files, layout, rows, sessions
from casckpt.store.chains import Chains
from casckpt.store.collectors import check_run
from casckpt.store.columns import Lineage, Plan
from casckpt.store.compaction import publish
from casckpt.store.marking import Mark
from casckpt.store.reading import Reader
from casckpt.store.recoding_columns import ColumnCoder, Recoded, Work
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction
from casckpt.store.workers import Workers

if TYPE_CHECKING:
    from casckpt.store.repository import Repository

Progress = Callable[[int, int], None]

# The longest chain that a move may make; 10,000 versions have chains of 39 links.
LONGEST = 40
# The least that is written before what it replaces is freed.
_ROOM_BYTES = layout.PACK_SEAL_BYTES


class Recoder:
    """Stores the chunks of a plan anew, column by column; what a collection calls to compact.

    `done` says what came of it, also after an error or a Ctrl+C.
    """

    def __init__(
        self,
        shared: SharedStore,
        pool: Workers,
        plan: Plan,
        level: str,
        progress: Progress | None = None,
        *,
        ahead: int = 2,
    ) -> None:
        """Work with `pool` on up to `ahead` columns at a time: each takes some 16 MiB."""
        self._shared = shared
        self._ahead = ahead
        self._pool = pool
        self._plan = plan
        self._level = level
        self._progress = progress
        self._columns = plan.columns()
        self._stop = threading.Event()
        self.done = Recoded()

    def __call__(self, run: bytes, mark: Mark) -> bool:
        """Do as `collection.Recode` says."""
        coder = self._coder()
        # Old and new lie side by side until the old is freed: half of what is left is for each.
        self._room = max(files.free_bytes(self._shared.path) // 2, _ROOM_BYTES)
        waiting: list[Work] = []
        for work in self._worked(coder, mark):
            waiting.append(work)
            self._room -= sum(move.record.total_bytes for move in work.moves)
            if _is_full(waiting):
                self._publish(run, waiting)
                waiting = []
        self._publish(run, waiting)
        if self._room <= 0:
            return True
        self._remember(run, mark)
        if self._progress is not None:
            # What versions share was looked at once, and counted for each.
            self._progress(self._plan.total_bytes, self._plan.total_bytes)
        return False

    def estimate(self, columns: int) -> Recoded:
        """Do all but write for so many columns, spread over all; return what came of them."""
        coder = self._coder()
        everything = list(self._columns)
        chosen = everything[:: max(len(everything) // columns, 1)]
        for work in self._pool.map(partial(coder.work, append=None), chosen):
            self._count(work.outcome)
        self.done.share = len(everything) / max(len(chosen), 1)
        return self.done

    # ---- the columns, on workers

    def _coder(self) -> ColumnCoder:
        return ColumnCoder(
            self._shared,
            Reader(self._shared, self._pool),
            self._plan,
            self._level,
            Chains.read(self._shared, LONGEST),
            _seen_below(self._shared, self._level),
            self._stop,
        )

    def _worked(self, coder: ColumnCoder, mark: Mark) -> Iterator[Work]:
        """Yield columns as they are finished, in order; few are under way at a time."""
        under_way: deque[Future[Work]] = deque()
        append = self._shared.own.append
        try:
            while True:
                while self._room > 0 and len(under_way) < self._ahead:
                    column = next(self._columns, None)
                    if column is None:
                        break
                    # Versions that were removed since the plan was made are left out.
                    ids = tuple(one for one in column.ids if one in mark.reached)
                    if ids:
                        reached = replace(column, ids=ids)
                        under_way.append(self._pool.submit(coder.work, reached, append))
                if not under_way:
                    return
                yield under_way.popleft().result()
        finally:
            # After a Ctrl+C or an error nobody may still append for a run that is over.
            self._stop.set()
            for future in under_way:
                if not future.cancel():
                    future.exception()
            self._stop.clear()

    # ---- the index, on the calling thread

    def _publish(self, run: bytes, waiting: Sequence[Work]) -> None:
        moves = [move for work in waiting for move in work.moves]
        for start in range(0, len(moves), layout.ONE_TRANSACTION_ROWS):
            publish(self._shared, run, moves[start : start + layout.ONE_TRANSACTION_ROWS], LONGEST)
        for work in waiting:
            self._count(work.outcome)
        if self._progress is not None and waiting:
            self._progress(
                min(self.done.looked_bytes, self._plan.total_bytes), self._plan.total_bytes
            )

    def _count(self, outcome: Recoded) -> None:
        done = self.done
        done.looked_bytes += outcome.looked_bytes
        done.looked_count += outcome.looked_count
        done.recoded_count += outcome.recoded_count
        done.before_bytes += outcome.before_bytes
        done.after_bytes += outcome.after_bytes

    def _remember(self, run: bytes, mark: Mark) -> None:
        """Note below which pack every chunk has been looked at, so that the next run need not."""
        own = self._shared.session().uuid
        alive = {info.uuid for info in sessions.list_sessions(self._shared.path) if info.alive}

        def note(tx: Transaction) -> None:
            check_run(tx, run)
            end = max(tx.number("next_pack"), 1)
            for key, value in tx.scan("packs"):
                number, pack = rows.read_u64(key), rows.PackRow.decode(value)
                grows = not pack.sealed and pack.session in alive
                if pack.session != own and (grows or number not in mark.known):
                    end = min(end, number)
            tx.set_number(_SEEN[self._level], end)

        self._shared.writer.run(note, facts=False)


_SEEN = {"balanced": "compacted", "small": "compacted_small"}


def _seen_below(shared: SharedStore, level: str) -> int:
    """Return the number of the first pack with chunks that no run at this level has looked at."""
    with shared.environment.read() as tx:
        small = tx.number(_SEEN["small"])
        return small if level == "small" else max(small, tx.number(_SEEN["balanced"]))


def _is_full(waiting: Sequence[Work]) -> bool:
    moves = sum(len(work.moves) for work in waiting)
    size = sum(move.record.total_bytes for work in waiting for move in work.moves)
    return moves >= layout.ONE_TRANSACTION_ROWS // 2 or size >= layout.PACK_SEAL_BYTES


def compact(
    repository: Repository,
    lineages: Sequence[Lineage],
    level: str,
    progress: Progress | None = None,
) -> Recoded:
    """Store chunks anew where that wins, and free what that leaves; at any kill, beside anybody.

    Raises:
        StoreBusy: another collector is at work.
        Corrupt: something that a checkpoint needs is missing; nothing was freed.
        NoSpace: the disk has no room for a chunk's old and new record side by side.
    """
    from casckpt.store import collection

    shared, pool = repository._shared(write=True), repository._workers()
    plan = Plan(Reader(shared, pool), lineages)
    # One more than there are workers, so that none waits for the flush of a transaction.
    ahead = 1 + (repository.options.workers or os.cpu_count() or 1)
    recoder = Recoder(shared, pool, plan, level, progress, ahead=ahead)
    collection.collect(shared, recode=recoder)
    # The space reserved past the end of the open pack is given back with this.
    shared.own.seal_all()
    return recoder.done


def estimate(
    repository: Repository, parts: Mapping[str, Sequence[Lineage]], level: str, columns: int
) -> tuple[dict[str, Recoded], PrefixSet]:
    """Return what `compact` would do to about so many columns of each part; write nothing.

    The columns are spread over all of a part. With it come the chunks that any part needs.
    """
    shared, pool = repository._shared(), repository._workers()
    reader, needed = Reader(shared, pool), PrefixSet()
    plans = {name: Plan(reader, lineages, needed) for name, lineages in parts.items()}
    found = {
        name: Recoder(shared, pool, plan, level).estimate(columns) for name, plan in plans.items()
    }
    return found, needed
