"""Whether two state trees are the same, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the paths at which two trees differ in type, shape, dtype or any bit."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if list(a) != list(b):
            return [f"{path}: other keys"]
        return [found for key in a for found in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b) or type(a) is not type(b):
            return [f"{path}: other length or type"]
        return [
            found
            for i, (first, second) in enumerate(zip(a, b, strict=True))
            for found in differences(first, second, f"{path}.{i}")
        ]
    if type(a) is not type(b):
        return [f"{path}: {type(a).__name__} and {type(b).__name__}"]
    return [] if _bits(a) == _bits(b) else [path]


def count_leaves(tree: Any) -> tuple[int, int]:
    """Return how many arrays and tensors a tree has, and their bytes."""
    if isinstance(tree, Mapping):
        parts: Sequence[Any] = list(tree.values())
    elif isinstance(tree, list | tuple):
        parts = tree
    elif hasattr(tree, "nbytes"):
        return 1, int(tree.nbytes)
    else:
        return 0, 0
    counts = [count_leaves(part) for part in parts]
    return sum(number for number, _ in counts), sum(size for _, size in counts)


def _bits(value: Any) -> Any:
    """Return what is equal if and only if the bits are: == would miss -0.0 and refuse NaN."""
    if hasattr(value, "detach"):
        array = value.detach().contiguous().numpy()
        return (str(value.dtype), tuple(value.shape), value.requires_grad, array.tobytes())
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, float):
        return value.hex()
    return value
