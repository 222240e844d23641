"""Build the preloaded library, drive it, and read the log it writes."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

OFF, COUNT, KILL, ERROR, SHORT, LIE, STOP = range(7)
EVER = 2**31 - 1
_SOURCE = Path(__file__).with_name("shim.c")
_ROOT = Path(__file__).resolve().parents[2]


def missing() -> str:
    """Return why the library cannot be built here, or an empty string."""
    if not sys.platform.startswith("linux"):
        return "needs Linux (LD_PRELOAD, OFD locks)"
    return "" if shutil.which("gcc") else "needs gcc"


def build() -> Path:
    """Return the compiled library, made once for this source and user."""
    digest = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"casckpt-shim-{os.getuid()}-{digest}"
    library = folder / "shim.so"
    if not library.exists():
        folder.mkdir(mode=0o700, exist_ok=True)
        made = folder / f"shim.{os.getpid()}.so"
        subprocess.run(
            ["gcc", "-O1", "-Wall", "-shared", "-fPIC", "-o", made, _SOURCE, "-ldl"], check=True
        )
        made.rename(library)
    return library


def environment() -> dict[str, str]:
    """Return the environment of a process that has the library loaded."""
    here = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "LD_PRELOAD": str(build()),
        "PYTHONPATH": str(_ROOT) + (os.pathsep + here if here else ""),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def is_loaded() -> bool:
    """Tell whether this process was started with the library."""
    return "casckpt-shim" in os.environ.get("LD_PRELOAD", "")


_library: ctypes.CDLL | None = None


def _calls() -> ctypes.CDLL:
    global _library
    if _library is None:
        _library = ctypes.CDLL(os.environ["LD_PRELOAD"])
        _library.shim_arm.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_long,
            ctypes.c_long,
            ctypes.c_int,
            ctypes.c_char_p,
        ]
        _library.shim_count.restype = ctypes.c_long
        _library.shim_note.argtypes = [ctypes.c_char_p]
    return _library


def arm(
    folder: Path, kind: int, first: int = 1, last: int = EVER, number: int = 0, log: str = ""
) -> None:
    """From now on operations `first` to `last` below `folder` meet the fault `kind`."""
    _calls().shim_arm(os.fsencode(folder), kind, first, last, number, os.fsencode(log))


def disarm() -> None:
    """Let every operation through again."""
    if is_loaded():
        _calls().shim_disarm()


def count() -> int:
    """Return the number of operations since `arm`."""
    return int(_calls().shim_count())


def note(text: str) -> None:
    """Put a word between the operations of the log."""
    if is_loaded():
        _calls().shim_note(text.encode())


@dataclass(frozen=True, slots=True)
class Operation:
    """One line of the log: note, create, mkdir, write, wsync, sync, size, rename or unlink.

    Before each, and for calls that change nothing, there is a line `op`: its path is what kind of
    call it is, its offset the number under which a fault can strike it.
    """

    name: str
    path: str
    other: str
    offset: int
    data: bytes


def read_log(path: Path) -> Iterator[Operation]:
    """Yield the operations of a log in the order in which they happened."""
    raw = path.read_bytes()
    at = 0
    while at < len(raw):
        end = raw.index(b"\n", at)
        name, place, other, offset, length = raw[at:end].decode().split("\t")
        at = end + 1 + int(length)
        yield Operation(name, place, other, int(offset), raw[end + 1 : at])
