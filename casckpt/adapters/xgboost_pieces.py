"""Boosters as older stores have them: in pieces of some trees, each with its arrays by name.

A piece is the length of its text, its text without the values of arrays, and the values of all
arrays of a name, byte plane by byte plane. Nothing writes pieces any more.

Source: https://ubjson.org/type-reference/container-types/ (strongly typed, counted arrays).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

_HEADER: Final = re.compile(rb"([A-Za-z_]+)\[\$([dDilLIU])#L(.{8})", re.DOTALL)
_ITEM_BYTES: Final = {"d": 4, "D": 8, "i": 1, "U": 1, "I": 2, "l": 4, "L": 8}
_LENGTH_BYTES: Final = 4


def join(pieces: Sequence[bytes]) -> bytes:
    """Return the booster of its pieces.

    Raises:
        ValueError: if a piece is malformed.
    """
    return b"".join(_unpack(piece) for piece in pieces)


def _unpack(piece: bytes) -> bytes:
    size = int.from_bytes(piece[:_LENGTH_BYTES], "little")
    if size == 0:
        return piece[_LENGTH_BYTES:]
    skeleton = piece[_LENGTH_BYTES : _LENGTH_BYTES + size]
    headers = list(_headers(skeleton))
    streams = _streams(piece[_LENGTH_BYTES + size :], headers)
    parts: list[bytes] = []
    done = 0
    for key, length, end in headers:
        parts.append(skeleton[done:end])
        values, start = streams[key]
        parts.append(values[start : start + length])
        streams[key] = (values, start + length)
        done = end
    parts.append(skeleton[done:])
    return b"".join(parts)


def _streams(
    data: bytes, headers: Sequence[tuple[tuple[str, int], int, int]]
) -> dict[tuple[str, int], tuple[bytes, int]]:
    """Return the values of each name, and how many bytes of them are used: none."""
    lengths: dict[tuple[str, int], int] = {}
    for key, length, _ in headers:
        lengths[key] = lengths.get(key, 0) + length
    if sum(lengths.values()) != len(data):
        raise ValueError("a piece of a booster whose arrays have another length than they say")
    streams = {}
    start = 0
    for key, length in lengths.items():
        streams[key] = (_from_planes(data[start : start + length], key[1]), 0)
        start += length
    return streams


def _headers(skeleton: bytes) -> Iterator[tuple[tuple[str, int], int, int]]:
    for match in _HEADER.finditer(skeleton):
        name, item_bytes, length = _described(match)
        yield (name, item_bytes), length, match.end()


def _described(match: re.Match[bytes]) -> tuple[str, int, int]:
    item_bytes = _ITEM_BYTES[match[2].decode("ascii")]
    return match[1].decode("ascii"), item_bytes, int.from_bytes(match[3], "big") * item_bytes


def _from_planes(data: bytes, item_bytes: int) -> bytes:
    return _bytes(np.frombuffer(data, np.uint8).reshape(item_bytes, -1).T)


def _bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return array.tobytes()
