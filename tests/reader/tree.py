"""Checkpoints and the states in them: sections 8 and 14 of `docs/format.md`.

A state comes back as values of Python and numpy. What needs another library, or a class of the
program that saved it, comes back as `Typed` or `Made`, which hold all that the store knows of it.
"""

from __future__ import annotations

import collections
import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
from blake3 import blake3

from tests.reader.codec import MANIFEST, Refused, require
from tests.reader.store import TOMBSTONE, TRASH, Row, Store

PATHS = {
    "posix": PurePosixPath,
    "pure-posix": PurePosixPath,
    "windows": PureWindowsPath,
    "pure-windows": PureWindowsPath,
}
FACTORIES = {
    factory.__name__: factory for factory in (list, dict, set, tuple, str, int, float, bool)
} | {"none": None, "ordered": collections.OrderedDict}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint; `created` counts microseconds since 1970 UTC."""

    id: bytes
    run: str
    line: int
    step: int
    batch: int
    trash: bool = False
    pinned: bool = False
    created: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    tags: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    parent: bytes | None = None


@dataclass(frozen=True, eq=False)
class Typed:
    """A tensor or pickle, or an array of a type that numpy lacks: its items, or their bits.

    Views of one memory share it here too. The flags `conj` and `neg` are not carried out.
    """

    kind: str
    dtype: str
    flags: tuple[str, ...]
    items: np.ndarray


@dataclass(frozen=True)
class Made:
    """A value of a class: a namedtuple, dataclass, or what a library makes of parts."""

    kind: str
    name: Any
    argument: Any
    parts: list[Any]


def checkpoints(store: Store) -> list[Checkpoint]:
    """List the checkpoints, in the trash or not, by run, line, step and batch."""
    found = [_listed(store, key, value) for key, value in store.rows["checkpoints"].items()]
    listed = [checkpoint for checkpoint in found if checkpoint is not None]
    taken = {(one.run, one.line, one.step, one.batch) for one in listed}
    for key in store.unnamed:
        checkpoint = _unnamed(store, key)
        if checkpoint is not None:
            place = (checkpoint.run, checkpoint.line, checkpoint.step, checkpoint.batch)
            listed.append(
                replace(checkpoint, run=f"recovered/{key.hex()[:10]}")
                if place in taken
                else checkpoint
            )
    return sorted(listed, key=lambda one: (one.run, one.line, one.step, one.batch))


def _listed(store: Store, key: bytes, value: bytes) -> Checkpoint | None:
    row = Row.parse(value)
    if row.state == TOMBSTONE:
        return None
    require(len(row.ids) == 1 and len(row.payload) >= 24, "a checkpoint without a place")
    line, length, step, batch = struct.unpack_from("<IIQQ", row.payload)
    name, payload = row.payload[24 : 24 + length], row.payload[24 + length :]
    part = name if len(name) <= 128 else b"\1" + blake3(name).digest()
    require(key[:-8] == part + b"\0", "a checkpoint of another run than its key's")
    place = Checkpoint(row.ids[0], name.decode("ascii"), line, step, batch, row.state == TRASH)
    if not payload:
        return _described(store, place)
    require(len(payload) >= 88, "a checkpoint is cut off")
    version, flags, count, names, created = struct.unpack_from("<BBHIq", payload)
    require(version == 1, "a checkpoint of a newer program")
    at = 88 + 8 * count
    require(len(payload) > at + names, "a checkpoint is cut off")
    keys = payload[at : at + names].decode().split("\0") if count else []
    rest = json.loads(payload[at + names :])
    return replace(
        place,
        created=created,
        metrics=dict(zip(keys, struct.unpack_from(f"<{count}d", payload, 88), strict=True)),
        reasons=rest["r"],
        tags=rest["t"],
        pinned=bool(flags & 1),
        parent=payload[56:88] if flags & 2 else None,
    )


def _described(store: Store, place: Checkpoint) -> Checkpoint:
    """Return a checkpoint with what its manifest says of it, where its row says nothing."""
    body = manifest(store, place.id)[1]
    created = datetime.fromisoformat(body["created"]) - datetime(1970, 1, 1, tzinfo=UTC)
    return replace(
        place,
        created=created // timedelta(microseconds=1),
        metrics={name: float.fromhex(text) for name, text in body["metrics"].items()},
        reasons=[*body["reasons"], "recovered"],
        parent=body["parent"] and bytes.fromhex(body["parent"]),
    )


def _unnamed(store: Store, key: bytes) -> Checkpoint | None:
    """Describe a manifest that no row ever named, if it is whole and one of a checkpoint."""
    try:
        refs, body = manifest(store, key)
        for ref in refs:
            store.blob(ref)
    except Refused:
        return None
    if body["config"] == {"kind": "result"}:
        return None
    place = Checkpoint(key, body["run"], body["line"], body["step"], body["batch"])
    return _described(store, place)


def manifest(store: Store, key: bytes) -> tuple[list[bytes], dict[str, Any]]:
    """Return the refs and the body of a manifest, which must be in the one spelling."""
    refs, data = store.body(key, MANIFEST)

    def refuse(text: str) -> None:
        raise Refused(f"a number with a fraction: {text}")

    body = json.loads(data, parse_float=refuse, parse_constant=refuse)
    spelled = json.dumps(body, sort_keys=True, separators=(",", ":"))
    require(spelled.encode() == data, "a manifest in another spelling")
    require(body["format"] == 1, "a manifest of a newer program")
    return refs, body


def restore(store: Store, key: bytes) -> Any:
    """Return the state of a checkpoint, named by its id."""
    refs, body = manifest(store, key)
    return _node(body["tree"], _Leaves(store, refs, body))


def beside(store: Store, key: bytes) -> Any:
    """Return what a checkpoint's `config` holds: JSON, or the bytes of a blob."""
    refs, body = manifest(store, key)
    match body["config"]:
        case {"beside": {"blob": index, "length": length}}:
            return store.blob(refs[index], length)
    return body["config"]


class _Leaves:
    """The entries of a manifest as values; what is the same object, or memory, stays so."""

    def __init__(self, store: Store, refs: list[bytes], body: dict[str, Any]) -> None:
        self.store, self.refs, self.entries = store, refs, body["entries"]
        self.lengths: collections.Counter[int] = collections.Counter()
        for entry in self.entries:
            if entry.get("blob") is not None:
                end = entry["offset"] + entry["length"]
                self.lengths[entry["blob"]] = max(self.lengths[entry["blob"]], end)
        self.blobs: dict[int, bytes] = {}
        self.memories: dict[int, bytearray] = {}
        self.values: dict[int, Any] = {}

    def memory(self, number: int) -> bytearray:
        """Return the bytes that an entry, and the views of it, share."""
        if number not in self.memories:
            entry = self.entries[number]
            require("blob" in entry, "a view of a view")
            index, begin, length = entry["blob"], entry["offset"], entry["length"]
            require(index is not None or length == 0, "an entry without a blob")
            data = b""
            if index is not None:
                if index not in self.blobs:
                    self.blobs[index] = self.store.blob(self.refs[index], self.lengths[index])
                data = self.blobs[index][begin : begin + length]
            self.memories[number] = bytearray(data)
        return self.memories[number]

    def value(self, number: int) -> Any:
        """Return the value of an entry."""
        if number not in self.values:
            entry = self.entries[number]
            self.values[number] = (
                self._make(number, entry) if "kind" in entry else self.value(entry["alias"])
            )
        return self.values[number]

    def _make(self, number: int, entry: dict[str, Any]) -> Any:
        kind, name, flags = entry["kind"], entry["dtype"], tuple(entry["flags"])
        match kind:
            case "str":
                return self.memory(number).decode("utf-8", "surrogatepass")
            case "bytes":
                return bytes(self.memory(number))
            case "bytearray":
                return self.memory(number)
            case "pickle":
                return Typed(kind, name, flags, np.frombuffer(self.memory(number), np.uint8))
        dtype, known = _dtype(name)
        if "alias" in entry:
            strides = [step * dtype.itemsize for step in entry["stride"]]
            memory = self.memory(entry["alias"])
            items = np.ndarray(entry["shape"], dtype, memory, entry["offset"], strides)
        else:
            items = _laid_out(entry["shape"], entry["order"], dtype, self.memory(number))
        if kind == "array" and known:
            return items[()] if "scalar" in flags else items
        return Typed(kind, name, flags, items)


def _laid_out(shape: list[int], order: str, dtype: np.dtype, memory: bytearray) -> np.ndarray:
    """Return the array whose items lie in `memory` with the axes in that order."""
    axes = list(range(len(shape)))
    if order == "F":
        axes.reverse()
    elif order != "C":
        axes = [int(axis) for axis in order.split(",")]
    require(sorted(axes) == list(range(len(shape))), "an order of other axes")
    require(math.prod(shape) * dtype.itemsize == len(memory), "an entry of another length")
    flat = np.ndarray([shape[axis] for axis in axes], dtype, memory)
    return flat.transpose([axes.index(axis) for axis in range(len(shape))])


def _dtype(name: str) -> tuple[np.dtype, bool]:
    """Return the numpy type; else one of unsigned integers for the bits, and False."""
    try:
        return np.dtype(_fields(json.loads(name)) if name.startswith("{") else name), True
    except TypeError:
        bits = re.search(r"\d+", name)
        require(bits is not None, f"a type without a width: {name}")
        assert bits is not None
        return np.dtype(f"u{max(1, int(bits[0]) // 8)}"), False


def _fields(of: Any) -> Any:
    """Build a structured numpy type."""
    if isinstance(of, str):
        return np.dtype(of)
    if "base" in of:
        return np.dtype((_fields(of["base"]), tuple(of["shape"])))
    document: Any = {
        "names": [name for name, *_ in of["fields"]],
        "formats": [_fields(inner) for _, inner, *_ in of["fields"]],
        "offsets": [offset for _, _, offset, *_ in of["fields"]],
        "titles": [title[0] if title else None for _, _, _, *title in of["fields"]],
        "itemsize": of["size"],
    }
    return np.dtype(document, align=of["aligned"])


def _node(node: Any, leaves: _Leaves) -> Any:
    if isinstance(node, list):
        return [_node(part, leaves) for part in node]
    if not isinstance(node, dict):
        return node

    def parts(of: str) -> Iterator[Any]:
        return (_node(part, leaves) for part in node[of])

    match node:
        case {"e": number}:
            return leaves.value(number)
        case {"n": name, "f": names}:
            return Made("namedtuple", name, names, list(parts("v")))
        case {"D": name, "f": names}:
            return Made("dataclass", name, names, list(parts("v")))
        case {"i": text}:
            return int(text, 16)
        case {"f": text}:
            return struct.unpack(">d", bytes.fromhex(text))[0]
        case {"c": text}:
            return complex(*struct.unpack(">2d", bytes.fromhex(text)))
        case {"s": text}:
            return bytes.fromhex(text).decode("utf-8", "surrogatepass")
        case {"b": text}:
            return bytes.fromhex(text)
        case {"B": text}:
            return bytearray.fromhex(text)
        case {"p": [kind, path]} if kind in PATHS:
            return PATHS[kind](_node(path, leaves))
        case {"t": _}:
            return tuple(parts("t"))
        case {"d": _, "v": _}:
            pairs = dict(zip(parts("d"), parts("v"), strict=True))
            require(len(pairs) == len(node["d"]), "a dict with a key twice")
            return _dict(node.get("k", ""), pairs, _node(node.get("m"), leaves))
        case {"x": ["numpy", "scalar"], "a": [name, text]}:
            dtype, known = _dtype(name)
            items = np.frombuffer(bytes.fromhex(text), dtype)
            return items[0] if known else Typed("scalar", name, (), items[:1].reshape(()))
        case {"x": ["numpy", "bytes_"], "a": text}:
            return np.bytes_(bytes.fromhex(text))
        case {"x": ["numpy", "str_"], "a": text}:
            return np.str_(_node(text, leaves))
        case {"x": name}:
            return Made("library", name, node.get("a"), list(parts("v")))
    raise Refused(f"a node of a newer program: {sorted(node)}")


def _dict(kind: str, pairs: dict[Any, Any], metadata: Any) -> Any:
    """Make a dict of the class that `kind` names."""
    if kind == "":
        return pairs
    if kind == "counter":
        return collections.Counter(pairs)
    if kind == "ordered":
        ordered = collections.OrderedDict(pairs)
        if metadata is not None:
            ordered._metadata = metadata  # type: ignore[attr-defined]
        return ordered
    before, _, factory = kind.partition(":")
    require(before == "default" and factory in FACTORIES, f"a dict of a newer program: {kind}")
    return collections.defaultdict(FACTORIES[factory], pairs)
