"""What differs between two checkpoints: values, shapes, metrics; and how much they share.

Tensors are compared by the ids of their bytes, so nothing large is read: only leaves that lie
in a group blob (small ones, packed together) are read where their groups differ.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from casckpt.checkpoint import leaves, tree_build
from casckpt.checkpoint.extents import blob_lengths
from casckpt.checkpoint.manifest import Entry, Manifest
from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.scalars import SCALAR_TAGS
from casckpt.checkpoint.tree_paths import join, told_apart
from casckpt.errors import Corrupt, NewerFormat

if TYPE_CHECKING:
    from casckpt.store import Repository

_T = TypeVar("_T")

TEXT_SHOWN = 60
"""Characters of a value in a Change; a line of a terminal holds two."""


@dataclass(frozen=True)
class Change:
    """One path whose value is not the same in both.

    Attributes:
        path: dotted path in the tree; empty for the root.
        before: the value in `a`, or "float32 [3, 4]" for an array; None if it is not there.
        after: the same of `b`.
        changed_bytes: length of the array in `b` if its bytes differ, else 0.
    """

    path: str
    before: str | None
    after: str | None
    changed_bytes: int = 0


@dataclass(frozen=True)
class Diff:
    """What differs between checkpoints `a` and `b`.

    Attributes:
        a: the first.
        b: the second.
        added: paths that only `b` has.
        removed: paths that only `a` has.
        changed: paths with other values, or with arrays of other bytes, shape or dtype, or that
            share their memory with another path in one of both only.
        equal_count: paths that are the same in both.
        metrics: name to (value in a, value in b) where they differ; None where missing.
        environment: the same for what was recorded of the machine.
        shared_bytes: stored bytes that both reach.
    """

    a: Checkpoint
    b: Checkpoint
    added: tuple[Change, ...]
    removed: tuple[Change, ...]
    changed: tuple[Change, ...]
    equal_count: int
    metrics: Mapping[str, tuple[float | None, float | None]]
    environment: Mapping[str, tuple[str | None, str | None]]
    shared_bytes: int

    @property
    def same_state(self) -> bool:
        """Whether restoring either gives the same tree."""
        return not (self.added or self.removed or self.changed)


@dataclass(frozen=True)
class _Value:
    """What one path holds: a node of the tree, or an entry and the id of its bytes."""

    text: str
    entry: Entry | None = None
    blob: bytes | None = None
    blob_length: int = 0
    grouped: bool = False

    def place(self) -> tuple[bytes, int, int]:
        """Return the blob and the range of it that holds the bytes."""
        if self.entry is None or self.blob is None:
            return b"", 0, 0
        return self.blob, self.entry.offset, self.entry.length


def diff_of(
    repository: Repository,
    catalog: Catalog,
    a: Checkpoint,
    b: Checkpoint,
    *,
    other: tuple[Repository, Catalog] | None = None,
) -> Diff:
    """Return what differs between two checkpoints.

    Args:
        repository: the store of `a`.
        catalog: its rows.
        a: the first.
        b: the second.
        other: the store of `b`, if it is another one: equal bytes have equal ids in every store.

    Raises:
        Corrupt: if a manifest, or a small leaf that had to be compared, is damaged.
        Deleted: if a manifest is gone.
    """
    manifest_a, refs_a = catalog.manifest_and_refs(a)
    repository_b, catalog_b = other or (repository, catalog)
    manifest_b, refs_b = catalog_b.manifest_and_refs(b)
    values_a, values_b = _values(manifest_a, refs_a), _values(manifest_b, refs_b)
    both = [path for path in values_a if path in values_b]
    changed: list[Change] = []
    for path in both:
        before, after = values_a[path], values_b[path]
        same_bytes = _same_bytes(repository, before, repository_b, after)
        if before.text != after.text or not same_bytes:
            size = after.entry.length if after.entry is not None and not same_bytes else 0
            changed.append(Change(path, _shown(before), _shown(after), size))
    equal_count = len(both) - len(changed)
    told = {change.path for change in changed}
    others = _other_containers(manifest_a, manifest_b)
    changed += (change for change in others if change.path not in told)
    objects_a = repository.closure([bytes.fromhex(a.id)])
    objects_b = repository_b.closure([bytes.fromhex(b.id)])
    return Diff(
        a=a,
        b=b,
        added=tuple(
            Change(path, None, _shown(value), value.place()[2])
            for path, value in values_b.items()
            if path not in values_a
        ),
        removed=tuple(
            Change(path, _shown(value), None)
            for path, value in values_a.items()
            if path not in values_b
        ),
        changed=tuple(changed),
        equal_count=equal_count,
        metrics=_pairs(a.metrics, b.metrics),
        environment=_pairs(manifest_a.environment, manifest_b.environment),
        shared_bytes=sum(size for id_, (_, size) in objects_a.items() if id_ in objects_b),
    )


def _values(manifest: Manifest, refs: list[bytes]) -> dict[str, _Value]:
    counts: dict[int, int] = {}
    for entry in manifest.entries:
        if entry.blob is not None:
            counts[entry.blob] = counts.get(entry.blob, 0) + 1
    lengths = blob_lengths(manifest, len(refs))
    values: dict[str, _Value] = {}
    found = list(_leaves(manifest.tree, ""))
    names = told_apart(path for path, _ in found)
    nodes = {name: node for name, (_, node) in zip(names, found, strict=True)}
    shared = _shared(nodes, manifest)
    for path, node in nodes.items():
        value = _value(node, manifest, refs, counts, lengths)
        if path in shared:
            value = replace(value, text=f"{value.text} shared with {shared[path]}")
        values[path] = value
    return values


def _shared(nodes: Mapping[str, Any], manifest: Manifest) -> dict[str, str]:
    """Return which paths show memory that another shows too, with the first of its paths.

    The first in the order of letters: a dict with its keys in another order shares the same.
    """
    first: dict[int, str] = {}
    others: dict[str, str] = {}
    for path in sorted(nodes):
        node = nodes[path]
        if tree_build.tag_of(node) == "e":
            index = tree_build.entry_index(node, len(manifest.entries))
            one = first.setdefault(_root(manifest, index), path)
            if one != path:
                others[path] = one
    return others


def _root(manifest: Manifest, index: int) -> int:
    """Return the entry whose memory an entry shows: itself, unless it is an alias."""
    while (alias := manifest.entries[index].alias) is not None:
        index = alias
    return index


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield every path that is no container, or an empty one, with its node."""
    tag = tree_build.tag_of(node)
    if tag == "x":
        parts = list(enumerate(tree_build.extension_parts(node)[3]))
    else:
        parts = _children(node, tag)
    for key, child in parts:
        yield from _leaves(child, join(path, key))
    if not parts:
        yield path, node


def _containers(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every container's path and kind, with its keys in order."""
    tag = tree_build.tag_of(node)
    if tag == "x":
        root, kind, attributes, parts = tree_build.extension_parts(node)
        yield path, f"{root} {kind} {json.dumps(attributes, sort_keys=True)}"
        children = list(enumerate(parts))
    else:
        children = _children(node, tag)
        if type(node) is list or tag in ("t", "d", "n", "D"):
            yield path, _container_text(node, tag)
    for key, child in children:
        yield from _containers(child, join(path, key))


def _children(node: Any, tag: str | None) -> list[tuple[Any, Any]]:
    """Return the children of a container, the metadata of a module's state dict with them."""
    parts = list(tree_build.children(node, tag))
    return [*parts, ("_metadata", node["m"])] if tag == "d" and "m" in node else parts


def _container_text(node: Any, tag: str | None) -> str:
    if tag == "d":
        kind = str(node.get("k", "dict"))
        return f"{kind} with keys {json.dumps(node['d'])}"
    if tag in ("n", "D"):
        return f"{'namedtuple' if tag == 'n' else 'dataclass'} {'.'.join(node[tag])}"
    return "tuple" if tag == "t" else "list"


def _other_containers(a: Manifest, b: Manifest) -> Iterator[Change]:
    """Yield containers of another kind, or with the same keys of other types or in another order.

    A dict that only gained or lost keys is told by the paths that were added or removed.
    """
    before, after = _named_containers(a.tree), _named_containers(b.tree)
    for path, kind in before.items():
        other = after.get(path, kind)
        if kind == other:
            continue
        first, second = kind.partition(" with keys "), other.partition(" with keys ")
        if first[0] != second[0]:
            yield Change(path, _short(first[0]), _short(second[0]))
        elif first[2] and _same_names(first[2], second[2]):
            yield Change(path, _short(kind), _short(other))


def _named_containers(tree: Any) -> dict[str, str]:
    found = list(_containers(tree, ""))
    names = told_apart(path for path, _ in found)
    return {name: kind for name, (_, kind) in zip(names, found, strict=True)}


def _same_names(a: str, b: str) -> bool:
    """Return whether two lists of keys, as JSON, read the same as parts of a path."""
    return sorted(map(str, json.loads(a))) == sorted(map(str, json.loads(b)))


def _value(
    node: Any,
    manifest: Manifest,
    refs: list[bytes],
    counts: Mapping[int, int],
    lengths: list[int],
) -> _Value:
    if tree_build.tag_of(node) != "e":
        return _Value(json.dumps(node, sort_keys=True))
    index = tree_build.entry_index(node, len(manifest.entries))
    entry = manifest.entries[index]
    place = manifest.entries[_root(manifest, index)]
    described = entry
    while described.alias is not None and described.stride is None:
        described = manifest.entries[described.alias]
    shape = ", ".join(map(str, described.shape))
    text = f"{described.dtype or described.kind} [{shape}]" if described.dtype else described.kind
    if described.flags:
        text += f" {' '.join(described.flags)}"
    if described.order not in ("", "C"):
        text += f" order {described.order}"
    if described.stride is not None:
        text += f" stride {list(described.stride)} at {described.offset}"
    if place.blob is None:
        return _Value(text, place)
    grouped = counts[place.blob] > 1 or place.offset > 0
    return _Value(text, place, refs[place.blob], lengths[place.blob], grouped)


def _same_bytes(store_a: Repository, a: _Value, store_b: Repository, b: _Value) -> bool:
    if a.place() == b.place():
        return True
    if a.place()[2] != b.place()[2] or not (a.grouped or b.grouped):
        return False
    return _read(store_a, a) == _read(store_b, b)


def _read(repository: Repository, value: _Value) -> bytes:
    from casckpt.store import BlobRead

    blob, offset, length = value.place()
    data = bytearray(length)
    repository.read_blobs([BlobRead(blob, value.blob_length, offset, memoryview(data))])
    return bytes(data)


def _shown(value: _Value) -> str:
    """Return a value for a person: as Python writes it, not as it is kept."""
    return _short(value.text if value.entry is not None else _as_python(json.loads(value.text)))


def _as_python(node: Any) -> str:
    """Return a scalar or an empty container as Python writes it."""
    tag = tree_build.tag_of(node)
    if tag == "i" and len(node["i"]) > TEXT_SHOWN:
        # Python writes no more than 4,300 digits. Long ones may differ at their ends only.
        digits = f"0x{node['i']}".replace("0x-", "-0x")
        return f"{digits[: TEXT_SHOWN // 2]}...{digits[-TEXT_SHOWN // 3 :]}"
    if tag in ("f", "i", "c"):
        return repr(SCALAR_TAGS[tag](node[tag]))
    if tag == "t":
        return "()"
    if tag == "d":
        return f"{node['k']} {{}}" if "k" in node else "{}"
    if tag in ("n", "D"):
        return f"{node[tag][-1]}()"
    if tag == "x":
        root, kind, attributes, parts = tree_build.extension_parts(node)
        with contextlib.suppress(Corrupt, NewerFormat):
            # Without the library that it is of: what numpy alone makes of it.
            options = leaves.RestoreOptions(as_numpy=True)
            value = leaves.handler("numpy").build(kind, attributes, parts, options)
            return repr(value) if root == "numpy" else f"{root}.{kind} {value}"
    return json.dumps(node, sort_keys=True)


def _short(text: str) -> str:
    return text if len(text) <= TEXT_SHOWN else f"{text[: TEXT_SHOWN - 3]}..."


def _pairs(a: Mapping[str, _T], b: Mapping[str, _T]) -> dict[str, tuple[_T | None, _T | None]]:
    return {
        name: (a.get(name), b.get(name))
        for name in sorted({*a, *b})
        if not _equal(a.get(name), b.get(name))
    }


def _equal(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return a == b
