"""Which blobs are versions of one another: the same leaves, from checkpoint to checkpoint.

A line is kept newest first: its newest checkpoint is what is restored most. A line that branched
off and is short stays on the checkpoint that it continued from, since a newest of its own, stored
whole, would cost more than the line's other checkpoints.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.bases import blob_key, leaf_key
from casckpt.checkpoint.extents import blob_lengths
from casckpt.checkpoint.manifest import Entry, Manifest
from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import CasckptError, Corrupt, Deleted, NewerFormat

if TYPE_CHECKING:
    from casckpt.store.columns import Lineage

TURNED_FROM: Final = 8
"""Checkpoints of a line that make a root of its own worth it: to store the newest whole then costs
at most 2 % (fp32) or 8 % (bf16) of the line (docs/adr/0009)."""


@dataclass(frozen=True, slots=True)
class _Version:
    """One blob of a checkpoint."""

    id: bytes
    length: int
    item_size: int


_Layout = dict[int, _Version]


def lineages(catalog: Catalog, run: str = "*") -> list[Lineage]:
    """Return the blobs of live checkpoints as lineages; lines begun first come first.

    Checkpoints whose manifest cannot be read are left out.

    Args:
        catalog: the rows of the store.
        run: the name of the only run to look at; all by default.
    """
    from casckpt.store.columns import Lineage

    lines: dict[tuple[str, int], list[Checkpoint]] = defaultdict(list)
    for checkpoint in catalog.matching(run):
        lines[checkpoint.run, checkpoint.line].append(checkpoint)
    layouts: dict[str, _Layout] = {}
    found = []
    for members in sorted(lines.values(), key=lambda line: min(ck.seq for ck in line)):
        members.sort(key=lambda ck: (ck.position, ck.seq))
        line = []
        for checkpoint in members:
            try:
                layout = _layout(*catalog.manifest_and_refs(checkpoint))
            except (Corrupt, Deleted, NewerFormat):
                continue
            layouts[checkpoint.id] = layout
            line.append(layout)
        parent = layouts.get(members[0].parent or "", {})
        for versions in _ordered(line, parent):
            root = versions[0]
            blobs = tuple(dict.fromkeys(version.id for version in versions))
            found.append(Lineage(blobs, root.length, root.item_size))
    return found


def _ordered(line: Sequence[_Layout], parent: _Layout) -> Iterable[list[_Version]]:
    """Yield the versions of each blob of a line, the one to stand on first."""
    versions: dict[int, list[_Version]] = defaultdict(list)
    for layout in line:
        for key, version in layout.items():
            versions[key].append(version)
    for key, members in versions.items():
        if key in parent and len(members) < TURNED_FROM:
            yield [parent[key], *members]
        else:
            yield members[::-1]


def _layout(manifest: Manifest, refs: Sequence[bytes]) -> _Layout:
    lengths = blob_lengths(manifest, len(refs))
    leaves: dict[int, list[Entry]] = defaultdict(list)
    viewed: dict[int, int] = {}
    for index, entry in enumerate(manifest.entries):
        if entry.alias is not None:
            # Memory that several views share is kept as bytes; its views say of what numbers.
            viewed.setdefault(entry.alias, index)
        elif entry.blob is not None:
            leaves[entry.blob].append(entry)
    storages = {
        manifest.entries[index].blob: _item_size(manifest.entries[view])
        for index, view in viewed.items()
        if manifest.entries[index].kind == "storage"
    }
    return {
        blob_key([leaf_key(e.path, e.dtype, e.shape, e.offset) for e in members]): _Version(
            refs[blob], lengths[blob], storages.get(blob) or _item_size(members[0])
        )
        for blob, members in leaves.items()
    }


def _item_size(entry: Entry) -> int:
    """Return the width in bytes of the numbers in a leaf, 1 if it holds none."""
    from casckpt.checkpoint.arrays_dtypes import TORCH_TO_NUMPY, number_width, parse_dtype

    text = TORCH_TO_NUMPY.get(entry.dtype, "") if entry.kind == "tensor" else entry.dtype
    if entry.kind not in ("array", "tensor") or not text:
        return 1
    if text == "bfloat16":
        return 2  # numpy knows it through another package only
    try:
        return number_width(parse_dtype(text))
    except CasckptError:
        return 1
