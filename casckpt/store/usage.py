"""What a store takes on disk, and what a checkpoint reaches."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from casckpt.store import files, layout, packs, rows
from casckpt.store.sharing import SharedStore


@dataclass(frozen=True, slots=True)
class StoreSizes:
    """Bytes on disk, as allocated (st_blocks x 512).

    `stored_bytes` is all files but the ballast; the others are parts of it. What repair set aside
    is in `quarantine_bytes`, and in neither of packs and index.
    """

    stored_bytes: int
    pack_bytes: int
    index_bytes: int
    pack_count: int
    object_count: int
    quarantine_bytes: int


def sizes(shared: SharedStore) -> StoreSizes:
    """Return what the store takes on disk now."""
    pack_bytes = pack_count = index_bytes = quarantine_bytes = other = 0
    for file in shared.path.rglob("*"):
        if file.is_symlink() or not file.is_file() or file.name == layout.BALLAST_FILE:
            continue
        size = files.allocated_bytes(file)
        if file.parent.name == layout.QUARANTINE_FOLDER:
            quarantine_bytes += size
        elif file.name.endswith(layout.PACK_SUFFIX):
            pack_bytes += size
            pack_count += 1
        elif file.parent.name.startswith(layout.INDEX_PREFIX):
            index_bytes += size
        else:
            other += size
    with shared.environment.read() as tx:
        object_count = tx.count("objects")
    return StoreSizes(
        pack_bytes + index_bytes + quarantine_bytes + other,
        pack_bytes,
        index_bytes,
        pack_count,
        object_count,
        quarantine_bytes,
    )


def closure(shared: SharedStore, manifest_ids: Sequence[bytes]) -> dict[bytes, tuple[int, int]]:
    """Return every object that manifests reach, bases included: id -> (logical, stored bytes).

    Logical is 0 for lists and manifests: they are no bytes of the user's. Objects that are
    missing are left out, and so is what only a damaged one names; `verify` reports them.
    """
    found: dict[bytes, tuple[int, int]] = {}
    frontier = list(manifest_ids)
    while frontier:
        batch, frontier = frontier[:2000], frontier[2000:]
        with shared.environment.read() as tx:
            resolved = []
            # Many objects, few packs.
            pack_of = functools.cache(tx.pack)
            for identity in batch:
                if identity not in found:
                    row = tx.object(identity)
                    pack = None if row is None else pack_of(row.pack)
                    if row is not None and pack is not None and pack.state != rows.DROPPED:
                        found[identity] = (
                            row.logical if row.kind == layout.TYPE_CHUNK else 0,
                            row.total_bytes,
                        )
                        resolved.append((row, pack))
        for row, pack in resolved:
            if row.base:
                frontier.append(row.base)
            if row.kind != layout.TYPE_CHUNK:
                with (
                    contextlib.suppress(*files.DAMAGE),
                    shared.packs.borrow(pack.uuid) as file,
                ):
                    record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
                    frontier.extend(record.refs)
    return found
