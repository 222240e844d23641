"""Stores that the power may leave behind, made from the log of a workload's operations.

The model is strict POSIX, as in ALICE (Pillai et al., OSDI 2014): what was not flushed may be there
or not, in any combination. A file's flush makes its bytes and its size durable, not its name; a
folder's flush makes the names in it durable. A write may be torn at 512 bytes, and a file may have
its new size without the new bytes. Of all those states a seed draws some after every operation.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from tests.crash import shim

_SECTOR = 512
_PAGE = 4096
FOLDER = -1

# (kind, ...): write inode offset data | size inode length | name path inode | folder path
# | move from to inode | gone path
Change = tuple[object, ...]
# (number of the change, how much of it): -1 all of it, -2 its length without its bytes, else the
# sectors of the write that reached the disk, as bits.
Part = tuple[int, int]
ALL, LENGTH_ONLY = -1, -2


class Disk:
    """Files by number and names by path; a copy shares the bytes of files that stay the same."""

    def __init__(self) -> None:
        self.files: dict[int, bytearray] = {}
        self.names: dict[str, int] = {}
        self._shared: set[int] = set()
        self._hashes: dict[int, bytes] = {}

    def copy(self) -> Disk:
        other = Disk()
        other.files, other.names = dict(self.files), dict(self.names)
        other._hashes = dict(self._hashes)
        self._shared, other._shared = set(self.files), set(self.files)
        return other

    def _content(self, inode: int) -> bytearray:
        content = self.files.get(inode)
        if content is None or inode in self._shared:
            content = self.files[inode] = bytearray(content or b"")
            self._shared.discard(inode)
        self._hashes.pop(inode, None)
        return content

    def apply(self, change: Change) -> None:
        kind, *rest = change
        if kind == "write":
            inode, offset, data = rest
            content = self._content(inode)
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        elif kind == "size":
            inode, length = rest
            content = self._content(inode)
            content.extend(bytes(max(length - len(content), 0)))
            del content[length:]
        elif kind in ("name", "folder"):
            self.names[rest[0]] = rest[1]
        elif kind == "move":
            source, target, inode = rest
            if self.names.get(source) == inode:
                del self.names[source]
            self.names[target] = inode
        else:
            self.names.pop(rest[0], None)

    def fingerprint(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for path, inode in sorted(self.names.items()):
            digest.update(f"{path}\0".encode())
            if inode != FOLDER:
                digest.update(self._hash(inode))
        return digest.digest()

    def _hash(self, inode: int) -> bytes:
        known = self._hashes.get(inode)
        if known is None:
            content = self.files.get(inode, b"")
            known = blake3(content).digest(16)
            self._hashes[inode] = known
        return known

    def write_to(self, root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        for path, inode in sorted(self.names.items()):
            place = root / path if path else root
            if not place.parent.is_dir():
                continue  # the folder's own name was lost
            if inode == FOLDER:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(self.files.get(inode, b""))


@dataclass(frozen=True, slots=True)
class Pending:
    """A change on its way to the disk; the flush of `key` makes it durable."""

    number: int
    change: Change
    key: object

    def part(self, much: int) -> Iterator[Change]:
        """Yield what reaches the disk if only that much of it does."""
        if much == ALL:
            yield self.change
            return
        _, inode, offset, data = self.change
        if much == LENGTH_ONLY:
            yield ("write", inode, offset + len(data), b"")
            return
        for low, high in sectors(offset, len(data)):
            if much & 1:
                yield ("write", inode, offset + low, data[low:high])
            much >>= 1


def sectors(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of a write at `offset` that lie in one sector each."""
    at = 0
    while at < length:
        end = min((offset + at) // _SECTOR * _SECTOR + _SECTOR - offset, length)
        yield at, end
        at = end


class Replay:
    """Goes through a log, keeping apart what is durable and what is on its way."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root, self.draw = root, draw
        self.durable, self.now = Disk(), Disk()
        self.pending: list[Pending] = []
        self.flushes = 0  # how often the durable disk changed
        self._inodes = self._changes = 0

    def start_from(self, template: Path) -> None:
        """Take a prepared store as durable."""
        if not template.exists():
            return
        for path in (template, *sorted(template.rglob("*"))):
            name = "" if path == template else str(path.relative_to(template))
            change: Change = ("folder", name, FOLDER)
            if path.is_file():
                self._inodes += 1
                self.durable.files[self._inodes] = bytearray(path.read_bytes())
                change = ("name", name, self._inodes)
            self.durable.apply(change)
        self.now = self.durable.copy()

    def _name(self, path: str) -> str:
        return "" if path == str(self.root) else str(Path(path).relative_to(self.root))

    def _folder_of(self, name: str) -> str:
        return ".." if name == "" else str(Path(name).parent).removeprefix(".")

    def _begin(self, change: Change, key: object) -> None:
        self._changes += 1
        self.pending.append(Pending(self._changes, change, key))
        self.now.apply(change)

    def step(self, operation: shim.Operation) -> None:
        """Take in one operation of the log."""
        if Path(operation.path) == self.root.parent:
            self._flush("..")
            return
        name = self._name(operation.path)
        inode = self.now.names.get(name, 0)
        if operation.name in ("write", "wsync"):
            self._begin(("write", inode, operation.offset, operation.data), inode)
            if operation.name == "wsync":
                self._flush_pages(inode, operation.offset, len(operation.data))
        elif operation.name == "size":
            self._begin(("size", inode, operation.offset), inode)
        elif operation.name == "create":
            self._inodes += 1
            self._begin(("name", name, self._inodes), self._folder_of(name))
        elif operation.name == "mkdir":
            self._begin(("folder", name, FOLDER), self._folder_of(name))
        elif operation.name == "rename":
            target = self._name(operation.other)
            self._begin(("move", name, target, inode), self._folder_of(target))
        elif operation.name == "unlink":
            self._begin(("gone", name), self._folder_of(name))
        elif operation.name == "sync":
            self._flush(name if inode == FOLDER else inode)

    def _flush(self, key: object) -> None:
        self._keep(lambda entry: entry.key == key)

    def _flush_pages(self, inode: int, offset: int, length: int) -> None:
        """O_DSYNC: the pages that were written, with what was pending in them."""
        low, high = offset // _PAGE * _PAGE, -(-(offset + length) // _PAGE) * _PAGE

        def inside(entry: Pending) -> bool:
            change = entry.change
            return entry.key == inode and change[0] == "write" and low <= change[2] < high

        self._keep(inside)

    def _keep(self, is_durable: Callable[[Pending], bool]) -> None:
        left = []
        for entry in self.pending:
            if is_durable(entry):
                self.durable.apply(entry.change)
                self.flushes += 1
            else:
                left.append(entry)
        self.pending = left

    def crashes(self, count: int) -> Iterator[tuple[Part, ...]]:
        """Yield what of the pending a power failure may leave: nothing, all, and `count` drawn."""
        yield ()
        if self.pending:
            yield tuple((entry.number, ALL) for entry in self.pending)
            for _ in range(count):
                yield tuple(self.draw.choice(_WAYS)(self.pending, self.draw))

    def disk(self, parts: tuple[Part, ...]) -> Disk:
        """Return the durable disk with these parts of what is pending."""
        disk = self.durable.copy()
        pending = {entry.number: entry for entry in self.pending}
        for number, much in parts:
            for change in pending[number].part(much):
                disk.apply(change)
        return disk


def _drop_one(full: list[Pending], draw: random.Random) -> list[Part]:
    left_out = draw.randrange(len(full))
    return [(entry.number, ALL) for at, entry in enumerate(full) if at != left_out]


def _only_one(full: list[Pending], draw: random.Random) -> list[Part]:
    return [(draw.choice(full).number, ALL)]


def _some(full: list[Pending], draw: random.Random) -> list[Part]:
    return [(entry.number, ALL) for entry in full if draw.random() < 0.5]


def _torn(full: list[Pending], draw: random.Random) -> list[Part]:
    kept: list[Part] = []
    for entry in full:
        if entry.change[0] == "write":
            _, _, offset, data = entry.change
            count = sum(1 for _ in sectors(offset, len(data)))
            kept.append((entry.number, draw.getrandbits(count)))
        elif draw.random() < 0.8:
            kept.append((entry.number, ALL))
    return kept


def _sizes_only(full: list[Pending], draw: random.Random) -> list[Part]:
    return [
        (entry.number, LENGTH_ONLY)
        if entry.change[0] == "write" and draw.random() < 0.7
        else (entry.number, ALL)
        for entry in full
    ]


_WAYS: tuple[Callable[[list[Pending], random.Random], list[Part]], ...] = (
    _drop_one,
    _only_one,
    _some,
    _torn,
    _sizes_only,
)
