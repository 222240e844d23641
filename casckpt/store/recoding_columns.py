"""One column at work: its chunks stored anew as differences along it, where that wins.

What is appended here is published by the caller, in one transaction, or not at all; moves of a
column that wins nothing are taken back before anything of it is published.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from casckpt.errors import Corrupt, Deleted, NewerFormat
from casckpt.native import equal
from casckpt.store import codec, layout, records, rows
from casckpt.store.chains import Chains
from casckpt.store.columns import Column, Plan, base_of
from casckpt.store.compaction import Move
from casckpt.store.pack_writer import PackWriter
from casckpt.store.reading import Reader
from casckpt.store.sharing import SharedStore

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
_UNREADABLE = (Corrupt, Deleted, NewerFormat)

Append = Callable[..., tuple[PackWriter, records.Record]]


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
class Work:
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


class ColumnCoder:
    """Stores the chunks of columns anew, each column on one worker at a time."""

    def __init__(
        self,
        shared: SharedStore,
        reader: Reader,
        plan: Plan,
        level: str,
        chains: Chains,
        seen_below: int,
        stop: threading.Event,
    ) -> None:
        """Work at `level` on columns of `plan`, until `stop`.

        `seen_below` is the number of the first pack with chunks that no run has looked at.
        """
        self._shared = shared
        self._reader = reader
        self._plan = plan
        self._level = level
        self._chains = chains
        self._seen_below = seen_below
        self._stop = stop

    def work(self, column: Column, append: Append | None) -> Work:
        """Store a column's chunks anew where that wins; what it appended is not published yet."""
        work = Work(column, {}, {})
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
    def _append_held(work: Work, append: Append) -> None:
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

    def _freed(self, work: Work) -> list[bytes]:
        """Return the bases that go with a column's moves: nothing needed stands on them then."""
        moved = {identity for identity, _ in work.undo}
        needed = self._plan.needed
        return [base for base in work.leaves if self._chains.is_left(base, moved, needed)]

    @staticmethod
    def _price(work: Work) -> float:
        """Return by how many bytes a column may grow to be turned round."""
        return _TURNED_SHARE * sum(row.total_bytes for row in work.rows.values())

    @staticmethod
    def _is_turned(work: Work) -> bool:
        """Tell whether the root was on a base of its column, and is to be no more."""
        root = work.rows.get(work.column.ids[0])
        return root is not None and root.base in work.column.ids

    def _store(
        self,
        work: Work,
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

    def _choose(self, work: Work, index: int, identity: bytes, row: rows.ObjectRow) -> bytes:
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

    def _bytes(self, work: Work, identity: bytes) -> memoryview | None:
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
