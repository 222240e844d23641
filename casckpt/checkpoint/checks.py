"""What verify found, in the words of checkpoints: which tensors, of which, and what is whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import CasckptError


@dataclass(frozen=True)
class Damage:
    """One damaged record.

    Attributes:
        pack: name of the pack file.
        offset: where the record begins in it, in bytes.
        id: hex id of the object, empty if it cannot be told.
        message: what is wrong.
        tensors: paths of the leaves that need it, sorted; empty if nobody does.
        checkpoints: REFs of the checkpoints that need it.
    """

    pack: str
    offset: int
    id: str
    message: str
    tensors: tuple[str, ...]
    checkpoints: tuple[str, ...]


@dataclass(frozen=True)
class VerifyResult:
    """What verify found.

    Attributes:
        level: how deep it looked: "structure", "refs" or "bytes".
        damaged: what is wrong, by pack and offset.
        whole: REFs of the checkpoints of which nothing is damaged, newest first.
        lost: REFs of the others, newest first.
        tensors: of each of these, the paths of the leaves that cannot be read; none if it is the
            manifest itself.
        checked_bytes: how much was read.
    """

    level: str
    damaged: tuple[Damage, ...]
    whole: tuple[str, ...]
    lost: tuple[str, ...]
    tensors: Mapping[str, tuple[str, ...]]
    checked_bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.lost


def result_of(catalog: Catalog, level: str, report: Any) -> VerifyResult:
    """Return what the store's report means for checkpoints.

    Args:
        catalog: its rows.
        level: how deep it looked.
        report: what `Repository.verify` returned.
    """
    hurt: Mapping[bytes, frozenset[bytes]] = report.damaged_manifests
    live = sorted(catalog.matching(), key=lambda ck: (ck.created, ck.seq), reverse=True)
    paths = {
        checkpoint.ref: _paths(catalog, checkpoint, hurt[bytes.fromhex(checkpoint.id)])
        for checkpoint in live
        if bytes.fromhex(checkpoint.id) in hurt
    }
    damaged = []
    for one in report.damaged:
        # Exactly those that rest on this place, through lists and bases; a manifest that is
        # damaged itself is its own blob.
        concerned = {
            ref: [path for blob in one.blobs & blobs.keys() for path in blobs[blob]]
            for ref, blobs in paths.items()
            if one.blobs & blobs.keys()
        }
        damaged.append(
            Damage(
                pack=one.pack,
                offset=one.offset,
                id=one.id.hex(),
                message=one.message,
                tensors=tuple(sorted({path for found in concerned.values() for path in found})),
                checkpoints=tuple(sorted(concerned)),
            )
        )
    return VerifyResult(
        level=level,
        damaged=tuple(sorted(damaged, key=lambda one: (one.pack, one.offset))),
        whole=tuple(ck.ref for ck in live if ck.ref not in paths),
        lost=tuple(paths),
        tensors={
            ref: tuple(sorted({path for found in blobs.values() for path in found}))
            for ref, blobs in paths.items()
        },
        checked_bytes=report.checked_bytes,
    )


def _paths(
    catalog: Catalog, checkpoint: Checkpoint, blobs: frozenset[bytes]
) -> dict[bytes, list[str]]:
    """Return the paths in a checkpoint that each of the blobs holds."""
    try:
        manifest, refs = catalog.manifest_and_refs(checkpoint)
    except CasckptError:
        # The manifest itself is what is damaged: nobody can say what it named.
        return {blob: [] for blob in blobs}
    found: dict[bytes, list[str]] = {blob: [] for blob in blobs}
    for entry in manifest.entries:
        if entry.blob is not None and refs[entry.blob] in found:
            found[refs[entry.blob]].append(entry.path)
    return found
