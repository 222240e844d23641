"""State trees as JSON that people and other programs can read.

A document that casckpt writes is `{"casckpt": 1, "about": {...}, "state": VALUE}`, where `about`
has the checkpoint's facts and VALUE is:

    None, bool, int, float, str      themselves; "NaN", "Infinity" and "-Infinity" for floats
    list                             an array
    dict with text keys              an object
    anything else                    an object with one key that starts with "$":

    {"$str": "NaN"}                  text that would read as a float
    {"$tuple": [...]}                {"$bytes": BASE64}     {"$bytearray": BASE64}
    {"$complex": [re, im]}           {"$path": "a/b"}
    {"$dict": [[key, value], ...], "kind": "ordered", "metadata": VALUE}   other keys and classes
    {"$record": "module:Name", "kind": "n" or "D", "fields": {...}}    namedtuple, dataclass
    {"$array": "float32", "shape": [2, 3], "data": [[...], ...]}       "$tensor" and "$scalar" alike
    {"$array": DTYPE, "shape": [...], "base64": "..."}                 what has no JSON numbers
    {"$node": NODE}                  a node of the manifest's tree that has no plainer form

Complex elements are pairs. What JSON cannot say is lost: payloads of NaN in arrays, memory order,
and that two tensors share memory. A document of anybody else is read as plain values, in which
only what JSON has is found.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from typing import IO, Any, Final

from casckpt.checkpoint.exchange.json_arrays import array_document, array_value
from casckpt.checkpoint.exchange.refusals import damaged, shown
from casckpt.checkpoint.leaves import Leaf, RestoreOptions
from casckpt.checkpoint.manifest import Manifest
from casckpt.checkpoint.scalars import SCALAR_TAGS, Node, encode_float
from casckpt.checkpoint.tree import flatten
from casckpt.checkpoint.tree_build import Builder, make_mapping
from casckpt.checkpoint.tree_classes import make_dataclass, make_namedtuple
from casckpt.strictjson import FLOAT_OF_TEXT, plain, spelled

VERSION: Final = 1  # FORMAT: of the document
JSON_MAX_BYTES: Final = 4 << 30
_MALFORMED: Final = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
_INT_MAX_BITS: Final = 12_000  # Python turns longer ones into text only if told to


def read(file: IO[bytes], size: int, path: str, options: RestoreOptions) -> Any:
    """Return the state tree of a JSON document.

    Raises:
        Corrupt: if it is no JSON, or malformed.
    """
    if size > JSON_MAX_BYTES:
        raise damaged(path, f"a JSON document of {size} bytes; the limit is {JSON_MAX_BYTES}")
    try:
        document = json.loads(file.read().decode("utf-8-sig"))
        if type(document) is dict and set(document) == {"casckpt", "about", "state"}:
            if document["casckpt"] != VERSION:
                raise ValueError("it was written by another version of casckpt")
            return _Reader(options).value(document["state"])
    except (*_MALFORMED, RecursionError) as exc:
        raise damaged(path, f"not a sound JSON document: {shown(exc)}") from exc
    return document


def write(state: object, file: IO[bytes], about: Manifest | None = None) -> None:
    """Write a state tree as a JSON document.

    Args:
        state: a state tree.
        file: written from its position on, in pieces.
        about: manifest of the checkpoint, whose facts go into `about`.

    Raises:
        BadLeaf: if the state holds something that cannot be stored.
        MissingExtra: if an array's dtype needs a package that is not installed.
    """
    flat = flatten(state)
    document = {
        "casckpt": VERSION,
        "about": _about(about),
        "state": _Writer(flat.leaves).value(flat.tree),
    }
    for piece in json.JSONEncoder(allow_nan=False).iterencode(document):
        file.write(piece.encode("ascii"))
    file.write(b"\n")


def _about(manifest: Manifest | None) -> dict[str, Any]:
    if manifest is None:
        return {}
    return {
        "run": manifest.run,
        "line": manifest.line,
        "step": manifest.step,
        "batch": manifest.batch,
        "created": manifest.created,
        "parent": manifest.parent,
        "reasons": list(manifest.reasons),
        "metrics": plain(manifest.metrics),
        "environment": dict(manifest.environment),
        "captured": list(manifest.captured),
        "missing": list(manifest.missing),
    }


def _text(value: str) -> Any:
    return {"$str": value} if value in FLOAT_OF_TEXT else value


class _Writer:
    """Nodes of a flattened tree -> the document's values."""

    def __init__(self, leaves: list[Leaf]) -> None:
        self._leaves = leaves

    def value(self, node: Node) -> Any:
        if type(node) is list:
            return [self.value(item) for item in node]
        if type(node) is str:
            return _text(node)
        if type(node) is not dict:
            return node
        if "e" in node:
            return self._leaf(self._leaves[node["e"]])
        if "d" in node:
            return self._mapping(node)
        if "t" in node:
            return {"$tuple": [self.value(item) for item in node["t"]]}
        for tag in ("n", "D"):
            if tag in node:
                fields = dict(zip(node["f"], map(self.value, node["v"]), strict=True))
                return {"$record": ":".join(node[tag]), "kind": tag, "fields": fields}
        if "x" in node:
            return self._extension(node)
        return self._scalar(node)

    def _scalar(self, node: Node) -> Any:
        ((tag, _),) = node.items()
        value = SCALAR_TAGS[tag](node[tag])
        if tag == "i" and value.bit_length() <= _INT_MAX_BITS:
            return value
        if tag == "f" and (encode_float(float(_plain_nan(value))) == node):
            return spelled(value)
        if tag in ("b", "B"):
            return _base64(tag == "B", value)
        if tag == "c" and math.isfinite(value.real) and math.isfinite(value.imag):
            return {"$complex": [value.real, value.imag]}
        if tag == "p" and node["p"][0] == "posix" and type(node["p"][1]) is str:
            return {"$path": node["p"][1]}
        return {"$node": node}

    def _mapping(self, node: Node) -> Any:
        values = [self.value(item) for item in node["v"]]
        keys = node["d"]
        plain = all(type(key) is str and not key.startswith("$") for key in keys)
        if plain and not set(node) & {"k", "m"}:
            return dict(zip(keys, values, strict=True))
        pairs = [[self.value(key), value] for key, value in zip(keys, values, strict=True)]
        document = {"$dict": pairs, "kind": node.get("k")}
        if "m" in node:
            document["metadata"] = self.value(node["m"])
        return document

    def _extension(self, node: Node) -> Any:
        if node["x"] == ["numpy", "scalar"]:
            text, data = node["a"]
            return array_document("$scalar", text, (), "C", bytes.fromhex(data))
        parts = [self.value(item) for item in node["v"]]
        return {"$extension": node["x"], "attributes": node["a"], "parts": parts}

    def _leaf(self, leaf: Leaf) -> Any:
        if leaf.alias >= 0:
            if leaf.stride is None:
                return self._leaf(self._leaves[leaf.alias])
            # A view of shared memory: as a leaf of its own.
            leaf = flatten(leaf.value).leaves[0]
        data = leaf.source.view() if leaf.source is not None and leaf.length else memoryview(b"")
        if leaf.kind == "str":
            return _text(bytes(data).decode("utf-8", "surrogatepass"))
        if leaf.kind in ("bytes", "bytearray", "pickle"):
            return _base64(leaf.kind == "bytearray", data)
        return array_document(f"${leaf.kind}", leaf.dtype, leaf.shape, leaf.order, data, leaf.flags)


def _plain_nan(value: float) -> float:
    return math.nan if math.isnan(value) else value


def _base64(is_bytearray: bool, data: Any) -> dict[str, str]:
    tag = "$bytearray" if is_bytearray else "$bytes"
    return {tag: base64.b64encode(data).decode("ascii")}


class _Reader:
    """The document's values -> a state tree."""

    def __init__(self, options: RestoreOptions) -> None:
        self._options = options
        self._makers: dict[str, Callable[[Any, dict[str, Any]], Any]] = {
            "$str": lambda body, _: str(body),
            "$tuple": lambda body, _: tuple(self.value(item) for item in body),
            "$bytes": lambda body, _: base64.b64decode(body, validate=True),
            "$bytearray": lambda body, _: bytearray(base64.b64decode(body, validate=True)),
            "$complex": lambda body, _: complex(*body),
            "$path": lambda body, _: SCALAR_TAGS["p"](["posix", body]),
            "$dict": self._mapping,
            "$record": self._record,
            "$array": self._array,
            "$tensor": self._array,
            "$scalar": self._array,
            "$extension": self._extension,
            "$node": self._node,
        }

    def value(self, document: Any) -> Any:
        if type(document) is list:
            return [self.value(item) for item in document]
        if type(document) is str:
            return FLOAT_OF_TEXT.get(document, document)
        if type(document) is not dict:
            return document
        tag = next((key for key in document if key.startswith("$")), None)
        if tag is None:
            return {key: self.value(item) for key, item in document.items()}
        if tag not in self._makers:
            raise ValueError(f"an object with the key {tag}")
        return self._makers[tag](document[tag], document)

    def _mapping(self, body: Any, document: dict[str, Any]) -> Any:
        pairs = [(self.value(key), self.value(value)) for key, value in body]
        metadata = self.value(document["metadata"]) if "metadata" in document else None
        return make_mapping(document.get("kind"), pairs, metadata)

    def _record(self, body: Any, document: dict[str, Any]) -> Any:
        module, colon, name = str(body).partition(":")
        if not colon:  # as it was written before
            module, _, name = module.rpartition(".")
        fields = {key: self.value(item) for key, item in document["fields"].items()}
        make = make_namedtuple if document["kind"] == "n" else make_dataclass
        return make([module, name], list(fields), list(fields.values()))

    def _array(self, body: Any, document: dict[str, Any]) -> Any:
        del body
        return array_value(document, self._options)

    def _extension(self, body: Any, document: dict[str, Any]) -> Any:
        parts = [self.value(item) for item in document["parts"]]
        indices = [{"e": index} for index in range(len(parts))]
        node = {"x": body, "a": document["attributes"], "v": indices}
        return Builder(parts.__getitem__, len(parts), self._options).build(node)

    def _node(self, body: Any, document: dict[str, Any]) -> Any:
        del document
        return Builder(_no_leaf, 0, self._options).build(body)


def _no_leaf(index: int) -> Any:
    raise ValueError(f"leaf {index}, which is not there")
