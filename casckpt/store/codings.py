"""How chunks are stored, read from rows and a few bytes of each payload; nothing is decoded."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from casckpt.errors import CasckptError
from casckpt.store import files, layout, rows
from casckpt.store.reading import Reader
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Chain
from casckpt.store.workers import Workers

_PLANE = struct.Struct("<BI")
_PREDICTORS = ("plain", "sub", "xor")
_METHODS = ("raw", "constant", "zstd", "entropy")
UNKNOWN = "unknown"
"""Of a chunk that is not there, or damaged, or of a newer version."""


@dataclass(frozen=True, slots=True)
class ChunkCoding:
    """How one chunk is stored.

    Attributes:
        id: of the chunk.
        logical_bytes: its length.
        stored_bytes: of its record, header included.
        predictor: what is coded: plain, or the difference to a base as sub, xor or dictionary.
        planes: how many byte planes its items are split into; 1 for bytes as they are.
        coders: of each plane: raw, constant, zstd or entropy.
        depth: links of the chain of bases below it.
    """

    id: bytes
    logical_bytes: int
    stored_bytes: int
    predictor: str
    planes: int
    coders: tuple[str, ...]
    depth: int


def codings_of(shared: SharedStore, pool: Workers, blob: bytes) -> list[ChunkCoding]:
    """Return how the chunks of a blob are stored, in order; none if its list cannot be read."""
    try:
        chunks = Reader(shared, pool).chunks_of(blob)
    except CasckptError:
        return []
    with shared.environment.read() as tx:
        chains = [tx.chain(identity) for identity, _ in chunks]
    return [
        _coding(shared, chain, identity, size)
        for (identity, size), chain in zip(chunks, chains, strict=True)
    ]


def _coding(shared: SharedStore, chain: Chain | None, identity: bytes, length: int) -> ChunkCoding:
    if not chain:
        return ChunkCoding(identity, length, 0, UNKNOWN, 1, (UNKNOWN,), 0)
    _, row, pack = chain[0]
    stored, depth = row.total_bytes, len(chain) - 1
    if row.encoding == layout.ENCODING_PLANES:
        try:
            predictor, coders = _planes(shared, row, pack)
        except (CasckptError, FileNotFoundError, IndexError, struct.error):
            predictor, coders = UNKNOWN, (UNKNOWN,)
        return ChunkCoding(identity, length, stored, predictor, len(coders), coders, depth)
    named = {
        layout.ENCODING_RAW: ("plain", "raw"),
        layout.ENCODING_ZSTD: ("plain", "zstd"),
        layout.ENCODING_DICTIONARY: ("dictionary", "zstd"),
    }
    predictor, coder = named.get(row.encoding, (UNKNOWN, UNKNOWN))
    return ChunkCoding(identity, length, stored, predictor, 1, (coder,), depth)


def _planes(
    shared: SharedStore, row: rows.ObjectRow, pack: rows.PackRow
) -> tuple[str, tuple[str, ...]]:
    """Return the predictor and each plane's method, from the heads that stand before the planes."""
    start = row.offset + row.total_bytes - row.stored
    end = start + row.stored
    with shared.packs.borrow(pack.uuid) as file:
        head = files.read_at(file.descriptor, 2, start, file.path)
        coders: list[str] = []
        at = start + 2
        for _ in range(head[1] & 0x0F):
            method, stored = _PLANE.unpack(
                files.read_at(file.descriptor, min(_PLANE.size, end - at), at, file.path)
            )
            coders.append(_METHODS[method])
            at += _PLANE.size + stored
    return _PREDICTORS[head[0]], tuple(coders)
