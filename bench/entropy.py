"""Entropy: how fast is the coder on one core, and how near is it to the order-0 entropy?

The planes are those of a real training: of weights and both moments, as numbers and as differences
to the checkpoint before, of 256 and 512 KiB. Planes that lose less than 4 % are left out, as a save
leaves them raw; those with hardly any entropy are in, though level balanced leaves them to zstd and
only level small tries both. Counting and tables are included; times are medians of those
that the thread was running.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bench.coders import CHUNK_BYTES, neighbours
from bench.harness import Context, Goal, Result
from bench.limits import delta_planes, order0_bytes, planes
from casckpt import native
from casckpt.native._binding import ffi, lib, readable, writable

# A plane of which more than this is left is stored raw at level balanced (ADR 0005).
_CODED = 0.96
ENCODE_GB_PER_S, DECODE_GB_PER_S, OVER_ENTROPY = 0.8, 1.5, 1.01


def run(context: Context) -> Result:
    """Code and decode every plane; one row per part of a state, way and byte of the numbers."""
    result = Result("entropy", context.quick)
    for name, part, pairs in neighbours(context):
        for way, number, found in _planes(pairs):
            row = {"input": name, "part": part, "name": way, "plane": number}
            result.rows.append(row | _measure(found, context.rounds))
    _goals(result)
    data = bytes(range(256)) * (CHUNK_BYTES // 256)
    seconds = _seconds(lambda: [native.blake3(data) for _ in range(8)], context.rounds)
    result.limits["blake3_1_threads_gb_per_s"] = 8 * len(data) / seconds / 1e9
    return result


def _planes(pairs: list[tuple[Any, Any]]) -> Iterator[tuple[str, int, list[np.ndarray]]]:
    """Yield (way, number of the plane, planes of all tensors) where coding makes them smaller."""
    for way, split in (
        ("numbers", lambda now, before: planes(now)),
        ("differences", delta_planes),
    ):
        for number, found in enumerate(zip(*(split(*pair) for pair in pairs), strict=True)):
            cut = [np.ascontiguousarray(plane[: CHUNK_BYTES // 2]) for plane in found]
            if sum(map(order0_bytes, cut)) <= _CODED * sum(map(len, cut)):
                yield way, number, cut


def _measure(found: list[np.ndarray], rounds: int) -> dict[str, float | int]:
    streams = [native.entropy_encode(plane) for plane in found]
    out = [bytearray(len(plane)) for plane in found]
    # Into memory that is kept, as a save does it.
    source = [readable(plane) for plane in found]
    target = [writable(bytearray(2 * len(plane) + 1024)) for plane in found]
    length = ffi.new("size_t *")

    def encode_all() -> None:
        for plane, place in zip(source, target, strict=True):
            lib.cas_entropy_encode(plane, len(plane), place, len(place), length)

    encode = _seconds(encode_all, rounds)
    decode = _seconds(
        lambda: [native.entropy_decode(*pair) for pair in zip(streams, out, strict=True)], rounds
    )
    assert all(bytes(plane) == back for plane, back in zip(found, out, strict=True))
    size, stored = sum(map(len, found)), sum(map(len, streams))
    limit = sum(map(order0_bytes, found))
    return {
        "bytes": size,
        "stored_bytes": stored,
        "order0_bytes": round(limit),
        "ratio": stored / size,
        "over_entropy": stored / limit,
        "encode_s": encode,
        "decode_s": decode,
        "encode_gb_per_s": size / encode / 1e9,
        "decode_gb_per_s": size / decode / 1e9,
    }


def _seconds(work: Callable[[], Any], rounds: int) -> float:
    samples = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        samples.append(time.thread_time() - start)
    return statistics.median(samples)


def _goals(result: Result) -> None:
    total = {
        name: sum(row[name] for row in result.rows)
        for name in ("bytes", "stored_bytes", "order0_bytes", "encode_s", "decode_s")
    }
    for name, goal in (("encode", ENCODE_GB_PER_S), ("decode", DECODE_GB_PER_S)):
        speed = total["bytes"] / total[f"{name}_s"] / 1e9
        result.goals.append(Goal(f"entropy stage, {name}, one core", goal, speed, "GB/s", False))
    over = total["stored_bytes"] / total["order0_bytes"]
    result.goals.append(Goal("entropy stage, size over order-0", OVER_ENTROPY, over, "x", True))
    result.notes.append(f"kernel {native.kernels.active()}; the goals are of all planes together")
