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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from casckpt.errors import Corrupt, Deleted, NewerFormat
from casckpt.native import PrefixSet, equal
from casckpt.store import codec, files, layout, records, rows, sessions
from casckpt.store.chains import Chains
from casckpt.store.collectors import check_run
from casckpt.store.columns import Column, Lineage, Plan, base_of
from casckpt.store.compaction import Move, publish
from casckpt.store.environment import Transaction
from casckpt.store.marking import Mark
from casckpt.store.packs import PackWriter
from casckpt.store.reading import Reader
from casckpt.store.sharing import SharedStore

if TYPE_CHECKING:
    from casckpt.store.repository import Repository

Progress = Callable[[int, int], None]

# The longest chain that a move may make; 10,000 versions have chains of 39 links.
LONGEST = 40
# Turning a chain round makes its newest chunk fast. For that a column may grow by such a share:
# where differences hardly pay, they may do so in one direction only.
_TURNED_SHARE = 0.01
# What is stored whole already is stored anew for no less than this; elsewhere every byte counts.
_WORTH = 0.98
# Decoded chunks at hand for each worker: the versions of a step, and the digits above.
_KEPT = 8
# What of a column is held back until it is known to win: what was written of one that is left takes
# space until the next run copies the rest.
_HELD_BYTES = 4 * layout.MIB
# The least that is written before what it replaces is freed.
_ROOM_BYTES = layout.PACK_SEAL_BYTES
_UNREADABLE = (Corrupt, Deleted, NewerFormat)


@dataclass(slots=True)
class Recoded:
    """What was done: chunks looked at and stored anew, and the bytes of those before and after.

    `share` is how many times what was looked at is all there is: above 1 for a sample.
    """

    looked_bytes: int = 0
    looked_count: int = 0
    recoded_count: int = 0
    before_bytes: int = 0
    after_bytes: int = 0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class _Record:
    """A chunk coded anew, to be appended in place of what its row names."""

    row: rows.ObjectRow
    encoding: int
    identity: bytes
    logical: int
    refs: tuple[bytes, ...]
    payload: bytes


@dataclass(slots=True)
class _Work:
    """A column at work: its rows, its moves so far, and chunks at hand.

    `only_bases` are links below a chunk that no checkpoint needs, and what they take; `leaves` are
    those of chunks that were moved.
    """

    column: Column
    rows: dict[bytes, rows.ObjectRow]
    only_bases: dict[bytes, dict[bytes, int]]
    outcome: Recoded = field(default_factory=Recoded)
    moves: list[Move] = field(default_factory=list)
    held: list[_Record] = field(default_factory=list)
    leaves: dict[bytes, int] = field(default_factory=dict)
    undo: list[tuple[bytes, bytes]] = field(default_factory=list)
    kept: dict[bytes, memoryview | None] = field(default_factory=dict)


Append = Callable[..., tuple[PackWriter, records.Record]]


class Recoder:
    """Stores the chunks of a plan anew, column by column; what a collection calls to compact.

    `done` says what came of it, also after an error or a Ctrl+C.
    """

    def __init__(
        self,
        shared: SharedStore,
        pool: ThreadPoolExecutor,
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
        self._reader = Reader(shared, pool)
        self._columns = plan.columns()
        self._stop = threading.Event()
        self._seen_below = _seen_below(shared, level)
        self.done = Recoded()

    def __call__(self, run: bytes, mark: Mark) -> bool:
        """Do as `collection.Recode` says."""
        self._chains = Chains.read(self._shared, LONGEST)
        # Old and new lie side by side until the old is freed: half of what is left is for each.
        self._room = max(files.free_bytes(self._shared.path) // 2, _ROOM_BYTES)
        waiting: list[_Work] = []
        for work in self._worked(mark):
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
        self._chains = Chains.read(self._shared, LONGEST)
        everything = list(self._columns)
        chosen = everything[:: max(len(everything) // columns, 1)]
        for work in self._pool.map(partial(self._work, append=None), chosen):
            self._count(work.outcome)
        self.done.share = len(everything) / max(len(chosen), 1)
        return self.done

    # ---- the columns, on workers

    def _worked(self, mark: Mark) -> Iterator[_Work]:
        """Yield columns as they are finished, in order; few are under way at a time."""
        under_way: deque[Future[_Work]] = deque()
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
                        under_way.append(self._pool.submit(self._work, reached, append))
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

    def _work(self, column: Column, append: Append | None) -> _Work:
        """Store a column's chunks anew where that wins; what it appended is not published yet."""
        work = _Work(column, {}, {})
        with self._shared.environment.read() as tx:
            chains = [chain for one in column.ids if (chain := tx.chain(one)) is not None]
        for (identity, found, _), *below in chains:
            if found.kind == layout.TYPE_CHUNK:
                work.rows[identity] = found
                work.only_bases[identity] = {
                    link: base.total_bytes
                    for link, base, _ in below
                    if link not in self._plan.needed
                }
        for index, identity in enumerate(column.ids):
            if self._stop.is_set():
                break
            row = work.rows.get(identity)
            if row is not None and identity in column.own:
                work.outcome.looked_count += 1
                work.outcome.looked_bytes += row.logical
                self._store(work, index, identity, row, append)
        outcome, freed = work.outcome, self._freed(work)
        outcome.before_bytes += sum(work.leaves[base] for base in freed)
        grown = outcome.after_bytes - outcome.before_bytes
        grows = grown > (self._price(work) if self._is_turned(work) else 0)
        if grows or self._stop.is_set():
            for identity, base in reversed(work.undo):
                self._chains.put_back(identity, base)
            work.moves.clear()
            work.held.clear()
            outcome.recoded_count = outcome.before_bytes = outcome.after_bytes = 0
        else:
            self._chains.settle((identity for identity, _ in work.undo), freed)
        if append is not None:
            self._append_held(work, append)
        work.kept.clear()
        return work

    @staticmethod
    def _append_held(work: _Work, append: Append) -> None:
        for held in work.held:
            placed = append(
                layout.TYPE_CHUNK,
                held.encoding,
                held.identity,
                held.logical,
                held.refs,
                held.payload,
            )
            work.moves.append(Move(held.row, *placed))
        work.held.clear()

    def _freed(self, work: _Work) -> list[bytes]:
        """Return the bases that go with a column's moves: nothing needed stands on them then."""
        moved = {identity for identity, _ in work.undo}
        needed = self._plan.needed
        return [base for base in work.leaves if self._chains.is_left(base, moved, needed)]

    @staticmethod
    def _price(work: _Work) -> float:
        """Return by how many bytes a column may grow to be turned round."""
        return _TURNED_SHARE * sum(row.total_bytes for row in work.rows.values())

    @staticmethod
    def _is_turned(work: _Work) -> bool:
        """Tell whether the root was on a base of its column, and is to be no more."""
        root = work.rows.get(work.column.ids[0])
        return root is not None and root.base in work.column.ids

    def _store(
        self,
        work: _Work,
        index: int,
        identity: bytes,
        row: rows.ObjectRow,
        append: Append | None,
    ) -> None:
        """Store one chunk anew if it is not as it should be."""
        base = self._choose(work, index, identity, row)
        if base == row.base and not (base == b"" and self._may_shrink(row)):
            return
        view = self._bytes(work, identity)
        if view is None:
            return
        old = self._bytes(work, base) if base else None
        if old is not None and not codec.delta_pays(view, old, work.column.item_size):
            old = None
        if old is None and not row.base and not self._may_shrink(row):
            return
        encoded = codec.encode_chunk(view, work.column.item_size, self._level, old)
        if not encoded.uses_base and not row.base and len(encoded.payload) > _WORTH * row.stored:
            return
        used = base if encoded.uses_base else b""
        refs = (used,) if used else ()
        after = records.OVERHEAD_BYTES + 32 * len(refs) + len(encoded.payload)
        if index and row.base and not used and codec.plane_width(work.column.item_size) == 1:
            # Of opaque bytes nobody knows before whether they resemble what took their place.
            return
        if not self._chains.move(identity, used):
            return
        work.undo.append((identity, row.base))
        if append is not None:
            self._prove(identity, encoded, view, old)
            payload = bytes(encoded.payload)
            work.held.append(_Record(row, encoded.encoding, identity, len(view), refs, payload))
            if sum(len(held.payload) for held in work.held) > _HELD_BYTES:
                self._append_held(work, append)
        work.outcome.recoded_count += 1
        work.leaves |= work.only_bases[identity]
        work.outcome.before_bytes += row.total_bytes
        work.outcome.after_bytes += after

    def _choose(self, work: _Work, index: int, identity: bytes, row: rows.ObjectRow) -> bytes:
        """Return the base that a chunk should stand on, nothing for none."""
        ids = work.column.ids
        if not work.column.versions or index == 0:
            # A base that a checkpoint needs anyway, of another lineage, costs nothing.
            outside = row.base and row.base not in ids and row.base in self._plan.needed
            return row.base if outside or not work.column.versions else b""
        seen = row.pack < self._seen_below and not row.base
        for place in (base_of(len(ids), index), index - 1):
            base = work.rows.get(ids[place])
            if base is None:
                continue
            if row.base == ids[place]:
                return row.base
            if seen and base.pack < self._seen_below:
                return b""
            if self._chains.fits(identity, ids[place]):
                return ids[place]
        return b""

    def _may_shrink(self, row: rows.ObjectRow) -> bool:
        """Tell whether a chunk that is stored whole may take less at this level."""
        if row.base or row.pack < self._seen_below:
            return False
        return row.encoding == layout.ENCODING_RAW or self._level == "small"

    def _bytes(self, work: _Work, identity: bytes) -> memoryview | None:
        """Return a chunk, checked against its id; None if it cannot be read."""
        if identity in work.kept:
            work.kept[identity] = work.kept.pop(identity)
            return work.kept[identity]
        view: memoryview | None = memoryview(bytearray(work.rows[identity].logical))
        try:
            assert view is not None
            self._reader.read_chunk(identity, view)
        except _UNREADABLE:
            # Damage is not handed on, and stays where verify finds it.
            view = None
        while len(work.kept) >= _KEPT:
            del work.kept[next(iter(work.kept))]
        work.kept[identity] = view
        return view

    @staticmethod
    def _prove(
        identity: bytes, encoded: codec.Encoded, view: memoryview, base: memoryview | None
    ) -> None:
        """Decode what was encoded and compare: compressors have corrupted data before."""
        decoded = codec.scratch("proof", len(view))
        codec.decode_chunk(encoded.encoding, encoded.payload, decoded, base)
        if not equal(view, decoded):
            raise Corrupt(
                f"chunk {identity.hex()[:10]} does not decode to what was encoded",
                "a fault of the machine or a compressor",
                "nothing was changed; test the memory of this machine",
            )

    # ---- the index, on the calling thread

    def _publish(self, run: bytes, waiting: Sequence[_Work]) -> None:
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


def _is_full(waiting: Sequence[_Work]) -> bool:
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
