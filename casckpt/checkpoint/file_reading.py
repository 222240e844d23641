"""Files and folders as a state tree: the way out.

Nothing is read before it is asked for, and a file is never in memory as a whole: it is copied to
its place in pieces, or read from any offset.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Final

from casckpt.checkpoint.exchange.atomic import new_file, new_folder, sync_folder
from casckpt.checkpoint.extents import blob_lengths
from casckpt.checkpoint.filetrees import MARK, VERSION, link_stays_inside
from casckpt.checkpoint.leaves import RestoreOptions
from casckpt.checkpoint.manifest import Manifest
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.checkpoint.tree_build import Builder
from casckpt.errors import BadRequest, Corrupt, NewerFormat

if TYPE_CHECKING:
    from casckpt.store import Repository

_COPY_BYTES: Final = 32 << 20
"""How much of a file is in memory while it is written: enough chunks for all workers."""

_MODE_MAX: Final = 0o777


@dataclass(frozen=True, slots=True)
class _Extent:
    """Bytes of a file: of a blob, or in the manifest itself."""

    start: int
    length: int
    blob: bytes = b""
    blob_length: int = 0
    blob_offset: int = 0
    inline: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a checkpoint.

    Attributes:
        name: its path in the checkpoint.
        size: bytes.
        mode: permissions.
    """

    name: str
    size: int
    mode: int
    _extents: tuple[_Extent, ...]
    _repository: Repository

    def read(self, start: int, dest: memoryview) -> None:
        """Fill `dest` with the bytes from `start` on, checked against their ids.

        Raises:
            Corrupt: they are damaged.
            Deleted: the checkpoint was removed.
            ValueError: they reach beyond the end.
        """
        from casckpt.store import BlobRead

        end = start + len(dest)
        if start < 0 or end > self.size:
            raise ValueError(f"bytes {start} to {end} of {self.size}")
        first = bisect.bisect_right(self._extents, start, key=lambda extent: extent.start) - 1
        reads = []
        for extent in self._extents[max(first, 0) :]:
            if extent.start >= end:
                break
            low, high = max(start, extent.start), min(end, extent.start + extent.length)
            if low >= high:
                continue
            part, skip = dest[low - start : high - start], low - extent.start
            if extent.blob:
                offset = extent.blob_offset + skip
                reads.append(BlobRead(extent.blob, extent.blob_length, offset, part))
            else:
                part[:] = extent.inline[skip : skip + len(part)]
        if reads:
            try:
                self._repository.read_blobs(reads)
            except Corrupt as exc:
                raise Corrupt(
                    f"damaged on disk: {self.name}",
                    exc.what,
                    exc.hint,
                    **(exc.details | {"paths": [self.name]}),
                ) from exc

    def copy_to(self, file: IO[bytes]) -> None:
        """Write all of it to a file; raises as `read` does."""
        buffer = memoryview(bytearray(min(self.size, _COPY_BYTES)))
        for start in range(0, self.size, _COPY_BYTES):
            part = buffer[: min(_COPY_BYTES, self.size - start)]
            self.read(start, part)
            file.write(part)


@dataclass(frozen=True)
class FileTree:
    """The files of a checkpoint.

    Attributes:
        single: whether one file was saved, not a folder.
        files: by path.
        links: path to target.
        folders: path to permissions, those above before those below.
        mode: permissions of the folder itself.
    """

    single: bool
    files: Mapping[str, StoredFile]
    links: Mapping[str, str]
    folders: Mapping[str, int]
    mode: int

    def write(self, dest: Path) -> list[Path]:
        """Write all files, whole and durable or not at all; return their paths.

        Args:
            dest: a new or empty folder. Of a single file: its new place, or a folder that is
                there, in which it gets its name and replaces what has it.

        Raises:
            BadRequest: `dest` is taken, or its parent is not there.
            Corrupt: bytes are damaged; nothing was written.
            NoSpace, OperationFailed: the system refuses; nothing was written.
        """
        if self.single:
            (file,) = self.files.values()
            path = dest / PurePosixPath(file.name).name if dest.is_dir() else dest
            with new_file(path) as out:
                file.copy_to(out)
                os.fchmod(out.fileno(), file.mode)
            return [path]
        with new_folder(dest) as folder:
            self._fill(folder)
        return [dest / name for name in sorted([*self.files, *self.links])]

    def write_into(self, dest: Path) -> list[Path]:
        """Write all files into a new or empty folder, a single one too; see `write`."""
        if not self.single:
            return self.write(dest)
        (file,) = self.files.values()
        name = PurePosixPath(file.name).name
        with new_folder(dest) as folder:
            self._write(file, folder / name)
        return [dest / name]

    def _fill(self, folder: Path) -> None:
        for name in self.folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        for name, file in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(file, path)
        # ORDER: links last, so that nothing is ever written through one.
        for name, target in self.links.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(target)
        for name, mode in reversed(list(self.folders.items())):
            sync_folder(folder / name)
            (folder / name).chmod(mode)
        # What was ours to read is ours to remove, whatever it was saved with.
        folder.chmod(self.mode | 0o700)

    @staticmethod
    def _write(file: StoredFile, path: Path) -> None:
        with path.open("xb") as out:
            file.copy_to(out)
            out.flush()
            os.fchmod(out.fileno(), file.mode)
            os.fsync(out.fileno())


def holds_files(tree: Node) -> bool:
    """Return whether a manifest's tree is one of files."""
    return (
        isinstance(tree, dict)
        and isinstance(tree.get("d"), list)
        and bool(tree["d"])
        and tree["d"][0] == MARK
    )


def file_tree(repository: Repository, manifest: Manifest, refs: Sequence[bytes]) -> FileTree:
    """Return the files of a checkpoint; nothing of them is read yet.

    Raises:
        BadRequest: it holds a state, not files.
        NewerFormat: a newer casckpt wrote it.
        Corrupt: the manifest contradicts itself.
    """
    if not holds_files(manifest.tree):
        raise BadRequest(
            f"{manifest.run}@{manifest.step} holds a state, not files",
            "it was made with save()",
            "use restore(), or export() for a file that others read",
        )
    lengths = blob_lengths(manifest, len(refs))

    def leaf(index: int) -> Any:
        entry = manifest.entries[index]
        if entry.alias is not None:
            raise malformed(f"{entry.path}: a file that is another leaf")
        if entry.blob is None:
            return _Extent(0, 0)
        return _Extent(0, entry.length, refs[entry.blob], lengths[entry.blob], entry.offset)

    root = Builder(leaf, len(manifest.entries), RestoreOptions()).build(manifest.tree)
    if root.get(MARK) != VERSION:
        raise NewerFormat(
            "these files were saved by a newer casckpt",
            f"their version is {root.get(MARK)!r:.20}, this casckpt reads {VERSION}",
        )
    if set(root) == {MARK, "name", "file"}:
        file = _file(_name(root["name"]), root["file"], repository)
        return FileTree(True, {file.name: file}, {}, {}, file.mode)
    if set(root) != {MARK, "mode", "items"} or type(root["items"]) is not dict:
        raise malformed("files with other keys than those of version 1")
    return _folder(root, repository)


def _folder(root: Mapping[str, Any], repository: Repository) -> FileTree:
    files: dict[str, StoredFile] = {}
    links: dict[str, str] = {}
    folders: dict[str, int] = {}
    for name, item in root["items"].items():
        name = _name(name)
        if type(item) is not dict:
            raise malformed(f"{name}: a file that is no table")
        if set(item) == {"link"}:
            links[name] = _target(name, item["link"])
        elif set(item) == {"mode", "folder"}:
            folders[name] = _mode(item["mode"])
        else:
            files[name] = _file(name, item, repository)
    for name in [*files, *links, *folders]:
        for parent in PurePosixPath(name).parents:
            if str(parent) in files or str(parent) in links:
                raise malformed(f"{name} lies in {parent}, which is no folder")
    return FileTree(False, files, links, dict(sorted(folders.items())), _mode(root["mode"]))


def _file(name: str, item: Any, repository: Repository) -> StoredFile:
    if type(item) is not dict or set(item) - {"at", "tensors"} != {"mode", "data"}:
        raise malformed(f"{name}: a file with other keys than those of version 1")
    at, tensors = item.get("at", []), item.get("tensors", {})
    if type(at) is not list or type(tensors) is not dict or len(at) != len(tensors):
        raise malformed(f"{name}: places and tensors that do not pair up")
    data = item["data"] if type(item["data"]) is list else [item["data"]]
    extents = tuple(_extents(name, _between(name, data), at, list(tensors.values())))
    size = extents[-1].start + extents[-1].length if extents else 0
    return StoredFile(name, size, _mode(item["mode"]), extents, repository)


def _between(name: str, data: Sequence[Any]) -> list[_Extent]:
    found = []
    for piece in data:
        if type(piece) is bytes:
            piece = _Extent(0, len(piece), inline=piece)
        if not isinstance(piece, _Extent):
            raise malformed(f"{name}: content that is no bytes")
        found.append(piece)
    return found


def _extents(
    name: str, data: Sequence[_Extent], at: Sequence[Any], tensors: Sequence[Any]
) -> Iterator[_Extent]:
    """Yield the extents of a file in order: `data`, with a tensor wherever one lies."""
    waiting = [piece for piece in reversed(data) if piece.length]
    place = 0
    for offset, tensor in zip([*at, None], [*tensors, None], strict=True):
        while waiting and (offset is None or place < offset):
            piece = waiting.pop()
            room = piece.length if offset is None else min(piece.length, offset - place)
            yield _cut(piece, 0, room, place)
            place += room
            if room < piece.length:
                waiting.append(_cut(piece, room, piece.length, 0))
        if offset is not None:
            if type(offset) is not int or offset != place or not isinstance(tensor, _Extent):
                raise malformed(f"{name}: a tensor that does not lie where it should")
            yield _cut(tensor, 0, tensor.length, place)
            place += tensor.length


def _cut(piece: _Extent, low: int, high: int, start: int) -> _Extent:
    inline = piece.inline[low:high]
    offset = piece.blob_offset + low
    return _Extent(start, high - low, piece.blob, piece.blob_length, offset, inline)


def _name(name: Any) -> str:
    """Return a path below the folder, judged: it may come from anybody's store."""
    if type(name) is not str or not name or "\0" in name:
        raise malformed("a file without a name")
    if any(part in ("", ".", "..") for part in name.split("/")):
        raise malformed(f"a file called {name[:80]!r}, which leaves its folder")
    return name


def _target(name: str, target: Any) -> str:
    if type(target) is not str or not link_stays_inside(name, target):
        raise malformed(f"{name}: a link that leaves its folder")
    return target


def _mode(mode: Any) -> int:
    if type(mode) is not int or not 0 <= mode <= _MODE_MAX:
        raise malformed("permissions that are none")
    return mode
