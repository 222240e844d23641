"""numpy arrays and scalars as leaves; and tensors as numpy arrays where torch is not wanted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from casckpt.checkpoint.arrays_dtypes import (
    TORCH_TO_NUMPY,
    dtype_text,
    number_width,
    parse_dtype,
)
from casckpt.checkpoint.leaves import (
    Leaf,
    RestoreOptions,
    Slot,
    Target,
    Walker,
    axes_of,
    memory_order,
    refused,
)
from casckpt.checkpoint.scalars import (
    TEXT_MAX_BYTES,
    Node,
    decode_key,
    encode_str,
    from_hex,
    malformed,
)
from casckpt.errors import BadLeaf, MissingExtra

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Entry

Array = np.ndarray[Any, Any]
_PLAIN_CLASSES = (np.ndarray, np.memmap)
_WITHOUT_RECORDS = (
    "store its fields: numpy.asarray(value).view(numpy.dtype((numpy.void, value.dtype)))"
)


def as_bytes(array: Array) -> memoryview:
    """Return the memory of a C-contiguous array, whatever its dtype."""
    if array.nbytes == 0:
        return memoryview(b"")
    return array.reshape(-1).view(np.uint8).data.cast("B")


@dataclass(frozen=True, slots=True)
class ArraySource:
    """The bytes of an array, axes permuted so that dense memory is C-contiguous."""

    array: Array

    def view(self) -> memoryview:
        """Return the array's own memory, or a copy if it is not dense."""
        if self.array.flags.c_contiguous:
            return as_bytes(self.array)
        copied = np.empty(self.array.nbytes, np.uint8)
        self.copy_to(copied.data)
        return copied.data

    def copy_to(self, dest: memoryview) -> None:
        """Copy with one pass over the array's memory."""
        target = np.frombuffer(dest, np.uint8)
        if self.array.flags.c_contiguous:
            np.copyto(target, np.frombuffer(as_bytes(self.array), np.uint8))
            return
        if self.array.dtype.names is not None:
            # numpy copies fields, not the gaps between them, which would keep what was in dest.
            target.fill(0)
        np.copyto(target.view(self.array.dtype).reshape(self.array.shape), self.array)

    @property
    def memory_maker(self) -> None:
        """Return None: any memory will do."""

    @property
    def address(self) -> int | None:
        """Where the bytes begin if the array is dense."""
        return int(self.array.ctypes.data) if self.array.flags.c_contiguous else None


@dataclass(slots=True)
class ArraySlot:
    """An array to be filled; `_flat` is its memory as bytes."""

    dest: memoryview
    _entry: Entry
    _flat: Array
    _array: Array
    temporary: bool = False
    _shown: Any = None

    def finish(self) -> None:
        """Do nothing: the array already is the memory."""

    def value(self) -> Any:
        """Return the array."""
        if self._shown is None:
            self._shown = show(self._array, self._entry)
        return self._shown

    def view(self, entry: Entry) -> Any:
        """Return what an alias of a tensor shows of this memory."""
        dtype = entry_dtype(entry)
        stride = tuple(step * dtype.itemsize for step in entry.stride or ())
        check_view(entry, dtype.itemsize, len(self._flat))
        view: Array = np.ndarray(entry.shape, dtype, self._flat.data, entry.offset, stride)
        return show(view, entry)


@dataclass(frozen=True, slots=True)
class ArrayTarget:
    """An array of `into`."""

    array: Array
    direct: memoryview | None

    def overwrite(self) -> None:
        """Do nothing: numpy keeps no book of changes."""

    def assign(self, value: Any) -> None:
        """Copy values, of the same dtype and shape."""
        np.copyto(self.array, value, casting="no")


class NumpyHandler:
    """Arrays and scalars of numpy."""

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of an array or scalar."""
        if isinstance(value, np.generic):
            return self._scalar(value, path, walker)
        if not isinstance(value, np.ndarray):
            return None
        if type(value) not in _PLAIN_CLASSES:
            hint = _WITHOUT_RECORDS if isinstance(value, np.recarray) else ""
            raise refused(value, path, "only plain arrays are stored, not subclasses", hint)
        return walker.add(_leaf(value, path, ()))

    def _scalar(self, value: np.generic, path: str, walker: Walker) -> Node:
        if isinstance(value, np.str_) and len(value) <= TEXT_MAX_BYTES:
            # np.array() and str() would cut trailing NULs off.
            return {"x": ["numpy", "str_"], "a": encode_str("".join(value)), "v": []}
        if isinstance(value, np.bytes_) and len(value) <= TEXT_MAX_BYTES:
            return {"x": ["numpy", "bytes_"], "a": bytes(value).hex(), "v": []}
        array = np.asarray(value)
        text = dtype_text(array.dtype)
        if text is None:
            raise _refused_dtype(value, array.dtype, path)
        if array.nbytes > TEXT_MAX_BYTES:
            return walker.add(_leaf(array, path, ("scalar",)))
        data = bytearray(as_bytes(np.ascontiguousarray(array)))
        if array.dtype.kind in "fc" and number_width(array.dtype) == 16:
            _clear_padding(data)
        return {"x": ["numpy", "scalar"], "a": [text, data.hex()], "v": []}

    def link(self, leaves: list[Leaf]) -> None:
        """Do nothing: only the same array twice is an alias, and chunks are shared anyway."""

    def allocate(self, entry: Entry, options: RestoreOptions, memory: memoryview | None) -> Slot:
        """Return the slot of an array, or of a tensor that becomes one."""
        if entry.kind == "storage":
            flat = _memory(entry.length, memory)
            return ArraySlot(flat.data, entry, flat, flat)
        dtype = entry_dtype(entry)
        axes = axes_of(entry.order, len(entry.shape))
        if axes is None or math.prod(entry.shape) * dtype.itemsize != entry.length:
            raise malformed(f"{entry.path}: shape, dtype and length do not agree")
        flat = _memory(entry.length, memory)
        if entry.order == "C":
            array: Array = np.ndarray(entry.shape, dtype, flat.data)
        else:
            array = np.ndarray([entry.shape[axis] for axis in axes], dtype, flat.data)
            array = array.transpose(np.argsort(axes))
        return ArraySlot(flat.data, entry, flat, array)

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return a numpy scalar; or, for a sparse tensor, a dict of its parts."""
        if kind == "str_":
            text = decode_key(attributes)
            if type(text) is not str:
                raise malformed("a numpy string that is none")
            return np.str_(text)
        if kind == "bytes_":
            return np.bytes_(from_hex(attributes, "numpy bytes"))
        if kind == "scalar" and type(attributes) is list and len(attributes) == 2:
            text, data = attributes
            dtype = parse_dtype(text if type(text) is str else "")
            array = np.ndarray(
                (), dtype, bytearray(from_hex(data, "a scalar", dtype.itemsize)) or None
            )
            return array[()]
        if options.as_numpy and kind in ("size", "dtype", "device"):
            return tuple(attributes) if type(attributes) is list else attributes
        if options.as_numpy and kind == "sparse" and type(attributes) is dict:
            names = sparse_part_names(attributes.get("layout"))
            if names and len(names) == len(children):
                return dict(attributes) | dict(zip(names, children, strict=True))
        raise malformed(f"a value of the unknown kind {kind[:40]!r}")

    def is_leaf(self, value: Any) -> bool:
        """Return whether it is an array; scalars are replaced, not written into."""
        return isinstance(value, np.ndarray)

    def bind(self, target: Any, entry: Entry) -> Target | str:
        """Check an array of `into` against an entry."""
        if tuple(target.shape) != entry.shape:
            return f"shape {entry.shape} in the checkpoint, {tuple(target.shape)} in into"
        try:
            dtype = entry_dtype(entry)
        except MissingExtra:
            dtype = None
        if target.dtype != dtype:
            return f"dtype {entry.dtype} in the checkpoint, {target.dtype} in into"
        if not target.flags.writeable:
            return "the array in into is read-only"
        if target.size and any(
            step == 0 and size > 1 for step, size in zip(target.strides, target.shape, strict=True)
        ):
            return "the array in into is a broadcast, whose items share memory"
        axes = axes_of(entry.order, len(entry.shape))
        if axes is not None and not entry.flags and target.transpose(axes).flags.c_contiguous:
            return ArrayTarget(target, as_bytes(target.transpose(axes)) if entry.length else None)
        return ArrayTarget(target, None)

    def bind_built(self, target: Any, kind: str, attributes: Node) -> Target | str:
        """Refuse: no extension of numpy has memory of its own."""
        return f"a {kind} in the checkpoint, an array in into"

    def state_problems(self, target: Any, plain: Any) -> list[str] | None:
        """Return nothing: numpy has no such objects."""
        return []

    def load_state(self, target: Any, plain: Any) -> None:
        """Have an object that derives from one of numpy's take its state."""
        target.load_state_dict(plain)


def _clear_padding(data: bytearray) -> None:
    """Zero what x87 extended numbers leave unset, so that equal scalars have equal nodes."""
    if np.finfo(np.longdouble).nmant == 63:
        for start in range(0, len(data), 16):
            data[start + 10 : start + 16] = bytes(6)


def entry_dtype(entry: Entry) -> np.dtype[Any]:
    """Return numpy's dtype for an array entry, or for a tensor entry of the same bytes.

    Raises:
        MissingExtra: if it needs ml_dtypes.
        BadLeaf: if numpy has no such dtype.
        Corrupt: if the entry's dtype is none.
    """
    if entry.kind != "tensor":
        return parse_dtype(entry.dtype)
    text = TORCH_TO_NUMPY.get(entry.dtype)
    if text is None:
        raise BadLeaf(
            f"{entry.path}: numpy has no {entry.dtype}",
            "the tensor cannot be given as an array",
            "restore it with torch, or leave it out with only=",
        )
    return parse_dtype(text)


def check_view(entry: Entry, item_size: int, length: int) -> None:
    """Check that an alias stays within the memory it views, else raise Corrupt."""
    stride = entry.stride or ()
    if len(stride) != len(entry.shape) or entry.offset % item_size:
        raise malformed(f"{entry.path}: a view whose strides do not fit its shape")
    last = sum((size - 1) * step for size, step in zip(entry.shape, stride, strict=True))
    if 0 in entry.shape or entry.offset + (last + 1) * item_size > length:
        raise malformed(f"{entry.path}: a view past the end of what it views")


def show(array: Array, entry: Entry) -> Any:
    """Return the values of a tensor entry, conjugated or negated if it was lazily so."""
    if "scalar" in entry.flags:
        return _scalar_of(array, entry.path)
    if "conj" in entry.flags:
        array = np.conjugate(array)
    return np.negative(array) if "neg" in entry.flags else array


def _scalar_of(array: Array, path: str) -> Any:
    # numpy cuts trailing NULs off what it takes out of an array.
    if array.dtype.kind == "S":
        return np.bytes_(array.tobytes())
    if array.dtype.kind == "U":
        order = "be" if array.dtype.str.startswith(">") else "le"
        try:
            return np.str_(array.tobytes().decode(f"utf-32-{order}", "surrogatepass"))
        except UnicodeDecodeError as exc:
            raise malformed(f"{path}: a string of what are no characters") from exc
    return array[()]


def sparse_part_names(layout: Any) -> tuple[str, ...]:
    """Return the names of a sparse tensor's parts, in stored order."""
    return {
        "coo": ("indices", "values"),
        "csr": ("crow_indices", "col_indices", "values"),
        "csc": ("ccol_indices", "row_indices", "values"),
        "bsr": ("crow_indices", "col_indices", "values"),
        "bsc": ("ccol_indices", "row_indices", "values"),
    }.get(layout if type(layout) is str else "", ())


def _refused_dtype(value: object, dtype: np.dtype[Any], path: str) -> BadLeaf:
    is_record = dtype.names is not None and dtype.type is np.record
    hint = _WITHOUT_RECORDS if is_record else ""
    return refused(value, path, f"its dtype is {dtype}", hint)


def _leaf(array: Array, path: str, flags: tuple[str, ...]) -> Leaf:
    text = dtype_text(array.dtype)
    if text is None:
        raise _refused_dtype(array, array.dtype, path)
    item = array.dtype.itemsize
    order = None
    if array.flags.c_contiguous:
        order = "C"
    elif item and all(step >= 0 and step % item == 0 for step in array.strides):
        order = memory_order(array.shape, [step // item for step in array.strides])
    axes = axes_of(order or "C", array.ndim)
    return Leaf(
        path,
        "array",
        text,
        array.shape,
        order or "C",
        flags,
        number_width(array.dtype),
        array.nbytes,
        ArraySource(array.transpose(axes) if order not in (None, "C") else array),
        value=array,
    )


def _memory(length: int, memory: memoryview | None) -> Array:
    if memory is not None:
        return np.frombuffer(memory, np.uint8)
    return np.empty(length, np.uint8)


HANDLER = NumpyHandler()
