"""Tensors of `into`, which take what was saved in place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch

from casckpt.adapters.torch_sparse import compressed_parts

# Same-width integers: every operation that moves bits knows them, not so float4 or complex32.
_BITS: Final = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}


@dataclass(frozen=True, slots=True)
class TensorTarget:
    """A tensor of `into`."""

    tensor: torch.Tensor
    direct: memoryview | None

    def overwrite(self) -> None:
        """Let a backward through the old values fail, as after any change in place."""
        note_change(self.tensor)

    def assign(self, value: Any) -> None:
        """Copy values of the same dtype and shape, from any device."""
        with torch.no_grad():
            mine = self.tensor.detach()
            if mine.is_conj() or mine.is_neg() or value.is_conj() or value.is_neg():
                mine.copy_(value)
            else:
                bits_of(mine).copy_(bits_of(value.detach()))


@dataclass(frozen=True, slots=True)
class SparseTarget:
    """A sparse tensor of `into`; COO parts are replaced, since their sizes may differ."""

    tensor: torch.Tensor
    direct: None = None

    def overwrite(self) -> None:
        """Do nothing: parts are copied, never read into."""

    def assign(self, value: Any) -> None:
        """Let the tensor hold the restored parts."""
        note_change(self.tensor)
        if self.tensor.layout is torch.sparse_coo:
            self.tensor.data = value.detach().to(self.tensor.device)
            return
        with torch.no_grad():
            mine, theirs = compressed_parts(self.tensor), compressed_parts(value)
            for part, restored in zip(mine, theirs, strict=True):
                part.copy_(restored)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's memory as integers of its width."""
    return tensor.view(_BITS[tensor.element_size()])


def note_change(tensor: torch.Tensor) -> None:
    """Tell autograd of a change that torch does not see."""
    if not tensor.is_inference():  # such a tensor has no count of changes
        torch.autograd.graph.increment_version(tensor)
