"""A repository that keeps blobs in a dict: what floor 3 needs of the store, and nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from casckpt.checkpoint import leaves, manifest
from casckpt.checkpoint.decode import restore_tree
from casckpt.checkpoint.encode import write_state
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.staging import StagingPool
from casckpt.checkpoint.tree import flatten
from casckpt.errors import Corrupt
from casckpt.store import BlobInfo, BlobRead, BlobSource

leaves.register_lazy("torch", "casckpt.adapters.torch")


class MemoryRepository:
    """Saver and reader in one; counts what it reads."""

    def __init__(self) -> None:
        self.blobs: dict[bytes, bytes] = {}
        self.bytes_read = 0

    def put_blobs(self, sources: Iterable[BlobSource]) -> list[BlobInfo]:
        infos = []
        for source in sources:
            assert source.item_size in (1, 2, 4, 8, 16)
            data = b"".join(bytes(memoryview(buffer)) for buffer in source.buffers)
            blob_id = hashlib.sha256(data).digest()
            known = blob_id in self.blobs
            self.blobs[blob_id] = data
            infos.append(BlobInfo(blob_id, len(data), 0 if known else len(data), len(data)))
        return infos

    def read_blobs(self, reads: Iterable[BlobRead], verify: bool = True) -> None:
        for read in reads:
            data = self.blobs[read.id]
            if hashlib.sha256(data).digest() != read.id:
                raise Corrupt("a chunk is damaged", "its hash differs", blob_ids={read.id})
            dest = memoryview(read.dest).cast("B")
            if read.length != len(data):
                raise Corrupt("a blob is damaged", "its length differs", blob_ids={read.id})
            dest[:] = data[read.offset : read.offset + len(dest)]
            self.bytes_read += len(dest)


class Saved:
    """A state saved to memory, through the manifest's bytes."""

    def __init__(self, state: Any, *, stage: bool = False) -> None:
        self.repo = MemoryRepository()
        flat = flatten(state)
        staged = StagingPool().stage(flat) if stage else None
        self.refs, entries = write_state(self.repo, staged.state if staged else flat)  # type: ignore[arg-type]
        if staged:
            staged.release()
        self.body = manifest.encode(
            manifest.Manifest(
                run="run",
                line=0,
                step=1,
                batch=0,
                created="2024-01-02T03:04:05.000006Z",
                tree=flat.tree,
                entries=entries,
            )
        )
        self.manifest = manifest.decode(self.body, len(self.refs))

    def restore(
        self, *, into: Any = None, only: Any = None, strict: bool = True, **options: Any
    ) -> Any:
        return restore_tree(
            self.repo,  # type: ignore[arg-type]
            self.manifest,
            self.refs,
            into=into,
            only=only,
            strict=strict,
            options=RestoreOptions(**options),
        )
