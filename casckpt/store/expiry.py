"""Expiry: checkpoints leave the trash for good when their grace is over (protocol, GC 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from casckpt.store import clock, layout, rows
from casckpt.store.collectors import check_run
from casckpt.store.commits import trashed_now
from casckpt.store.environment import Transaction
from casckpt.store.sharing import SharedStore


def expire(shared: SharedStore, run: bytes, *, now: bool) -> int:
    """Turn trash whose grace is over, or all of it with `now`, into tombstones; return how much.

    It is done for the collector `run`, in transactions of its own. Where a clock was wrong, so that
    a checkpoint will have come into the trash only later, its grace begins now.
    """
    over, ahead = [], []
    with shared.environment.read() as tx:
        for key, value in tx.scan("checkpoints"):
            row = rows.Row.decode(value)
            if row.state == "trash":
                if now or _is_over(row):
                    over.append(key)
                elif clock.is_ahead(*_times(row)):
                    ahead.append(key)
    _each(shared, partial(_begin_grace, run=run), ahead)
    return _each(shared, partial(_bury, run=run, now=now), over)


def _times(row: rows.Row) -> tuple[int, int, bytes]:
    return row.trashed_at_ns, row.trashed_boot_ns, row.trashed_boot


def _is_over(row: rows.Row) -> bool:
    return clock.grace_is_over(*_times(row), layout.GRACE_S)


def _each(shared: SharedStore, change: Callable[..., int], keys: list[bytes]) -> int:
    count = 0
    for start in range(0, len(keys), layout.TRANSACTION_MAX_ROWS):
        batch = keys[start : start + layout.TRANSACTION_MAX_ROWS]
        count += shared.writer.run(partial(change, keys=batch), row_count=len(batch))
    return count


def _trash(tx: Transaction, keys: list[bytes]) -> Iterator[tuple[bytes, rows.Row]]:
    """Yield those of the rows that are in the trash still."""
    for key in keys:
        value = tx.get("checkpoints", key)
        row = None if value is None else rows.Row.decode(value)
        if row is not None and row.state == "trash":
            yield key, row


def _begin_grace(tx: Transaction, run: bytes, keys: list[bytes]) -> int:
    check_run(tx, run)
    for key, row in _trash(tx, keys):
        tx.put("checkpoints", key, trashed_now(row).encode())
    return len(keys)


def _bury(tx: Transaction, run: bytes, keys: list[bytes], now: bool) -> int:
    check_run(tx, run)
    count = 0
    for key, row in _trash(tx, keys):
        if not (now or _is_over(row)):
            continue  # brought back and removed again since it was looked at
        bare = rows.with_checkpoint_payload(row, b"")
        tx.put("checkpoints", key, replace(bare, state="tombstone").encode())
        count += 1
    return count
