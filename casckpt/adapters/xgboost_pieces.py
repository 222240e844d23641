"""A booster's UBJSON cut into trees, so that a booster that has grown shares all but the new ones.

Every tree holds some ten short arrays of numbers, and the text around them is always the same. A
piece is some whole trees, with the text first and then the arrays, name by name and byte plane by
byte plane: that is what a general compressor makes least of. What comes before the trees and after
them changes with each save and is small.

Source: https://ubjson.org/type-reference/container-types/ (strongly typed, counted arrays).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

TREES_PER_PIECE: Final = 8
"""Where nobody says how many trees come at once. Few enough that rewriting the last piece is
cheap, enough that a manifest with 32 bytes for each piece stays far smaller than the trees."""

_HEADER: Final = re.compile(rb"([A-Za-z_]+)\[\$([dDilLIU])#L(.{8})", re.DOTALL)
_ITEM_BYTES: Final = {"d": 4, "D": 8, "i": 1, "U": 1, "I": 2, "l": 4, "L": 8}
# The keys of an object are sorted, and this is a tree's first.
_TREE: Final = re.compile(rb"\{L\0{7}\x0cbase_weights\[\$")
_LAST_KEY: Final = b"tree_param{"
_LENGTH_BYTES: Final = 4


def cut(raw: bytes, piece_trees: int = TREES_PER_PIECE) -> list[bytes]:
    """Return pieces that `join` turns into the same bytes.

    Args:
        raw: the booster, as `save_raw("ubj")` gives it.
        piece_trees: after how many trees to cut, again and again.

    Returns:
        At least one piece. A booster whose form is not known is one piece.
    """
    starts = [match.start() for match in _TREE.finditer(raw)]
    places = starts[:: max(1, piece_trees)]
    if starts:
        places += _end_of_trees(raw, starts[-1])
    edges = [0, *places, len(raw)]
    pieces = [_pack(raw[start:end]) for start, end in pairwise(edges) if start < end]
    return pieces if join(pieces) == raw else [_plain(raw)]


def tree_count(raw: bytes) -> int:
    """Return how many trees a booster has."""
    return sum(1 for _ in _TREE.finditer(raw))


def join(pieces: Sequence[bytes]) -> bytes:
    """Return the booster of its pieces.

    Raises:
        ValueError: if a piece is malformed.
    """
    return b"".join(_unpack(piece) for piece in pieces)


def _end_of_trees(raw: bytes, last_tree: int) -> list[int]:
    key = raw.find(_LAST_KEY, last_tree)
    end = raw.find(b"}}", key) if key >= 0 else -1
    return [end + 2] if end >= 0 else []


def _plain(raw: bytes) -> bytes:
    return bytes(_LENGTH_BYTES) + raw


def _pack(raw: bytes) -> bytes:
    """Return: length of the text, the text without the values of arrays, the values by plane."""
    text: list[bytes] = []
    values: dict[tuple[str, int], list[bytes]] = {}
    done = at = 0
    while match := _HEADER.search(raw, at):
        name, item_bytes, length = _described(match)
        at = match.end() + length
        if at > len(raw):
            return _plain(raw)
        text.append(raw[done : match.end()])
        values.setdefault((name, item_bytes), []).append(raw[match.end() : at])
        done = at
    text.append(raw[done:])
    skeleton = b"".join(text)
    planes = [_planes(b"".join(parts), key[1]) for key, parts in values.items()]
    return b"".join([len(skeleton).to_bytes(_LENGTH_BYTES, "little"), skeleton, *planes])


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


def _planes(data: bytes, item_bytes: int) -> bytes:
    return _bytes(np.frombuffer(data, np.uint8).reshape(-1, item_bytes).T)


def _from_planes(data: bytes, item_bytes: int) -> bytes:
    return _bytes(np.frombuffer(data, np.uint8).reshape(item_bytes, -1).T)


def _bytes(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    return array.tobytes()
