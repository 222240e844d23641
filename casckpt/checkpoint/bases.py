"""Which stored blob each blob of a save may be coded against: the same leaves, one save earlier.

A blob is recognised by its leaves: paths, dtypes, shapes and places. So the parent's blob for the
same weights is found whatever else was added to the state, and a group of small arrays only if the
whole group is the same. Whether a difference pays is for the store to find out, chunk by chunk.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from casckpt.checkpoint.manifest import beside_of

if TYPE_CHECKING:
    from casckpt.checkpoint.encode import BlobPlan
    from casckpt.checkpoint.manifest import Entry, Manifest
    from casckpt.store import BlobInfo

Layout = dict[int, bytes]
"""Blob ids by the hash of the blob's leaves. Equal hashes of unlike blobs cost a vain look."""


BESIDE: Final = -1
"""In place of a hash: what the checkpoint keeps beside its state. No hash is -1 in CPython, and an
equal one elsewhere would cost a vain look."""


def layout_of_plan(plan: BlobPlan, infos: Sequence[BlobInfo]) -> Layout:
    """Return the layout of a state that was just stored; the last blob may be what is beside it."""
    keys = [*plan.blob_keys(), BESIDE][: len(infos)]
    return {key: info.id for key, info in zip(keys, infos, strict=True)}


def layout_of_manifest(manifest: Manifest, refs: Sequence[bytes]) -> Layout:
    """Return the layout of a checkpoint."""
    layout = _layout_of_entries(manifest.entries, refs)
    beside = beside_of(manifest, len(refs))
    if beside is not None:
        layout[BESIDE] = refs[beside[0]]
    return layout


def _layout_of_entries(entries: Iterable[Entry], refs: Sequence[bytes]) -> Layout:
    leaves: dict[int, list[tuple[object, ...]]] = defaultdict(list)
    for entry in entries:
        if entry.blob is not None and entry.alias is None:
            leaves[entry.blob].append(leaf_key(entry.path, entry.dtype, entry.shape, entry.offset))
    return {blob_key(keys): refs[blob] for blob, keys in leaves.items()}


def leaf_key(path: str, dtype: str, shape: tuple[int, ...], offset: int) -> tuple[object, ...]:
    """Return what recognises a leaf in its blob."""
    return (path, dtype, shape, offset)


def blob_key(leaves: Sequence[tuple[object, ...]]) -> int:
    """Return what recognises a blob: good within this process only."""
    return hash(tuple(leaves))


class Base(NamedTuple):
    """The stored blob that a blob takes the place of; not to be coded against if it is `whole`."""

    id: bytes
    whole: bool = False


class Bases:
    """The layouts of the last saves of this handle, and whose turn it is to be stored whole."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[str, int], tuple[str, Layout]] = {}
        self._turns: dict[tuple[str, int], int] = {}

    def remembered(self, run: str, line: int, checkpoint_id: str) -> Layout | None:
        """Return the layout of a checkpoint if it was the last one that was saved here."""
        known = self._layouts.get((run, line))
        return known[1] if known is not None and known[0] == checkpoint_id else None

    def remember(self, run: str, line: int, checkpoint_id: str, layout: Layout) -> None:
        """Keep the layout of a checkpoint for the next save of its line."""
        self._layouts[run, line] = (checkpoint_id, layout)

    def choose(
        self,
        run: str,
        line: int,
        keys: Sequence[int],
        by_dictionary: Sequence[bool],
        layout: Layout,
        period: int,
    ) -> list[Base | None]:
        """Return the base of each blob; every `period`-th blob in turn is to be stored whole.

        Keyframes are staggered over blobs, so that no save is much larger than the others; the
        first blob's comes when its chain is full. After a restart the turn begins anew: the store
        bounds the depth of every chain all the same. Blobs to which a base is a dictionary always
        use it: at the end of a chain the store finds another, or stores the chunk whole.
        """
        turn = self._turns[run, line] = self._turns.get((run, line), 0) + 1
        return [
            Base(layout[key], not always and (turn + index) % period == 0)
            if key in layout
            else None
            for index, (key, always) in enumerate(zip(keys, by_dictionary, strict=True))
        ]
