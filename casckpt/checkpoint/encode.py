"""From leaves to blobs and entries: the save pipeline above the store.

Large leaves are a blob each, read from the state's own memory. Array leaves under 64 KiB share
group blobs: in tree order, one group per number width so that the codec sees equal numbers, each
leaf aligned to 16 bytes, at most 1 MiB a group. Blobs are made lazily, one after the other, so a
state of many small or non-contiguous arrays never exists twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.bases import Base, blob_key, leaf_key
from casckpt.checkpoint.boosters import tree_edges
from casckpt.checkpoint.leaves import ALIGNMENT, Leaf
from casckpt.checkpoint.manifest import Entry
from casckpt.checkpoint.tree import FlatState

if TYPE_CHECKING:
    from casckpt.store import BlobInfo, BlobSource
    from casckpt.store.saving import Saver

KiB: Final = 1024
GROUPED_BELOW_BYTES: Final = 64 * KiB
"""FORMAT: array leaves below this share blobs (docs/format.md, section 14)."""

GROUP_MAX_BYTES: Final = 1024 * KiB
"""FORMAT: a group is at most one chunk of the fixed grid, so one read fetches it."""


@dataclass(slots=True)
class _Blob:
    """One blob to be: which leaves, where each starts, how long the whole is."""

    item_size: int
    opaque: bool = False
    leaves: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    length: int = 0


@dataclass(frozen=True)
class BlobPlan:
    """Which leaf goes to which blob.

    Attributes:
        state: the leaves, in the state's own memory or staged.
    """

    state: FlatState
    _blobs: list[_Blob]

    def blob_keys(self) -> list[int]:
        """Return what recognises each blob in another checkpoint, in the order of `sources`."""
        leaves = self.state.leaves
        return [
            blob_key(
                [
                    leaf_key(leaves[i].path, leaves[i].dtype, leaves[i].shape, offset)
                    for i, offset in zip(blob.leaves, blob.offsets, strict=True)
                ]
            )
            for blob in self._blobs
        ]

    def by_dictionary(self) -> list[bool]:
        """Return for each blob whether a base is a dictionary to it: opaque, or items of 1 byte."""
        from casckpt.store import codec

        return [blob.opaque or codec.plane_width(blob.item_size) == 1 for blob in self._blobs]

    def sources(self, bases: Sequence[Base | None] = ()) -> Iterator[BlobSource]:
        """Yield what the store is to write; copies, where needed, are made one at a time.

        Args:
            bases: for each blob, the stored blob that it may resemble; or nothing.
        """
        from casckpt.store import BlobSource

        for index, blob in enumerate(self._blobs):
            buffer: memoryview | bytearray
            if len(blob.leaves) == 1:
                buffer = _view(self.state.leaves[blob.leaves[0]])
            else:
                buffer = self._joined(blob)
            base = bases[index] if bases else None
            edges = tree_edges(buffer) if blob.opaque else ()
            identity, whole = base or (None, False)
            yield BlobSource([buffer], blob.item_size, blob.opaque, identity, edges, whole)

    def _joined(self, blob: _Blob) -> bytearray:
        buffer = bytearray(blob.length)
        view = memoryview(buffer)
        for index, offset in zip(blob.leaves, blob.offsets, strict=True):
            leaf = self.state.leaves[index]
            assert leaf.source is not None
            leaf.source.copy_to(view[offset : offset + leaf.length])
        view.release()
        return buffer

    def entries(self, infos: Sequence[BlobInfo]) -> tuple[list[bytes], tuple[Entry, ...]]:
        """Return (refs, entries) once the store has named the blobs, in the order of `sources`.

        refs are unique ids in the order in which entries first use them.
        """
        place: dict[int, tuple[bytes, int]] = {}
        for blob, info in zip(self._blobs, infos, strict=True):
            for index, offset in zip(blob.leaves, blob.offsets, strict=True):
                place[index] = (info.id, offset)
        number_of: dict[bytes, int] = {}
        entries = []
        for index, leaf in enumerate(self.state.leaves):
            if leaf.alias >= 0:
                entries.append(_alias(leaf))
                continue
            number, offset = None, 0
            if leaf.length:
                blob_id, offset = place[index]
                number = number_of.setdefault(blob_id, len(number_of))
            entries.append(
                Entry(
                    leaf.path,
                    leaf.kind,
                    leaf.dtype,
                    leaf.shape,
                    leaf.order,
                    leaf.flags,
                    number,
                    offset,
                    leaf.length,
                )
            )
        return list(number_of), tuple(entries)


def plan_blobs(state: FlatState) -> BlobPlan:
    """Decide which leaf goes to which blob; the same state always gives the same plan."""
    blobs: list[_Blob] = []
    open_groups: dict[int, _Blob] = {}
    for index, leaf in enumerate(state.leaves):
        if leaf.alias >= 0 or not leaf.length:
            continue
        if leaf.opaque or leaf.length >= GROUPED_BELOW_BYTES:
            blobs.append(_Blob(leaf.item_size, leaf.opaque, [index], [0], leaf.length))
            continue
        group = open_groups.get(leaf.item_size)
        offset = 0 if group is None else -(-group.length // ALIGNMENT) * ALIGNMENT
        if group is None or offset + leaf.length > GROUP_MAX_BYTES:
            group = open_groups[leaf.item_size] = _Blob(leaf.item_size)
            blobs.append(group)
            offset = 0
        group.leaves.append(index)
        group.offsets.append(offset)
        group.length = offset + leaf.length
    return BlobPlan(state, blobs)


def write_state(saver: Saver, state: FlatState) -> tuple[list[bytes], tuple[Entry, ...]]:
    """Write every leaf through a save session; return what the manifest says of them.

    On return the blobs are in the session's packs; nothing is durable before the commit. The
    state's memory must not change meanwhile: stage it first, or save in the caller's thread.

    Returns:
        (refs, entries): ids of the blobs in first-use order, and the manifest's entries.
    """
    plan = plan_blobs(state)
    return plan.entries(saver.put_blobs(plan.sources()))


def _view(leaf: Leaf) -> memoryview:
    assert leaf.source is not None
    return leaf.source.view()


def _alias(leaf: Leaf) -> Entry:
    if leaf.stride is None:
        return Entry(leaf.path, "alias", alias=leaf.alias)
    return Entry(
        leaf.path,
        leaf.kind,
        leaf.dtype,
        leaf.shape,
        "C",
        leaf.flags,
        None,
        leaf.offset,
        0,
        leaf.alias,
        leaf.stride,
    )
