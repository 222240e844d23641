"""What a power failure may leave of a folder, from the log of the system calls in it.

The model is strict POSIX, as in ALICE (Pillai et al., OSDI 2014): what was not flushed may be there
or not, in any combination. A file's flush makes its bytes and size durable, not its name; a
folder's flush makes the names in it durable. A write may be torn at 512 bytes, and a file may have
its new size without the new bytes.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from casckpt.cli.torture.trace import Operation

SECTOR: Final = 512
_PAGE: Final = 4096
_FOLDER: Final = -1
_ROOT: Final = ""


@dataclass
class Disk:
    """Bytes of files by number, and numbers by path; a copy shares what is not written again."""

    files: dict[int, bytes] = field(default_factory=dict)
    names: dict[str, int] = field(default_factory=dict)

    def copy(self) -> Disk:
        """Return a disk that can be changed without changing this one."""
        return Disk(dict(self.files), dict(self.names))

    def write(self, inode: int, offset: int, data: bytes) -> None:
        """Put bytes at a place in a file; a gap before them is zeros."""
        old = self.files.get(inode, b"")
        head = old[:offset].ljust(offset, b"\0")
        self.files[inode] = head + data + old[offset + len(data) :]

    def resize(self, inode: int, length: int) -> None:
        """Cut a file, or extend it by zeros."""
        self.files[inode] = self.files.get(inode, b"")[:length].ljust(length, b"\0")

    def fingerprint(self) -> bytes:
        """Return a hash of all names and bytes."""
        digest = hashlib.blake2b(digest_size=16)
        for path, inode in sorted(self.names.items()):
            content = self.files.get(inode, b"")
            digest.update(f"{path}\0{inode == _FOLDER}{len(content)}\0".encode())
            digest.update(content)
        return digest.digest()

    def write_to(self, root: Path) -> None:
        """Make the folder anew as this disk has it."""
        shutil.rmtree(root, ignore_errors=True)
        for path, inode in sorted(self.names.items()):
            place = root / path if path else root
            if not place.parent.is_dir():
                continue  # the name of its folder was lost
            if inode == _FOLDER:
                place.mkdir(mode=0o700, exist_ok=True)
            else:
                place.write_bytes(self.files.get(inode, b""))


Act = Callable[[Disk], None]


@dataclass(frozen=True)
class _Pending:
    """A change that is not durable before `key` is flushed: a file's number, or a folder's path."""

    key: int | str
    act: Act
    inode: int = 0
    offset: int = 0
    data: bytes | None = None


class Replay:
    """Goes through a log from an empty place, and tells what may be there after a failure."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._durable, self._now = Disk(), Disk()
        self._pending: list[_Pending] = []
        self._inodes = 0

    # ---- the log

    def step(self, operation: Operation) -> None:
        """Take in one operation."""
        name = self._name(operation.path)
        if name is None:
            if operation.kind == "sync":
                self._flush("..")
            return
        inode = self._now.names.get(name, 0)
        if operation.kind in ("write", "wsync"):
            data, offset = operation.data, operation.offset
            self._begin(
                _Pending(inode, lambda disk: disk.write(inode, offset, data), inode, offset, data)
            )
            if operation.kind == "wsync":
                self._flush_pages(inode, offset, len(data))
        elif operation.kind == "size":
            length = operation.offset
            self._begin(_Pending(inode, lambda disk: disk.resize(inode, length)))
        elif operation.kind == "grow":
            # What is reserved so holds nothing that is ever read: its length is not modelled.
            return
        elif operation.kind in ("create", "mkdir"):
            self._inodes += 1
            number = _FOLDER if operation.kind == "mkdir" else self._inodes
            self._begin(_Pending(_folder(name), lambda disk: disk.names.update({name: number})))
        elif operation.kind == "rename":
            target = self._name(operation.other)
            if target is not None:
                self._begin(_Pending(_folder(target), _move(name, target, inode)))
        elif operation.kind == "unlink":
            self._begin(_Pending(_folder(name), lambda disk: _forget(disk, name)))
        elif operation.kind == "sync":
            self._flush(name if inode == _FOLDER else inode)

    def _name(self, path: str) -> str | None:
        """Return a path below the root, "" for the root itself, None for its parent."""
        if path == self._root:
            return _ROOT
        return path[len(self._root) + 1 :] if path.startswith(self._root + "/") else None

    def _begin(self, pending: _Pending) -> None:
        self._pending.append(pending)
        pending.act(self._now)

    def _flush(self, key: int | str) -> None:
        self._keep(lambda pending: pending.key == key)

    def _flush_pages(self, inode: int, offset: int, length: int) -> None:
        """O_DSYNC: the pages that were written, with all that was pending in them."""
        low, high = offset // _PAGE * _PAGE, -(-(offset + length) // _PAGE) * _PAGE
        self._keep(
            lambda pending: (
                pending.key == inode and pending.data is not None and low <= pending.offset < high
            )
        )

    def _keep(self, is_durable: Callable[[_Pending], bool]) -> None:
        left = []
        for pending in self._pending:
            if is_durable(pending):
                pending.act(self._durable)
            else:
                left.append(pending)
        self._pending = left

    # ---- what may be left

    def crashes(self, draw: random.Random, count: int) -> Iterator[Disk]:
        """Yield what a failure now may leave: nothing pending, all of it, and `count` drawn."""
        yield self._durable.copy()
        if not self._pending:
            return
        yield self._now.copy()
        for _ in range(count):
            way = draw.choice(_WAYS)
            disk = self._durable.copy()
            for act in way(self._pending, draw):
                act(disk)
            yield disk


def _folder(name: str) -> str:
    return ".." if name == _ROOT else name.rpartition("/")[0]


def _move(source: str, target: str, inode: int) -> Act:
    def act(disk: Disk) -> None:
        if disk.names.get(source) == inode:
            del disk.names[source]
        disk.names[target] = inode

    return act


def _forget(disk: Disk, name: str) -> None:
    disk.names.pop(name, None)


def _drop_one(full: list[_Pending], draw: random.Random) -> Iterator[Act]:
    out = draw.randrange(len(full))
    yield from (pending.act for at, pending in enumerate(full) if at != out)


def _only_one(full: list[_Pending], draw: random.Random) -> Iterator[Act]:
    yield draw.choice(full).act


def _some(full: list[_Pending], draw: random.Random) -> Iterator[Act]:
    yield from (pending.act for pending in full if draw.random() < 0.5)


def _torn(full: list[_Pending], draw: random.Random) -> Iterator[Act]:
    for pending in full:
        if pending.data is None:
            if draw.random() < 0.8:
                yield pending.act
            continue
        for low, high in _sectors(pending.offset, len(pending.data)):
            if draw.random() < 0.5:
                yield _part(pending, low, high)


def _sizes_only(full: list[_Pending], draw: random.Random) -> Iterator[Act]:
    for pending in full:
        if pending.data is not None and draw.random() < 0.7:
            yield _part(pending, len(pending.data), len(pending.data))
        else:
            yield pending.act


def _part(pending: _Pending, low: int, high: int) -> Act:
    data = (pending.data or b"")[low:high]
    return lambda disk: disk.write(pending.inode, pending.offset + low, data)


def _sectors(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a write at `offset` that lie in one sector each."""
    at = 0
    while at < length:
        end = min((offset + at) // SECTOR * SECTOR + SECTOR - offset, length)
        yield at, end
        at = end


_WAYS: Final = (_drop_one, _only_one, _some, _torn, _sizes_only)
