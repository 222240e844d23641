"""Every file-system call of the store, in one place, with named crash points.

Fault injection acts here: a test installs a hook with `set_crash_hook` and is called before each
operation with its name and path; the hook kills the process, raises OSError, or returns. All
errors of the operating system leave this module as casckpt errors.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from casckpt.errors import (
    CasckptError,
    Corrupt,
    Deleted,
    NewerFormat,
    NoSpace,
    NoStore,
    OperationFailed,
    PermissionRefused,
)
from casckpt.store import libc

CrashHook = Callable[[str, str], None]
_crash_hook: CrashHook | None = None

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WRITE_STEP = 16 * 1024 * 1024
_NO_FOLDER = "it is a file and no folder"

DAMAGE = (Corrupt, Deleted, NewerFormat, NoStore, FileNotFoundError)
"""What reading raises where bytes are gone, or not what they should be. Whatever else it raises (no
permission, no memory, too many open files) says nothing of them: they were not looked at."""


def set_crash_hook(hook: CrashHook | None) -> None:
    """Install `hook(operation, path)`, called before every operation; None removes it."""
    global _crash_hook
    _crash_hook = hook


def crash_point(name: str, path: object = "") -> None:
    """Mark a place between two operations where a process may die."""
    if _crash_hook is not None:
        _crash_hook(name, str(path))


def translate(error: OSError, what: str) -> CasckptError:
    """Return the casckpt error for an error of the operating system."""
    reason = f"{error.strerror or error} (errno {error.errno})"
    if error.errno in _FULL:
        return NoSpace(what, reason)
    if error.errno in _DENIED:
        return PermissionRefused(what, reason)
    return OperationFailed(what, reason)


@contextlib.contextmanager
def _operation(name: str, path: object) -> Iterator[None]:
    try:
        if _crash_hook is not None:
            _crash_hook(name, str(path))
        yield
    except OSError as exc:
        raise translate(exc, f"cannot {name} {path}") from exc


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """As `_operation`; a bad sector is Corrupt: damage of what stands there."""
    try:
        with _operation("read", path):
            yield
    except CasckptError as exc:
        if isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EIO:
            raise Corrupt(exc.what, f"the disk cannot give it back: {exc.why}") from exc
        raise


def open_file(path: Path, flags: int) -> int:
    """Open `path` and return its descriptor; symbolic links are refused, never followed.

    Neither are devices, pipes and sockets opened, nor waited for. A file that is made gets the
    permissions of its folder, without execution, less what the umask takes; others never write.

    Raises FileNotFoundError, FileExistsError and NotADirectoryError as they are: callers decide
    what they mean.
    """
    try:
        crash_point("open", path)
        mode = permissions_in(path.parent) & 0o666 if flags & os.O_CREAT else 0
        safe = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(path, flags | safe, mode)
    except (FileNotFoundError, FileExistsError, NotADirectoryError):
        raise
    except OSError as exc:
        if exc.errno == errno.ELOOP:
            raise stranger(path, "it is a symbolic link, which a store never contains") from exc
        if exc.errno == errno.ENXIO:
            raise stranger(path, "it is not a regular file") from exc
        raise translate(exc, f"cannot open {path}") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise stranger(path, "it is not a regular file")
    return descriptor


def stranger(path: str | Path, why: str) -> NoStore:
    """Return the error for something that stands in a store where no store has it."""
    return NoStore(f"refused to open {path}", why, "put back what belongs there; move stores whole")


def close_file(descriptor: int) -> None:
    """Close a descriptor; an error of close says nothing that fsync has not said."""
    try:  # noqa: SIM105 - `suppress` needs memory, and without any a lock would stay
        os.close(descriptor)
    except OSError:
        pass


def write_at(
    descriptor: int, data: bytes | bytearray | memoryview, offset: int, path: Path
) -> None:
    """Write all of `data` at `offset`; a short write goes on where it stopped."""
    view = memoryview(data).cast("B")
    with _operation("write", path):
        while view:
            written = os.pwrite(descriptor, view[:_WRITE_STEP], offset)
            if written <= 0:
                raise OSError(errno.EIO, "write made no progress")
            view = view[written:]
            offset += written


def write_vector(
    descriptor: int, buffers: list[bytes | memoryview], offset: int, path: Path
) -> int:
    """Write `buffers` one after the other at `offset`; return the number of bytes."""
    total = sum(len(buffer) for buffer in buffers)
    with _operation("write", path):
        written = os.pwritev(descriptor, buffers, offset)
    if written < total:
        rest = b"".join(buffers)[written:]
        write_at(descriptor, rest, offset + written, path)
    return total


def read_at(descriptor: int, length: int, offset: int, path: Path) -> bytes:
    """Read up to `length` bytes at `offset`; fewer only at the end of the file."""
    parts = []
    with _reading(path):
        while length > 0:
            part = os.pread(descriptor, length, offset)
            if not part:
                break
            parts.append(part)
            length -= len(part)
            offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def read_into(descriptor: int, destination: memoryview, offset: int, path: Path) -> int:
    """Fill `destination` from `offset`; return the bytes read, fewer only at end of file."""
    done = 0
    with _reading(path):
        while done < len(destination):
            count = os.preadv(descriptor, [destination[done:]], offset + done)
            if count == 0:
                break
            done += count
    return done


def data_from(descriptor: int, offset: int) -> int | None:
    """Return where data stands from `offset` on, or `offset` if nobody can tell; None: nowhere."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as exc:
        return None if exc.errno == errno.ENXIO else offset


def sync_data(descriptor: int, path: Path) -> None:
    """Flush data and size of a file to the disk. Never call it again after a failure."""
    with _operation("fdatasync", path):
        os.fdatasync(descriptor)


def sync_file(descriptor: int, path: Path) -> None:
    """Flush a file and all its metadata to the disk."""
    with _operation("fsync", path):
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Make the entries of a folder durable."""
    with _operation("fsync folder", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def permissions_in(folder: Path) -> int:
    """Return the permissions of what is made in a folder: its own, and nothing for others to write.

    So a store is as open as its folder: who shares it with a group opens that once.
    """
    try:
        return stat.S_IMODE(folder.stat().st_mode) & 0o775
    except FileNotFoundError as exc:
        why = "it was moved or removed while this process had the store open"
        raise NoStore(f"{folder} is gone", why, "put it back where it was") from exc


def make_folder(path: Path, *, exist_ok: bool = False, private: bool = False) -> bool:
    """Make a folder; return whether it was made. FileExistsError unless `exist_ok`.

    It gets the permissions of the folder that it is in, or is its owner's alone if `private`.
    """
    try:
        crash_point("mkdir", path)
        path.mkdir(0o700 if private else permissions_in(path.parent))
    except FileExistsError as exc:
        if exist_ok and path.is_dir():
            return False
        if exist_ok:
            raise stranger(path, _NO_FOLDER) from exc
        raise
    except NotADirectoryError as exc:
        raise stranger(path.parent, _NO_FOLDER) from exc
    except OSError as exc:
        raise translate(exc, f"cannot make the folder {path}") from exc
    return True


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder, by name; nothing if there is no such folder.

    Raises:
        PermissionRefused: we may not look.
        NoStore: it is no folder.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except NotADirectoryError as exc:
        raise stranger(folder, _NO_FOLDER) from exc
    except OSError as exc:
        raise translate(exc, f"cannot look into {folder}") from exc


def is_there(path: Path) -> bool:
    """Tell whether there is a file or folder of that name; PermissionRefused if we may not look."""
    return identity(path) is not None


def rename(source: Path, target: Path) -> None:
    """Replace `target` by `source`, atomically; durable after `sync_folder`."""
    with _operation("rename", target):
        source.rename(target)


def unlink(path: Path, *, missing_ok: bool = False) -> None:
    """Remove a file."""
    with _operation("unlink", path):
        path.unlink(missing_ok=missing_ok)


def truncate(descriptor: int, length: int, path: Path) -> None:
    """Cut a file, or give back the space reserved past its end."""
    with _operation("truncate", path):
        os.ftruncate(descriptor, length)


def reserve(descriptor: int, offset: int, length: int, path: Path) -> None:
    """Reserve disk space past the end of a file without changing its size.

    On a file system that cannot, nothing is reserved: the write itself then reports a full disk.
    """
    if length <= 0:
        return
    with _operation("reserve", path):
        try:
            libc.allocate_keep_size(descriptor, offset, length)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                raise


def allocate(descriptor: int, length: int, path: Path) -> None:
    """Make a file `length` bytes long with all of it backed by disk."""
    with _operation("allocate", path):
        os.posix_fallocate(descriptor, 0, length)


def write_whole(path: Path, data: bytes, temporary: Path) -> None:
    """Put `data` at `path` so that after a crash it is the old file or the new one, whole."""
    # ORDER: file durable, then the name, then the folder that holds the name
    descriptor = open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_at(descriptor, data, 0, temporary)
        sync_file(descriptor, temporary)
    finally:
        close_file(descriptor)
    rename(temporary, path)
    sync_folder(path.parent)


def read_whole(path: Path, limit_bytes: int) -> bytes:
    """Read a small file; raises FileNotFoundError, and NoStore if it is larger than the limit."""
    descriptor = open_file(path, os.O_RDONLY)
    try:
        data = read_at(descriptor, limit_bytes + 1, 0, path)
    finally:
        close_file(descriptor)
    if len(data) > limit_bytes:
        raise NoStore(f"refused to read {path}", f"it is larger than {limit_bytes} bytes")
    return data


def allocated_bytes(path: Path) -> int:
    """Return the bytes of disk a file takes (st_blocks), 0 if it is gone."""
    try:
        return path.lstat().st_blocks * 512
    except FileNotFoundError:
        return 0


def free_bytes(path: Path) -> int:
    """Return the bytes that an ordinary user may still write on the file system of `path`."""
    with _operation("statvfs", path):
        facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize


def length_of(path: Path) -> int:
    """Return the bytes of a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file or folder from another of the same name; None if there is none.

    Raises:
        PermissionRefused: we may not look.
    """
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise translate(exc, f"cannot look at {path}") from exc
    return facts.st_dev, facts.st_ino


def identity_of(descriptor: int) -> tuple[int, int]:
    """Return the `identity` of an open file, whatever its name is now."""
    facts = os.fstat(descriptor)
    return facts.st_dev, facts.st_ino


def free_inodes(path: Path) -> int:
    """Return how many files may still be made on the file system of `path`; 2^63 for no limit."""
    with _operation("statvfs", path):
        facts = os.statvfs(path)
    # What has no table of inodes (btrfs, some tmpfs) calls their number 0.
    return facts.f_favail if facts.f_files else 2**63


# ---- locks: open file description locks; they end with the description, whoever dies


def _flock_structure(kind: int, start: int = 0, length: int = 0) -> bytes:
    return struct.pack("@hhqqi4x", kind, os.SEEK_SET, start, length, 0)


_UNLOCKED = _flock_structure(fcntl.F_UNLCK)


def try_lock(descriptor: int, *, exclusive: bool, start: int = 0, length: int = 0) -> bool:
    """Take or convert an OFD lock without waiting; return whether it was got.

    It is on `length` bytes from `start`, 0 for all to the end however the file grows.
    """
    kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
    try:
        crash_point("lock", descriptor)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _flock_structure(kind, start, length))
    except OSError as exc:
        if exc.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise translate(exc, "cannot lock a file of the store") from exc
    return True


def release_lock(descriptor: int) -> None:
    """Release an OFD lock, for all who share the open file: never in a child of who took it."""
    try:  # noqa: SIM105 - as above
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _UNLOCKED)
    except (OSError, MemoryError):
        pass  # closing the file ends it too, once no child has it open


# ---- hints, and what only some file systems know


def file_system_type(path: Path) -> int:
    """Return the magic number of the file system that holds `path` (statfs(2), f_type)."""
    try:
        return libc.file_system_type(path)
    except OSError as exc:
        raise translate(exc, f"cannot look at {path}") from exc


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel to begin writing a range to the disk; promises nothing, never fails.

    `sync_data` then waits for what is left only, while the next chunks are coded meanwhile.
    """
    libc.start_writeback(descriptor, offset, length)


def read_ahead(descriptor: int, offset: int, length: int) -> None:
    """Ask the kernel to fetch a range that will be read soon; promises nothing, never fails."""
    # Too large for a place in a file is what a damaged index may say.
    with contextlib.suppress(OSError, OverflowError):
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)


def set_no_copy_on_write(descriptor: int) -> None:
    """Set the NOCOW attribute of an empty file on btrfs, best effort."""
    get_flags, set_flags, no_cow = 0x80086601, 0x40086602, 0x00800000
    with contextlib.suppress(OSError):
        raw = fcntl.ioctl(descriptor, get_flags, struct.pack("q", 0))
        (flags,) = struct.unpack("q", raw)
        fcntl.ioctl(descriptor, set_flags, struct.pack("q", flags | no_cow))
