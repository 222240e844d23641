"""Look into state trees without casckpt's help: a benchmark must not trust what it measures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, leaf) of dicts, lists and tuples, in order."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, f"{path}.{key}" if path else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{path}.{index}" if path else str(index))
    else:
        yield path, tree


def tensors(tree: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a tree by dotted path."""
    return {path: leaf for path, leaf in leaves(tree) if isinstance(leaf, torch.Tensor)}


def as_bytes(leaf: torch.Tensor | np.ndarray) -> np.ndarray:
    """Return the memory of a CPU tensor or an array as a uint8 array; contiguous, not copied."""
    if isinstance(leaf, np.ndarray):
        return np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
    return leaf.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def digest(tree: Any) -> str:
    """Return a hash of all tensors and their names: to compare states of two processes."""
    found = hashlib.blake2b(digest_size=16)
    for path, tensor in tensors(tree).items():
        found.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(as_bytes(tensor))
    return found.hexdigest()


def logical_bytes(tree: Any) -> int:
    """Return the bytes of all tensors, arrays and byte strings: what a restore must write."""
    total = 0
    for _, leaf in leaves(tree):
        if isinstance(leaf, torch.Tensor | np.ndarray):
            total += leaf.nbytes
        elif isinstance(leaf, bytes):
            total += len(leaf)
    return total


def assert_equal(expected: Any, got: Any, who: str) -> None:
    """Raise AssertionError unless both trees hold the same leaves, bit for bit."""
    left, right = dict(leaves(expected)), dict(leaves(got))
    assert left.keys() == right.keys(), f"{who}: other paths"
    for path, leaf in left.items():
        other = right[path]
        if isinstance(leaf, torch.Tensor | np.ndarray):
            same = type(leaf) is type(other)
            same = same and leaf.dtype == other.dtype and leaf.shape == other.shape
            assert same, f"{who}: {path} has another type or shape"
            assert np.array_equal(as_bytes(leaf), as_bytes(other)), f"{who}: {path}"
        else:
            assert leaf == other, f"{who}: {path}"
