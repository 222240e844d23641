"""Expiry: checkpoints leave the trash for good when their grace is over (protocol, GC 1)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import Final

from casckpt.store import clock, layout, rows
from casckpt.store.collectors import check_run
from casckpt.store.commits import trashed_now
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

NOBODY: Final[frozenset[str]] = frozenset()


def expire(shared: SharedStore, run: bytes, *, now: Collection[str] | None = NOBODY) -> int:
    """Turn trash whose grace is over into tombstones, and that of some runs; return how much.

    `now` names the runs whose trash goes though its grace is not over; None means all of them.

    It is done for the collector `run`, in transactions of its own. Where a clock was wrong, so that
    a checkpoint will have come into the trash only later, its grace begins now.
    """
    over, ahead = [], []
    with shared.environment.read() as tx:
        for key, value in tx.scan("checkpoints"):
            row = rows.Row.decode(value)
            if row.state == "trash":
                if _is_over(row) or _is_of(key, value, now):
                    over.append(key)
                elif clock.is_ahead(*_times(row)):
                    ahead.append(key)
    _each(shared, partial(_begin_grace, run=run), ahead)
    return _each(shared, partial(_bury, run=run, now=now), over)


def _is_of(key: bytes, value: bytes, runs: Collection[str] | None) -> bool:
    if runs is None:
        return True
    return bool(runs) and rows.decode_checkpoint(key, value).run in runs


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


def _trash(tx: Transaction, keys: list[bytes]) -> Iterator[tuple[bytes, bytes, rows.Row]]:
    """Yield (key, value, row) of those of the rows that are in the trash still."""
    for key in keys:
        value = tx.get("checkpoints", key)
        if value is not None and (row := rows.Row.decode(value)).state == "trash":
            yield key, value, row


def _begin_grace(tx: Transaction, run: bytes, keys: list[bytes]) -> int:
    check_run(tx, run)
    for key, _, row in _trash(tx, keys):
        tx.put("checkpoints", key, trashed_now(row).encode())
    return len(keys)


def _bury(tx: Transaction, run: bytes, keys: list[bytes], now: Collection[str] | None) -> int:
    check_run(tx, run)
    count = 0
    for key, value, row in _trash(tx, keys):
        if not (_is_over(row) or _is_of(key, value, now)):
            continue  # brought back and removed again since it was looked at
        bare = rows.with_checkpoint_payload(row, b"")
        tx.put("checkpoints", key, replace(bare, state="tombstone").encode())
        count += 1
    return count
