"""joblib's files: pickles with the bytes of arrays between the opcodes.

Where the value holds an array, the pickle has an object that describes it, and right behind the
BUILD that completes this object stands

    a byte n, n bytes of padding, the array's bytes      n and padding since joblib 1.1
    a pickle of its own                                  if the elements are Python objects

Source: joblib/numpy_pickle.py (NumpyArrayWrapper).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.exchange.arrays import DtypeNode, make_array, shape_of
from casckpt.checkpoint.exchange.plain import Table
from casckpt.checkpoint.exchange.refusals import refused, unreadable
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol

if TYPE_CHECKING:
    from casckpt.checkpoint.exchange.machine import Machine

_PLAIN_CLASSES: Final = ("numpy.ndarray", "numpy.memmap")
_MODULES: Final = ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle")


class WrapperNode(Node):
    """An array whose bytes stand in the file behind what describes it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._value: Any = None

    def build(self, state: Any) -> None:
        """Take the description.

        Raises:
            PickleRefused: the array is of a class of its own.
        """
        if type(state) is not dict or not isinstance(state.get("dtype"), DtypeNode):
            raise ValueError("the description of an array without a dtype")
        kind = state.get("subclass")
        if not isinstance(kind, Symbol) or kind.name not in _PLAIN_CLASSES:
            raise refused(self._path, "a subclass of numpy.ndarray")
        self._value = state

    def follow(self, machine: Machine) -> None:
        """Read the array."""
        about = self._value
        node, shape = about["dtype"], shape_of(about.get("shape"))
        if node.dtype.hasobject:
            self._value = machine.inner()
            return
        if about.get("numpy_array_alignment_bytes") is not None:
            machine.take(machine.take(1)[0])
        data = machine.take(math.prod(shape) * node.dtype.itemsize)
        self._value = make_array(self._path, shape, node, data, about.get("order", "C"))
        self.logical_bytes = len(data)

    def finish(self, resolve: Resolve) -> Any:
        """Return the array."""
        return resolve(self._value) if isinstance(self._value, Node) else self._value


def joblib_table(path: str) -> Table:
    """Return the symbols of joblib.

    Args:
        path: for messages.
    """

    def wrapper(args: tuple[Any, ...]) -> Any:
        del args  # its state says everything
        return WrapperNode(path)

    def scattered(args: tuple[Any, ...]) -> Any:
        raise unreadable(
            path,
            "joblib before 0.10 wrote it, with its arrays in files beside it",
            "load it where it was written and dump it again with a newer joblib",
        )

    table = {("numpy", "memmap"): Symbol("numpy.memmap")}
    for module in _MODULES:
        table[module, "NumpyArrayWrapper"] = Symbol("joblib.NumpyArrayWrapper", wrapper)
        for name in ("NDArrayWrapper", "ZNDArrayWrapper"):
            table[module, name] = Symbol(f"joblib.{name}", scattered)
    return table
