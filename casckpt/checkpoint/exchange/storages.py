"""torch's part of the names a pickle may use: storages, views of them, parameters, sparse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from casckpt.checkpoint.exchange.arrays import shape_of
from casckpt.checkpoint.exchange.dtypes import ITEM_BYTES
from casckpt.checkpoint.exchange.plain import Notes, Table
from casckpt.checkpoint.exchange.refusals import refused, unreadable
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol
from casckpt.checkpoint.exchange.tensors import StridedView, Tensors

_STORAGE_DTYPES: Final = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_STORAGE_MODULES: Final = ("torch", "torch.storage", "torch.cuda")
_QUANTIZED_STORAGES: Final = ("QUInt8Storage", "QInt8Storage", "QInt32Storage", "QUInt4x2Storage")
_TENSOR_CLASSES: Final = ("torch.Tensor", "torch.Parameter", "torch.Buffer")
_SPARSE_PARTS: Final = {
    "torch.sparse_coo": 2,
    "torch.sparse_csr": 3,
    "torch.sparse_csc": 3,
    "torch.sparse_bsr": 3,
    "torch.sparse_bsc": 3,
}


class Memory:
    """The bytes several tensors may share; read when the first of them is finished.

    Args:
        length: how many there are.
        read: returns them, all of them or an error; None while it is not known where they are.
    """

    def __init__(self, length: int, read: Callable[[], bytearray] | None) -> None:
        self.length = length
        self.read = read
        self._storage: Any = None

    def storage(self, tensors: Tensors) -> Any:
        """Return the storage that `tensors` makes of the bytes; the same one every time."""
        if self._storage is None:
            if self.read is None:
                raise ValueError("a storage whose bytes are not in the file")
            self._storage = tensors.storage(self.read())
        return self._storage


class StorageNode(Node):
    """A typed stretch of memory, as a persistent id names it."""

    def __init__(self, memory: Memory, dtype: str, offset_bytes: int, count: int) -> None:
        if offset_bytes < 0 or count < 0:
            raise ValueError("a storage that starts or ends before its memory")
        if offset_bytes + count * ITEM_BYTES[dtype] > memory.length:
            raise ValueError("a storage beyond its memory")
        self.memory = memory
        self.dtype = dtype
        self.offset_bytes = offset_bytes
        self.count = count

    def finish(self, resolve: Resolve) -> Any:
        """Refuse: a bare storage is no leaf."""
        del resolve
        raise ValueError("a storage as a value; only tensors are leaves")


class TensorNode(Node):
    """A strided tensor."""

    def __init__(self, tensors: Tensors, memory: Memory, view: StridedView) -> None:
        self._tensors = tensors
        self._memory = memory
        self._view = view
        self.logical_bytes = math.prod(view.shape) * ITEM_BYTES[view.dtype]

    def finish(self, resolve: Resolve) -> Any:
        """Return the tensor."""
        del resolve
        return self._tensors.strided(self._memory.storage(self._tensors), self._view)


class MadeNode(Node):
    """A tensor made of other parts of the pickle."""

    def __init__(self, parts: Any, make: Callable[[Any], Any]) -> None:
        self._parts = parts
        self._make = make

    def finish(self, resolve: Resolve) -> Any:
        """Finish the parts, then make the tensor."""
        return self._make(resolve(self._parts))


class TorchNames:
    """The constructors behind the names of torch.

    Args:
        path: for messages.
        tensors: makes the leaves.
        notes: counts what is turned into something else.
        load_nested: reads a torch file inside a pickle, as `pickle.dumps(tensor)` makes them.
        limit_bytes: the largest tensor: strides of zero make any size of one element.
    """

    def __init__(
        self,
        path: str,
        tensors: Tensors,
        notes: Notes,
        load_nested: Callable[[bytes], Any],
        limit_bytes: int,
    ) -> None:
        self._path = path
        self._tensors = tensors
        self._notes = notes
        self._load_nested = load_nested
        self._limit_bytes = limit_bytes

    def table(self) -> Table:
        """Return the symbols."""
        table: Table = {}
        for module in _STORAGE_MODULES:
            for name, dtype in _STORAGE_DTYPES.items():
                table[module, name] = Symbol(f"storage {name}", value=dtype)
            for name in _QUANTIZED_STORAGES:
                table[module, name] = Symbol(f"storage {name}", value="quantized")
        for dtype in ITEM_BYTES:
            table["torch", dtype] = Symbol(f"torch.{dtype}", value=dtype)
        makers = {
            ("torch._utils", "_rebuild_tensor"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_tensor_v3"): self._tensor_v3,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
            ("torch._utils", "_rebuild_parameter_with_state"): self._parameter,
            ("torch._utils", "_rebuild_sparse_tensor"): self._sparse,
            ("torch._utils", "_rebuild_qtensor"): self._quantized,
            ("torch._utils", "_rebuild_meta_tensor_no_storage"): self._meta,
            ("torch._tensor", "_rebuild_from_type_v2"): self._from_type,
            ("torch.serialization", "_get_layout"): self._layout,
            ("torch.storage", "_load_from_bytes"): self._nested,
            ("torch", "device"): self._device,
            ("torch", "Size"): self._size,
        }
        for (module, name), make in makers.items():
            table[module, name] = Symbol(f"{module}.{name}", make)
        for module, name in (
            ("torch", "Tensor"),
            ("torch.nn.parameter", "Parameter"),
            ("torch.nn.parameter", "Buffer"),
        ):
            table[module, name] = Symbol(f"torch.{name}")
        return table

    # ---- what REDUCE calls; a wrong number of arguments is a TypeError, hence Corrupt

    def _tensor(self, args: tuple[Any, ...]) -> Node:
        def make(
            storage: Any,
            offset: Any,
            shape: Any,
            strides: Any,
            requires_grad: Any = False,
            hooks: Any = None,
            metadata: Any = None,
        ) -> Node:
            del hooks  # Never anything but empty: torch does not save them.
            return self._strided(storage, None, offset, shape, strides, requires_grad, metadata)

        return make(*args)

    def _tensor_v3(self, args: tuple[Any, ...]) -> Node:
        def make(
            storage: Any,
            offset: Any,
            shape: Any,
            strides: Any,
            requires_grad: Any,
            hooks: Any,
            dtype: Any,
            metadata: Any = None,
        ) -> Node:
            del hooks
            if not isinstance(dtype, Symbol) or dtype.value not in ITEM_BYTES:
                raise ValueError("a tensor of an unknown dtype")
            name = str(dtype.value)
            return self._strided(storage, name, offset, shape, strides, requires_grad, metadata)

        return make(*args)

    def _strided(
        self,
        storage: Any,
        dtype: str | None,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any,
        metadata: Any,
    ) -> Node:
        if not isinstance(storage, StorageNode):
            raise ValueError("a tensor of something else than a storage")
        if type(offset) is not int or offset < 0:
            raise ValueError("a tensor that starts before its storage")
        name = dtype or storage.dtype
        sizes, steps = shape_of(shape), shape_of(strides)
        if len(sizes) != len(steps):
            raise ValueError("a tensor with more strides than sizes, or fewer")
        width = ITEM_BYTES[name]
        available = storage.count * ITEM_BYTES[storage.dtype]
        if 0 not in sizes:
            last = sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
            if (offset + last + 1) * width > available:
                raise ValueError("a tensor beyond its storage")
        if math.prod(size for size in sizes if size) * width > self._limit_bytes:
            raise ValueError(f"a tensor of shape {sizes} from a small file")
        if metadata is not None and (
            type(metadata) is not dict or not set(metadata) <= {"conj", "neg"}
        ):
            raise ValueError("a tensor with unknown properties")
        flags = metadata or {}
        view = StridedView(
            dtype=name,
            offset_bytes=0 if 0 in sizes else storage.offset_bytes + offset * width,
            shape=sizes,
            strides=steps,
            requires_grad=bool(requires_grad),
            conjugated=bool(flags.get("conj")),
            negated=bool(flags.get("neg")),
        )
        return TensorNode(self._tensors, storage.memory, view)

    def _parameter(self, args: tuple[Any, ...]) -> Node:
        data, requires_grad = args[:2]
        if not 3 <= len(args) <= 4 or not isinstance(data, Node):
            raise ValueError("a parameter of something else than a tensor")
        flag = bool(requires_grad)
        return MadeNode(data, lambda tensor: self._tensors.parameter(tensor, flag))

    def _sparse(self, args: tuple[Any, ...]) -> Node:
        layout, data = args
        count = _SPARSE_PARTS.get(layout) if type(layout) is str else None
        if count is None or type(data) is not tuple or len(data) not in (count + 1, count + 2):
            raise ValueError("a sparse tensor of an unknown layout")
        shape = shape_of(data[count])
        coalesced = bool(data[count + 1]) if len(data) == count + 2 else None
        return MadeNode(
            data[:count], lambda parts: self._tensors.sparse(layout, parts, shape, coalesced)
        )

    def _from_type(self, args: tuple[Any, ...]) -> Any:
        rebuild, kind, inner, state = args
        if not isinstance(rebuild, Symbol) or rebuild.make is None:
            raise refused(self._path, "a tensor rebuilt by something else than torch")
        if not isinstance(kind, Symbol) or kind.name not in _TENSOR_CLASSES:
            raise refused(self._path, "a subclass of torch.Tensor")
        if not rebuild.name.startswith("torch._utils._rebuild_") or type(inner) is not tuple:
            raise refused(self._path, rebuild.name)
        if state:
            self._notes["attributes set on a tensor were left out"] += 1
        return rebuild.make(inner)

    def _quantized(self, args: tuple[Any, ...]) -> Any:
        del args
        raise unreadable(
            self._path, "it holds a quantized tensor", "dequantize() it before it is saved"
        )

    def _meta(self, args: tuple[Any, ...]) -> Any:
        del args
        raise unreadable(
            self._path, "it holds a tensor on the meta device", "save it where it has values"
        )

    def _layout(self, args: tuple[Any, ...]) -> str:
        (name,) = args
        if name not in _SPARSE_PARTS:
            raise ValueError("an unknown layout")
        return str(name)

    def _nested(self, args: tuple[Any, ...]) -> Any:
        (data,) = args
        if type(data) is not bytes:
            raise ValueError("a storage that is no bytes")
        return self._load_nested(data)

    def _device(self, args: tuple[Any, ...]) -> str:
        if not 1 <= len(args) <= 2 or type(args[0]) is not str:
            raise ValueError("a device of an unknown kind")
        self._notes["a torch.device became text"] += 1
        return args[0] if len(args) == 1 else f"{args[0]}:{int(args[1])}"

    def _size(self, args: tuple[Any, ...]) -> tuple[int, ...]:
        (sizes,) = args
        return shape_of(tuple(sizes) if type(sizes) is list else sizes)
