"""Chunks at one place of many versions: the columns that compact works on, and who stands on whom.

The floor above knows which blobs are versions of one another. Here they are cut into columns: of
numbers, the chunks at one place of the grid; of other bytes, those that took each other's place. A
column has a root, stored whole, and every other chunk is tried as a difference to one nearer to
the root. Versions are numbered from the far end, from 1, and number i stands on i + s, s being the
largest power of the step that divides i: most stand on their neighbour, which differs least, and
chains grow with the digits of the number of versions (docs/adr/0009).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from casckpt.errors import Corrupt, Deleted, NewerFormat
from casckpt.ids import ID_BYTES
from casckpt.native import PrefixSet
from casckpt.store import codec, layout
from casckpt.store.reading import Reader

# Measured (docs/adr/0009): smaller steps take differences over distances that cost 1 to 2 %, larger
# ones make the chains of a short run longer for 0.2 %.
_STEP = 6
# Chunks that stand alone, to a unit of work.
_ALONE = 64


@dataclass(frozen=True, slots=True)
class Lineage:
    """Blobs of `length` bytes that are versions of one another, the one to be fastest first.

    `item_size` is the bytes per item of the array they come from; 1 for opaque bytes, of which
    `length` is that of one of them.
    """

    blobs: tuple[bytes, ...]
    length: int
    item_size: int


@dataclass(frozen=True, slots=True)
class Column:
    """Chunks at one place of a lineage, the root first; only those `own` may be moved."""

    ids: tuple[bytes, ...]
    own: frozenset[bytes]
    item_size: int
    versions: bool


class Plan:
    """The columns of all lineages, each chunk in one of them only."""

    def __init__(
        self, reader: Reader, lineages: Sequence[Lineage], needed: PrefixSet | None = None
    ) -> None:
        """Read the lists of all blobs; a blob whose list cannot be read is left out.

        `needed` gets their chunks; plans of parts of a store share one.
        """
        self._lineages = [
            (lineage, versions)
            for lineage in lineages
            if (
                versions := [
                    ids for blob in lineage.blobs if (ids := _chunks(reader, lineage, blob))
                ]
            )
        ]
        self.needed = PrefixSet() if needed is None else needed
        self.total_bytes = 0
        for lineage, versions in self._lineages:
            self.total_bytes += lineage.length * len(versions)
            for ids in versions:
                self.needed.add_many(ids)

    def columns(self) -> Iterator[Column]:
        """Yield the columns, those of one lineage after those of another."""
        claimed = PrefixSet()
        for lineage, versions in self._lineages:
            width = ID_BYTES
            if codec.plane_width(lineage.item_size) == 1:
                alone: list[bytes] = []
                for thread in _threads(versions):
                    own = frozenset(one for one in thread if claimed.add(one))
                    if own and len(thread) > 1:
                        yield Column(tuple(thread), own, 1, True)
                    else:
                        alone += own
                yield from _alone(alone)
                continue
            for at in range(0, len(versions[0]), width):
                ids = tuple(dict.fromkeys(version[at : at + width] for version in versions))
                own = frozenset(one for one in ids if claimed.add(one))
                if own:
                    yield Column(ids, own, lineage.item_size, True)


def _chunks(reader: Reader, lineage: Lineage, blob: bytes) -> bytes:
    """Return the joined ids of a blob's chunks, nothing if its list cannot be read."""
    try:
        chunks = reader.chunks_of(blob)
    except (Corrupt, Deleted, NewerFormat):
        return b""
    if codec.plane_width(lineage.item_size) > 1:
        sizes = [size for _, size in chunks]
        if sum(sizes) != lineage.length or any(size != layout.GRID_BYTES for size in sizes[:-1]):
            return b""
    return b"".join(identity for identity, _ in chunks)


def _threads(versions: Sequence[bytes]) -> list[list[bytes]]:
    """Return chunks of opaque bytes, each after the one that stands in its place nearer the root.

    Where two took the place of one, the second begins a thread of its own, after that one again.
    """
    threads: list[list[bytes]] = []
    thread_of: dict[bytes, list[bytes]] = {}
    nearer: list[bytes] = []
    for joined in versions:
        ids = [joined[at : at + ID_BYTES] for at in range(0, len(joined), ID_BYTES)]
        places = {identity: place for place, identity in enumerate(nearer)}
        at = 0
        for index, identity in enumerate(ids):
            place = index if nearer[index : index + 1] == [identity] else places.get(identity)
            if place is not None:
                at = place + 1
                continue
            near = nearer[min(at, len(nearer) - 1)] if nearer else b""
            at += 1
            if identity in thread_of:
                continue
            thread = thread_of.get(near, [])
            if not thread or thread[-1] != near:
                thread = [near] if near else []
                threads.append(thread)
            thread.append(identity)
            thread_of[identity] = thread
        nearer = ids
    return threads


def _alone(ids: list[bytes]) -> Iterator[Column]:
    for start in range(0, len(ids), _ALONE):
        part = tuple(ids[start : start + _ALONE])
        yield Column(part, frozenset(part), 1, False)


def base_of(count: int, index: int) -> int:
    """Return the place in a column, root first, that the chunk at `index` > 0 stands on."""
    number, step = count - index, 1
    while number % (step * _STEP) == 0 and step * _STEP <= index:
        step *= _STEP
    return index - step
