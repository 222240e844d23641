"""A state tree put together again from its nodes; every node is judged before it is believed."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint import tree_classes
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.scalars import SCALAR_TAGS, Node, decode_key, malformed
from casckpt.checkpoint.tree import DEPTH_MAX, FACTORIES
from casckpt.checkpoint.tree_paths import ABSENT, Selection, join

_CONTAINER_KEYS = {
    "t": ({"t"},),
    "d": ({"d", "v"}, {"d", "v", "k"}, {"d", "v", "m"}, {"d", "v", "k", "m"}),
    "n": ({"n", "f", "v"},),
    "D": ({"D", "f", "v"},),
    "x": ({"x", "a", "v"},),
    "e": ({"e"},),
}

_JSON_SCALARS = frozenset({str, int, bool})


def tag_of(node: Node) -> str | None:
    """Return the tag of a node, None for a plain JSON value.

    Raises:
        Corrupt: if the node has a form that no casckpt writes.
    """
    if type(node) is not dict:
        if type(node) is float:
            raise malformed("a JSON number with a fraction in the tree")
        return None
    for tag, forms in _CONTAINER_KEYS.items():
        if tag in node:
            if set(node) not in forms:
                raise malformed(f"a tree node with the keys {sorted(node)}")
            return tag
    if len(node) == 1:
        (tag,) = node
        if tag in SCALAR_TAGS:
            return str(tag)
    raise malformed(f"a tree node with the keys {sorted(node)[:8]}")


def entry_index(node: Node, entry_count: int) -> int:
    """Return n of `{"e": n}`, in bounds."""
    index = node["e"]
    if type(index) is not int or not 0 <= index < entry_count:
        raise malformed("a leaf that is not in the list of entries")
    return index


def mapping_parts(node: Node) -> tuple[list[Any], list[Node]]:
    """Return (keys, nodes) of a dict node, checked."""
    keys, nodes = node["d"], node["v"]
    if type(keys) is not list or type(nodes) is not list or len(keys) != len(nodes):
        raise malformed("a dict whose keys and values do not pair up")
    return [decode_key(key) for key in keys], nodes


def record_parts(node: Node, tag: str) -> tuple[list[str], list[str], list[Node]]:
    """Return (class name, fields, nodes) of a namedtuple or dataclass node, checked."""
    name, fields, nodes = node[tag], node["f"], node["v"]
    if not _is_strings(name) or len(name) != 2:
        raise malformed("a record whose class is not a module and a name")
    if not _is_strings(fields) or type(nodes) is not list or len(fields) != len(nodes):
        raise malformed("a record whose fields and values do not pair up")
    if len(fields) > tree_classes.FIELD_COUNT_MAX or len(set(fields)) != len(fields):
        raise malformed("a record with too many fields, or one twice")
    return name, fields, nodes


def extension_parts(node: Node) -> tuple[str, str, Node, list[Node]]:
    """Return (root, kind, attributes, nodes) of an extension node, checked."""
    if not _is_strings(node["x"]) or len(node["x"]) != 2 or type(node["v"]) is not list:
        raise malformed("an extension node without a root and a kind")
    root, kind = node["x"]
    return root, kind, node["a"], node["v"]


def _is_strings(value: Node) -> bool:
    return type(value) is list and all(type(item) is str for item in value)


def children(node: Node, tag: str | None) -> Iterator[tuple[Any, Node]]:
    """Yield (key, child) of a container node; nothing for a scalar or a leaf."""
    if tag is None:
        if type(node) is list:
            yield from enumerate(node)
    elif tag == "t":
        if type(node["t"]) is not list:
            raise malformed("a tuple that is no list")
        yield from enumerate(node["t"])
    elif tag == "d":
        yield from zip(*mapping_parts(node), strict=True)
    elif tag in ("n", "D"):
        _, fields, nodes = record_parts(node, tag)
        yield from zip(fields, nodes, strict=True)


class Builder:
    """Puts a tree together.

    Args:
        leaf: gives the value of entry n.
        entry_count: how many entries there are.
        options: handed to the handlers of extension nodes.
        selection: what to keep, None for everything; lists that lose items become dicts by index.
    """

    def __init__(
        self,
        leaf: Callable[[int], Any],
        entry_count: int,
        options: RestoreOptions,
        selection: Selection | None = None,
    ) -> None:
        self._leaf = leaf
        self._entry_count = entry_count
        self._options = options
        self._selection = selection
        self._depth = 0

    def build(self, node: Node, path: str = "", whole: bool | None = None) -> Any:
        """Return the value of a node, ABSENT if nothing of it is selected.

        Raises:
            Corrupt: if a node has a form that no casckpt writes.
        """
        if whole is None:
            whole = self._selection is None
        if not whole and self._selection is not None and self._selection.matches(path):
            whole = True
        tag = tag_of(node)
        if tag == "e":
            return self._leaf(entry_index(node, self._entry_count)) if whole else ABSENT
        if tag in SCALAR_TAGS:
            return SCALAR_TAGS[tag](node[tag]) if whole else ABSENT
        if tag is None and type(node) is not list:
            return node if whole else ABSENT
        self._depth += 1
        if self._depth > DEPTH_MAX + 1:
            raise malformed("a tree that is nested too deeply")
        try:
            if tag == "x":
                return self._extension(node, whole)
            return self._container(node, tag, path, whole)
        finally:
            self._depth -= 1

    def _whole_child(self, node: Node) -> Any:
        """Return what `build` does where everything is wanted; long lists of numbers are common."""
        if node is None or type(node) in _JSON_SCALARS:
            return node
        if type(node) is dict and len(node) == 1 and "f" in node:
            return SCALAR_TAGS["f"](node["f"])
        return self.build(node, "", True)

    def _extension(self, node: Node, whole: bool) -> Any:
        root, kind, attributes, nodes = extension_parts(node)
        if not whole:
            return ABSENT
        parts = [self._whole_child(child) for child in nodes]
        if self._options.as_numpy and root == "torch":
            root = "numpy"
        return leaf_module.handler(root).build(kind, attributes, parts, self._options)

    def _container(self, node: Node, tag: str | None, path: str, whole: bool) -> Any:
        pairs = [
            (key, self._whole_child(child) if whole else self.build(child, join(path, key), False))
            for key, child in children(node, tag)
        ]
        if not whole:
            pairs = [pair for pair in pairs if pair[1] is not ABSENT]
            if not pairs:
                return ABSENT
            if tag != "d":
                return dict(pairs)
        values = [value for _, value in pairs]
        if tag is None:
            return values
        if tag == "t":
            return tuple(values)
        if tag == "n":
            name, fields, _ = record_parts(node, tag)
            return tree_classes.make_namedtuple(name, fields, values)
        if tag == "D":
            name, fields, _ = record_parts(node, tag)
            return tree_classes.make_dataclass(name, fields, values)
        metadata = self._whole_child(node["m"]) if "m" in node else None
        return make_mapping(node.get("k"), pairs, metadata)


def make_mapping(kind: Node, pairs: Sequence[tuple[Any, Any]], metadata: Any) -> dict[Any, Any]:
    """Return a dict of the class that `kind` names.

    Raises:
        Corrupt: if it names none, or a key is there twice.
    """
    result: dict[Any, Any]
    if kind is None:
        result = {}
    elif kind == "ordered":
        result = collections.OrderedDict()
    elif kind == "counter":
        result = collections.Counter()
    elif type(kind) is str and kind.startswith("default:") and kind[8:] in FACTORIES:
        result = collections.defaultdict(FACTORIES[kind[8:]])
    else:
        raise malformed("a dict of an unknown kind")
    for key, value in pairs:
        result[key] = value
    if len(result) != len(pairs):
        raise malformed("a dict with a key twice")
    if metadata is not None:
        if kind != "ordered":
            raise malformed("metadata on a plain dict")
        vars(result)["_metadata"] = metadata
    return result


def selected_entries(tree: Node, entry_count: int, selection: Selection | None) -> list[int]:
    """Return the entries that a restore needs, in tree order, aliases' targets not included.

    Raises:
        Corrupt: if the tree is malformed.
    """
    found: list[int] = []

    def visit(node: Node, path: str, whole: bool, depth: int) -> bool:
        """Return whether there will be anything of the node."""
        if depth > DEPTH_MAX + 1:
            raise malformed("a tree that is nested too deeply")
        # Asked even where all is wanted already: every glob has to match something.
        if selection is not None and selection.matches(path):
            whole = True
        there = whole
        tag = tag_of(node)
        if tag == "e":
            if whole:
                found.append(entry_index(node, entry_count))
        elif tag == "x":
            if whole:
                for i, child in enumerate(extension_parts(node)[3]):
                    visit(child, join(path, i), True, depth + 1)
        else:
            for key, child in children(node, tag):
                if selection is not None:
                    there = visit(child, join(path, key), whole, depth + 1) or there
                elif type(child) is list or (
                    type(child) is dict and not (len(child) == 1 and "f" in child)
                ):
                    visit(child, "", whole, depth + 1)
            # A dict of which parts are left out keeps it: what is left is loaded by it.
            if tag == "d" and "m" in node and there:
                visit(node["m"], join(path, "_metadata"), True, depth + 1)
        return there

    visit(tree, "", selection is None, 0)
    return found
