"""From what the pickle machine leaves to a state tree: nodes finished, shape and size bounded."""

from __future__ import annotations

import pathlib
from collections import OrderedDict
from typing import Any, Final

from casckpt.checkpoint.exchange.plain import Notes
from casckpt.checkpoint.exchange.refusals import allowed_bytes, damaged, refused, unreadable
from casckpt.checkpoint.exchange.symbols import MAPPINGS, Node, Symbol
from casckpt.errors import CasckptError

DEPTH_MAX: Final = 128
"""Deepest nesting read, as for a state tree; real ones are 10 deep."""

_VALUE_WEIGHT: Final = 16
"""Bytes one small value counts as, against what the file may expand to."""


class Resolver:
    """Finishes the nodes of one pickle, each once, so that what was shared stays shared.

    Args:
        path: for messages.
        file_bytes: size of the file, which bounds how far shared parts may multiply.
        notes: counts what is turned into something else.
    """

    def __init__(self, path: str, file_bytes: int, notes: Notes) -> None:
        self._path = path
        self._limit = allowed_bytes(file_bytes)
        self._file_bytes = file_bytes
        self._notes = notes
        self._done: dict[int, tuple[Any, Any, int]] = {}  # id -> (original, result, weight)
        self._open: set[int] = set()
        self._weight = 0

    def __call__(self, value: Any) -> Any:
        """Return `value` with every node in it finished.

        Raises:
            PickleRefused: if a class or function is left over as a value.
            BadRequest: if it contains itself, or is nested more than `DEPTH_MAX` deep.
            Corrupt: if a node is incomplete, or sharing multiplies the tree beyond measure.
        """
        kind = type(value)
        if kind in (str, bytes):
            self._count(_VALUE_WEIGHT + len(value))
            return value
        if kind in (int, float, bool, type(None), complex):
            self._count(_VALUE_WEIGHT)
            return value
        if kind is Symbol:
            return self._symbol(value)
        return self._shared(value)

    def _shared(self, value: Any) -> Any:
        key = id(value)
        if key in self._done:
            _, result, weight = self._done[key]
            self._count(weight)
            return result
        if key in self._open:
            raise unreadable(self._path, "it contains itself", "save a tree without cycles")
        if len(self._open) >= DEPTH_MAX:
            raise unreadable(
                self._path, f"it is nested more than {DEPTH_MAX} deep", "save a flatter tree"
            )
        before = self._weight
        self._open.add(key)
        try:
            result = self._finish(value)
        finally:
            self._open.discard(key)
        self._count(_VALUE_WEIGHT)
        # The original is kept, so that its id names nothing else meanwhile.
        self._done[key] = (value, result, self._weight - before)
        return result

    def _finish(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            value[:] = [self(item) for item in value]
            return value
        if kind in MAPPINGS:
            for key, item in value.items():
                value[key] = self(item)
            if kind is OrderedDict and hasattr(value, "_metadata"):
                value._metadata = self(value._metadata)
            return value
        if kind is tuple:
            return tuple(self(item) for item in value)
        if isinstance(value, Node):
            return self._node(value)
        if isinstance(value, pathlib.PurePath):
            return value
        raise refused(self._path, f"a {kind.__name__}")

    def _node(self, node: Node) -> Any:
        try:
            result = node.finish(self)
        except CasckptError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError, MemoryError) as exc:
            why = ascii(str(exc))[1:-1][:200]
            raise damaged(self._path, f"it describes something impossible: {why}") from exc
        self._count(node.logical_bytes)
        return result

    def _symbol(self, symbol: Symbol) -> str:
        # A torch.dtype is a value people keep in configurations; any other name is not.
        if not symbol.name.startswith("torch.") or symbol.value is None:
            raise refused(self._path, f"{symbol.name} as a value")
        self._notes["a torch.dtype became text"] += 1
        return symbol.name

    def _count(self, weight: int) -> None:
        self._weight += weight
        if self._weight > self._limit:
            raise damaged(
                self._path,
                f"it expands beyond {self._limit} bytes from a file of {self._file_bytes}",
            )
