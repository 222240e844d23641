"""The safetensors format: a length, a JSON header, then the bytes of every tensor without gaps.

    8 bytes   length of the header, little-endian
    header    {"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...,
               "__metadata__": {"KEY": "TEXT"}}
    data      offsets count from here; C order, little-endian

Source: the format section of the README of huggingface/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final

from casckpt.checkpoint.exchange.dtypes import ITEM_BYTES, SAFETENSORS_DTYPES, SAFETENSORS_NAMES
from casckpt.checkpoint.exchange.packed import PackedTensor
from casckpt.checkpoint.exchange.refusals import damaged, shown, unreadable
from casckpt.errors import BadRequest

# FORMAT: the limit of the reference reader.
HEADER_MAX_BYTES: Final = 100_000_000
_METADATA: Final = "__metadata__"
_ALIGNMENT: Final = 8
_DIMENSIONS_MAX: Final = 64


@dataclass(frozen=True)
class TensorPlace:
    """Where one tensor lies; offset counts from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True)
class Header:
    """What a file holds: tensors in the order of their bytes, and texts."""

    tensors: tuple[TensorPlace, ...]
    metadata: Mapping[str, str]


def looks_like(head: bytes, size: int) -> bool:
    """Return whether a file of `size` bytes that starts with `head` can only be safetensors."""
    length = int.from_bytes(head[:8], "little")
    return len(head) >= 9 and head[8:9] == b"{" and 2 <= length <= min(size - 8, HEADER_MAX_BYTES)


def read_header(file: IO[bytes], size: int, path: str) -> Header:
    """Return the header of a safetensors file of `size` bytes.

    Raises:
        Corrupt: if it is malformed, or its tensors do not fill the data without gap and overlap.
        BadRequest: if a tensor has a dtype that casckpt does not know.
    """
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if len(head) != 8 or not 2 <= length <= min(size - 8, HEADER_MAX_BYTES):
        raise damaged(path, f"a safetensors header of {length} bytes in a file of {size}")
    document = _parse(file.read(length), path)
    metadata = document.pop(_METADATA, {})
    if type(metadata) is not dict or any(type(text) is not str for text in metadata.values()):
        raise damaged(path, "its metadata is not a list of texts")
    start = 8 + length
    tensors = [_place(name, entry, start, path) for name, entry in document.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.length))
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise damaged(path, f"tensor {shown(tensor.name)} overlaps another or leaves a gap")
        end += tensor.length
    if end != size:
        raise damaged(path, f"its tensors end at byte {end} of {size}")
    return Header(tuple(tensors), metadata)


def write(file: IO[bytes], tensors: Iterable[PackedTensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: widest dtypes first, as the reference writer does, then by name.

    Raises:
        BadRequest: if the header would be longer than readers accept.
    """
    ordered = sorted(tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name))
    document: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for tensor in ordered:
        document[tensor.name] = {
            "dtype": SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.length],
        }
        offset += tensor.length
    header = json.dumps(document, separators=(",", ":")).encode("ascii")
    header += b" " * (-len(header) % _ALIGNMENT)
    if len(header) > HEADER_MAX_BYTES:
        raise BadRequest(
            "cannot write a safetensors file",
            f"its header would have {len(header)} bytes; the limit is {HEADER_MAX_BYTES}",
            "export part of the state, or write a folder with `casckpt restore -o`",
        )
    file.write(len(header).to_bytes(8, "little"))
    file.write(header)
    for tensor in ordered:
        file.write(tensor.read())


def _parse(raw: bytes, path: str) -> dict[str, Any]:
    try:
        document = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as exc:
        raise damaged(path, f"its header is not sound JSON: {shown(exc)}") from exc
    if type(document) is not dict:
        raise damaged(path, "its header is no object")
    return document


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name is there twice")
    return found


def _place(name: str, entry: Any, start: int, path: str) -> TensorPlace:
    if type(entry) is not dict or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise damaged(path, f"tensor {shown(name)} is not described by dtype, shape and offsets")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > _DIMENSIONS_MAX:
        raise damaged(path, f"tensor {shown(name)} has an impossible shape")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise damaged(path, f"tensor {shown(name)} has impossible offsets")
    dtype = SAFETENSORS_DTYPES.get(entry["dtype"]) if type(entry["dtype"]) is str else None
    if dtype is None:
        raise unreadable(
            path,
            f"tensor {shown(name)} has the dtype {shown(entry['dtype'])}",
            f"casckpt reads {', '.join(sorted(SAFETENSORS_DTYPES))}",
        )
    length = offsets[1] - offsets[0]
    if math.prod(shape) * ITEM_BYTES[dtype] != length:
        raise damaged(path, f"the shape of tensor {shown(name)} does not fit its {length} bytes")
    return TensorPlace(name, dtype, tuple(shape), start + offsets[0], length)


def _are_sizes(value: Any) -> bool:
    return type(value) is list and all(type(n) is int and 0 <= n < 1 << 62 for n in value)
