"""What verify found, in the words of checkpoints: which tensors, of which, and what is whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import CasckptError

if TYPE_CHECKING:
    from casckpt.store import Repository


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
        whole: REFs of the checkpoints of which nothing is damaged.
        lost: REFs of the others.
        checked_bytes: how much was read.
    """

    level: str
    damaged: tuple[Damage, ...]
    whole: tuple[str, ...]
    lost: tuple[str, ...]
    checked_bytes: int

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged and not self.lost


def result_of(repository: Repository, catalog: Catalog, level: str, report: Any) -> VerifyResult:
    """Return what the store's report means for checkpoints.

    Args:
        repository: the store.
        catalog: its rows.
        level: how deep it looked.
        report: what `Repository.verify` returned.
    """
    hurt: Mapping[bytes, Iterable[bytes]] = report.damaged_manifests
    live = catalog.matching()
    needed: dict[bytes, tuple[set[str], set[str]]] = {}
    for checkpoint in live:
        blobs = set(hurt.get(bytes.fromhex(checkpoint.id), ()))
        for blob, paths in _paths(catalog, checkpoint, blobs).items():
            for object_id in _objects(repository, blob):
                tensors, refs = needed.setdefault(object_id, (set(), set()))
                tensors.update(paths)
                refs.add(checkpoint.ref)
        if bytes.fromhex(checkpoint.id) in hurt:
            own = needed.setdefault(bytes.fromhex(checkpoint.id), (set(), set()))
            own[1].add(checkpoint.ref)
    damaged = []
    for one in report.damaged:
        tensors, refs = needed.get(one.id, (set(), set()))
        damaged.append(
            Damage(
                pack=one.pack,
                offset=one.offset,
                id=one.id.hex(),
                message=one.message,
                tensors=tuple(sorted(tensors)),
                checkpoints=tuple(sorted(refs)),
            )
        )
    lost = tuple(ck.ref for ck in live if bytes.fromhex(ck.id) in hurt)
    return VerifyResult(
        level=level,
        damaged=tuple(sorted(damaged, key=lambda one: (one.pack, one.offset))),
        whole=tuple(ck.ref for ck in live if bytes.fromhex(ck.id) not in hurt),
        lost=lost,
        checked_bytes=report.checked_bytes,
    )


def _paths(catalog: Catalog, checkpoint: Checkpoint, blobs: set[bytes]) -> dict[bytes, list[str]]:
    """Return the paths in a checkpoint that each of the blobs holds."""
    if not blobs:
        return {}
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


def _objects(repository: Repository, blob: bytes) -> set[bytes]:
    """Return a blob's own id and those of everything it is made of, as far as can be read."""
    try:
        return {blob, *repository.closure([blob])}
    except CasckptError:
        return {blob}
