"""How long the blobs of a manifest are; a read has to say so."""

from __future__ import annotations

from casckpt.checkpoint.manifest import Manifest, beside_of


def blob_lengths(manifest: Manifest, blob_count: int) -> list[int]:
    """Return the length in bytes of each blob, by its index in the manifest's refs.

    A blob ends where the last of its entries does; an empty one has no entries. One may be what the
    checkpoint keeps beside its state.
    """
    lengths = [0] * blob_count
    beside = beside_of(manifest, blob_count)
    if beside is not None:
        lengths[beside[0]] = beside[1]
    for entry in manifest.entries:
        if entry.blob is not None:
            lengths[entry.blob] = max(lengths[entry.blob], entry.offset + entry.length)
    return lengths
