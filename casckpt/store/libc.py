"""Calls of the C library that Python does not offer, or not without the GIL, for `files.py`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import cast

_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_WRITE = 2  # SYNC_FILE_RANGE_WRITE, linux/fs.h
_STATFS_BYTES = 256  # struct statfs has 120


def file_system_type(path: Path) -> int:
    """Return the magic number of a file system (statfs(2), f_type); OSError if it cannot be had."""
    import ctypes

    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        raise _error()
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF


def allocate_keep_size(descriptor: int, offset: int, length: int) -> None:
    """Reserve space past the end of a file without changing its size (fallocate(2))."""
    if _call("fallocate")(descriptor, _KEEP_SIZE, offset, length) != 0:
        raise _error()


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Begin to write a range to the disk (sync_file_range(2)); whether it does is not told."""
    _call("sync_file_range")(descriptor, offset, length, _WRITE)


def _error() -> OSError:
    import ctypes

    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


@functools.cache
def _call(name: str) -> Callable[..., int]:
    import ctypes

    call = getattr(ctypes.CDLL(None, use_errno=True), name)
    call.argtypes = {
        "fallocate": [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64],
        "sync_file_range": [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint],
    }[name]
    return cast("Callable[..., int]", call)
