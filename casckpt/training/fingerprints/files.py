"""Hashes of files, with a cache that knows from `stat` that a file has not changed.

One change escapes it: a process that keeps a file mapped (mmap, numpy's memmap) and goes on writing
to pages that it has written before. The file system notes the time of the first write to a page,
and again only after it has written the page back: until then all of `stat` stays as it was, and no
reader can tell. Close or flush a mapping (`msync`) before the file counts.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt import native
from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.store import Repository
    from casckpt.store.commits import RowWrite

PREFIX: Final = b"f\0"
"""FORMAT: rows of the table `cache` that hold the hash of a file begin with this."""

_VERSION: Final = 1
_ROW: Final = struct.Struct("<B5Q32s")
"""FORMAT: version, size, mtime, ctime (ns), inode, device, hash; then the path for people."""

_READ_BYTES: Final = 1 << 20
_SETTLED_NS: Final = 2_000_000_000
"""A file changed less than this before it was hashed is hashed again next time: a second change
within the clock tick of its file system (up to 2 s on FAT) leaves the same stat."""

_WRITE_EVERY: Final = 200
_WRITE_EVERY_S: Final = 5.0
"""What was hashed is kept at least this often: a kill among many large files loses little."""

_ATTEMPTS: Final = 3

_Stat = tuple[int, int, int, int, int]
_known: dict[bytes, tuple[_Stat, bytes]] = {}


class FileHashes:
    """Hashes files and folders; remembers them in this process, and in a store if it has one.

    Args:
        repository: the store that remembers; None for this process only.
    """

    def __init__(self, repository: Repository | None = None) -> None:
        self._repository = repository
        self._writable = repository is not None and repository.mode == "a"
        self._waiting: list[RowWrite] = []
        self._written_s = time.monotonic()

    def of(self, path: Path) -> bytes:
        """Return the hash of a file's content, or of a folder's names and contents.

        Raises:
            BadRequest: it cannot be read, or is neither a file nor a folder.
        """
        try:
            return self._of(path.absolute())
        except OSError as exc:
            raise BadRequest(
                f"{path} has no fingerprint: {exc.strerror or exc}",
                "a Path means the content of what it names",
                "correct the path; or pass str(path) if only its text matters",
                path=str(path),
            ) from exc

    def save(self) -> None:
        """Write what was hashed since the last time to the store."""
        waiting, self._waiting = self._waiting, []
        self._written_s = time.monotonic()
        if waiting and self._repository is not None:
            self._repository.write_rows(waiting)

    def _of(self, path: Path) -> bytes:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            hasher = native.Hasher()
            for child in sorted(path.iterdir(), key=lambda one: os.fsencode(one.name)):
                name = os.fsencode(child.name)
                hasher.update(len(name).to_bytes(8, "little") + name + self._of(child))
            return native.blake3(b"folder" + hasher.digest())
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(f"{path} has no fingerprint", "it is neither a file nor a folder")
        name = os.fsencode(path)
        facts = _facts(status)
        known = _known.get(name) or self._remembered(name)
        if known is not None and known[0] == facts:
            _known[name] = known
            return known[1]
        return self._hash(path, name)

    def _hash(self, path: Path, name: bytes) -> bytes:
        for _ in range(_ATTEMPTS):
            hasher = native.Hasher()
            with path.open("rb", buffering=0) as file:
                before = _facts(os.fstat(file.fileno()))
                began_ns = time.time_ns()
                while piece := file.read(_READ_BYTES):
                    hasher.update(piece)
                after = _facts(os.fstat(file.fileno()))
            if before == after:
                digest = hasher.digest()
                if began_ns - max(before[1], before[2]) > _SETTLED_NS:
                    self._remember(name, before, digest)
                return digest
        raise BadRequest(
            f"{path} has no fingerprint", "it changed each time while it was read", path=str(path)
        )

    def _remembered(self, name: bytes) -> tuple[_Stat, bytes] | None:
        if self._repository is None:
            return None
        row = self._repository.row("cache", _key(name))
        if row is None or len(row.payload) < _ROW.size or row.payload[0] != _VERSION:
            return None
        _, *facts, digest = _ROW.unpack_from(row.payload)
        return (facts[0], facts[1], facts[2], facts[3], facts[4]), digest

    def _remember(self, name: bytes, facts: _Stat, digest: bytes) -> None:
        _known[name] = facts, digest
        if not self._writable:
            return
        from casckpt.store.commits import RowWrite

        payload = _ROW.pack(_VERSION, *facts, digest) + name
        self._waiting.append(RowWrite("cache", _key(name), payload))
        is_time = time.monotonic() - self._written_s > _WRITE_EVERY_S
        if len(self._waiting) >= _WRITE_EVERY or is_time:
            self.save()


def _key(name: bytes) -> bytes:
    return PREFIX + native.blake3(name)[:16]


def _facts(status: os.stat_result) -> _Stat:
    mask = (1 << 64) - 1
    return (
        status.st_size,
        status.st_mtime_ns & mask,
        status.st_ctime_ns & mask,
        status.st_ino & mask,
        status.st_dev & mask,
    )
