"""What transactions do to rows: bring chains back to life, insert and trash checkpoints.

These run inside a write transaction, so they make LMDB calls only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from casckpt.errors import NotFound, RunMoved, StepExists
from casckpt.store import clock, rows
from casckpt.store.transactions import Transaction


class RowsView:
    """What a transaction finds in the index; nothing is read twice."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._live: dict[str, list[rows.CheckpointRow]] = {}

    def checkpoints(self, run: str) -> list[rows.CheckpointRow]:
        """Return the live checkpoints of a run, in order of commit."""
        if run not in self._live:
            found = self._tx.scan("checkpoints", rows.run_prefix(run))
            decoded = (rows.decode_checkpoint(*pair) for pair in found)
            self._live[run] = [row for row in decoded if row.state == "live"]
        return self._live[run]

    @cached_property
    def records(self) -> dict[str, bytes]:
        """The payload of the row of every run of the store, by name."""
        return dict(
            rows.named(rows.Row.decode(value).payload) for _, value in self._tx.scan("runs")
        )


Guard = Callable[[RowsView], None]
"""Looks at runs inside the transaction that is to change them, and raises what forbids that.

What was looked at before the transaction may have changed until it began.
"""


@dataclass(frozen=True, slots=True)
class CommitRequest:
    """What a commit makes exist: a manifest at a place in a run, if the line's head is as expected.

    `replace_seq` names a row that goes to trash in the same transaction, if it is live still and
    `guard` lets it.
    """

    run: str
    line: int
    step: int
    batch: int
    manifest_id: bytes
    payload: bytes
    expect_head: int | None
    replace_seq: int | None = None
    guard: Guard | None = None


class RowWrite(NamedTuple):
    """A row of runs, history, progress or cache to be put, or removed if `payload` is None.

    `key` is at most 400 bytes; `roots` are ids of manifests that the same save has put. A tuple,
    since stages make tens of thousands of them a second.
    """

    table: str
    key: bytes
    payload: bytes | None
    roots: tuple[bytes, ...] = ()


def write_rows(tx: Transaction, writes: Iterable[RowWrite]) -> None:
    """Put and remove rows."""
    for write in writes:
        if write.payload is None:
            tx.delete(write.table, write.key)
        else:
            tx.put(write.table, write.key, rows.encode_live(write.roots, write.payload))


def add_rows(tx: Transaction, writes: Sequence[RowWrite]) -> list[bool]:
    """Put rows of progress or cache where there are none, and remove rows; each key comes once.

    Of two processes that bring the same row the first wins, whatever either has looked at. Rows
    are put in the order of their keys, in which LMDB walks its tree with fewer misses.

    Returns:
        For each write whether it took effect.
    """
    taken = [True] * len(writes)
    places: dict[str, list[int]] = {}
    for place, write in enumerate(writes):
        if write.payload is None:
            tx.delete(write.table, write.key)
        else:
            places.setdefault(write.table, []).append(place)
    for table, some in places.items():
        some.sort(key=lambda place: writes[place].key)
        pairs = [
            (key, rows.encode_live(roots, payload or b""))
            for _, key, payload, roots in map(writes.__getitem__, some)
        ]
        for place, is_free in zip(some, tx.insert(table, pairs), strict=True):
            taken[place] = is_free
    return taken


def set_live(tx: Transaction, number: int, row: rows.PackRow) -> None:
    """Set a pack live; not an error if it is."""
    if row.state != rows.LIVE:
        tx.put("packs", rows.pack_key(number), replace(row, state=rows.LIVE, epoch=0).encode())


def keep_usable(tx: Transaction, identity: bytes) -> bool:
    """Set all packs of an object's chain live; return False if the chain is not usable."""
    chain = tx.chain(identity)
    if chain is None:
        return False
    for _, row, pack in chain:
        set_live(tx, row.pack, pack)
    return True


def revive(tx: Transaction, ids: Iterable[bytes]) -> set[bytes]:
    """Bring condemned chains back; return the ids for which that is too late."""
    return {identity for identity in ids if not keep_usable(tx, identity)}


def line_head(tx: Transaction, run: str, line: int | None) -> int | None:
    """Return the commit seq at the largest (step, batch) of a line, or of the last line."""
    last = tx.last("steps", rows.run_prefix(run) if line is None else rows.line_prefix(run, line))
    return None if last is None else rows.read_u64(last[1])


def insert_checkpoint(tx: Transaction, request: CommitRequest) -> int:
    """Insert the row of a checkpoint, and trash the one it replaces; return its commit seq."""
    head = line_head(tx, request.run, request.line)
    if head != request.expect_head:
        raise RunMoved(
            f"run {request.run} has moved",
            "another writer has saved to it since it was looked at",
            run=request.run,
        )
    place = rows.step_key(request.run, request.line, request.step, request.batch)
    taken = tx.get("steps", place)
    other = None if taken is None or rows.read_u64(taken) == request.replace_seq else taken
    # The head says nothing of this place when a larger step stands in the trash.
    if _is_live(tx, request.run, other):
        raise RunMoved(
            f"run {request.run} has moved",
            f"another writer has saved step {request.step} since it was looked at",
            run=request.run,
        )
    ask(request.guard, tx)
    # The seq that the writer will give this transaction; jobs that share it share the number, so
    # rows of one transaction are told apart by their run.
    seq = tx.number("seq") + 1
    while tx.get("checkpoints", rows.checkpoint_key(request.run, seq)) is not None:
        seq += 1
    row = rows.encode_checkpoint(
        request.run,
        request.line,
        request.step,
        request.batch,
        request.manifest_id,
        request.payload,
    )
    tx.put("checkpoints", rows.checkpoint_key(request.run, seq), row.encode())
    tx.put("steps", place, rows.u64(seq))
    replaced = request.replace_seq
    if replaced is not None and _is_live(tx, request.run, rows.u64(replaced)):
        trash_checkpoint(tx, request.run, replaced)
    return seq


def trash_checkpoints(
    tx: Transaction, checkpoints: Sequence[tuple[str, int]], guard: Guard | None
) -> None:
    """Put live checkpoints into the trash, if `guard` lets them; all or none."""
    ask(guard, tx)
    for run, seq in checkpoints:
        trash_checkpoint(tx, run, seq)


def ask(guard: Guard | None, tx: Transaction) -> None:
    """Have a guard look at what a transaction finds."""
    if guard is not None:
        guard(RowsView(tx))


def trash_checkpoint(tx: Transaction, run: str, seq: int) -> None:
    """Put a live checkpoint into the trash; NotFound if it is not live."""
    key = rows.checkpoint_key(run, seq)
    value = tx.get("checkpoints", key)
    row = None if value is None else rows.Row.decode(value)
    if row is None or row.state != "live":
        raise NotFound(f"no checkpoint {run} with commit {seq}", "it was removed meanwhile")
    now_ns = time.time_ns()
    if not 0 < tx.number("trash_since") <= now_ns:
        tx.set_number("trash_since", now_ns)
    tx.put("checkpoints", key, trashed_now(row).encode())


def untrash_checkpoints(
    tx: Transaction, checkpoints: Sequence[tuple[str, int]], guard: Guard | None
) -> None:
    """Bring checkpoints back from the trash, if `guard` lets them; all or none.

    Raises:
        NotFound: one of them is not in the trash any more.
        StepExists: a live checkpoint has the place of one of them.
    """
    ask(guard, tx)
    for run, seq in checkpoints:
        _untrash(tx, run, seq)


def _untrash(tx: Transaction, run: str, seq: int) -> None:
    key = rows.checkpoint_key(run, seq)
    value = tx.get("checkpoints", key)
    row = None if value is None else rows.Row.decode(value)
    if value is None or row is None or row.state != "trash":
        raise NotFound(f"no checkpoint {run} with commit {seq} in the trash", "its grace is over")
    found = rows.decode_checkpoint(key, value)
    place = rows.step_key(run, found.line, found.step, found.batch)
    # Whoever was saved there later may be in the trash, too, or a tombstone that is forgotten next.
    if _is_live(tx, run, tx.get("steps", place)):
        raise StepExists(
            f"{run} step {found.step} cannot come back",
            "another checkpoint is at its place",
            "remove that one first",
            run=run,
            step=found.step,
        )
    tx.put("checkpoints", key, rows.Row("live", row.roots, row.payload).encode())
    tx.put("steps", place, rows.u64(seq))


def _is_live(tx: Transaction, run: str, taken: bytes | None) -> bool:
    """Tell whether a row of `steps` names a live checkpoint."""
    if taken is None:
        return False
    value = tx.get("checkpoints", rows.checkpoint_key(run, rows.read_u64(taken)))
    return value is not None and rows.Row.decode(value).state == "live"


def trashed_now(row: rows.Row) -> rows.Row:
    """Return the row of a checkpoint that comes into the trash now."""
    return replace(
        row,
        state="trash",
        trashed_at_ns=time.time_ns(),
        trashed_boot_ns=clock.boot_ns(),
        trashed_boot=clock.boot_id(),
    )


def bury_checkpoints(
    tx: Transaction,
    checkpoints: Sequence[tuple[str, int, bytes]],
    guard: Guard | None,
    state: rows.RowState = "live",
) -> None:
    """Remove checkpoints for good if their payloads are these, and `guard` lets them.

    What a collector does when the grace is over (format.md, section 8): rows become tombstones. A
    payload that has changed means that somebody tagged or pinned it: that one stays, and so does
    one that is not in the state, "live" or "trash", that it was found in.
    """
    ask(guard, tx)
    for run, seq, payload in checkpoints:
        key = rows.checkpoint_key(run, seq)
        value = tx.get("checkpoints", key)
        row = None if value is None else rows.Row.decode(value)
        if value is None or row is None or row.state != state:
            continue
        if rows.decode_checkpoint(key, value).payload == payload:
            row = rows.with_checkpoint_payload(row, b"")
            tx.put("checkpoints", key, replace(row, state="tombstone").encode())
