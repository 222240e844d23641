"""What the tests of foreign formats share."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest


def _bytes_of(value: Any) -> bytes:
    import torch

    dense = value.detach()
    if dense.layout is not torch.strided:
        dense = dense.to_dense()
    dense = dense.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(dense.view(torch.uint8).numpy())


def _compare(a: Any, b: Any, path: str) -> None:
    assert type(a) is type(b), f"{path}: {type(a)} and {type(b)}"
    if isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype, path
        assert a.shape == b.shape, path
        assert a.tobytes() == b.tobytes(), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            _compare(a[key], b[key], f"{path}.{key}")
        if hasattr(a, "_metadata"):
            _compare(a._metadata, b._metadata, f"{path}._metadata")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(x, y, f"{path}.{index}")
    elif isinstance(a, complex):
        assert struct.pack("<dd", a.real, a.imag) == struct.pack("<dd", b.real, b.imag), path
    elif isinstance(a, float):
        assert struct.pack("<d", a) == struct.pack("<d", b), path
    elif type(a).__module__.startswith("torch"):
        assert (a.dtype, a.shape, a.requires_grad) == (b.dtype, b.shape, b.requires_grad), path
        assert _bytes_of(a) == _bytes_of(b), path
    else:
        assert a == b, path


@pytest.fixture(scope="session")
def assert_same():
    """Compare two state trees: types, order of keys, dtypes, shapes and every bit."""
    return lambda a, b: _compare(a, b, "state")


@pytest.fixture
def tensors():
    """Give the maker of torch tensors, with torch registered as the library would."""
    pytest.importorskip("torch")
    from casckpt.adapters.torchfile import TorchTensors
    from casckpt.checkpoint import leaves

    leaves.register_lazy("torch", "casckpt.adapters.torch")
    return TorchTensors()
