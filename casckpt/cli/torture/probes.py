"""What a file system promises, found by trying: each probe is one property that a store needs.

A probe that holds proves little, one that fails explains much.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from casckpt.cli.torture import room
from casckpt.errors import CasckptError, NoSpace
from casckpt.programs import environment_of
from casckpt.store import files

Verdict = Literal["holds", "fails", "note"]

_FLUSHES: Final = 20
# No disk flushes its cache in less; consumer NVMe needs about 100 us, with power protection 20.
_TOO_FAST_S: Final = 10e-6
_RACERS, _RACES = 4, 25
_RENAME_S: Final = 0.5
_NAMES: Final = {
    0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs",
    0x2FC12FC1: "zfs", 0xF2F52010: "f2fs", 0x794C7630: "overlayfs", 0x6A656A63: "virtiofs",
    0x65735546: "fuse", 0x6969: "nfs", 0xFF534D42: "cifs", 0xFE534D42: "smb2",
}  # fmt: skip


class NotHeld(Exception):
    """The file system does not promise what was tried."""


@dataclass(frozen=True)
class Found:
    """What one probe found."""

    name: str
    verdict: Verdict
    text: str


def file_system(folder: Path) -> str:
    """Return the name of the file system that holds a folder."""
    number = files.file_system_type(folder)
    return _NAMES.get(number, f"file system {number:#x}")


def run(folder: Path) -> Iterator[Found]:
    """Try everything in a folder, which is left empty.

    Raises:
        NoSpace: there is too little room to tell.
    """
    for name, probe in _PROBES.items():
        place = folder / "probe"
        place.mkdir()
        try:
            verdict, text = probe(place)
        except (NotHeld, OSError, CasckptError) as exc:
            verdict, text = "fails", str(exc).partition("\n")[0]
            # A full disk promises nothing, and breaks no promise.
            if room.word_of(str(exc).splitlines()) or room.is_short(folder):
                raise NoSpace(f"not tried: {name}", text) from exc
        yield Found(name, verdict, text)
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


def _flush(place: Path) -> tuple[Verdict, str]:
    times = []
    with (place / "f").open("wb", buffering=0) as file:
        for number in range(_FLUSHES):
            file.write(os.urandom(4096))
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
            if number == 0:
                os.fsync(file.fileno())
    files.sync_folder(place)
    median = statistics.median(times)
    text = f"4 KiB reach the disk in {median * 1e3:.2f} ms"
    if median < _TOO_FAST_S:
        return "note", f"{text}: faster than any disk, so a power failure can take what was saved"
    return "holds", text


def _exclusive_creation(place: Path) -> tuple[Verdict, str]:
    for race in range(_RACES):
        winners: list[int] = []
        start = threading.Barrier(_RACERS)

        def create(
            path: Path, start: threading.Barrier = start, winners: list[int] = winners
        ) -> None:
            start.wait()
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                winners.append(1)

        racers = [
            threading.Thread(target=create, args=(place / str(race),)) for _ in range(_RACERS)
        ]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        if len(winners) != 1:
            raise NotHeld(f"{len(winners)} of {_RACERS} made the same file")
    return "holds", f"one of {_RACERS} wins, {_RACES} times"


def _renames(place: Path) -> tuple[Verdict, str]:
    target, stop = place / "f", threading.Event()
    bodies = [bytes([number]) * 5000 for number in range(4)]
    target.write_bytes(bodies[0])
    count = 0

    def replace() -> None:
        nonlocal count
        while not stop.is_set():
            fresh = place / "new"
            fresh.write_bytes(bodies[count % 4])
            fresh.replace(target)
            count += 1

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        until = time.monotonic() + _RENAME_S
        while time.monotonic() < until:
            if target.read_bytes() not in bodies:
                raise NotHeld("a reader saw neither the old file nor the new one")
    except FileNotFoundError as exc:
        raise NotHeld("a reader saw no file while one replaced the other") from exc
    finally:
        stop.set()
        writer.join()
    return "holds", f"old or new, whole, {count} times"


def _locks(place: Path) -> tuple[Verdict, str]:
    path = place / "lock"
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from casckpt.store import files\n"
        "descriptor = files.open_file(Path(sys.argv[1]), 2)\n"
        "print(files.try_lock(descriptor, exclusive=True), flush=True)\n"
        "sys.stdin.read()\n"
    )
    descriptor = files.open_file(path, os.O_RDWR | os.O_CREAT)
    other = -1
    command = [sys.executable, "-P", "-c", script, str(path)]
    with subprocess.Popen(
        command, env=environment_of(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            if child.stdout.readline().strip() != "True":
                raise NotHeld("a process could not lock a file")
            if files.try_lock(descriptor, exclusive=False):
                raise NotHeld("two processes hold a lock that excludes the other")
        finally:
            child.kill()
        child.wait()
        if not files.try_lock(descriptor, exclusive=True):
            raise NotHeld("a lock outlives the process that held it")
        # A second open file of one process is another owner.
        other = files.open_file(path, os.O_RDWR)
        if files.try_lock(other, exclusive=True):
            raise NotHeld("locks of one process do not exclude each other")
    files.close_file(descriptor)
    files.close_file(other)
    return "holds", "they exclude, and end with the process"


def _maps(place: Path) -> tuple[Verdict, str]:
    path = place / "f"
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    with (
        path.open("r+b", buffering=0) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as seen,
    ):
        for number in range(200):
            body = number.to_bytes(4, "little") * 8
            at = number % 8 * mmap.PAGESIZE
            os.pwrite(file.fileno(), body, at)
            if seen[at : at + 32] != body:
                raise NotHeld("a map does not show what was written to its file")
        with mmap.mmap(file.fileno(), 0) as own:
            own[:4] = b"both"
            if os.pread(file.fileno(), 4, 0) != b"both" or seen[:4] != b"both":
                raise NotHeld("what is written to a map is not in its file")
    return "holds", "a map and its file are one"


def _sparse(place: Path) -> tuple[Verdict, str]:
    path = place / "f"
    descriptor = files.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        os.ftruncate(descriptor, 64 << 20)
        sparse = path.stat().st_blocks * 512 < 1 << 20
        os.ftruncate(descriptor, 0)
        files.reserve(descriptor, 0, 4 << 20, path)
        reserved = path.stat().st_blocks * 512 >= 4 << 20
        if path.stat().st_size != 0:
            raise NotHeld("space cannot be reserved without a change of the size")
    finally:
        files.close_file(descriptor)
    if not reserved:
        return "note", "space cannot be reserved: a full disk shows late, and loses nothing"
    return "holds", "holes take no space, and space can be reserved" if sparse else "reserved"


def _times(place: Path) -> tuple[Verdict, str]:
    path = place / "f"
    path.write_bytes(b"one")
    before = path.stat()
    time.sleep(0.02)
    path.write_bytes(b"two")
    after = path.stat()
    if (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns):
        raise NotHeld("a write does not change a file's times")
    return "holds", "a write 20 ms later shows"


def _appends(place: Path) -> tuple[Verdict, str]:
    """Read back through another process what was written and flushed here."""
    path = place / "f"
    body = os.urandom(1 << 20)
    with path.open("wb", buffering=0) as file:
        file.write(body)
        os.fsync(file.fileno())
    script = (
        "import hashlib, sys; print(hashlib.sha256(open(sys.argv[1], 'rb').read()).hexdigest())"
    )
    command = [sys.executable, "-I", "-c", script, str(path)]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if said != hashlib.sha256(body).hexdigest():
        raise NotHeld("another process reads something else")
    return "holds", "1 MiB, to the bit"


_PROBES: dict[str, Callable[[Path], tuple[Verdict, str]]] = {
    "flush": _flush,
    "read back": _appends,
    "exclusive creation": _exclusive_creation,
    "atomic rename": _renames,
    "locks": _locks,
    "memory maps": _maps,
    "sparse files": _sparse,
    "file times": _times,
}
