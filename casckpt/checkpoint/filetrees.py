"""Files and folders as a state tree: the way in.

A tree of files is plain dicts, so that everything that reads checkpoints reads it too:

    {"casckpt.files": 1, "name": "model.pt", "file": FILE}                     one file
    {"casckpt.files": 1, "mode": 0o755, "items": {"sub/model.pt": FILE, ...}}  a folder

    FILE    {"mode": 0o644, "data": BYTES}                                a file as it is
            {"mode": 0o644, "data": BYTES, "at": [offset, ...], "tensors": {name: array, ...}}
            {"link": target}        a symbolic link          {"mode": 0o755, "folder": true}

A file of a known format is cut at its tensors: tensor i lies at at[i], and `data` is what is left.
BYTES are bytes; above 256 MiB a list of them. FORMAT: docs/format.md, section 15.

Source of a file's bytes is the file: they are read blob by blob while they are stored.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from casckpt.checkpoint.arrays_dtypes import TORCH_TO_NUMPY
from casckpt.checkpoint.containers import Cut, find_cuts
from casckpt.checkpoint.exchange.dtypes import ITEM_BYTES
from casckpt.checkpoint.leaves import Leaf, Walker
from casckpt.checkpoint.scalars import TEXT_MAX_BYTES, Node
from casckpt.errors import BadRequest, OperationFailed

MARK: Final = "casckpt.files"
VERSION: Final = 1
"""FORMAT: docs/format.md, section 15."""

PIECE_BYTES: Final = 256 << 20
"""FORMAT: longest bytes of a file in one blob, for they are in memory at once when stored."""

_READ_BYTES: Final = 64 << 20


class Files:
    """A file or folder, wherever a state may stand; what it holds is read when it is saved.

    Args:
        path: the file or folder.
        name: of a file, what it is called in the checkpoint; its own name by default.

    Raises:
        BadRequest: there is nothing of that name, or something in it that is neither file,
            folder nor link.
        OperationFailed: something in it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None) -> None:
        self.path = Path(path)
        with _mapped(self.path):
            status = self.path.stat()
            if stat.S_ISDIR(status.st_mode):
                self._tree = {
                    MARK: VERSION,
                    "mode": stat.S_IMODE(status.st_mode) & 0o777,
                    "items": dict(_items(self.path)),
                }
            else:
                file = _file(self.path)
                self._tree = {MARK: VERSION, "name": name or self.path.name, "file": file}

    def casckpt_flatten(self, path: str, walker: Walker) -> Node:
        """Return the node of the tree; its leaves read the files."""
        return walker.walk(self._tree, path)


@dataclass(frozen=True, slots=True)
class _Stamp:
    """By what a file is recognised as unchanged."""

    device: int
    inode: int
    size: int
    time_ns: int

    @classmethod
    def of(cls, file: IO[bytes]) -> _Stamp:
        status = os.fstat(file.fileno())
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class _Ranges:
    """Ranges of one file, one after the other: the source of a leaf.

    Attributes:
        path: the file.
        stamp: of the file when it was looked at.
        ranges: (offset, length) of each.
    """

    path: Path
    stamp: _Stamp
    ranges: Sequence[tuple[int, int]]

    @property
    def length(self) -> int:
        """Bytes in all."""
        return sum(length for _, length in self.ranges)

    @property
    def memory_maker(self) -> Callable[[int], memoryview] | None:
        """Return None: any memory will do."""
        return None

    def view(self) -> memoryview:
        """Return the bytes, read now.

        Raises:
            OperationFailed: if the file has changed since it was looked at.
        """
        data = memoryview(bytearray(self.length))
        self.copy_to(data)
        return data

    def copy_to(self, dest: memoryview) -> None:
        """Read the bytes into `dest`; raises as `view` does."""
        with _mapped(self.path), self.path.open("rb", buffering=0) as file:
            self._check(file)
            start = 0
            for offset, length in self.ranges:
                _fill(file.fileno(), dest[start : start + length], offset, self.path)
                start += length
            self._check(file)

    def _check(self, file: IO[bytes]) -> None:
        if _Stamp.of(file) != self.stamp:
            raise _changed(self.path)


@dataclass(frozen=True, slots=True)
class _Part:
    """A piece of a file that is a leaf of its own: raw bytes, or a tensor."""

    source: _Ranges
    cut: Cut | None = None

    def casckpt_flatten(self, path: str, walker: Walker) -> Node:
        """Register the leaf."""
        length = self.source.length
        if self.cut is None:
            return walker.add(Leaf(path, "bytes", length=length, source=self.source, opaque=True))
        name, shape, order = self.cut.dtype, self.cut.shape, self.cut.order
        width = ITEM_BYTES[name] // (2 if name.startswith("complex") else 1)
        dtype = TORCH_TO_NUMPY[name]
        return walker.add(Leaf(path, "array", dtype, shape, order, (), width, length, self.source))


def _items(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (path below the root, item) of everything in a folder, by name, folders first."""
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        for path in sorted(folder.iterdir()):
            name = path.relative_to(root).as_posix()
            # Not Path.readlink, which would tidy the text up.
            target = os.readlink(path) if path.is_symlink() else ""  # noqa: PTH115
            if link_stays_inside(name, target):
                yield name, {"link": target}
            elif path.is_dir():
                if path.is_symlink():
                    raise BadRequest(
                        f"{path} is a link to a folder outside of {root}",
                        "only links to files are followed: a folder could contain itself",
                        "save that folder, or copy it",
                    )
                mode = stat.S_IMODE(path.stat().st_mode) & 0o777
                yield name, {"mode": mode, "folder": True}
                waiting.append(path)
            else:
                yield name, _file(path)


def link_stays_inside(name: str, target: str) -> bool:
    """Return whether a link called `name` means something in the same folder, or below.

    Steps upwards count only at the start: after a name they may follow another link.
    """
    if not target or "\0" in target or target.startswith("/"):
        return False
    parts = target.split("/")
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    return ".." not in parts[climbs:] and climbs <= name.count("/")


def _file(path: Path) -> dict[str, Any]:
    """Return the item of one file."""
    # Without O_NONBLOCK, opening a pipe would wait for its other end.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise BadRequest(
                f"{path} is no regular file",
                "pipes, sockets and devices have no content to keep",
                "move it out of the folder",
            )
        stamp = _Stamp.of(file)
        item: dict[str, Any] = {"mode": stat.S_IMODE(status.st_mode) & 0o777}
        cuts = find_cuts(file, stamp.size)
        left = list(_between(cuts, stamp.size))
        if sum(length for _, length in left) <= TEXT_MAX_BYTES:
            data = bytearray(sum(length for _, length in left))
            start = 0
            for offset, length in left:
                view = memoryview(data)[start : start + length]
                _fill(file.fileno(), view, offset, path)
                start += length
            if _Stamp.of(file) != stamp:
                raise _changed(path)
            item["data"] = bytes(data)
        else:
            pieces = [_Part(_Ranges(path, stamp, piece)) for piece in _pieces(left)]
            item["data"] = pieces[0] if len(pieces) == 1 else pieces
    if cuts:
        item["at"] = [cut.offset for cut in cuts]
        item["tensors"] = {
            cut.name: _Part(_Ranges(path, stamp, [(cut.offset, cut.length)]), cut) for cut in cuts
        }
    return item


def _between(cuts: Sequence[Cut], size: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, length) of what lies between the cuts."""
    start = 0
    for cut in cuts:
        if cut.offset > start:
            yield start, cut.offset - start
        start = cut.offset + cut.length
    if size > start:
        yield start, size - start


def _pieces(ranges: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Yield ranges in groups of PIECE_BYTES; all but the last are exactly that long."""
    piece: list[tuple[int, int]] = []
    room = PIECE_BYTES
    for offset, length in ranges:
        while length:
            taken = min(length, room)
            piece.append((offset, taken))
            offset, length, room = offset + taken, length - taken, room - taken
            if not room:
                yield piece
                piece, room = [], PIECE_BYTES
    if piece:
        yield piece


def _fill(descriptor: int, dest: memoryview, offset: int, path: Path) -> None:
    start = 0
    while start < len(dest):
        # One call reads at most about 2 GiB.
        count = os.preadv(descriptor, [dest[start : start + _READ_BYTES]], offset + start)
        if not count:
            raise _changed(path)
        start += count


def _changed(path: Path) -> OperationFailed:
    return OperationFailed(
        f"{path} changed while it was being saved",
        "something else is writing to it",
        "save it when it is complete",
    )


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    """Turn errors of the operating system into casckpt's."""
    try:
        yield
    except FileNotFoundError as exc:
        raise BadRequest(
            f"cannot read {exc.filename or path}", "there is no such file", "check the path"
        ) from exc
    except OSError as exc:
        raise OperationFailed(
            f"cannot read {exc.filename or path}",
            exc.strerror or str(exc),
            "check the file and its permissions",
        ) from exc
