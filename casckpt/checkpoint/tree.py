"""A state tree taken apart: its structure as JSON-able nodes, its arrays as a list of leaves.

Besides the scalars of `scalars.py`, nodes are:

    [node, ...]                                  a list
    {"t": [node, ...]}                           a tuple
    {"d": [key, ...], "v": [node, ...]}          a dict, in its order; "k": "ordered", "counter" or
                                                 "default:list"; "m": torch's `_metadata`
    {"n": [module, name], "f": [...], "v": [...]}    a namedtuple     {"D": ...}  a dataclass
    {"e": n}                                     leaf n
    {"x": [root, kind], "a": ..., "v": [node, ...]}  what the handler of `root` makes of parts
"""

from __future__ import annotations

import collections
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint import tree_classes
from casckpt.checkpoint.leaves import BytesSource, Leaf, Pickled, refused
from casckpt.checkpoint.manifest import without_collector
from casckpt.checkpoint.scalars import (
    INT_MAX_BITS,
    JSON_INT_MAX,
    KEY_INT_MAX_BITS,
    TEXT_MAX_BYTES,
    Node,
    encode_key,
    encode_scalar,
)
from casckpt.checkpoint.tree_paths import PATH_MAX, join
from casckpt.errors import BadLeaf

DEPTH_MAX: Final = 128
"""Deepest nesting of containers: what Python's and JSON's recursion carry with room to spare."""

KEY_MAX: Final = 64 * 1024
"""Longest string or bytes used as a dict key."""

FACTORIES: Final[dict[str, Callable[[], Any] | None]] = {
    "none": None,
    "list": list,
    "dict": dict,
    "set": set,
    "tuple": tuple,
    "str": str,
    "int": int,
    "float": float,
    "bool": bool,
    "ordered": collections.OrderedDict,
}
"""Factories of a defaultdict that a checkpoint can name."""


@dataclass(slots=True)
class FlatState:
    """A state tree taken apart.

    Attributes:
        tree: the structure.
        leaves: what `{"e": n}` and aliases name by index.
    """

    tree: Node
    leaves: list[Leaf]


def flatten(state: object) -> FlatState:
    """Take a state tree apart; leaves still refer to the state's own memory.

    Small values are copied into the tree at once; arrays, tensors and long strings become leaves.

    Raises:
        BadLeaf: for a value, a key or a nesting that cannot be stored; it names the path.
        MissingExtra: if a leaf's library cannot be imported.
    """
    walker = _Walker()
    try:
        with without_collector():
            tree = walker.walk(state, "")
    except RecursionError:
        raise BadLeaf(
            "the state is nested too deeply for this call", "", "save it higher up"
        ) from None
    by_root: dict[str, leaf_module.Handler] = {}
    for root in walker.roots:
        by_root[root] = leaf_module.handler(root)
    for one in by_root.values():
        one.link(walker.leaves)
    return FlatState(tree, walker.leaves)


@dataclass(slots=True)
class _Walker:
    leaves: list[Leaf] = field(default_factory=list)
    roots: dict[str, None] = field(default_factory=dict)
    _index_of: dict[int, int] = field(default_factory=dict)
    _open: list[tuple[int, str]] = field(default_factory=list)
    _kept: list[Any] = field(default_factory=list)

    def add(self, leaf: Leaf) -> Node:
        """Register a leaf, or an alias if the same object was seen before."""
        if len(leaf.path) > PATH_MAX:
            raise BadLeaf(f"a path of {len(leaf.path)} characters: {leaf.path[:60]}...")
        index = len(self.leaves)
        if leaf.value is not None:
            first = self._index_of.setdefault(id(leaf.value), index)
            if first != index:
                leaf = Leaf(leaf.path, leaf.kind, alias=first, value=leaf.value)
        self.leaves.append(leaf)
        return {"e": index}

    def walk(self, value: object, path: str) -> Node:
        """Return the node of a value."""
        plain, node = _plain(value)
        return node if plain else self._walk_other(value, path)

    def _walk_other(self, value: Any, path: str) -> Node:
        """Return the node of a value that is no scalar."""
        cls = type(value)
        if cls is dict:
            self._enter(value, path)
            try:
                return self._mapping(value, path)
            finally:
                self._open.pop()
        if cls is list or cls is tuple:
            self._enter(value, path)
            try:
                parts = self._items(value, path)
            finally:
                self._open.pop()
            return parts if cls is list else {"t": parts}
        if cls in _TEXTS:
            return self._text(value, path)
        if cls is int:
            raise refused(value, path, _too_long(value, INT_MAX_BITS))
        return self._special(value, path)

    def _items(self, values: Sequence[Any], path: str) -> list[Node]:
        nodes: list[Node] = []
        for index, item in enumerate(values):
            # Most long lists are histories and states of generators: no path is made for numbers.
            if type(item) is int and -JSON_INT_MAX <= item <= JSON_INT_MAX:
                nodes.append(item)
                continue
            plain, node = _plain(item)
            nodes.append(node if plain else self._walk_other(item, join(path, str(index))))
        return nodes

    def _special(self, value: Any, path: str) -> Node:
        root = leaf_module.root_of(value)
        if root is not None:
            node = leaf_module.handler(root).flatten(value, path, self)
            if node is not None:
                self.roots[root] = None
                return node
        if isinstance(value, Pickled):
            return self._pickled(value, path)
        own: Callable[..., Node] | None = getattr(type(value), "casckpt_flatten", None)
        if own is not None:
            return own(value, path, self)
        if isinstance(value, type):
            raise refused(value, path, "a class is not data")
        self._enter(value, path)
        try:
            if callable(getattr(value, "state_dict", None)) and callable(
                getattr(value, "load_state_dict", None)
            ):
                plain = value.state_dict()
                self._kept.append(plain)  # ids of its parts must stay theirs until the end
                return self.walk(plain, path)
            if isinstance(value, dict):
                return self._special_mapping(value, path)
            if tree_classes.is_namedtuple(value):
                return self._record("n", value, list(value), path)
            if tree_classes.is_dataclass(value):
                names = tree_classes.field_names(value)
                missing = [name for name in names if not hasattr(value, name)]
                if missing:
                    raise refused(value, path, f"its field {missing[0]} is not set")
                return self._record("D", value, [getattr(value, name) for name in names], path)
        finally:
            self._open.pop()
        raise refused(value, path)

    def _mapping(self, value: dict[Any, Any], path: str) -> dict[str, Node]:
        keys: list[Node] = []
        nodes: list[Node] = []
        for key, item in value.items():
            # Nearly all keys are short names, which are their own node.
            is_name = type(key) is str and key.isascii() and len(key) <= KEY_MAX
            keys.append(key if is_name else _key_node(key, path))
            plain, node = _plain(item)
            nodes.append(node if plain else self._walk_other(item, join(path, key)))
        return {"d": keys, "v": nodes}

    def _special_mapping(self, value: dict[Any, Any], path: str) -> Node:
        cls = type(value)
        extra = dict(getattr(value, "__dict__", {}))
        metadata = extra.pop("_metadata", None) if cls is collections.OrderedDict else None
        if extra and cls in (collections.OrderedDict, collections.Counter):
            raise refused(value, path, f"it has attributes: {', '.join(extra)}")
        if cls is collections.OrderedDict:
            node = self._mapping(value, path) | {"k": "ordered"}
            if metadata is not None:
                node["m"] = self.walk(metadata, join(path, "_metadata"))
            return node
        if cls is collections.Counter:
            return self._mapping(value, path) | {"k": "counter"}
        if cls is collections.defaultdict:
            factory = value.default_factory  # type: ignore[attr-defined]
            for name, known in FACTORIES.items():
                if factory is known:
                    return self._mapping(value, path) | {"k": f"default:{name}"}
            raise refused(value, path, "its default factory is a function")
        raise refused(value, path, "it is a dict of a class of its own")

    def _record(self, tag: str, value: Any, parts: list[Any], path: str) -> Node:
        names = tree_classes.field_names(value)
        nodes = [self.walk(part, join(path, name)) for name, part in zip(names, parts, strict=True)]
        return {tag: tree_classes.class_name(type(value)), "f": names, "v": nodes}

    def _text(self, value: Any, path: str) -> Node:
        if isinstance(value, str):
            data: bytes | bytearray = value.encode("utf-8", "surrogatepass")
        else:
            data = value
        kind = type(value).__name__
        return self.add(Leaf(path, kind, length=len(data), source=BytesSource(data), opaque=True))

    def _pickled(self, value: Pickled, path: str) -> Node:
        try:
            data = pickle.dumps(value.value, protocol=4)
        except Exception as exc:  # pickle lets any class raise anything
            raise BadLeaf(
                f"{path or 'the root'}: {type(value.value).__name__} cannot be pickled", str(exc)
            ) from exc
        return self.add(
            Leaf(path, "pickle", length=len(data), source=BytesSource(data), opaque=True)
        )

    def _enter(self, value: object, path: str) -> None:
        """Note that a container is open; whoever calls pops it. A generator would cost more."""
        if len(self._open) >= DEPTH_MAX:
            raise BadLeaf(
                f"the state is nested deeper than {DEPTH_MAX} at {path[:80]}...",
                "a tree this deep cannot be read back safely",
                "store a flatter state",
            )
        for identity, above in self._open:
            if identity == id(value):
                raise BadLeaf(
                    f"{path or 'the root'} contains itself",
                    f"it is the same object as {above or 'the root'}",
                    "remove the cycle from the state",
                )
        self._open.append((id(value), path))


def _key_node(key: Any, path: str) -> Node:
    """Return the node of a key of the dict at `path`."""
    try:
        node = encode_key(key)
    except TypeError as exc:
        raise BadLeaf(
            f"a dict key of type {exc} at {path or 'the root'}: {key!r:.80}",
            "keys are str, int, float, bool, bytes, None and tuples of them",
            "turn the key into one of these",
        ) from None
    if (number := _long_int(key)) is not None:
        raise BadLeaf(
            f"a long integer in a dict key at {path or 'the root'}",
            _too_long(number, KEY_INT_MAX_BITS),
            "use a shorter key",
        )
    if isinstance(key, str | bytes) and len(key) > KEY_MAX:
        raise BadLeaf(
            f"a dict key of {len(key)} characters at {path or 'the root'}",
            f"the limit is {KEY_MAX}",
            "use a shorter key",
        )
    return node


def _long_int(key: Any) -> int | None:
    """Return an integer of a key that is too long for one."""
    if type(key) is tuple:
        return next((found for part in key if (found := _long_int(part)) is not None), None)
    return key if type(key) is int and key.bit_length() > KEY_INT_MAX_BITS else None


def _too_long(value: int, limit: int) -> str:
    return f"it has {value.bit_length()} bits, and the limit is {limit}"


_TEXTS: Final = frozenset({str, bytes, bytearray})


def _plain(value: object) -> tuple[bool, Node]:
    """Return (True, node) for a scalar that lives in the tree: what is too long does not."""
    if type(value) in _TEXTS and len(value) * 4 > TEXT_MAX_BYTES and _is_long(value):  # type: ignore[arg-type]
        return False, None
    if type(value) is int and value.bit_length() > INT_MAX_BITS:
        return False, None
    return encode_scalar(value)


def _is_long(value: str | bytes | bytearray) -> bool:
    if len(value) > TEXT_MAX_BYTES:
        return True
    # A character is up to 4 bytes of UTF-8.
    return (
        isinstance(value, str)
        and not value.isascii()
        and len(value.encode("utf-8", "surrogatepass")) > TEXT_MAX_BYTES
    )
