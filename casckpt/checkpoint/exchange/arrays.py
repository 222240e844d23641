"""numpy's part of the names a pickle may use: arrays, scalars and dtypes, never objects."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, Final

from casckpt.checkpoint.exchange.dtypes import EXTENSION_DTYPES, numpy_dtype
from casckpt.checkpoint.exchange.plain import BytearrayNode, Table
from casckpt.checkpoint.exchange.refusals import refused
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol

DIMENSIONS_MAX: Final = 64
_DTYPE_DEPTH_MAX: Final = 16
_DTYPE_TEXT = re.compile(r"[<>=|]?[?bBhHiIlLqQefdgFDGcuSaUVmMO]\d{0,9}")
_UNIT = re.compile(r"Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as")
_EXTENSION_MODULES: Final = ("ml_dtypes", "ml_dtypes._ml_dtypes_ext", "jax.numpy")


class DtypeNode(Node):
    """A dtype, completed by BUILD with byte order, fields, sub-array or unit."""

    def __init__(self, base: Any, path: str) -> None:
        self.dtype = base
        self.depth = 0
        self._path = path

    def build(self, state: Any) -> None:
        """Take numpy's state: (version, order, sub-array, names, fields, size, ..., unit)."""
        import numpy as np

        if type(state) is not tuple or not 8 <= len(state) <= 9:
            raise ValueError("the state of a dtype is no tuple of 8 or 9")
        _, order, subarray, names, fields, size = state[:6]
        if subarray is not None:
            inner, shape = subarray
            self.dtype = np.dtype((self._inner(inner), shape_of(shape)))
        elif names is not None:
            columns = [fields[name] for name in names]
            self.dtype = np.dtype(
                {
                    "names": list(names),
                    "formats": [self._inner(column[0]) for column in columns],
                    "offsets": [column[1] for column in columns],
                    "itemsize": size,
                }
            )
        elif self.dtype.kind in "mM":
            self.dtype = _with_unit(self.dtype, state)
        if order in ("<", ">") and names is None and subarray is None:
            self.dtype = self.dtype.newbyteorder(order)

    def _inner(self, node: Any) -> Any:
        if not isinstance(node, DtypeNode):
            raise ValueError("a dtype made of something else than dtypes")
        self.depth = max(self.depth, node.depth + 1)
        if self.depth > _DTYPE_DEPTH_MAX:
            raise ValueError(f"a dtype nested more than {_DTYPE_DEPTH_MAX} deep")
        return node.dtype

    def finish(self, resolve: Resolve) -> Any:
        """Refuse: a dtype is no leaf of a state tree."""
        del resolve
        raise refused(self._path, "a numpy dtype as a value")


class ArrayNode(Node):
    """An array; BUILD brings shape, dtype and bytes, or objects where those are allowed."""

    def __init__(self, path: str, takes_objects: bool = False) -> None:
        self._value: Any = None
        self._objects: list[Any] | None = None
        self._shape: tuple[int, ...] = ()
        self._path = path
        self._takes_objects = takes_objects

    def build(self, state: Any) -> None:
        """Take numpy's state: (version, shape, dtype, Fortran order, bytes)."""
        if type(state) is not tuple or len(state) not in (4, 5):
            raise ValueError("the state of an array is no tuple of 5")
        shape, node, fortran, data = state[-4:]
        if self._takes_objects and type(data) is list:
            self._take_objects(shape, data)  # in C order, whatever the flag says
            return
        self._value = make_array(self._path, shape, node, data, "F" if fortran else "C")
        self.logical_bytes = self._value.nbytes

    def _take_objects(self, shape: Any, items: list[Any]) -> None:
        self._shape = shape_of(shape)
        if math.prod(self._shape) != len(items):
            raise ValueError(f"an array whose shape does not fit its {len(items)} objects")
        self._objects = items

    def finish(self, resolve: Resolve) -> Any:
        """Return the array."""
        if self._objects is not None:
            import numpy as np

            self._value = np.empty(len(self._objects), dtype=object)
            for index, item in enumerate(self._objects):
                self._value[index] = resolve(item)
            return self._value.reshape(self._shape)
        if self._value is None:
            raise ValueError("an array without its bytes")
        return self._value


class ValueNode(Node):
    """A value that is complete: it only must not be called, built or used as a key."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def finish(self, resolve: Resolve) -> Any:
        """Return it."""
        del resolve
        return self.value


def shape_of(shape: Any) -> tuple[int, ...]:
    """Return `shape` if it can be the shape of an array, else raise ValueError."""
    if type(shape) is int:
        shape = (shape,)
    if type(shape) is not tuple or len(shape) > DIMENSIONS_MAX:
        raise ValueError("a shape that is no short tuple")
    for size in shape:
        if type(size) is not int or not 0 <= size < 1 << 62:
            raise ValueError("a shape of something else than sizes")
    return shape


def make_array(path: str, shape: Any, node: Any, data: Any, order: str) -> Any:
    """Return a writable array over a copy of `data`.

    Raises:
        PickleRefused: if the elements are Python objects.
        ValueError: if shape, dtype and bytes do not fit each other.
    """
    import numpy as np

    dtype = _dtype_of(path, node)
    if type(data) is list:
        raise refused(path, "an array of Python objects")
    raw = _raw(data)
    sizes = shape_of(shape)
    if math.prod(sizes) * dtype.itemsize != len(raw):
        raise ValueError(f"an array whose shape does not fit its {len(raw)} bytes")
    if order not in ("C", "F"):
        raise ValueError("an array in no order")
    if not raw:
        return np.empty(sizes, dtype)
    return np.ndarray(sizes, dtype, bytearray(raw), order="F" if order == "F" else "C")


def array_table(path: str, takes_objects: Callable[[], bool] = lambda: False) -> Table:
    """Return the symbols of numpy and ml_dtypes.

    Args:
        path: for messages.
        takes_objects: whether arrays of objects are read, as those inside an estimator are.
    """

    def reconstruct(args: tuple[Any, ...]) -> Any:
        kind = args[0]
        if not isinstance(kind, Symbol) or kind.name != "numpy.ndarray":
            raise refused(path, "a subclass of numpy.ndarray")
        return ArrayNode(path, takes_objects())

    def scalar(args: tuple[Any, ...]) -> Any:
        node, data = args
        return ValueNode(make_array(path, (), node, data, "C")[()])

    def from_buffer(args: tuple[Any, ...]) -> Any:
        data, node, shape, order, *axes = args
        if order != "K" or len(axes) != 1:
            return ValueNode(make_array(path, shape, node, data, order))
        array = make_array(path, shape, node, data, "C")
        return ValueNode(array.transpose(shape_of(axes[0])))

    def dtype(args: tuple[Any, ...]) -> Any:
        return DtypeNode(_base_dtype(args[0]), path)

    table = {
        ("numpy", "dtype"): Symbol("numpy.dtype", dtype),
        ("numpy", "ndarray"): Symbol("numpy.ndarray"),
    }
    for package in ("numpy.core", "numpy._core"):
        table[f"{package}.multiarray", "_reconstruct"] = Symbol("numpy._reconstruct", reconstruct)
        table[f"{package}.multiarray", "scalar"] = Symbol("numpy.scalar", scalar)
        table[f"{package}.numeric", "_frombuffer"] = Symbol("numpy._frombuffer", from_buffer)
    for module in _EXTENSION_MODULES:
        for name in EXTENSION_DTYPES:
            table[module, name] = Symbol(f"ml_dtypes.{name}", value=name)
    return table


def _base_dtype(base: Any) -> Any:
    import numpy as np

    if isinstance(base, Symbol) and base.value in EXTENSION_DTYPES:
        return numpy_dtype(base.value)
    text = base.decode("ascii") if isinstance(base, bytes) else base
    if type(text) is not str or not _DTYPE_TEXT.fullmatch(text):
        raise ValueError("a dtype of an unknown kind")
    return np.dtype(text)


def _dtype_of(path: str, node: Any) -> Any:
    if not isinstance(node, DtypeNode):
        raise ValueError("an array without a dtype")
    if node.dtype.hasobject:
        raise refused(path, "an array of Python objects")
    return node.dtype


def _with_unit(dtype: Any, state: tuple[Any, ...]) -> Any:
    import numpy as np

    if len(state) != 9 or state[8] is None:
        return dtype
    unit, count = state[8][1][:2]
    text = unit.decode("ascii") if isinstance(unit, bytes) else unit
    if text == "generic":
        return dtype
    if type(text) is not str or not _UNIT.fullmatch(text) or type(count) is not int:
        raise ValueError("a date of an unknown unit")
    return np.dtype(f"{dtype.kind}8[{count}{text}]")


def _raw(data: Any) -> bytes:
    if isinstance(data, BytearrayNode):
        return data.data
    if isinstance(data, str):
        # A Python 2 string that happens to be text: its bytes are the text's (see the machine).
        return data.encode("utf-8")
    if not isinstance(data, bytes):
        raise ValueError("an array without bytes")
    return data
