"""A session: one process at work on a store, with its lease, its heartbeat and its packs.

The session file is created under a temporary name, locked, written and renamed, so that a file
without a lock always belongs to a session that is over. Its epoch is what gc waits for (protocol,
GC 6); safety does not rest on it.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from casckpt import native
from casckpt.errors import CasckptError, StoreBusy
from casckpt.store import clock, files, layout, lock_files

_SESSION = struct.Struct("<8s16sQQQ16s64s")
_MAGIC = b"CASSESS1"
_FILE_BYTES = 512
NO_LEASE = 2**64 - 1
_LOCK_WAIT_S = 75.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a session file says, and whether its lock is held.

    `epoch` is the smallest lease in flight, 0 while one is taken or if the file is unreadable,
    and `NO_LEASE` while nothing is being saved.
    """

    uuid: bytes
    path: Path
    pid: int
    host: str
    epoch: int
    heartbeat_ns: int
    alive: bool


@dataclass(eq=False, slots=True)
class Lease:
    """gc_epoch as it was when a save began."""

    epoch: int


class Session:
    """The session file of this process. Thread safe."""

    def __init__(self, store: Path) -> None:
        self.uuid = os.urandom(16)
        self._folder = store / layout.SESSIONS_FOLDER
        self.path = self._folder / self.uuid.hex()
        self._lock = threading.Lock()
        self._leases: list[Lease] = []
        temporary = self._folder / (self.uuid.hex() + ".new")
        if not files.is_there(self._folder):
            files.make_folder(self._folder, exist_ok=True)
        # ORDER: locked before it has its name, so that nobody takes it for a dead session's
        self._descriptor = lock_files.open_to_lock(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            # A listing locks each file for an instant, to see whether its session is alive.
            deadline = time.monotonic() + _LOCK_WAIT_S
            while not files.try_lock(self._descriptor, exclusive=True):
                if time.monotonic() > deadline:
                    raise StoreBusy(
                        f"cannot begin a session in {store}",
                        f"another process holds {temporary.name}, which was made just now",
                        "end that process (it may be stopped), and try again",
                    )
                time.sleep(0.001)
            self._write()
            files.sync_file(self._descriptor, temporary)
            files.rename(temporary, self.path)
            files.sync_folder(self._folder)
        except BaseException:
            lock_files.close_lock(self._descriptor)
            with contextlib.suppress(CasckptError):
                files.unlink(temporary, missing_ok=True)
            raise

    def _epoch(self) -> int:
        return min((lease.epoch for lease in self._leases), default=NO_LEASE)

    def _write(self) -> None:
        host = os.uname().nodename.encode()[:64]
        body = _SESSION.pack(
            _MAGIC,
            self.uuid,
            os.getpid(),
            self._epoch(),
            time.time_ns(),
            clock.boot_id(),
            host,
        )
        body += native.blake3(body, out_len=16)
        files.write_at(self._descriptor, body.ljust(_FILE_BYTES, b"\0"), 0, self.path)

    def beat(self) -> None:
        """Write the heartbeat."""
        with self._lock:
            self._write()

    def take_lease(self, epoch_of: Callable[[], int]) -> Lease:
        """Hold a lease of the epoch that `epoch_of` reads; while it reads, this shows epoch 0."""
        lease = Lease(0)
        try:
            with self._lock:
                self._leases.append(lease)
                self._write()
            lease.epoch = epoch_of()
            with self._lock:
                self._write()
            return lease
        except BaseException:
            self.end_lease(lease)
            raise

    def end_lease(self, lease: Lease) -> None:
        """Give a lease back; not an error if it was given back before."""
        with self._lock:
            if lease in self._leases:
                self._leases.remove(lease)
                # A stale epoch only makes gc wait; it must not fail a save that is done.
                with contextlib.suppress(CasckptError):
                    self._write()

    def close(self) -> None:
        """Remove the session file and give up its lock."""
        with contextlib.suppress(CasckptError):
            files.unlink(self.path, missing_ok=True)
        lock_files.close_lock(self._descriptor)

    def abandon(self) -> None:
        """Close the descriptor only: in the child of a fork, where the parent lives on."""
        lock_files.close_lock(self._descriptor)


def list_sessions(store: Path) -> list[SessionInfo]:
    """Return every session file of a store, with whether its process still holds it.

    A file that is gone meanwhile is left out; one that cannot be read has epoch 0.
    """
    found = []
    # A folder that was removed holds nobody.
    for entry in files.entries(store / layout.SESSIONS_FOLDER):
        path, name = Path(entry.path), entry.name.removesuffix(".new")
        try:
            uuid = bytes.fromhex(name)
            descriptor = lock_files.open_to_lock(path, os.O_RDWR)
        except (FileNotFoundError, ValueError):
            continue
        try:
            data = files.read_at(descriptor, _FILE_BYTES, 0, path)
            alive = not files.try_lock(descriptor, exclusive=True)
        finally:
            lock_files.close_lock(descriptor)
        found.append(_decode(uuid, path, data, alive))
    return found


def _decode(uuid: bytes, path: Path, data: bytes, alive: bool) -> SessionInfo:
    body, check = data[: _SESSION.size], data[_SESSION.size : _SESSION.size + 16]
    if len(body) < _SESSION.size or native.blake3(body, out_len=16) != check:
        return SessionInfo(uuid, path, 0, "", 0, time.time_ns(), alive)
    _, _, pid, epoch, heartbeat_ns, _, host = _SESSION.unpack(body)
    return SessionInfo(
        uuid, path, pid, host.rstrip(b"\0").decode("utf-8", "replace"), epoch, heartbeat_ns, alive
    )
