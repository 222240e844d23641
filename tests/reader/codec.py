"""Hashes and encodings: sections 4 and 6 of `docs/format.md`."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import zstandard
from blake3 import blake3

CHUNK, LIST, MANIFEST, FACT, SNAPSHOT = 1, 2, 3, 4, 5
RAW, ZSTD, PLANES, DICTIONARY = 0, 1, 2, 3
NONE, SUB, XOR = 0, 1, 2
NAMES = {LIST: "list", MANIFEST: "manifest", FACT: "fact", SNAPSHOT: "snapshot"}
CHUNK_LIMIT = 1 << 24


class Refused(ValueError):
    """The bytes are damaged, missing, or of a newer program."""


def require(holds: bool, what: str) -> None:
    """Refuse the bytes unless the rule `what` holds."""
    if not holds:
        raise Refused(what)


def derive(context: str, data: bytes) -> bytes:
    """Hash with BLAKE3 in derive-key mode."""
    return bytes(blake3(data, derive_key_context=context).digest())


def identity(kind: int, refs: list[bytes], body: bytes) -> bytes:
    """Compute the id that an object must have."""
    if kind == CHUNK:
        return derive("casckpt chunk v1", body)
    prefix = struct.pack("<I", len(refs)) + b"".join(refs)
    return derive(f"casckpt {NAMES[kind]} v1", prefix + body)


def decode(encoding: int, payload: bytes, length: int, base: bytes | None) -> bytes:
    """Decode a payload to its `length` logical bytes; `base` are those of the chunk's base."""
    if encoding == RAW:
        require(len(payload) == length, "raw payload of another length")
        return payload
    if encoding == ZSTD:
        return _frame(payload, length)
    if encoding == PLANES:
        return _planes(payload, length, base)
    require(encoding == DICTIONARY, f"encoding {encoding} is of a newer program")
    require(base is not None and len(base) >= 8, "no base to be the dictionary")
    assert base is not None
    return _frame(
        payload, length, zstandard.ZstdCompressionDict(base, zstandard.DICT_TYPE_RAWCONTENT)
    )


def _frame(payload: bytes, length: int, dictionary: Any = None) -> bytes:
    """Decode one zstd frame, which must announce `length` and name no dictionary."""
    try:
        head = zstandard.get_frame_parameters(payload)
        require(head.content_size == length and head.dict_id == 0, "frame of another length")
        data = zstandard.ZstdDecompressor(dictionary).decompress(payload, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Refused(str(error)) from error
    require(len(data) == length, "frame of another length")
    return bytes(data)


def _planes(payload: bytes, length: int, base: bytes | None) -> bytes:
    """Put byte planes together, undo the predictor, rotate right."""
    require(len(payload) >= 2, "planes without a head")
    predictor, width = payload[0], payload[1] - 0x80
    require(width in (2, 4, 8), f"layout {payload[1]} is of a newer program")
    require(predictor <= XOR, f"predictor {predictor} is of a newer program")
    count, tail = divmod(length, width)
    dtype, at = np.dtype(f"<u{width}"), 2
    items = np.zeros(count, dtype)
    for plane in range(width):
        require(len(payload) >= at + 5, "a plane is missing")
        method, stored = struct.unpack_from("<BI", payload, at)
        data = _plane(method, payload[at + 5 : at + 5 + stored], count)
        items |= np.frombuffer(data, np.uint8).astype(dtype) << dtype.type(8 * (width - 1 - plane))
        at += 5 + stored
    require(len(payload) == at + tail, "planes of another length")
    one, top = dtype.type(1), dtype.type(8 * width - 1)
    if predictor != NONE:
        require(base is not None and len(base) == length, "no base of the same length")
        assert base is not None
        before = np.frombuffer(base, dtype, count)
        before = before << one | before >> top
        if predictor == SUB:
            items = before + (items >> one ^ np.zeros_like(items) - (items & one))
        else:
            items = items ^ before
    items = items >> one | items << top
    return bytes(items.tobytes()) + payload[at:]


def _plane(method: int, data: bytes, count: int) -> bytes:
    """Decode the `count` bytes of one plane."""
    if method == 1:
        require(len(data) == 1, "a constant plane is one byte")
        return data * count
    if method == 2:
        return _frame(data, count)
    if method == 3:
        return _entropy(data, count)
    require(method == 0, f"method {method} is of a newer program")
    require(len(data) == count, "a raw plane of another length")
    return data


def _frequencies(stream: bytes) -> tuple[list[int], int]:
    """Read the head of an entropy stream; return the 256 frequencies and where the states begin."""
    frequencies: list[int] = []
    at = 1
    while len(frequencies) < 256:
        require(at + 2 <= len(stream), "an entropy head is cut off")
        first, second = stream[at], stream[at + 1]
        at += 2
        if first == 0:
            frequencies += [0] * (second + 1)
        elif first >= 0x80:
            frequency = (first - 0x80) * 256 + second
            require(frequency >= 0x80, "a frequency is not in its shortest form")
            frequencies.append(frequency)
        else:
            frequencies.append(first)
            at -= 1
    bits, most = stream[0], max(frequencies)
    require(bits in (12, 13, 14), "an entropy head with another number of bits")
    require(len(frequencies) == 256, "frequencies of more than 256 values")
    require(sum(frequencies) == 1 << bits and most < 1 << bits, "frequencies with another sum")
    require(bits == 12 or sum(frequencies) - most < 4096, "too many uncommon values")
    return frequencies, at


def _entropy(stream: bytes, count: int) -> bytes:
    """Decode 32 interleaved rANS states to `count` bytes."""
    if count == 0:
        require(not stream, "an empty plane with a stream")
        return b""
    require(len(stream) > 1, "an empty entropy stream")
    frequencies, at = _frequencies(stream)
    bits, order = stream[0], list(range(256))
    if bits > 12:
        common = frequencies.index(max(frequencies))
        order.remove(common)
        order.insert(0, common)
    values, starts = bytearray(), [0] * 256
    for value in order:
        starts[value] = len(values)
        values += bytes([value]) * frequencies[value]
    require(len(stream) >= at + 128 and (len(stream) - at) % 2 == 0, "an entropy stream is cut off")
    states = list(struct.unpack_from("<32I", stream, at))
    require(all(1 << 15 <= x < 1 << 31 for x in states), "a state is out of range")
    words = iter(struct.unpack_from(f"<{(len(stream) - at - 128) // 2}H", stream, at + 128))
    out, mask = bytearray(count), (1 << bits) - 1
    try:
        for i in range(count):
            x = states[i % 32]
            slot = x & mask
            value = out[i] = values[slot]
            x = frequencies[value] * (x >> bits) + slot - starts[value]
            states[i % 32] = x if x >= 1 << 15 else x << 16 | next(words)
    except StopIteration:
        raise Refused("a word is missing") from None
    require(next(words, None) is None, "words are left")
    require(all(x == 1 << 15 for x in states), "a state ends elsewhere")
    return bytes(out)
