"""How blobs are cut into chunks, and which stored chunk each may be coded against.

How a writer cuts is its own choice (docs/format.md, section 7); what it should reach is that equal
bytes become equal chunks. Arrays are cut on a grid, opaque bytes by content, and bytes that grow at
known places, as boosters do tree by tree, where the blob before was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from casckpt import native
from casckpt.store import layout, records

# Opaque bytes: cut sizes by blob length (studies and pickles change in small places)
_CDC_SMALL = (2 * layout.KIB, 8 * layout.KIB, 32 * layout.KIB)
_CDC_LARGE = (64 * layout.KIB, 256 * layout.KIB, layout.MIB)
_CDC_SMALL_BELOW = 64 * layout.MIB

# Between places where a blob grows: a chunk goes on until it has this much, and one that was cut
# shorter because the bytes ended there is begun again. Below, headers and rows weigh.
_GROWN_BYTES = 64 * layout.KIB
_GROWN_LEAST_BYTES = 16 * layout.KIB
# A base much shorter than the chunk holds little of it.
_SHORT_BASE = 4
_BATCH_PIECES = 256

Chunks = Sequence[tuple[bytes, int]]
"""Id and length of each chunk of a stored blob, in order."""


@dataclass(frozen=True, slots=True)
class BlobSource:
    """The bytes of one blob: `buffers` one after the other, unchanged until `put_blobs` returns.

    `item_size` is the bytes per item of the array they come from (1, 2, 4, 8 or 16). Opaque bytes
    are cut by content; at some of `edges`, ascending, if there are any: places between parts that
    stay as they are while parts are added behind them. Arrays are cut on a grid of 1 MiB. `base` is
    the id of a stored blob that these bytes are likely to resemble, item by item if of an array.
    Where it is their turn to be stored `whole`, they only take its place.
    """

    buffers: Sequence[bytes | bytearray | memoryview]
    item_size: int = 1
    opaque: bool = False
    base: bytes | None = None
    edges: Sequence[int] = ()
    whole: bool = False

    @property
    def length(self) -> int:
        """Bytes of all buffers."""
        return sum(memoryview(buffer).nbytes for buffer in self.buffers)

    def view(self) -> memoryview:
        """Return all bytes as one buffer; copies if there are several."""
        views = [memoryview(buffer).cast("B") for buffer in self.buffers]
        views = [view for view in views if len(view)]
        return views[0] if len(views) == 1 else memoryview(b"".join(views))


@dataclass(frozen=True, slots=True)
class Cut:
    """A chunk to be; `id` if it is known already, `base` a stored chunk that it may resemble."""

    view: memoryview
    base: bytes | None = None
    id: bytes | None = None


def cut(source: BlobSource, base: Chunks) -> Iterator[Cut]:
    """Yield the chunks of a blob in order; one of no bytes for an empty blob.

    Args:
        source: the blob.
        base: of opaque bytes, the chunks of the blob `source.base`; empty if it cannot be used.
    """
    whole = source.view()
    if not len(whole):
        yield Cut(whole)
    elif source.opaque:
        ends = _grown_ends(whole, source.edges, base) if source.edges else _content_ends(whole)
        yield from _against(whole, ends, base)
    else:
        for start in range(0, len(whole), layout.GRID_BYTES):
            yield Cut(whole[start : start + layout.GRID_BYTES])


def _content_ends(whole: memoryview) -> list[int]:
    least, average, most = _CDC_SMALL if len(whole) < _CDC_SMALL_BELOW else _CDC_LARGE
    return native.cut_points(whole, min_bytes=least, avg_bytes=average, max_bytes=most)


def _grown_ends(whole: memoryview, edges: Sequence[int], base: Chunks) -> list[int]:
    """Return where to cut bytes that grow: where the base was cut, as long as they are the same.

    What is before the first edge and behind the last one changes with each save.
    """
    start = edges[0]
    ends = [start] if start else []
    places = set(edges)
    for identity, length in base[1:] if start else base:
        end = start + length
        if end not in places or records.chunk_context().hash(whole[start:end]) != identity:
            break
        ends.append(end)
        start = end
    if len(ends) > 1 and start - ends[-2] < _GROWN_LEAST_BYTES:
        start = ends[-2]
        ends.pop()
    for edge in edges:
        if edge - start >= _GROWN_BYTES or start < edge == edges[-1]:
            ends.append(edge)
            start = edge
    if start < len(whole):
        ends.append(len(whole))
    return [end for first, last in pairwise([0, *ends]) for end in _bounded(whole, first, last)]


def _bounded(whole: memoryview, first: int, last: int) -> list[int]:
    if last - first <= layout.GRID_BYTES:
        return [last]
    least, average, most = _CDC_LARGE
    ends = native.cut_points(whole[first:last], min_bytes=least, avg_bytes=average, max_bytes=most)
    return [first + end for end in ends]


def _against(whole: memoryview, ends: Sequence[int], base: Chunks) -> Iterator[Cut]:
    """Yield chunks, each that is new with the one that stood in its place in the base."""
    views = [whole[start:end] for start, end in pairwise([0, *ends])]
    if not base:
        yield from map(Cut, views)
        return
    places = {identity: index for index, (identity, _) in enumerate(base)}
    at = 0
    for begin in range(0, len(views), _BATCH_PIECES):
        batch = views[begin : begin + _BATCH_PIECES]
        for view, identity in zip(batch, records.chunk_context().hash_many(batch), strict=True):
            place = places.get(identity)
            if place is not None:
                at = place + 1
                yield Cut(view, None, identity)
                continue
            here = min(at, len(base) - 1)
            if here and base[here][1] * _SHORT_BASE < len(view):
                here -= 1  # such as the short end of a booster, which the new trees stand before
            at += 1
            yield Cut(view, base[here][0], identity)
