"""Reading a manifest that may be hostile: all is bounded and judged before it is believed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any, Final

from casckpt.checkpoint.manifest import (
    FORMAT,
    KINDS,
    Entry,
    Manifest,
    canonical,
)
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.checkpoint.tree_paths import PATH_MAX
from casckpt.errors import BadRef, NewerFormat
from casckpt.ids import STEP_MAX, check_run_name

BODY_MAX_BYTES: Final = 1 << 30
"""Largest body read: a million entries take about 150 MB."""

ENTRY_COUNT_MAX: Final = 4_000_000
AXIS_COUNT_MAX: Final = 64
"""numpy allows 64 axes, torch 64 as well."""

TEXT_MAX: Final = 64 * 1024
"""Longest dtype (a structured one is long), reason, metric name or environment value."""

LIST_MAX: Final = 100_000
"""Most reasons, metrics, captured or missing names."""

_HEX_ID = re.compile(r"[0-9a-f]{64}\Z")
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z\Z")
_TOP = {
    "batch",
    "captured",
    "config",
    "created",
    "entries",
    "environment",
    "format",
    "line",
    "metrics",
    "missing",
    "parent",
    "reasons",
    "run",
    "step",
    "tree",
}
_PLAIN = {"blob", "dtype", "flags", "kind", "length", "offset", "order", "path", "shape"}
_ALIAS = {"alias", "path"}
_VIEW = {"alias", "dtype", "flags", "kind", "offset", "path", "shape", "stride"}


def read_manifest(body: bytes, ref_count: int) -> Manifest:
    """Return the manifest of a body; see `manifest.decode`."""
    document = _parse(body)
    if document.get("format") != FORMAT or type(document["format"]) is not int:
        version = document.get("format")
        if type(version) is int and version > FORMAT:
            raise NewerFormat(
                f"this checkpoint's manifest has format {version}",
                f"this casckpt reads formats up to {FORMAT}",
            )
        raise malformed("the format version is not a number from 1 on")
    if set(document) != _TOP:
        raise malformed("top keys other than those of format 1")
    run = document["run"]
    if type(run) is not str:
        raise malformed("the run is no name")
    try:
        check_run_name(run)
    except BadRef as exc:
        raise malformed("the run is no name") from exc
    documents = document["entries"]
    if type(documents) is not list or len(documents) > ENTRY_COUNT_MAX:
        raise malformed("entries that are no list, or too many")
    entries = tuple([_entry(one, ref_count, len(documents)) for one in documents])
    _check_aliases(entries)
    parent, created = document["parent"], document["created"]
    if parent is not None and (type(parent) is not str or not _HEX_ID.match(parent)):
        raise malformed("a parent that is no id")
    if type(created) is not str or not _CREATED.match(created):
        raise malformed("a time of creation that is none")
    return Manifest(
        run=run,
        line=_number(document["line"], "line"),
        step=_number(document["step"], "step"),
        batch=_number(document["batch"], "batch"),
        created=created,
        tree=document["tree"],
        entries=entries,
        parent=parent,
        reasons=_words(document["reasons"], "reasons"),
        config=document["config"],
        environment=_texts(document["environment"], "environment"),
        metrics=_metrics(document["metrics"]),
        captured=_words(document["captured"], "captured"),
        missing=_words(document["missing"], "missing"),
    )


def _no_fraction(text: str) -> Node:
    raise malformed(f"the number {text[:40]} with a fraction")


def _parse(body: bytes) -> dict[str, Any]:
    if len(body) > BODY_MAX_BYTES:
        raise malformed(f"{len(body)} bytes, over the limit of {BODY_MAX_BYTES}")
    try:
        document = json.loads(
            body.decode("ascii"), parse_float=_no_fraction, parse_constant=_no_fraction
        )
        spelling = canonical(document)
    except (ValueError, RecursionError, MemoryError) as exc:
        raise malformed("it is no JSON, or nested too deeply") from exc
    if type(document) is not dict or spelling != body:
        raise malformed("it is not in the one canonical spelling")
    return document


def _entry(document: Node, ref_count: int, entry_count: int) -> Entry:
    if type(document) is not dict:
        raise malformed("an entry that is no object")
    keys = document.keys()
    path = document.get("path")
    if type(path) is not str or len(path) > PATH_MAX:
        raise malformed("an entry whose path is no string, or too long")
    if "alias" in document:
        return _alias(document, path, entry_count)
    if keys != _PLAIN:
        raise malformed(f"{path}: an entry with other keys than those of format 1")
    kind, dtype, order, blob = (
        document["kind"],
        document["dtype"],
        document["order"],
        document["blob"],
    )
    length, offset = document["length"], document["offset"]
    if type(kind) is not str or kind not in KINDS:
        raise malformed(f"{path}: an entry of an unknown kind")
    if type(dtype) is not str or len(dtype) > TEXT_MAX:
        raise malformed(f"{path}: a dtype that is no text, or too long")
    if type(order) is not str or len(order) > 4 * AXIS_COUNT_MAX:
        raise malformed(f"{path}: an order that is no text, or too long")
    if type(length) is not int or type(offset) is not int:
        raise malformed(f"{path}: a length or offset that is no number")
    if not 0 <= offset <= offset + length <= STEP_MAX:
        raise malformed(f"{path}: a length or offset out of bounds")
    if blob is None:
        if length or offset:
            raise malformed(f"{path}: bytes without a blob")
    elif type(blob) is not int or not 0 <= blob < ref_count or not length:
        raise malformed(f"{path}: a blob that the manifest does not name")
    return Entry(
        path,
        kind,
        dtype,
        _sizes(document["shape"], path),
        order,
        _flags(document["flags"], path),
        blob,
        offset,
        length,
    )


def _alias(document: dict[str, Node], path: str, entry_count: int) -> Entry:
    target = document["alias"]
    if type(target) is not int or not 0 <= target < entry_count:
        raise malformed(f"{path}: an alias of an entry that is not there")
    if document.keys() == _ALIAS:
        return Entry(path, "alias", alias=target)
    if document.keys() != _VIEW:
        raise malformed(f"{path}: an alias with other keys than those of format 1")
    kind, dtype, offset = document["kind"], document["dtype"], document["offset"]
    if kind != "tensor":
        raise malformed(f"{path}: a view of an unknown kind")
    if type(dtype) is not str or len(dtype) > TEXT_MAX:
        raise malformed(f"{path}: a dtype that is no text, or too long")
    if type(offset) is not int or not 0 <= offset <= STEP_MAX:
        raise malformed(f"{path}: an offset out of bounds")
    return Entry(
        path,
        kind,
        dtype,
        _sizes(document["shape"], path),
        "C",
        _flags(document["flags"], path),
        None,
        offset,
        0,
        target,
        _sizes(document["stride"], path),
    )


def _check_aliases(entries: Sequence[Entry]) -> None:
    for entry in entries:
        if entry.alias is not None:
            target = entries[entry.alias]
            # An object may be met again that is itself a view; a view needs memory of its own.
            if target.alias is not None and (entry.stride is not None or target.stride is None):
                raise malformed(f"{entry.path}: an alias of an alias")
            if entry.stride is not None and target.kind not in ("tensor", "storage"):
                raise malformed(f"{entry.path}: a view of what has no memory")


def _sizes(value: Node, path: str) -> tuple[int, ...]:
    if type(value) is not list or len(value) > AXIS_COUNT_MAX:
        raise malformed(f"{path}: a shape that is no list, or too long")
    for number in value:
        if type(number) is not int or not 0 <= number <= STEP_MAX:
            raise malformed(f"{path}: a shape with a size out of bounds")
    if math.prod(value) > STEP_MAX:
        raise malformed(f"{path}: a shape of more items than any machine holds")
    return tuple(value)


def _flags(value: Node, path: str) -> tuple[str, ...]:
    if value == []:
        return ()
    if type(value) is not list or len(value) > 16:
        raise malformed(f"{path}: flags that are no list, or too many")
    for word in value:
        if type(word) is not str or len(word) > 64:
            raise malformed(f"{path}: a flag that is no word")
    if sorted(set(value)) != value:
        raise malformed(f"{path}: flags that are not sorted")
    return tuple(value)


def _number(value: Node, what: str) -> int:
    if type(value) is not int or not 0 <= value <= STEP_MAX:
        raise malformed(f"the {what} is no integer from 0 to 2**63 - 1")
    return value


def _words(value: Node, what: str) -> tuple[str, ...]:
    if type(value) is not list or len(value) > LIST_MAX:
        raise malformed(f"{what} that are no list, or too many")
    for word in value:
        if type(word) is not str or len(word) > TEXT_MAX:
            raise malformed(f"{what} that are no words")
    return tuple(value)


def _texts(value: Node, what: str) -> dict[str, str]:
    if type(value) is not dict or len(value) > LIST_MAX:
        raise malformed(f"{what} that is no table, or too large")
    for name, text in value.items():
        if type(text) is not str or len(text) > TEXT_MAX or len(name) > TEXT_MAX:
            raise malformed(f"{what} that is no table of words")
    return value


def _metrics(value: Node) -> dict[str, float]:
    texts = _texts(value, "metrics")
    metrics = {}
    for name, text in texts.items():
        try:
            metrics[name] = float.fromhex(text)
        except (ValueError, OverflowError) as exc:
            raise malformed("a metric that is no hex float") from exc
        if metrics[name].hex() != text:
            raise malformed("a metric that is no canonical hex float")
    return metrics
