"""The locks that LMDB keeps on `lock.mdb`, held so that nothing this process does lets go of them.

LMDB says with two POSIX locks that a process is at work: who finds none on the first byte makes
the table of readers anew, who finds none on the byte of a pid takes that reader for dead, and its
pages for free. The kernel drops POSIX locks when the process closes *any* descriptor of the file
(fcntl(2)), so `shutil.copytree` of one's own store would end them. Locks of an open file
description end with that description only; to LMDB of other processes they look the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from casckpt.errors import StoreBusy
from casckpt.store import files, lock_files

LOCK_FILE = "lock.mdb"
_FIRST_BYTE = 0


class EngineLocks:
    """The locks of one open index, until `close`."""

    def __init__(self, index: Path) -> None:
        """Take over the locks of LMDB, which has the index open and has begun a read before.

        No transaction of this process may be open meanwhile.

        Raises:
            StoreBusy: a process of the same number has it open, in another PID namespace.
            FileNotFoundError: somebody has removed it since.
        """
        self._path = index / LOCK_FILE
        self._descriptor = lock_files.open_to_lock(self._path, os.O_RDWR)
        try:
            # ORDER: at each moment the first byte has a lock, of LMDB or of ours
            self._take(_FIRST_BYTE, exclusive=False)
            files.close_file(files.open_file(self._path, os.O_RDWR))  # drops those of LMDB
            self._take(os.getpid(), exclusive=True)
        except BaseException:
            self.close()
            raise

    def _take(self, byte: int, *, exclusive: bool) -> None:
        if not files.try_lock(self._descriptor, exclusive=exclusive, start=byte, length=1):
            raise StoreBusy(
                f"cannot open the index {self._path.parent.name}",
                f"another process has a lock on {LOCK_FILE}",
                "containers that share a store must share a PID namespace (--pid=host)",
            )

    def are_of(self, path: Path) -> bool:
        """Tell whether the file at `path` is the one that is locked."""
        return self._descriptor >= 0 and self.identity() == files.identity(path)

    def identity(self) -> tuple[int, int]:
        """Return what tells the locked file from another (see `files.identity`)."""
        return files.identity_of(self._descriptor)

    def close(self) -> None:
        """Let go of both; not an error twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            lock_files.close_lock(descriptor)
