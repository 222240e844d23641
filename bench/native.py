"""Native: how fast is the C core on one thread, beside the `blake3` package and memcpy?

Contenders of one group are interleaved, so a slow moment of the machine hits a kernel and its peer
alike. A ratio is the median of the rounds' ratios. Everything works on 1 MiB in cache unless a size
is named: the core's unit of work is a chunk.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from bench.harness import Context, Goal, Result, measure, speed_row
from casckpt import native
from casckpt.native import kernels

MIB = 1 << 20
ROUNDS_PER_ROUND = 8  # a call takes well under a millisecond, so many rounds cost nothing
CHUNK_SIZES = {"2/8/32 KiB": (2048, 8192, 32_768), "16/64/256 KiB": (16_384, 65_536, 262_144)}


def run(context: Context) -> Result:
    """Measure hashing, chunking, filters and statistics."""
    result = Result("native", context.quick)
    source = random.Random(0)
    data, base = source.randbytes(MIB), source.randbytes(MIB)
    rounds = context.rounds * ROUNDS_PER_ROUND
    result.notes.append(f"kernel {kernels.active()}, of {', '.join(kernels.available())}")
    result.notes.append("a kernel that is not named could not run on this processor")
    _hash(result, data, rounds)
    _chunk(result, source.randbytes(16 * MIB), context.rounds)
    _filter(result, data, base, rounds)
    _count(result, data, rounds)
    return result


def _rows(
    result: Result,
    group: str,
    contenders: Mapping[str, Callable[[int], Any]],
    size: int,
    rounds: int,
) -> dict[str, list[float]]:
    seconds = measure(contenders, rounds)
    for name, samples in seconds.items():
        result.rows.append({"group": group, "bytes": size, **speed_row(name, size, samples)})
    return seconds


def _hash(result: Result, data: bytes, rounds: int) -> None:
    try:
        from blake3 import blake3 as peer
    except ImportError:
        result.missing["blake3 package"] = "not installed"
        peer = None
    for size in (1024, 4096, 16_384, 65_536, MIB):
        contenders: dict[str, Callable[[int], Any]] = {
            "casckpt": lambda _, size=size: _repeat(native.blake3, data[:size])
        }
        if peer is not None:
            contenders["blake3 package"] = lambda _, size=size: _repeat(
                lambda piece: peer(piece).digest(), data[:size]
            )
        done = max(1, 65_536 // size) * size
        seconds = _rows(result, f"hash {size} bytes", contenders, done, rounds)
        if size == MIB and peer is not None:
            pairs = zip(seconds["blake3 package"], seconds["casckpt"], strict=True)
            ratio = statistics.median(theirs / ours for theirs, ours in pairs)
            result.goals.append(Goal("hash 1 MiB", 0.9, ratio, "x blake3 package", False))
    context = native.IdContext("bench")
    grids: dict[str, Callable[[int], Any]] = {
        f"pieces of {size}": lambda _, size=size: context.hash_grid(data, size)
        for size in (1000, 4096, 8000)
    }
    _rows(result, "hash many in one call", grids, MIB, rounds)
    best = kernels.active()
    for name in kernels.available():
        kernels.use(name)
        _rows(result, "hash 1 MiB by kernel", {name: lambda _: native.blake3(data)}, MIB, rounds)
    kernels.use(best)


def _repeat(function: Callable[[bytes], Any], piece: bytes) -> None:
    for _ in range(max(1, 65_536 // len(piece))):
        function(piece)


def _chunk(result: Result, data: bytes, rounds: int) -> None:
    for name, (low, mean, high) in CHUNK_SIZES.items():
        cut: Callable[[int], Any] = lambda _, a=low, b=mean, c=high: native.cut_points(  # noqa: E731
            data, min_bytes=a, avg_bytes=b, max_bytes=c
        )
        samples = _rows(result, "content-defined chunking", {name: cut}, len(data), rounds)[name]
        speed = len(data) / statistics.median(samples) / 1e9
        result.goals.append(Goal(f"chunking {name}", 3.0, speed, "GB/s", False))


def _filter(result: Result, data: bytes, base: bytes, rounds: int) -> None:
    out, back = bytearray(MIB), bytearray(MIB)
    for width in (2, 4, 8):
        contenders: dict[str, Callable[[int], Any]] = {
            "planes split": lambda _, w=width: native.split_planes(data, out, w, True),
            "planes join": lambda _, w=width: native.join_planes(out, back, w, True),
            "sub split": lambda _, w=width: native.sub_split(data, base, out, w, True),
            "sub join": lambda _, w=width: native.sub_join(out, base, back, w, True),
            "xor split": lambda _, w=width: native.xor_split(data, base, out, w, True),
            "xor join": lambda _, w=width: native.xor_join(out, base, back, w, True),
            "memcpy": lambda _: native.copy(back, data),
        }
        seconds = _rows(result, f"filters of width {width}, rotated", contenders, MIB, rounds)
        slowest = max(statistics.median(times) for times in seconds.values())
        speed = MIB / slowest / 1e9
        result.goals.append(Goal(f"slowest filter of width {width}", 8.0, speed, "GB/s", False))
        result.limits[f"memcpy beside width {width}, GB/s"] = (
            MIB / statistics.median(seconds["memcpy"]) / 1e9
        )


def _count(result: Result, data: bytes, rounds: int) -> None:
    context, other, constant = native.IdContext("bench"), bytearray(data), bytes(MIB)
    contenders: dict[str, Callable[[int], Any]] = {
        "histogram": lambda _: native.histogram(data),
        "is_constant": lambda _: native.is_constant(constant),
        "equal_and_hash": lambda _: native.equal_and_hash(context, data, other),
    }
    _rows(result, "statistics", contenders, MIB, rounds)
