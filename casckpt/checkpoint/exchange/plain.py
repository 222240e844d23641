"""Python's own classes that a pickle may name, and what they become in a state tree.

A state tree has no sets, queues, dates or namespaces, so those turn into the nearest thing it
has; the reader says so in a note.
"""

from __future__ import annotations

import datetime
import pathlib
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final

from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol, hashable

Notes = Counter[str]
"""What was turned into something else while reading -> how often."""

Table = dict[tuple[str, str], Symbol]

_OLD_MODULES: Final = {"__builtin__": "builtins", "copy_reg": "copyreg"}
_DATE_BYTES: Final = {"datetime": 10, "date": 4}
_FACTORIES: Final[dict[str, Callable[[], Any]]] = {
    "builtins.int": int,
    "builtins.long": int,
    "builtins.float": float,
    "builtins.bool": bool,
    "builtins.str": str,
    "builtins.list": list,
    "builtins.tuple": tuple,
    "builtins.dict": dict,
    "builtins.set": set,
    "collections.OrderedDict": OrderedDict,
}
_ATTRIBUTE_DICTS: Final = (
    "lightning_fabric.utilities.data",
    "lightning.fabric.utilities.data",
    "pytorch_lightning.utilities.parsing",
)


class SetNode(Node):
    """A set: a sorted list where its items can be sorted, else a list."""

    def __init__(self, items: list[Any]) -> None:
        self._items: dict[Any, None] = dict.fromkeys(hashable(item) for item in items)

    def build(self, state: Any) -> None:
        """Add items, which is what ADDITEMS does to a set."""
        if type(state) is not list:
            raise ValueError("the state of a set is no list")
        self._items.update(dict.fromkeys(hashable(item) for item in state))

    def finish(self, resolve: Resolve) -> Any:
        """Return the items as a list."""
        del resolve
        try:
            return sorted(self._items)
        except TypeError:
            return list(self._items)


class NamespaceNode(Node):
    """An argparse.Namespace: a dict of its attributes."""

    def __init__(self) -> None:
        self._state: dict[Any, Any] = {}

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise ValueError("the state of a Namespace is no dict")
        self._state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return the attributes as a dict."""
        return resolve(self._state)


class BytearrayNode(Node):
    """A bytearray."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def finish(self, resolve: Resolve) -> Any:
        """Return a bytearray of its own."""
        del resolve
        return bytearray(self.data)


def plain_table(notes: Notes) -> Table:
    """Return the symbols of builtins and of the standard library.

    Args:
        notes: counts what is turned into something else.
    """
    return {
        (module, name): Symbol(f"{module}.{name}", make) for module, name, make in _makers(notes)
    }


def lookup_key(module: str, name: str) -> tuple[str, str]:
    """Return the table's key of a name; modules that Python 2 named otherwise are renamed."""
    return _OLD_MODULES.get(module, module), name


def _makers(
    notes: Notes,
) -> Iterator[tuple[str, str, Callable[[tuple[Any, ...]], Any] | None]]:
    def noted(text: str, make: Callable[..., Any]) -> Callable[[tuple[Any, ...]], Any]:
        def call(args: tuple[Any, ...]) -> Any:
            notes[text] += 1
            return make(*args)

        return call

    def plain(make: Callable[..., Any]) -> Callable[[tuple[Any, ...]], Any]:
        return lambda args: make(*args)

    for name in ("set", "frozenset"):
        yield "builtins", name, noted("a set became a list", _set)
    yield "builtins", "bytearray", plain(_bytearray)
    yield "builtins", "bytes", plain(_bytes)
    yield "builtins", "complex", plain(_complex)
    # Only as arguments of others (defaultdict(int), copyreg): never called.
    for name in ("int", "long", "float", "str", "list", "dict", "tuple", "bool", "object"):
        yield "builtins", name, None
    yield "_codecs", "encode", plain(_encode)
    yield "copyreg", "_reconstructor", plain(_reconstruct)
    yield "collections", "OrderedDict", plain(_ordered)
    yield "collections", "defaultdict", plain(_defaultdict)
    yield "collections", "Counter", plain(lambda items=(): Counter(_dict(items)))
    yield "collections", "deque", noted("a deque became a list", _deque)
    for module in _ATTRIBUTE_DICTS:
        yield module, "AttributeDict", noted("an AttributeDict became a dict", _dict)
    yield "argparse", "Namespace", noted("a Namespace became a dict", NamespaceNode)
    for module in ("pathlib", "pathlib._local"):
        for name in ("PosixPath", "PurePosixPath"):
            yield module, name, plain(_posix_path)
        for name in ("WindowsPath", "PureWindowsPath"):
            yield module, name, noted("a Windows path became text", _windows_path)
    for name in ("datetime", "date"):
        size = _DATE_BYTES[name]
        kind = getattr(datetime, name)
        yield "datetime", name, noted(f"a {name} became text", _date(kind, size))


def _of(kind: type | tuple[type, ...], value: Any) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"an argument is a {type(value).__name__}")
    return value


def _set(items: Any = ()) -> SetNode:
    return SetNode(list(_of((list, tuple), items)))


def _bytes(data: Any = b"") -> bytes:
    return bytes(_of(bytes, data))


def _bytearray(data: Any = b"", encoding: str = "latin-1") -> BytearrayNode:
    if isinstance(data, str):
        data = _encode(data, encoding)
    return BytearrayNode(_of(bytes, data))


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(_of((int, float), real), _of((int, float), imaginary))


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    # How Python 3 writes bytes in protocols 0 to 2.
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in an encoding other than latin1")
    return str(_of(str, text)).encode("latin-1")


def _reconstruct(kind: Any, base: Any, state: Any) -> Any:
    # Protocols 0 and 1 make their objects this way.
    if not isinstance(kind, Symbol) or kind.make is None or state is not None:
        raise ValueError("an object rebuilt from something else than its class")
    if not isinstance(base, Symbol) or base.name != "builtins.object":
        raise ValueError("an object rebuilt from another base")
    return kind.make(())


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(_pairs(items))


def _pairs(items: Any) -> list[tuple[Any, Any]]:
    if type(items) in (dict, OrderedDict):
        items = list(items.items())
    pairs = []
    for pair in _of((list, tuple), items):
        key, value = _of((list, tuple), pair)
        pairs.append((hashable(key), value))
    return pairs


def _dict(items: Any = ()) -> dict[Any, Any]:
    return dict(_pairs(items))


def _defaultdict(factory: Any = None, items: Any = ()) -> dict[Any, Any]:
    if factory is not None and (type(factory) is not Symbol or factory.name not in _FACTORIES):
        raise ValueError("a defaultdict whose factory is a function")
    made = _FACTORIES[factory.name] if factory is not None else None
    return defaultdict(made, _pairs(items))


def _deque(items: Any = (), maximum: Any = None) -> list[Any]:
    _of((int, type(None)), maximum)
    return list(_of((list, tuple), items))


def _posix_path(*parts: Any) -> pathlib.PurePath:
    return pathlib.Path(*(_of(str, part) for part in parts))


def _windows_path(*parts: Any) -> str:
    return str(pathlib.PureWindowsPath(*(_of(str, part) for part in parts)))


def _date(kind: Any, size: int) -> Callable[..., str]:
    def make(state: Any, *zone: Any) -> str:
        if zone:
            raise ValueError("a date with a time zone")
        if isinstance(state, str):
            # Python 2's, which happens to be text: its bytes are the text's (see the machine).
            state = state.encode("utf-8")
        if len(_of(bytes, state)) != size:
            raise ValueError("a date of the wrong length")
        return str(kind(state).isoformat())

    return make
