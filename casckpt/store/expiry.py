"""Expiry: checkpoints leave the trash for good when their grace is over (protocol, GC 1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from casckpt.store import clock, layout, rows
from casckpt.store.collectors import check_run
from casckpt.store.environment import Transaction
from casckpt.store.sharing import SharedStore


def expire(shared: SharedStore, run: bytes, *, now: bool) -> int:
    """Turn trash whose grace is over, or all of it with `now`, into tombstones; return how much.

    It is done for the collector `run`, in transactions of its own.
    """
    with shared.environment.read() as tx:
        keys = [
            key
            for key, value in tx.scan("checkpoints")
            if (row := rows.Row.decode(value)).state == "trash" and (now or _is_over(row))
        ]
    count = 0
    for start in range(0, len(keys), layout.TRANSACTION_MAX_ROWS):
        batch = keys[start : start + layout.TRANSACTION_MAX_ROWS]
        count += shared.writer.run(partial(_bury, run=run, keys=batch), row_count=len(batch))
    return count


def _is_over(row: rows.Row) -> bool:
    return clock.grace_is_over(
        row.trashed_at_ns, row.trashed_boot_ns, row.trashed_boot, layout.GRACE_S
    )


def _bury(tx: Transaction, run: bytes, keys: list[bytes]) -> int:
    check_run(tx, run)
    count = 0
    for key in keys:
        value = tx.get("checkpoints", key)
        row = None if value is None else rows.Row.decode(value)
        if row is not None and row.state == "trash":
            row = rows.with_checkpoint_payload(row, b"")
            tx.put("checkpoints", key, replace(row, state="tombstone").encode())
            count += 1
    return count
