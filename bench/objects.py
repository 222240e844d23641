"""Objects: do gc and verify grow with a store no faster than it does, and in bounded memory?

Stores of small chunks, up to a million of them, named by checkpoints that share half with the one
before. Each operation runs in a fresh process, which reports its processor time, since other work
on the machine does not count there, and the peak of its memory above the open store. The mark of a
collection alone goes on to thirty million objects that are computed instead of stored.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from bench.harness import Context, Goal, Result, disk_bytes, run_child
from bench.scale import _peak, _reset_peak

OBJECTS = (62_500, 250_000, 1_000_000)
MARKED = (1_000_000, 5_000_000, 30_000_000)
LINEAR = 2.0  # an object of the largest store costs at most this many of the smallest
GC_BYTES = 256 << 20
VERIFY_BYTES = 512 << 20
MARK_BYTES = 1 << 30
_PER_SAVE = 5_000
_LISTS, _CHUNKS = 500, 60


def run(context: Context) -> Result:
    """Climb the ladder of stored objects, and that of marked ones."""
    result = Result("objects", context.quick)
    stored = OBJECTS[:2] if context.quick else OBJECTS
    rows = [_stored(context, count) for count in stored]
    marked = [
        {"ladder": "mark", "objects": count, **run_child("bench.objects:mark", count=count)}
        for count in (MARKED[:2] if context.quick else MARKED)
    ]
    result.rows += [*rows, *marked]
    for name in ("gc", "gc_half", "verify_structure", "verify_refs", "verify_bytes"):
        _judge(result, rows, name, VERIFY_BYTES if "verify" in name else GC_BYTES)
    _judge(result, marked, "mark", MARK_BYTES, ", without reading headers")
    result.notes.append("times are of the processor, all threads of the process together")
    result.notes.append("mark: objects are computed, not stored; ids and the mark itself are real")
    return result


def _judge(
    result: Result, rows: list[dict[str, Any]], name: str, most_bytes: int, how: str = ""
) -> None:
    costs = [row[f"{name}_cpu_s"] / row["objects"] for row in rows]
    goals = (
        Goal(f"linear: {name}{how}", LINEAR, costs[-1] / costs[0], "x", True),
        Goal(f"memory: {name}", most_bytes, rows[-1][f"{name}_peak_bytes"], "B", True),
    )
    result.goals += goals


def _stored(context: Context, count: int) -> dict[str, Any]:
    with context.folder("objects") as base:
        folder = str(base / "store")
        row = {"ladder": "stored", **run_child("bench.objects:fill", folder=folder, count=count)}
        row["disk_bytes"] = disk_bytes(base)
        for level in ("structure", "refs", "bytes"):
            row |= run_child("bench.objects:verify", folder=folder, level=level)
        row |= run_child("bench.objects:collect", folder=folder, drop=False)
        row |= run_child("bench.objects:collect", folder=folder, drop=True)
    return row


def _measured(name: str, work: Callable[[], Any]) -> dict[str, float]:
    before = _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {
        f"{name}_s": time.perf_counter() - wall,
        f"{name}_cpu_s": time.process_time() - cpu,
        f"{name}_peak_bytes": _peak() - before,
    }


# ---- in a process of its own


def fill(folder: str, count: int) -> dict[str, float]:
    """Make a store of about `count` chunks of 64 bytes, each named by two checkpoints."""
    from casckpt.store import CommitRequest, Repository, StoreOptions
    from casckpt.store.saving import BlobSource

    draw = np.random.default_rng(count)
    Repository.init(folder)
    wall, step = time.perf_counter(), 0
    before: list[bytes] = []
    with Repository.open(folder, options=StoreOptions(level="fast")) as repository:
        made = 0
        while made < count:
            with repository.saver() as saver:
                data = draw.bytes(64 * _PER_SAVE)
                pieces = (data[at : at + 64] for at in range(0, len(data), 64))
                fresh = [info.id for info in saver.put_blobs(BlobSource([p], 1) for p in pieces)]
                again = [info.id for info in saver.put_blobs(BlobSource([p], 1) for p in before)]
                manifest = saver.put_manifest([*fresh, *again], b"objects")
                head = repository.head("run", 0)
                saver.commit(CommitRequest("run", 0, step, 0, manifest.id, b"\1", head))
            before = [data[at : at + 64] for at in range(0, len(data), 64)]
            made, step = made + _PER_SAVE + 1, step + 1
        objects = repository.sizes().object_count
    return {"objects": objects, "checkpoints": step, "fill_s": time.perf_counter() - wall}


def verify(folder: str, level: str) -> dict[str, float]:
    """Verify the store at a level."""
    from casckpt.store import Repository

    with Repository.open(folder, mode="r") as repository:
        reports: list[Any] = []
        facts = _measured(f"verify_{level}", lambda: reports.append(repository.verify(level)))
        if reports[0].damaged:
            raise RuntimeError(f"damage in a new store: {reports[0].damaged[:3]}")
    return facts


def collect(folder: str, drop: bool) -> dict[str, float]:
    """Collect with nothing to free, or after the removal of every other checkpoint."""
    from casckpt.store import Repository

    with Repository.open(folder) as repository:
        if drop:
            rows = repository.checkpoint_rows()
            repository.trash([(row.run, row.seq) for row in rows if row.step % 4 < 2])
        return _measured("gc_half" if drop else "gc", lambda: repository.gc(now=True))


def mark(count: int) -> dict[str, float]:
    """Mark `count` objects: manifests of 500 lists of 60 chunks, one manifest seen by all."""
    from casckpt.store import layout, marking, rows
    from casckpt.store.marking import Mark

    kinds = {
        kind: rows.ObjectRow(kind, 0, 0, 0, 1, 80, 64, 64, b"")
        for kind in (layout.TYPE_CHUNK, layout.TYPE_LIST, layout.TYPE_MANIFEST)
    }
    pack = rows.PackRow(bytes(16), bytes(16), size=80)
    transaction = SimpleNamespace(object=lambda i: kinds[i[8]], pack=lambda number: pack)

    @contextmanager
    def read() -> Iterator[SimpleNamespace]:
        yield transaction

    def refs(shared: Any, identity: bytes, row: Any, pack: Any) -> list[bytes]:
        _, kind, first, last = struct.unpack("<4Q", identity)
        below = layout.TYPE_LIST if kind == layout.TYPE_MANIFEST else layout.TYPE_CHUNK
        step = _CHUNKS + 1 if below == layout.TYPE_LIST else 1
        return _ids(below, np.arange(first + 1, last, step, dtype=np.uint64), step)

    vars(marking)["_refs"] = refs
    shared: Any = SimpleNamespace(environment=SimpleNamespace(read=read))
    each = 1 + _LISTS * (_CHUNKS + 1)
    manifests = _ids(layout.TYPE_MANIFEST, np.arange(0, count, each, dtype=np.uint64), each)
    result = Mark(0, frozenset())
    facts = _measured("mark", lambda: marking.extend(shared, result, manifests))
    if len(result.reached) != len(manifests) * each:
        raise RuntimeError(f"{len(result.reached)} of {len(manifests) * each} were reached")
    return {**facts, "objects": len(result.reached)}


def _ids(kind: int, numbers: Any, each: int) -> list[bytes]:
    """Return the ids of objects that stand for the numbers from theirs to the next one's."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    table = np.stack(
        [mixed, np.full_like(numbers, kind), numbers, numbers + np.uint64(each)], axis=1
    )
    raw = table.astype("<u8").tobytes()
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]
