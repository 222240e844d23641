"""Lists: how a blob of more than one chunk is named, and cut by content when it is long.

FORMAT: the body of a list is its level (1: members are chunks), the member count, and the logical
length of each member; the members' ids are the record's refs (docs/format.md, section 7).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from casckpt.errors import Corrupt
from casckpt.store import layout

_HEAD = struct.Struct("<BI")


@dataclass(frozen=True, slots=True)
class Style:
    """How a writer cuts the members of a blob into lists; a reader does not care.

    Up to `single` members make one list. Of more, a list ends at a member whose id ends it by
    chance (its first byte has no bit of `mask`), from `least` members on: so a blob that grew at
    its end, or changed in its middle, shares all other lists with the one before.
    """

    single: int
    least: int
    mask: int


ARRAY: Final = Style(layout.LIST_MAX_MEMBERS, 8, 31)
OPAQUE: Final = Style(16, 4, 7)
"""Of bytes of which a save changes few chunks, so that most of what it writes are ids in lists.
A hundred saves of a blob that grows by a chunk, of which the first changes each time too, write
155 KB of lists and their rows in lists of eleven on average, 212 KB in those of arrays."""


@dataclass(frozen=True, slots=True)
class Members:
    """A decoded list: level, and the logical length in bytes of each member."""

    level: int
    lengths: tuple[int, ...]


def encode_list(level: int, lengths: Sequence[int]) -> bytes:
    """Return the body of a list."""
    return _HEAD.pack(level, len(lengths)) + struct.pack(f"<{len(lengths)}Q", *lengths)


def decode_list(body: bytes, ref_count: int) -> Members:
    """Return the members' lengths; Corrupt unless they fit the refs and the format's limits."""
    if len(body) < _HEAD.size:
        raise Corrupt("damaged list", "it is cut off")
    level, count = _HEAD.unpack_from(body)
    if not 1 <= level <= layout.LIST_MAX_LEVELS or count != ref_count or not count >= 1:
        raise Corrupt("damaged list", f"level {level}, {count} members, {ref_count} refs")
    if count > layout.LIST_MAX_MEMBERS or len(body) != _HEAD.size + 8 * count:
        raise Corrupt("damaged list", f"{count} members in {len(body)} bytes")
    lengths = struct.unpack_from(f"<{count}Q", body, _HEAD.size)
    if level == 1 and max(lengths) > layout.CHUNK_MAX_BYTES:
        # A reader makes room for a chunk before it has seen one.
        raise Corrupt("damaged list", f"a chunk of {max(lengths)} bytes")
    if sum(lengths) >= 2**63:
        raise Corrupt("damaged list", "its length is beyond 63 bits")
    return Members(level, lengths)


def cut_list(ids: Sequence[bytes], style: Style) -> list[int]:
    """Return the ends of the lists that `ids` are cut into; the last is len(ids)."""
    ends = []
    start = 0
    for at, identity in enumerate(ids, 1):
        size = at - start
        if size == layout.LIST_MAX_MEMBERS or (
            size >= style.least and identity[0] & style.mask == 0
        ):
            ends.append(at)
            start = at
    if start < len(ids):
        ends.append(len(ids))
    return ends


def build(
    ids: Sequence[bytes],
    lengths: Sequence[int],
    put: Callable[[Sequence[bytes], bytes], bytes],
    style: Style = ARRAY,
) -> bytes:
    """Return the id that names the blob of these chunks, storing lists through `put(refs, body)`.

    One chunk names itself; a few make one list; more are cut into lists, and those into lists.
    """
    level = 1
    while len(ids) > 1:
        ends = [len(ids)] if len(ids) <= style.single else cut_list(ids, style)
        next_ids, next_lengths = [], []
        start = 0
        for end in ends:
            next_ids.append(put(ids[start:end], encode_list(level, lengths[start:end])))
            next_lengths.append(sum(lengths[start:end]))
            start = end
        ids, lengths, level = next_ids, next_lengths, level + 1
        if level > layout.LIST_MAX_LEVELS + 1:
            raise AssertionError("a blob of more chunks than eight levels of lists can name")
    return ids[0]
