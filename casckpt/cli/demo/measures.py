"""Sizes and speeds of the demo, beside the files that were written of the same states."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import casckpt
from casckpt.cli import formatting
from casckpt.cli.demo import peer
from casckpt.cli.demo.child import Event

REPEATS = 5
"""Restores per side; the median is shown."""


@dataclass(frozen=True)
class Sizes:
    """Bytes before gc: of all states, of the store on disk, of the files on disk."""

    logical_bytes: int
    stored_bytes: int
    peer_bytes: int


@dataclass(frozen=True)
class Speeds:
    """Medians over the network's checkpoints, in logical bytes per second."""

    save_bytes_per_s: float
    peer_save_bytes_per_s: float
    restore_bytes_per_s: float
    peer_restore_bytes_per_s: float


def sizes(store_path: Path, files: Path) -> Sizes:
    """Return what the states take in the store, and in the files beside it."""
    with casckpt.open(store_path, mode="r") as store:
        found = store.stats()
    peer_bytes = sum(path.stat().st_blocks * 512 for path in files.glob("*.pt"))
    return Sizes(found.logical_bytes, found.stored_bytes, peer_bytes)


def store_bytes(store_path: Path) -> int:
    """Return what the store takes on disk now."""
    with casckpt.open(store_path, mode="r") as store:
        return store.stats().stored_bytes


def speeds(store_path: Path, files: Path, saves: Sequence[Event]) -> Speeds:
    """Return the speeds of saving, as the training took them, and of restoring, taken here.

    Both saves are durable when they return. Both restores read files that the system has in
    memory; that of the store verifies every byte.
    """
    network = [event for event in saves if event["run"] == "demo/network"]
    with casckpt.open(store_path, mode="r") as store:
        last = store.latest("demo/network")
        assert last is not None
        restore_s = _median_s(lambda: store.restore(last))
    path = peer.file_of(files, "demo/network", last.step)
    peer_restore_s = _median_s(lambda: peer.read(path))
    return Speeds(
        statistics.median(event["logical_bytes"] / event["save_s"] for event in network),
        statistics.median(event["logical_bytes"] / event["file_s"] for event in network),
        last.logical_bytes / restore_s,
        last.logical_bytes / peer_restore_s,
    )


def table(sizes: Sizes, speeds: Speeds, after_bytes: int) -> list[str]:
    """Return the closing table."""
    size = formatting.size

    def rate(bytes_per_s: float) -> str:
        return f"{size(int(bytes_per_s))}/s"

    rows = [
        ("", "casckpt", f"{peer.NAME} files"),
        ("logical: all states that were saved", size(sizes.logical_bytes), ""),
        ("stored: on disk", size(sizes.stored_bytes), size(sizes.peer_bytes)),
        (
            "saved: 1 - stored/logical",
            formatting.saved(sizes.stored_bytes, sizes.logical_bytes),
            formatting.saved(sizes.peer_bytes, sizes.logical_bytes),
        ),
        ("stored after gc", size(after_bytes), ""),
        (
            "durable save",
            rate(speeds.save_bytes_per_s),
            f"{rate(speeds.peer_save_bytes_per_s)} ({peer.NAME} + fsync)",
        ),
        (
            "restore, every byte verified",
            rate(speeds.restore_bytes_per_s),
            f"{rate(speeds.peer_restore_bytes_per_s)} ({peer.READ_NAME}, not verified)",
        ),
    ]
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return [f"{a.ljust(first)}  {b.rjust(second)}   {c}".rstrip() for a, b, c in rows]


def _median_s(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began_s)
    return statistics.median(taken)
