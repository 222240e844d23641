"""Which file systems do not keep LMDB's promises (lmdb.h, "Caveats")."""

from __future__ import annotations

from pathlib import Path

from casckpt.errors import FileSystemRefused
from casckpt.store import files

_REMOTE = {
    0x6969: "NFS",
    0x517B: "SMB",
    0xFF534D42: "CIFS",
    0xFE534D42: "SMB2",
    0x0BD00BD0: "Lustre",
    0x47504653: "GPFS",
    0x65735546: "FUSE",
    0x01021997: "9p",
    0x00C36400: "Ceph",
    0x5346414F: "AFS",
    0x19830326: "FhGFS",
}
BTRFS_MAGIC = 0x9123683E


def refuse_remote(path: Path) -> None:
    """Raise FileSystemRefused if `path` is on a network or FUSE file system."""
    name = _REMOTE.get(files.file_system_type(path))
    if name is not None:
        raise FileSystemRefused(
            f"refused to keep a store at {path}",
            f"it is on a {name} file system, whose locks and memory maps the index cannot trust",
            "put the store on a local disk, and copy it to the other place from there",
        )
