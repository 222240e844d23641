"""How fast and how small it could be on this machine: the numbers beside every result."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.trees import as_bytes, tensors

CHUNK_BYTES = 1 << 20
PIECE_BYTES = 8 << 20


def machine_limits(folder: Path, *, quick: bool = False, rounds: int = 5) -> dict[str, float]:
    """Measure memory, disk and hash speed, in GB/s: the median of `rounds` each."""
    size = (64 if quick else 256) << 20
    source = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    target = np.empty_like(source)
    target.fill(1)
    limits = {
        "memcpy_touched_gb_per_s": _speed(lambda: np.copyto(target, source), size, rounds),
        "memcpy_fresh_gb_per_s": _speed(lambda: source.copy(), size, rounds),
        "disk_write_gb_per_s": _speed(lambda: _write(folder, source), size, rounds),
        "fsync_small_s": statistics.median(_fsync_seconds(folder) for _ in range(20)),
    }
    for threads in sorted({1, os.cpu_count() or 1}):
        speed = _speed(_hasher(source, threads), size, rounds)
        limits[f"blake3_{threads}_threads_gb_per_s"] = speed
    return limits


def _speed(work: Callable[[], object], size: int, rounds: int) -> float:
    samples = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return size / statistics.median(samples) / 1e9


def _write(folder: Path, data: np.ndarray) -> None:
    """Write random bytes in pieces of 8 MiB and make them durable."""
    path = folder / "limit"
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(data), PIECE_BYTES):
            file.write(memoryview(data[start : start + PIECE_BYTES]))
        os.fdatasync(file.fileno())
    path.unlink()


def write_seconds(folder: Path, size_bytes: int) -> float:
    """Return the seconds until so many random bytes are durable in a folder, in 8 MiB of memory."""
    piece = np.random.default_rng(0).bytes(PIECE_BYTES)
    path = folder / "limit"
    start = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for left in range(size_bytes, 0, -PIECE_BYTES):
            file.write(piece[:left])
        os.fdatasync(file.fileno())
    took = time.perf_counter() - start
    path.unlink()
    return took


def _fsync_seconds(folder: Path) -> float:
    path = folder / "limit"
    with path.open("wb", buffering=0) as file:
        file.write(b"x" * 4096)
        start = time.perf_counter()
        os.fsync(file.fileno())
        elapsed = time.perf_counter() - start
    path.unlink()
    return elapsed


def _hasher(data: np.ndarray, threads: int) -> Callable[[], object]:
    """Hash in chunks of 1 MiB, as saving does, on the given number of threads."""
    from casckpt import native

    view = memoryview(data)
    chunks = [view[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]
    if threads == 1:
        return lambda: [native.blake3(chunk) for chunk in chunks]
    pool = ThreadPoolExecutor(threads)
    return lambda: list(pool.map(native.blake3, chunks))


def planes(tensor: torch.Tensor) -> list[np.ndarray]:
    """Split a tensor into byte planes, the sign of floats rotated below the exponent."""
    words = _words(tensor)
    bits = words.dtype.itemsize * 8
    if tensor.dtype.is_floating_point and bits > 8:
        words = (words << 1) | (words >> (bits - 1))
    return _split(words)


def delta_planes(tensor: torch.Tensor, base: torch.Tensor) -> list[np.ndarray]:
    """Split SUB against `base` (wrap-around difference of the bit patterns, zigzag) into planes."""
    words = _words(tensor) - _words(base)
    bits = words.dtype.itemsize * 8
    signs = words.view(np.dtype(f"i{words.dtype.itemsize}")) >> (bits - 1)
    return _split((words << 1) ^ signs.view(words.dtype))


def _words(tensor: torch.Tensor) -> np.ndarray:
    return as_bytes(tensor).view(np.dtype(f"u{tensor.element_size()}"))


def _split(words: np.ndarray) -> list[np.ndarray]:
    width = words.dtype.itemsize
    return [words.view(np.uint8)[index::width] for index in range(width)]


def order0_bytes(plane: np.ndarray) -> float:
    """Return the bytes that an ideal coder with one byte histogram needs for a plane."""
    counts = np.bincount(plane, minlength=256)
    counts = counts[counts > 0]
    return float((counts * np.log2(len(plane) / counts)).sum() / 8)


def entropy_of_state(state: Any, parent: Any | None = None) -> dict[str, float]:
    """Return the order-0 limits of a state's tensors, in bytes.

    Args:
        state: the tree whose tensors are measured; everything else is left out.
        parent: the checkpoint before, or None.

    Returns: `plain`, every tensor by its own planes; `delta`, the smaller of that and SUB against
        the tensor of the same path in `parent`. Tables cost nothing here, so no coder of this kind
        can reach either quite; one that sees context could go a little below.
    """
    bases = tensors(parent) if parent is not None else {}
    plain = delta = 0.0
    for path, tensor in tensors(state).items():
        if not tensor.numel():
            continue
        alone = sum(order0_bytes(plane) for plane in planes(tensor))
        plain += alone
        base = bases.get(path)
        if base is not None and base.dtype == tensor.dtype and base.shape == tensor.shape:
            against = sum(order0_bytes(plane) for plane in delta_planes(tensor, base))
            delta += min(alone, against)
        else:
            delta += alone
    return {"plain": plain, "delta": delta}
