"""A state tree as named tensors plus one text, and back, exactly.

Every leaf becomes a tensor under its dotted path. The text holds everything else: it is the
checkpoint's manifest (docs/format.md, section 14) whose blob n is tensor n of a list of names.

    {"casckpt": 1, "tensors": ["model.weight", ...], "manifest": {...}}

So that programs which know nothing of casckpt can use the tensors, bytes are in C order,
little-endian, under the dtype that the format has for them; what it has no dtype for (text,
structured arrays, dates) is a row of uint8.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint import manifest as manifest_module
from casckpt.checkpoint.exchange.refusals import damaged, shown
from casckpt.checkpoint.leaves import (
    VALUE_KINDS,
    Leaf,
    RestoreOptions,
    Slot,
    ValueSlot,
    axes_of,
)
from casckpt.checkpoint.manifest import Entry, Manifest
from casckpt.checkpoint.tree import flatten
from casckpt.checkpoint.tree_build import Builder
from casckpt.errors import Corrupt, PickleRefused

VERSION: Final = 1  # FORMAT: of the text
TEXT_MAX_BYTES: Final = 1 << 30
_NOWHERE: Final = Manifest("export", 0, 0, 0, "1970-01-01T00:00:00.000000Z", None, ())
_NUMPY_NAMES: Final = {
    "|b1": "bool",
    "|u1": "uint8",
    "|i1": "int8",
    "<u2": "uint16",
    "<i2": "int16",
    "<f2": "float16",
    "<u4": "uint32",
    "<i4": "int32",
    "<f4": "float32",
    "<u8": "uint64",
    "<i8": "int64",
    "<f8": "float64",
    "<c8": "complex64",
    "<c16": "complex128",
}


@dataclass(frozen=True)
class PackedTensor:
    """One named tensor; `read` gives its bytes in C order when they are needed."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int
    read: Callable[[], memoryview]


def pack(
    state: object,
    dtypes: frozenset[str],
    *,
    about: Manifest | None = None,
    repeat_shared: bool = False,
    taken: frozenset[str] = frozenset(),
    safe_names: bool = False,
) -> tuple[list[PackedTensor], str]:
    """Return the tensors of a state tree and the text that describes the rest.

    Args:
        state: a state tree; its memory is read when the tensors are.
        dtypes: names the format has; leaves of others become rows of uint8.
        about: manifest of the checkpoint the state came from; its run, step, metrics and so on
            are kept in the text.
        repeat_shared: also give tensors that share the memory of others, for programs that look
            for every name; `unpack` does not read those.
        taken: names the format keeps for itself.
        safe_names: names become files somewhere: none may climb out of a folder.

    Raises:
        BadLeaf: if the state holds something that cannot be stored.
    """
    flat = flatten(state)
    names = _Names(taken, safe_names)
    tensors: list[PackedTensor] = []
    entries: list[Entry] = []
    for leaf in flat.leaves:
        if leaf.alias >= 0:
            entries.append(_alias_entry(leaf))
            continue
        blob = len(tensors) if leaf.length else None
        entries.append(_entry(leaf, blob))
        if blob is not None:
            tensors.append(_packed(names.unique(leaf.path), leaf, dtypes))
    listed = [tensor.name for tensor in tensors]
    if repeat_shared:
        for leaf in flat.leaves:
            if leaf.alias >= 0 or (not leaf.length and leaf.kind in ("array", "tensor")):
                tensors += _copies(leaf, names, dtypes)
    manifest = replace(about or _NOWHERE, tree=flat.tree, entries=tuple(entries))
    document = {
        "casckpt": VERSION,
        "tensors": listed,
        "manifest": json.loads(manifest_module.encode(manifest)),
    }
    return tensors, json.dumps(document, indent=1)


@dataclass(frozen=True)
class TensorFile:
    """The tensors of a file, as `unpack` reads them.

    Attributes:
        path: for messages.
        dtypes: names the format has, the same that `pack` was given.
        lengths: bytes of each tensor.
        load: fills a buffer, as long as the tensor, with its bytes.
    """

    path: str
    dtypes: frozenset[str]
    lengths: Mapping[str, int]
    load: Callable[[str, memoryview], None]


def unpack(text: str | bytes, tensors: TensorFile, options: RestoreOptions) -> Any:
    """Return the state tree that `pack` took apart.

    Args:
        text: what pack returned; may be hostile.
        tensors: what pack returned beside it; may be hostile.
        options: device, numpy instead of tensors, permission to unpickle.

    Raises:
        Corrupt: if the text is not what pack returns, or does not fit the tensors.
        PickleRefused: if it holds `Pickled` values and they are not allowed.
        MissingExtra: if it holds values of a library that is not installed.
    """
    names, manifest = _parse(text, tensors.path)
    entries = manifest.entries
    _check_blobs(entries, names, tensors)
    slots: dict[int, Slot] = {}
    for index, entry in enumerate(entries):
        if entry.alias is None:
            name = None if entry.blob is None else names[entry.blob]
            slots[index] = _read_entry(entry, name, tensors, options)
    shared: dict[int, Any] = {}

    def leaf(index: int) -> Any:
        entry = entries[index]
        if entry.alias is None:
            return slots[index].value()
        if entry.stride is None:
            return leaf(entry.alias)
        if index not in shared:
            shared[index] = slots[entry.alias].view(entry)
        return shared[index]

    return Builder(leaf, len(entries), options).build(manifest.tree)


class _Names:
    """Gives every tensor a name of its own."""

    def __init__(self, taken: frozenset[str], safe: bool) -> None:
        self._used = set(taken)
        self._safe = safe

    def unique(self, path: str) -> str:
        base = path or "value"
        if self._safe:
            # Dots between parts of a path stay; slashes and control characters come from keys.
            base = re.sub(r"[/\\:\x00-\x1f]", "_", base)
        name, count = base, 1
        while name in self._used:
            count += 1
            name = f"{base}#{count}"
        self._used.add(name)
        return name


def _entry(leaf: Leaf, blob: int | None) -> Entry:
    return Entry(
        leaf.path, leaf.kind, leaf.dtype, leaf.shape, leaf.order, leaf.flags, blob, 0, leaf.length
    )


def _alias_entry(leaf: Leaf) -> Entry:
    if leaf.stride is None:
        return Entry(leaf.path, "alias", alias=leaf.alias)
    return Entry(
        leaf.path,
        leaf.kind,
        leaf.dtype,
        leaf.shape,
        flags=leaf.flags,
        offset=leaf.offset,
        alias=leaf.alias,
        stride=leaf.stride,
    )


def _packed(name: str, leaf: Leaf, dtypes: frozenset[str]) -> PackedTensor:
    if not _has_dtype(leaf, dtypes):
        return PackedTensor(name, "uint8", (leaf.length,), leaf.length, lambda: _view(leaf))
    return PackedTensor(
        name, _dtype_name(leaf), leaf.shape, leaf.length, lambda: _in_c_order(_view(leaf), leaf)
    )


def _copies(leaf: Leaf, names: _Names, dtypes: frozenset[str]) -> list[PackedTensor]:
    alone = [one for one in flatten(leaf.value).leaves if one.kind in ("array", "tensor")]
    return [_packed(names.unique(leaf.path), one, dtypes) for one in alone[:1]]


def _view(leaf: Leaf) -> memoryview:
    return leaf.source.view().cast("B") if leaf.source is not None else memoryview(b"")


def _in_c_order(data: memoryview, leaf: Leaf | Entry) -> memoryview:
    axes = axes_of(leaf.order, len(leaf.shape))
    if leaf.order == "C" or axes is None or not leaf.length:
        return data
    import numpy as np

    item = leaf.length // math.prod(leaf.shape)
    lying = np.frombuffer(data, np.uint8).reshape([leaf.shape[axis] for axis in axes] + [item])
    standing = lying.transpose([*np.argsort(axes).tolist(), len(axes)])
    flat: Any = np.ascontiguousarray(standing).reshape(-1)
    return memoryview(flat)


def _from_c_order(data: memoryview, dest: memoryview, entry: Entry) -> None:
    import numpy as np

    axes = axes_of(entry.order, len(entry.shape)) or []
    item = entry.length // math.prod(entry.shape)
    standing = np.frombuffer(data, np.uint8).reshape([*entry.shape, item])
    lying: Any = np.ascontiguousarray(standing.transpose([*axes, len(axes)])).reshape(-1)
    dest[:] = memoryview(lying)


def _check_blobs(entries: Sequence[Entry], names: Sequence[str], tensors: TensorFile) -> None:
    # Before anything is allocated: an entry is as long as its tensor, and has it for itself.
    used: set[str] = set()
    for entry in entries:
        if entry.blob is not None:
            name = names[entry.blob]
            if entry.offset or tensors.lengths.get(name) != entry.length or name in used:
                raise damaged(
                    tensors.path,
                    f"its description of {shown(entry.path)} does not fit its tensors",
                )
            used.add(name)


def _read_entry(
    entry: Entry, name: str | None, tensors: TensorFile, options: RestoreOptions
) -> Slot:
    if entry.kind == "pickle" and not options.allow_pickle:
        raise PickleRefused(
            f"refused to unpickle {shown(entry.path)} in {tensors.path}",
            "it was saved as casckpt.Pickled, and loading that runs whatever code it names",
            "if you trust the file, save plain values instead where it was written",
        )
    if entry.kind in VALUE_KINDS:
        slot: Slot = ValueSlot.of(entry)
    else:
        torch = entry.kind in ("tensor", "storage") and not options.as_numpy
        slot = leaf_module.handler("torch" if torch else "numpy").allocate(entry, options, None)
    if name is not None:
        dest = slot.dest.cast("B")
        if entry.order == "C" or not _has_dtype(entry, tensors.dtypes):
            tensors.load(name, dest)
        else:
            data = bytearray(entry.length)
            tensors.load(name, memoryview(data))
            _from_c_order(memoryview(data), dest, entry)
    slot.finish()
    return slot


def _has_dtype(leaf: Leaf | Entry, dtypes: frozenset[str]) -> bool:
    # The bytes of a lazily conjugated or negated tensor are not its values. And what the format
    # has no dtype for is kept as a row of bytes, in the order of memory.
    return (
        leaf.kind in ("array", "tensor")
        and _dtype_name(leaf) in dtypes
        and "conj" not in leaf.flags
        and "neg" not in leaf.flags
    )


def _dtype_name(leaf: Leaf | Entry) -> str:
    return _NUMPY_NAMES.get(leaf.dtype, leaf.dtype)


def _parse(text: str | bytes, path: str) -> tuple[list[str], Manifest]:
    if len(text) > TEXT_MAX_BYTES:
        raise damaged(path, f"a description of {len(text)} bytes")
    try:
        document = json.loads(text)
        names = document["tensors"]
        if document["casckpt"] != VERSION or type(names) is not list:
            raise ValueError("it was not written by a casckpt this one knows")
        if any(type(name) is not str for name in names):
            raise ValueError("a tensor without a name")
        body = json.dumps(document["manifest"], sort_keys=True, separators=(",", ":"))
        return names, manifest_module.decode(body.encode("ascii"), len(names))
    except Corrupt as exc:
        raise damaged(path, f"{exc.what}: {exc.why}") from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise damaged(path, f"its description is malformed: {ascii(exc)[:120]}") from exc
