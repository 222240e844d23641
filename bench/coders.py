"""Coders: what does a millisecond of a core win, tensor by tensor?

For each part of the trajectory, weights and both moments, at 50 steps from the checkpoint before:
the time of one core for a MiB that is estimated, coded and decoded again to prove it, and the bytes
that wins, as numbers and as differences, at level balanced and small. So one sees whether a level
that adapts itself to the disk would have anything to choose between. Times are those that the
thread was running, the best of several, so that a busy machine hurts them little.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from bench.harness import Context, Result
from bench.inputs import trajectory
from bench.trees import as_bytes, tensors
from casckpt.store import codec

CHUNK_BYTES = 1 << 20
_CHUNKS = 10
_REPEATS = 5


def run(context: Context) -> Result:
    """Code chunks of each part in each way; one row per part and way."""
    result = Result("coders", context.quick)
    for name, part, pairs in neighbours(context):
        chunks = [(_chunk(now), _chunk(before)) for now, before in pairs]
        width = pairs[0][0].element_size()
        for way in ("balanced", "balanced, difference", "small", "small, difference"):
            row = {"input": name, "part": part, "name": way}
            result.rows.append(row | _measure(chunks, width, way))
    result.notes.append(
        "ms_per_mib: estimate, coding and proof on one core; hashing adds the same in each "
        "way; won_mb_per_core_second: bytes not written, for each second of a core: where the disk "
        "takes more than that times the number of cores, raw bytes are durable sooner"
    )
    return result


def neighbours(context: Context) -> Iterator[tuple[str, str, list[tuple[Any, Any]]]]:
    """Yield (input, part, [(a tensor, the same of 50 steps before)]) of both trajectories.

    Parts are weights and both moments; of each, some of the larger tensors.
    """
    recipes = (trajectory.FP32, trajectory.BF16)
    if context.quick:
        recipes = (trajectory.QUICK_FP32, trajectory.QUICK_BF16)
    for recipe in recipes:
        last = deque(trajectory.states(recipe, context.cache), maxlen=2)
        before, now = (tensors(state) for _, state in last)
        for part, paths in _parts(now).items():
            pairs = [(now[path], before[path]) for path in paths]
            yield recipe.name.removeprefix("quick-"), part, pairs


def _parts(now: dict[str, Any]) -> dict[str, list[str]]:
    """Return the paths of some larger tensors of a state: weights and both moments."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, tensor in now.items():
        if tensor.numel() * tensor.element_size() >= CHUNK_BYTES // 4:
            last = path.rsplit(".", 1)[-1]
            found[last if last in ("exp_avg", "exp_avg_sq") else "weights"].append(path)
    return {part: paths[:: max(len(paths) // _CHUNKS, 1)] for part, paths in sorted(found.items())}


def _chunk(tensor: Any) -> memoryview:
    return memoryview(as_bytes(tensor)).cast("B")[:CHUNK_BYTES]


def _measure(
    chunks: list[tuple[memoryview, memoryview]], width: int, way: str
) -> dict[str, float | int]:
    level, _, predictor = way.partition(", ")
    seconds, size, stored, chosen = 0.0, 0, 0, 0
    for chunk, before in chunks:
        base = before if predictor else None
        estimate, pays = _best(lambda c=chunk, b=before: codec.delta_pays(c, b, width))
        coding, encoded = _best(lambda c=chunk, b=base: codec.encode_chunk(c, width, level, b))
        payload, out = bytes(encoded.payload), memoryview(bytearray(len(chunk)))
        proof, _ = _best(
            lambda e=encoded.encoding, p=payload, o=out, b=base: codec.decode_chunk(e, p, o, b)
        )
        assert out == chunk
        seconds += estimate + coding + proof
        size += len(chunk)
        stored += len(payload)
        chosen += pays == bool(predictor)
    return {
        "ratio": stored / size,
        "ms_per_mib": seconds * 1e3 / (size / CHUNK_BYTES),
        "won_mb_per_core_second": (size - stored) / 1e6 / seconds,
        "chosen_share": chosen / len(chunks),
    }


def _best(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the least time that this thread needed, and what came of it."""
    best, found = float("inf"), None
    for _ in range(_REPEATS):
        start = time.thread_time()
        found = work()
        best = min(best, time.thread_time() - start)
    return best, found
