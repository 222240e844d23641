"""How each leaf of a checkpoint is stored: predictor, layout, coder, ratio, depth."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Entry
    from casckpt.store import Repository
    from casckpt.store.codings import ChunkCoding


@dataclass(frozen=True, slots=True)
class Coding:
    """How the bytes of a leaf are stored; small arrays share a blob, and are stored with it.

    Attributes:
        logical_bytes: of its blob.
        stored_bytes: what the chunks of its blob take on disk, headers included.
        predictor: plain, or what its chunks are coded against: sub, xor or dictionary; several are
            joined by "+", the one of most bytes first.
        layout: "planes" of bytes of equal weight, or "bytes" as they are.
        coder: raw, constant, zstd or entropy, of each plane from the most significant on, as most
            of the bytes have it; `constant*3+entropy` are four planes.
        depth: links of the longest chain of bases.
    """

    logical_bytes: int
    stored_bytes: int
    predictor: str
    layout: str
    coder: str
    depth: int

    @property
    def ratio(self) -> float:
        """Stored / logical; 1 for nothing."""
        return self.stored_bytes / self.logical_bytes if self.logical_bytes else 1.0


def codings_of(
    repository: Repository, entries: Sequence[Entry], refs: Sequence[bytes]
) -> dict[str, Coding]:
    """Return how each leaf with bytes of its own is stored, by path."""
    blobs = {entry.blob for entry in entries if entry.blob is not None and entry.alias is None}
    found = {blob: _coding(chunks) for blob in blobs if (chunks := repository.codings(refs[blob]))}
    return {
        entry.path: found[entry.blob]
        for entry in entries
        if entry.alias is None and entry.blob is not None and entry.blob in found
    }


def _coding(chunks: Sequence[ChunkCoding]) -> Coding:
    predictors: Counter[str] = Counter()
    layouts: Counter[str] = Counter()
    coders: Counter[str] = Counter()
    for chunk in chunks:
        predictors[chunk.predictor] += chunk.logical_bytes
        layouts["planes" if chunk.planes > 1 else "bytes"] += chunk.logical_bytes
        coders[_joined(chunk.coders)] += chunk.logical_bytes
    return Coding(
        sum(chunk.logical_bytes for chunk in chunks),
        sum(chunk.stored_bytes for chunk in chunks),
        "+".join(name for name, _ in predictors.most_common()),
        "+".join(name for name, _ in layouts.most_common()),
        coders.most_common(1)[0][0],
        max(chunk.depth for chunk in chunks),
    )


def _joined(coders: Sequence[str]) -> str:
    runs = [(coder, len(list(same))) for coder, same in groupby(coders)]
    return "+".join(coder if count == 1 else f"{coder}*{count}" for coder, count in runs)
