"""torch tensors as leaves of a state tree.

A tensor saves what it shows. Tensors that share memory stay tied: the bytes are stored once, and
on restore they view one memory again. Sparse tensors are stored by their parts. Bits that torch
sets lazily (conjugate, negative) are kept as flags, so nothing is computed. Attributes are neither
kept nor refused: frameworks mark parameters with them, and mark them anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from casckpt.adapters import torch_optimizers
from casckpt.adapters.torch_sparse import LAYOUTS, build_sparse, flatten_sparse
from casckpt.adapters.torch_targets import SparseTarget, TensorTarget, bits_of
from casckpt.checkpoint.arrays import check_view
from casckpt.checkpoint.arrays_dtypes import TORCH_TO_NUMPY
from casckpt.checkpoint.leaves import (
    ALIGNMENT,
    Leaf,
    RestoreOptions,
    Slot,
    Target,
    Walker,
    axes_of,
    memory_order,
    refused,
)
from casckpt.checkpoint.leaves_overlap import Span, extent, overlapping
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.errors import BadLeaf, BadRequest

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Entry

_QUANTIZED: Final = frozenset({"quint8", "qint8", "qint32", "quint4x2", "quint2x4"})
_DTYPES: Final[dict[str, torch.dtype]] = {
    name: dtype
    for name, dtype in vars(torch).items()
    if isinstance(dtype, torch.dtype)
    and str(dtype) == f"torch.{name}"
    and name not in _QUANTIZED
    and dtype.itemsize in (1, 2, 4, 8, 16)
}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_NUMPY_TO_TORCH: Final = {text: name for name, text in TORCH_TO_NUMPY.items()}
_PLAIN_CLASSES: Final = (torch.Tensor, torch.nn.Parameter)


@dataclass(frozen=True, slots=True)
class TensorSource:
    """The bytes of a strided tensor, axes permuted so that dense memory is C-contiguous."""

    tensor: torch.Tensor

    def view(self) -> memoryview:
        """Return the tensor's own memory, or a copy if it is elsewhere or not dense."""
        return _memory_of(bits_of(self.tensor).cpu().contiguous())

    def copy_to(self, dest: memoryview) -> None:
        """Copy with one pass; from a GPU it ends when the bytes are there."""
        bits = bits_of(self.tensor)
        if bits.device.type == "cpu" and bits.is_contiguous():
            # A plain memcpy: torch's threads wait for each other when cores are busy.
            np.copyto(np.frombuffer(dest, np.uint8), np.frombuffer(_memory_of(bits), np.uint8))
        elif bits.numel():
            flat = torch.frombuffer(dest, dtype=torch.uint8)
            flat.view(bits.dtype).view(bits.shape).copy_(bits)

    def start_copy(self, dest: memoryview) -> Callable[[], None] | None:
        """Queue the copy from a CUDA device on a stream beside the one that computes."""
        if not self.tensor.is_cuda or not self.tensor.numel():
            return None
        bits = bits_of(self.tensor)
        stream = _copy_stream(bits.device)
        stream.wait_stream(torch.cuda.current_stream(bits.device))
        with torch.cuda.stream(stream):
            flat = torch.frombuffer(dest, dtype=torch.uint8)
            flat.view(bits.dtype).view(bits.shape).copy_(bits, non_blocking=True)
        wait: Callable[[], None] = stream.synchronize
        return wait

    @property
    def memory_maker(self) -> Callable[[int], memoryview] | None:
        """Return what makes page-locked memory if the tensor is on a CUDA device."""
        return _pinned_memory if self.tensor.is_cuda else None

    @property
    def address(self) -> int | None:
        """Where the bytes begin if the tensor is dense and the CPU's."""
        tensor = self.tensor
        return tensor.data_ptr() if tensor.is_cpu and tensor.is_contiguous() else None


@dataclass(slots=True)
class TensorSlot:
    """A tensor to be filled."""

    entry: Entry
    device: Any
    dest: memoryview
    _flat: torch.Tensor
    temporary: bool
    _value: Any = None

    def finish(self) -> None:
        """Move the bytes to the device asked for."""
        if self.temporary:
            self._flat = self._flat.to(self.device)
            self.dest = memoryview(b"")

    def value(self) -> Any:
        """Return the tensor."""
        if self._value is None:
            axes = axes_of(self.entry.order, len(self.entry.shape)) or []
            self._value = self._make(self.entry, _dense_stride(self.entry.shape, axes), 0)
        return self._value

    def view(self, entry: Entry) -> Any:
        """Return a tensor over this one's memory."""
        item_size = _entry_dtype(entry).itemsize
        check_view(entry, item_size, self._flat.numel())
        return self._make(entry, entry.stride or (), entry.offset // item_size)

    def _make(self, entry: Entry, stride: Sequence[int], offset: int) -> torch.Tensor:
        tensor = torch.empty(0, dtype=_entry_dtype(entry), device=self._flat.device)
        if self._flat.numel():
            # set_, not view: the result is no view of a byte tensor to autograd.
            tensor.set_(self._flat.untyped_storage(), offset, entry.shape, tuple(stride))
        else:
            tensor = tensor.new_empty(entry.shape)
        if "conj" in entry.flags:
            tensor = torch.conj(tensor)
        if "neg" in entry.flags:
            tensor = torch._neg_view(tensor)
        try:
            if "parameter" in entry.flags:
                return torch.nn.Parameter(tensor, "requires_grad" in entry.flags)
            return tensor.requires_grad_() if "requires_grad" in entry.flags else tensor
        except RuntimeError as exc:
            raise malformed(f"{entry.path}: {entry.dtype} with a gradient") from exc


class TorchHandler:
    """Tensors; and torch's sizes, dtypes and devices."""

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of a tensor, size, dtype or device; None for modules and the like."""
        if isinstance(value, torch.Tensor):
            if type(value) not in _PLAIN_CLASSES:
                raise refused(value, path, "subclasses of Tensor may hold more than their bytes")
            if value.layout is torch.strided:
                return walker.add(_leaf(value, path))
            return flatten_sparse(value, path, walker)
        if isinstance(value, torch.Size):
            return {"x": ["torch", "size"], "a": list(value), "v": []}
        if isinstance(value, torch.dtype):
            return {"x": ["torch", "dtype"], "a": str(value).removeprefix("torch."), "v": []}
        if isinstance(value, torch.device):
            return {"x": ["torch", "device"], "a": str(value), "v": []}
        return None

    def link(self, leaves: list[Leaf]) -> None:
        """Turn tensors whose memory overlaps into views of one leaf."""
        spans = []
        for index, leaf in enumerate(leaves):
            # Tensors that are in a store already have no memory to share.
            if isinstance(leaf.source, TensorSource) and leaf.alias < 0 and leaf.length:
                raw = _raw(leaf)
                device = "cpu" if raw.is_cpu else str(raw.device)
                reach, start, size = leaf.length, raw.data_ptr(), raw.element_size()
                if not raw.is_contiguous():
                    reach = extent(raw.shape, raw.stride()) * size
                spans.append(Span(device, start, start + reach, index, size))
        for group in overlapping(spans):
            _tie(group, leaves)

    def allocate(self, entry: Entry, options: RestoreOptions, memory: memoryview | None) -> Slot:
        """Return the slot of a tensor, or of an array that becomes one."""
        if entry.kind != "storage":
            axes = axes_of(entry.order, len(entry.shape))
            item_size = _entry_dtype(entry).itemsize
            if axes is None or math.prod(entry.shape) * item_size != entry.length:
                raise malformed(f"{entry.path}: shape, dtype and length do not agree")
        if memory is not None:
            flat = torch.frombuffer(memory, dtype=torch.uint8)
        else:
            flat = torch.empty(entry.length, dtype=torch.uint8, device="cpu")
        device = _device("cpu" if options.device is None else options.device)
        dest = _memory_of(flat)
        return TensorSlot(entry, device, dest, flat, device.type != "cpu" and memory is None)

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return a sparse tensor from its parts, or a size, dtype or device."""
        try:
            if kind == "sparse" and all(isinstance(part, torch.Tensor) for part in children):
                return build_sparse(attributes, children)
            if kind == "size":
                return torch.Size(attributes)
            if kind == "dtype" and attributes in _DTYPES:
                return _DTYPES[attributes]
            if kind == "device":
                return torch.device(attributes)
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as exc:
            raise malformed(f"a {kind} that torch refuses: {str(exc)[:200]}") from exc
        raise malformed(f"a value of the unknown kind {kind[:40]!r}")

    def is_leaf(self, value: Any) -> bool:
        """Return whether it is a tensor."""
        return isinstance(value, torch.Tensor)

    def bind(self, target: Any, entry: Entry) -> Target | str:
        """Check a tensor of `into` against an entry."""
        if target.layout is not torch.strided or target.device.type == "meta":
            return f"a dense tensor in the checkpoint, {target.layout} on {target.device} in into"
        if tuple(target.shape) != entry.shape:
            return f"shape {entry.shape} in the checkpoint, {tuple(target.shape)} in into"
        name = entry.dtype if entry.kind == "tensor" else _NUMPY_TO_TORCH.get(entry.dtype)
        if _NAMES.get(target.dtype) != name:
            return f"dtype {entry.dtype} in the checkpoint, {target.dtype} in into"
        if any(
            step == 0 and size > 1 for step, size in zip(target.stride(), target.shape, strict=True)
        ):
            return "the tensor in into is expanded, its items share memory"
        raw = target.detach()
        axes = axes_of(entry.order, len(entry.shape))
        lazy = raw.is_conj() or raw.is_neg() or "conj" in entry.flags or "neg" in entry.flags
        if axes is None or lazy or raw.device.type != "cpu" or not raw.numel():
            return TensorTarget(target, None)
        raw = raw.permute(axes)
        return TensorTarget(target, _memory_of(bits_of(raw)) if raw.is_contiguous() else None)

    def bind_built(self, target: Any, kind: str, attributes: Node) -> Target | str:
        """Check a sparse tensor of `into` against a node."""
        if kind != "sparse" or type(attributes) is not dict:
            return f"a {kind} in the checkpoint, a tensor in into"
        if LAYOUTS.get(target.layout) != attributes.get("layout"):
            return f"layout {attributes.get('layout')} in the checkpoint, {target.layout} in into"
        if list(target.shape) != attributes.get("shape"):
            return (
                f"shape {attributes.get('shape')} in the checkpoint, {list(target.shape)} in into"
            )
        if _NAMES.get(target.dtype) != attributes.get("dtype"):
            return f"dtype {attributes.get('dtype')} in the checkpoint, {target.dtype} in into"
        if "count" in attributes and target.values().shape[0] != attributes["count"]:
            return f"{attributes['count']} values in the checkpoint, another count in into"
        return SparseTarget(target)

    def state_problems(self, target: Any, plain: Any) -> list[str] | None:
        """Judge a state before `load_state_dict`; modules are matched tensor by tensor instead."""
        if isinstance(target, torch.nn.Module):
            return None
        if isinstance(target, torch.optim.Optimizer):
            return torch_optimizers.state_problems(target, plain)
        return []

    def load_state(self, target: Any, plain: Any) -> None:
        """Have an object take its state; of optimizers without a cast."""
        if isinstance(target, torch.optim.Optimizer):
            torch_optimizers.load_optimizer(target, plain)
        else:
            target.load_state_dict(plain)


@lru_cache(maxsize=16)
def _device(wanted: Any) -> torch.device:
    """Return a device that is there.

    Raises:
        BadRequest: if this torch or this machine has no such device.
    """
    try:
        return torch.empty(0, device=wanted).device
    except (RuntimeError, AssertionError, TypeError) as exc:
        raise BadRequest(
            f"there is no device {wanted!r} here", str(exc).partition("\n")[0], "use device='cpu'"
        ) from exc


@lru_cache(maxsize=64)
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream that copies from a device."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _pinned_memory(length: int) -> memoryview:
    return _memory_of(torch.empty(length, dtype=torch.uint8, device="cpu", pin_memory=True))


def _leaf(tensor: torch.Tensor, path: str) -> Leaf:
    name = _NAMES.get(tensor.dtype)
    if name is None:
        raise refused(tensor, path, f"its dtype is {tensor.dtype}")
    if tensor.is_meta:
        raise refused(tensor, path, "it is on the meta device, so it has no values")
    if tensor.is_nested:
        raise refused(tensor, path, "it is nested")
    flags = []
    raw = tensor.detach()
    if raw.is_neg():
        flags.append("neg")
        raw = torch._neg_view(raw)
    if raw.is_conj():
        flags.append("conj")
        raw = torch.conj(raw)
    if type(tensor) is torch.nn.Parameter:
        flags.append("parameter")
    if tensor.requires_grad:
        flags.append("requires_grad")
    order, shown = "C", raw
    if not raw.is_contiguous():
        order = memory_order(raw.shape, raw.stride()) or "C"
        if order != "C":
            shown = raw.permute(axes_of(order, raw.dim()) or [])
    item_size = raw.element_size()
    return Leaf(
        path,
        "tensor",
        name,
        tuple(raw.shape),
        order,
        tuple(sorted(flags)) if flags else (),
        item_size // 2 if raw.is_complex() else item_size,
        raw.numel() * item_size,
        TensorSource(shown),
        value=tensor,
    )


def _memory_of(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor of a dtype that numpy has."""
    if tensor.numel() == 0:
        return memoryview(bytearray())
    array: np.ndarray[Any, Any] = tensor.numpy()
    return array.data.cast("B")


def _entry_dtype(entry: Entry) -> torch.dtype:
    name = entry.dtype if entry.kind == "tensor" else _NUMPY_TO_TORCH.get(entry.dtype, "")
    try:
        return _DTYPES[name]
    except KeyError:
        raise BadLeaf(
            f"{entry.path}: this torch has no {entry.dtype[:40]}",
            "the checkpoint was saved with a newer torch, or is malformed",
            "restore it as_numpy=True, or leave it out with only=",
        ) from None


def _dense_stride(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    stride = [1] * len(shape)
    step = 1
    for axis in reversed(axes):
        stride[axis] = step
        step *= max(shape[axis], 1)
    return stride


def _tie(group: list[Span], leaves: list[Leaf]) -> None:
    """Let all but one leaf view the memory of one; of a new one if none shows all of it."""
    start, end = min(span.start for span in group), max(span.end for span in group)
    whole = [
        span.leaf
        for span in group
        if leaves[span.leaf].length == end - start
        and _raw(leaves[span.leaf]).is_contiguous()
        and all((other.start - start) % other.item_size == 0 for other in group)
    ]
    base_index = min(whole, default=-1)
    if base_index < 0:
        first = leaves[min(span.leaf for span in group)]
        storage = _raw(first).untyped_storage()
        origin = storage.data_ptr()
        if start < origin or end > origin + storage.nbytes():
            return  # memory of several owners: values are kept, the tie is not
        start = origin + (start - origin) // ALIGNMENT * ALIGNMENT
        if any((span.start - start) % span.item_size for span in group):
            return
        base_index = len(leaves)
        leaves.append(_storage_leaf(first, storage, start - origin, end - start))
    for span in group:
        if span.leaf != base_index:
            leaf = leaves[span.leaf]
            leaf.alias, leaf.offset = base_index, span.start - start
            leaf.stride = tuple(leaf.value.detach().stride())
            leaf.source, leaf.length, leaf.order = None, 0, "C"


def _storage_leaf(first: Leaf, storage: torch.UntypedStorage, offset: int, length: int) -> Leaf:
    flat = torch.empty(0, dtype=torch.uint8, device=storage.device)
    flat.set_(storage, offset, (length,), (1,))
    return Leaf(
        f"{first.path}.(storage)",
        "storage",
        "uint8",
        (length,),
        item_size=first.item_size if length % first.item_size == 0 else 1,
        length=length,
        source=TensorSource(flat),
        value=flat,
    )


def _raw(leaf: Leaf) -> torch.Tensor:
    assert isinstance(leaf.source, TensorSource)
    return leaf.source.tensor


HANDLER = TorchHandler()
