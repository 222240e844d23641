"""How the leaves of a checkpoint are stored, and the chunks of many: predictor, layout, coder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from casckpt.checkpoint.tree_paths import told_apart
from casckpt.errors import Corrupt, Deleted, NewerFormat

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Entry
    from casckpt.checkpoint.queries import Catalog
    from casckpt.checkpoint.records import Checkpoint
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


@dataclass(frozen=True, slots=True)
class CodingStats:
    """The chunks of some checkpoints that are stored in one way, each counted once.

    Attributes:
        type: numpy's code of the dtype of the numbers in them, or the kind of leaf, such as
            "bytes"; "several" for small leaves that share a blob.
        predictor: plain, sub, xor or dictionary.
        layout: "planes" of bytes of equal weight, or "bytes" as they are.
        coder: of each plane, as in `Coding`.
        chunk_count: how many chunks.
        logical_bytes: what they hold.
        stored_bytes: what they take on disk, headers included.
        depth: links of the longest chain of bases below one.
    """

    type: str
    predictor: str
    layout: str
    coder: str
    chunk_count: int
    logical_bytes: int
    stored_bytes: int
    depth: int

    @property
    def ratio(self) -> float:
        """Stored / logical; 1 for nothing."""
        return self.stored_bytes / self.logical_bytes if self.logical_bytes else 1.0


def coding_stats(
    repository: Repository, catalog: Catalog, checkpoints: Iterable[Checkpoint]
) -> tuple[CodingStats, ...]:
    """Return how the chunks of checkpoints are stored, what takes most first.

    Reads each manifest and a few bytes of each chunk. Bases that no checkpoint holds are left out,
    and so is a checkpoint whose manifest cannot be read.
    """
    types: dict[bytes, str] = {}
    for checkpoint in checkpoints:
        try:
            manifest, refs = catalog.manifest_and_refs(checkpoint)
        except (Corrupt, Deleted, NewerFormat):
            continue
        named: dict[int, str] = {}
        for entry in manifest.entries:
            if entry.blob is not None and entry.alias is None:
                known = named.setdefault(entry.blob, _type(entry))
                named[entry.blob] = known if known == _type(entry) else "several"
        for index, blob in enumerate(refs):
            # What no entry names is kept beside the state: generators, positions.
            types.setdefault(blob, named.get(index, "beside"))
    seen: set[bytes] = set()
    found: dict[tuple[str, str, str, str], CodingStats] = {}
    for blob, type_ in types.items():
        for chunk in repository.codings(blob):
            if chunk.id not in seen:
                seen.add(chunk.id)
                key = (type_, chunk.predictor, _layout(chunk), _joined(chunk.coders))
                total = found.get(key) or CodingStats(*key, 0, 0, 0, 0)
                found[key] = replace(
                    total,
                    chunk_count=total.chunk_count + 1,
                    logical_bytes=total.logical_bytes + chunk.logical_bytes,
                    stored_bytes=total.stored_bytes + chunk.stored_bytes,
                    depth=max(total.depth, chunk.depth),
                )
    return tuple(sorted(found.values(), key=lambda each: (-each.stored_bytes, each.type)))


def _type(entry: Entry) -> str:
    from casckpt.checkpoint.arrays_dtypes import TORCH_TO_NUMPY

    return TORCH_TO_NUMPY.get(entry.dtype, entry.dtype) or entry.kind


def _layout(chunk: ChunkCoding) -> str:
    return "planes" if chunk.planes > 1 else "bytes"


def codings_of(
    repository: Repository, entries: Sequence[Entry], refs: Sequence[bytes]
) -> dict[str, Coding]:
    """Return how each leaf with bytes of its own is stored, by path.

    Paths that read alike are told apart as `told_apart` does with those of all entries.
    """
    blobs = {entry.blob for entry in entries if entry.blob is not None and entry.alias is None}
    found = {blob: _coding(chunks) for blob in blobs if (chunks := repository.codings(refs[blob]))}
    paths = told_apart(entry.path for entry in entries)
    return {
        path: found[entry.blob]
        for path, entry in zip(paths, entries, strict=True)
        if entry.alias is None and entry.blob is not None and entry.blob in found
    }


def _coding(chunks: Sequence[ChunkCoding]) -> Coding:
    predictors: Counter[str] = Counter()
    layouts: Counter[str] = Counter()
    coders: Counter[str] = Counter()
    for chunk in chunks:
        predictors[chunk.predictor] += chunk.logical_bytes
        layouts[_layout(chunk)] += chunk.logical_bytes
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
