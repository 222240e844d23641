"""A disk that keeps a log: a file served by this process, below a loop device.

Linux has devices that record their writes (dm-log-writes, nbd, ublk), but not in every kernel. A
file of FUSE below a loop device comes to the same: the loop device hands each write of the file
system above to the file, and each flush as fsync. The server answers one request at a time, so what
stands before a flush in the log was complete when the flush came.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_READ, _WRITE, _FSYNC, _INIT, _GETATTR, _OPEN, _STATFS = 15, 16, 20, 26, 3, 14, 17
_EMPTY = (18, 25, 38)  # release, flush, destroy
_SILENT = (2, 36, 42)  # forget, interrupt, batch forget
_IN = struct.Struct("<IIQQIIII")
_WRITE_IN = struct.Struct("<QQIIQII")
_MAX_WRITE = 1 << 20
_BIG_WRITES, _MAX_PAGES = 1 << 5, 1 << 22

_LOOP_CONFIGURE, _LOOP_GET_FREE = 0x4C0A, 0x4C82
_LOOP_AUTOCLEAR = 4
_DETACH = 2


def missing() -> str:
    """Return why such a disk cannot be had here, or an empty string."""
    if os.geteuid() != 0:
        return "needs root"
    for device in ("/dev/fuse", "/dev/loop-control"):
        if not Path(device).exists():
            return f"needs {device}"
    return ""


def mount(source: str, target: Path, kind: str, options: str = "") -> None:
    """Mount a file system."""
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.mount(source.encode(), os.fsencode(target), kind.encode(), 0, options.encode())
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"cannot mount {source} as {kind}: {os.strerror(number)}")


def unmount(target: Path) -> None:
    """Take a file system from the tree, at once, also from under those who use it."""
    ctypes.CDLL(None).umount2(os.fsencode(target), _DETACH)


def loop_device(path: Path) -> tuple[str, int]:
    """Return a device over a file, and a descriptor that keeps it until the mount does."""
    with Path("/dev/loop-control").open("rb") as control:
        while True:
            name = f"/dev/loop{fcntl.ioctl(control, _LOOP_GET_FREE)}"
            device = os.open(name, os.O_RDWR | os.O_CLOEXEC)
            backing = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            info = struct.pack("<5Q4I64s64s32s2Q", *(0,) * 8, _LOOP_AUTOCLEAR, b"", b"", b"", 0, 0)
            try:
                fcntl.ioctl(
                    device, _LOOP_CONFIGURE, struct.pack("<II", backing, 0) + info + bytes(64)
                )
                return name, device
            except OSError as exc:
                os.close(device)
                if exc.errno != errno.EBUSY:
                    raise
            finally:
                os.close(backing)


@contextmanager
def mounted(image: Path, target: Path, kind: str) -> Iterator[Path]:
    """Mount an image file at a folder."""
    name, device = loop_device(image)
    try:
        mount(name, target, kind)
    finally:
        os.close(device)
    try:
        yield target
    finally:
        unmount(target)


class LoggedDisk:
    """An image served as a file, in a process of its own, with a log of writes and flushes."""

    def __init__(self, image: Path, folder: Path) -> None:
        """Take the image to begin with, and a folder for the file and the log."""
        self.file, self.log = folder / "logged-disk", folder / "disk-log"
        self._image = image
        self._count = mmap.mmap(-1, 8)
        self._pid = 0

    @property
    def count(self) -> int:
        """The number of records that the log has by now."""
        return int.from_bytes(self._count[:8], "little")

    @contextmanager
    def serving(self) -> Iterator[Path]:
        """Serve the image; yield the path of the file."""
        self.file.touch()
        self.log.unlink(missing_ok=True)
        fuse = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        mount("casckpt", self.file, "fuse", f"fd={fuse},rootmode=100644,user_id=0,group_id=0")
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._serve(fuse)
            finally:
                os._exit(0)
        os.close(fuse)
        try:
            yield self.file
        finally:
            unmount(self.file)
            os.waitpid(self._pid, 0)

    def _serve(self, fuse: int) -> None:
        content = bytearray(self._image.read_bytes())
        with self.log.open("wb") as log:
            while True:
                try:
                    request = os.read(fuse, _MAX_WRITE + (1 << 16))
                except OSError as exc:
                    if exc.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                        continue
                    return  # ENODEV: unmounted
                _, code, unique, *_ = _IN.unpack_from(request)
                if code in _SILENT:
                    continue
                failed, answer = 0, b""
                if code == _WRITE:
                    _, offset, size, *_ = _WRITE_IN.unpack_from(request, _IN.size)
                    data = request[_IN.size + _WRITE_IN.size :][:size]
                    content[offset : offset + size] = data
                    log.write(struct.pack("<QQ", offset, size) + data)
                    self._tick(log)
                    answer = struct.pack("<II", size, 0)
                elif code == _FSYNC:
                    log.write(struct.pack("<QQ", 0, 0))
                    self._tick(log)
                elif code not in _EMPTY:
                    failed, answer = _other(code, request, content)
                with contextlib.suppress(OSError):
                    os.write(fuse, struct.pack("<IiQ", 16 + len(answer), failed, unique) + answer)

    def _tick(self, log: object) -> None:
        log.flush()  # type: ignore[attr-defined]
        self._count[:8] = (self.count + 1).to_bytes(8, "little")

    def records(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, data) of each write, and (0, nothing) for a flush."""
        raw, at = self.log.read_bytes(), 0
        while at < len(raw):
            offset, size = struct.unpack_from("<QQ", raw, at)
            at += 16 + size
            yield offset, raw[at - size : at]


def _other(code: int, request: bytes, content: bytearray) -> tuple[int, bytes]:
    """Answer what is neither a write nor a flush: (error, answer)."""
    if code == _READ:
        _, offset, size = struct.unpack_from("<QQI", request, _IN.size)
        return 0, bytes(content[offset : offset + size])
    if code == _INIT:
        flags = _BIG_WRITES | _MAX_PAGES
        sizes = struct.pack("<IIIIHHIIHHI", 7, 31, 1 << 17, flags, 12, 9, _MAX_WRITE, 1, 256, 0, 0)
        return 0, sizes + bytes(28)
    if code == _GETATTR:
        size = len(content)
        times = (0, 0, 0, 0, 0, 0)
        about = struct.pack("<QQQ3Q3I", 1, size, size // 512, *times)
        return 0, struct.pack("<QII", 3600, 0, 0) + about + struct.pack(
            "<7I", 0o100644, 1, 0, 0, 0, 4096, 0
        )
    if code == _OPEN:
        return 0, struct.pack("<QII", 1, 0, 0)
    if code == _STATFS:
        return 0, struct.pack("<5Q4I", *(1 << 20,) * 5, 4096, 255, 4096, 0) + bytes(24)
    return -errno.ENOSYS, b""
