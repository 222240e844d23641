"""What the readers of tensor files make their leaves with: numpy here, torch in its adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any, Protocol

from casckpt.checkpoint.exchange.dtypes import numpy_dtype
from casckpt.checkpoint.exchange.refusals import unreadable
from casckpt.errors import MissingExtra


@dataclass(frozen=True)
class StridedView:
    """Which elements of a storage a tensor shows.

    The reader has checked it: shape and strides are as long, nothing is negative, and every
    element lies inside the storage.
    """

    dtype: str
    offset_bytes: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements."""
    requires_grad: bool = False
    conjugated: bool = False
    """The bytes are the complex conjugate of the value."""
    negated: bool = False
    """The bytes are the negative of the value."""


class Tensors(Protocol):
    """Makes the leaves that a tensor file describes, and writes torch's own format."""

    def storage(self, data: bytearray) -> Any:
        """Return what several views of the same bytes share; owns `data` from now on."""

    def strided(self, storage: Any, view: StridedView) -> Any:
        """Return the tensor that `view` shows of `storage`, without a copy where it can."""

    def parameter(self, tensor: Any, requires_grad: bool) -> Any:
        """Return `tensor` as a parameter of a model."""

    def sparse(
        self, layout: str, parts: Sequence[Any], shape: tuple[int, ...], coalesced: bool | None
    ) -> Any:
        """Return a sparse tensor; parts as torch pickles them, layout such as `torch.sparse_coo`.

        Raises:
            ValueError: if the parts do not fit each other.
        """

    def save(self, state: Any, file: IO[bytes]) -> None:
        """Write `state` as torch.save does."""


class NumpyTensors:
    """Tensors as numpy arrays: what there is without torch; gradients flags are lost."""

    def __init__(self, path: str = "the file") -> None:
        self._path = path

    def storage(self, data: bytearray) -> Any:
        """Return the bytes themselves: numpy arrays keep them alive."""
        return data

    def strided(self, storage: Any, view: StridedView) -> Any:
        """Return a writable array over `storage`; a conjugated or negated one is a copy."""
        import numpy as np

        dtype = numpy_dtype(view.dtype)
        strides = tuple(step * dtype.itemsize for step in view.strides)
        if 0 in view.shape or not storage:
            return np.empty(view.shape, dtype)
        array: Any = np.ndarray(view.shape, dtype, storage, view.offset_bytes, strides)
        if view.conjugated:
            array = np.conjugate(array)
        if view.negated:
            array = np.negative(array)
        return array

    def parameter(self, tensor: Any, requires_grad: bool) -> Any:
        """Return the array as it is."""
        del requires_grad
        return tensor

    def sparse(
        self, layout: str, parts: Sequence[Any], shape: tuple[int, ...], coalesced: bool | None
    ) -> Any:
        """Refuse: numpy has no sparse arrays."""
        del parts, shape, coalesced
        raise unreadable(
            self._path,
            f"it holds a sparse tensor ({layout}), and torch is not installed",
            "install it: pip install 'casckpt[torch]'",
        )

    def save(self, state: Any, file: IO[bytes]) -> None:
        """Refuse: the format is torch's own pickle."""
        del state, file
        raise no_torch()


def no_torch() -> MissingExtra:
    """Return the error for a torch file that is to be written without torch."""
    return MissingExtra(
        "cannot write a torch file",
        "torch is not installed",
        "install it: pip install 'casckpt[torch]', or export to safetensors",
    )
