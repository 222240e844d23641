"""Floor 2: chunks, packs, records, the index, commit, sessions, gc, verify and repair.

Bytes in, bytes out: nothing here knows tensors, metrics or what a run is for. `Repository` is the
way in; the rest of the package is its machinery. docs/format.md specifies the bytes, and
docs/protocol.md the order of things.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from casckpt.store.commits import CommitRequest as CommitRequest
    from casckpt.store.commits import RowsView as RowsView
    from casckpt.store.commits import RowWrite as RowWrite
    from casckpt.store.objects import SaveAgain as SaveAgain
    from casckpt.store.reading import BlobRead as BlobRead
    from casckpt.store.repository import Repository as Repository
    from casckpt.store.repository import StoreOptions as StoreOptions
    from casckpt.store.rows import CheckpointRow as CheckpointRow
    from casckpt.store.saving import BlobInfo as BlobInfo
    from casckpt.store.saving import BlobSource as BlobSource

_HOMES = {
    "BlobInfo": "saving",
    "BlobRead": "reading",
    "BlobSource": "saving",
    "CheckpointRow": "rows",
    "CommitRequest": "commits",
    "RowWrite": "commits",
    "RowsView": "commits",
    "Repository": "repository",
    "SaveAgain": "objects",
    "StoreOptions": "repository",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a name at its first use: `ls` needs neither the codec nor the reader."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"casckpt.store.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
