"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from casckpt.errors import BadRequest, NoSpace, OperationFailed


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write; when the block ends, it is at `path` and durable.

    A file that was at `path` before is replaced in one step; of a link to a file, that file is. If
    the block raises, or the process dies, `path` is as it was; after a death a hidden
    `.NAME.*.part` may be left beside it.

    Raises:
        BadRequest: if the folder is not there, or `path` is a folder, a device, or whatever else
            is no file.
        NoSpace: if the disk is full.
        OperationFailed: for other errors of the operating system.
    """
    _check_parent(path)
    target = _replaceable(path)
    part = _part_name(target)
    with _mapped(path):
        try:
            with part.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            # ORDER: the bytes are durable before the name points at them.
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        sync_folder(target.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a folder to fill; when the block ends, it is at `path` and durable.

    An empty folder at `path` is replaced. A death in the block leaves at most a hidden
    `.NAME.*.part` beside it.

    Raises:
        BadRequest: if `path` is there and is no empty folder, or its parent is not there.
        NoSpace: if the disk is full.
        OperationFailed: for other errors of the operating system.
    """
    _check_parent(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise BadRequest(f"cannot write to {path}", "it is not a folder", "name a new folder")
    if path.is_dir() and any(path.iterdir()):
        raise BadRequest(f"cannot write to {path}", "it is not empty", "name a new folder")
    part = _part_name(path)
    with _mapped(path):
        try:
            part.mkdir()
            yield part
            for file in part.iterdir():
                if not file.is_symlink():
                    _sync(file)
            # ORDER: files, then the folder that names them, then the name of the folder.
            sync_folder(part)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _part_name(path: Path) -> Path:
    # Names end at 255 bytes: the first part of a long one is enough to recognise it.
    return path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.part")


def _replaceable(path: Path) -> Path:
    """Return what a file at `path` replaces: `path`, or the file that a link there leads to.

    Raises:
        BadRequest: it is no file: a rename over `/dev/null` would take it from every program.
    """
    if not os.path.lexists(path):
        return path
    if path.is_file():
        return Path(os.path.realpath(path)) if path.is_symlink() else path
    if path.is_dir():
        why = "it is a folder"
    elif not path.exists():
        why = "it is a link that leads to no file"
    else:
        why = "it is no regular file, but such as a device or a pipe"
    raise BadRequest(f"cannot write {path}", why, "name a file")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise BadRequest(
            f"cannot write {path}", f"there is no folder {path.parent}", "create the folder first"
        )


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        why = exc.strerror or str(exc)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"cannot write {path}", why, "free space on that disk") from exc
        raise OperationFailed(
            f"cannot write {path}", why, "name another place; nothing was changed there"
        ) from exc
