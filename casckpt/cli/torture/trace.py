"""The system calls by which a program changes a folder, in order, seen from outside by ptrace(2).

`python -m casckpt.cli.torture.trace LOG ROOT COMMAND...` runs a command and writes the log. What
LMDB does is in it like everything else, and nothing has to be compiled or preloaded. Linux 5.3 or
later, x86-64 or arm64.

Source: ptrace(2), PTRACE_GET_SYSCALL_INFO; Linux's syscall tables of both machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

_TRACEME, _CONT_SYSCALL, _SET_OPTIONS, _GET_INFO = 0, 24, 0x4200, 0x420E
# System calls marked; follow fork, vfork, clone and exec; kill what is traced when we die
_OPTIONS: Final = 1 | 2 | 4 | 8 | 16 | 0x100000
_ENTRY, _EXIT = 1, 2
_WALL: Final = 0x40000000
_AT_FDCWD: Final = -100
_KEEP_SIZE: Final = 1
_INFO_BYTES: Final = 88

_CALLS: Final = {
    "x86_64": {
        1: "write", 18: "pwrite", 20: "writev", 296: "pwritev", 328: "pwritev", 2: "open",
        257: "openat", 85: "creat", 74: "sync", 75: "sync", 77: "ftruncate", 285: "fallocate",
        82: "rename", 264: "renameat", 316: "renameat", 87: "unlink", 263: "unlinkat",
        83: "mkdir", 258: "mkdirat", 84: "unlink",
    },
    "aarch64": {
        64: "write", 68: "pwrite", 66: "writev", 70: "pwritev", 287: "pwritev", 56: "openat",
        82: "sync", 83: "sync", 46: "ftruncate", 47: "fallocate", 38: "renameat", 276: "renameat",
        35: "unlinkat", 34: "mkdirat",
    },
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Operation:
    """One change, or one line that the program said.

    Attributes:
        kind: create, mkdir, write, wsync (a write that is durable when it returns), size, grow
            (space reserved), rename, unlink, sync, or said.
        path: of what.
        other: the new path of a rename.
        offset: of a write; the new length for size and grow.
        data: what was written or said.
    """

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


def why_not() -> str:
    """Return why programs cannot be traced here, or an empty string."""
    if not sys.platform.startswith("linux"):
        return "it needs Linux"
    if platform.machine() not in _CALLS:
        return f"it knows no system calls of {platform.machine()}"
    child = os.fork()
    if child == 0:
        refused = _libc().ptrace(_TRACEME, 0, None, None) != 0
        os._exit(1 if refused else 0)
    _, status = os.waitpid(child, 0)
    return "" if status == 0 else "this system does not allow ptrace"


def read_log(path: Path) -> Iterator[Operation]:
    """Yield the operations of a log."""
    raw = path.read_bytes()
    at = 0
    while at < len(raw):
        end = raw.index(b"\n", at)
        kind, place, other, offset, length = (
            raw[at:end].decode("utf-8", "surrogateescape").split("\t")
        )
        at = end + 1 + int(length)
        yield Operation(kind, place, other, int(offset), raw[end + 1 : at])


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    return libc


# ---- the tracer


class _Tracer:
    """Follows a program and all that it starts. Everything runs in one thread: ptrace asks that."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._libc = _libc()
        self._calls = _CALLS[platform.machine()]
        self._entered: dict[int, tuple[str, tuple[int, ...], bool]] = {}
        self._syncs: dict[int, int] = {}
        self._known: set[int] = set()
        self.log: list[Operation | None] = []

    def run(self, command: list[str]) -> int:
        """Run a command to its end; return its wait status."""
        child = os.fork()
        if child == 0:
            self._libc.ptrace(_TRACEME, 0, None, None)
            os.kill(os.getpid(), signal.SIGSTOP)
            os.execvp(command[0], command)
        os.waitpid(child, _WALL)
        self._libc.ptrace(_SET_OPTIONS, child, None, ctypes.c_void_p(_OPTIONS))
        self._known.add(child)
        self._go_on(child, 0)
        final = 0
        with contextlib.suppress(ChildProcessError):
            while True:
                thread, status = os.waitpid(-1, _WALL)
                if os.WIFSTOPPED(status):
                    self._go_on(thread, self._stopped(thread, status))
                elif thread == child:
                    final = status
        return final

    def _go_on(self, thread: int, deliver: int) -> None:
        self._libc.ptrace(_CONT_SYSCALL, thread, None, ctypes.c_void_p(deliver))

    def _stopped(self, thread: int, status: int) -> int:
        """Look at a thread that stopped; return the signal that it is to get."""
        number = os.WSTOPSIG(status)
        if number == signal.SIGTRAP | 0x80:
            # A thread that a kill took away meanwhile has nothing left to look at.
            with contextlib.suppress(OSError, struct.error):
                self._system_call(thread)
            return 0
        if status >> 16:
            return 0  # fork, clone or exec
        if number == signal.SIGSTOP and thread not in self._known:
            self._known.add(thread)
            return 0  # how a new thread begins
        return number

    def _system_call(self, thread: int) -> None:
        buffer = ctypes.create_string_buffer(_INFO_BYTES)
        if self._libc.ptrace(_GET_INFO, thread, ctypes.c_void_p(_INFO_BYTES), buffer) <= 0:
            raise OSError(ctypes.get_errno(), "ptrace")
        if buffer.raw[0] == _ENTRY:
            numbers = struct.unpack_from("<7Q", buffer.raw, 24)
            name = self._calls.get(numbers[0])
            if name is not None:
                self._enter(thread, name, numbers[1:])
        elif buffer.raw[0] == _EXIT and thread in self._entered:
            (result,) = struct.unpack_from("<q", buffer.raw, 24)
            name, words, existed = self._entered.pop(thread)
            sync = self._syncs.pop(thread, None)
            if result >= 0:
                self._returned(thread, name, words, result, existed)
            elif sync is not None:
                self.log[sync] = None

    def _enter(self, thread: int, name: str, words: tuple[int, ...]) -> None:
        existed = True
        if name in ("open", "openat", "creat"):
            existed = os.path.lexists(self._opened_path(thread, name, words))
        elif name == "sync":
            # Only what had returned before it began is sure to be durable after it.
            path = self._path_of(thread, words[0])
            if self._is_ours(path, with_parent=True):
                self._syncs[thread] = len(self.log)
                self.log.append(Operation("sync", path))
        self._entered[thread] = (name, words, existed)

    def _is_ours(self, path: str, *, with_parent: bool = False) -> bool:
        if path == self._root or path.startswith(self._root + "/"):
            return True
        return with_parent and path == os.path.dirname(self._root)  # noqa: PTH120 - text, not a file

    # ---- what returned

    def _returned(
        self, thread: int, name: str, words: tuple[int, ...], result: int, existed: bool
    ) -> None:
        if name in ("write", "pwrite", "writev", "pwritev"):
            self._wrote(thread, name, words, result)
        elif name in ("open", "openat", "creat"):
            self._opened(thread, name, words, existed)
        elif name == "ftruncate":
            self._add(Operation("size", self._path_of(thread, words[0]), offset=words[1]))
        elif name == "fallocate" and not words[1] & _KEEP_SIZE:
            path = self._path_of(thread, words[0])
            self._add(Operation("grow", path, offset=words[2] + words[3]))
        elif name in ("rename", "renameat"):
            at = (None, words[0], None, words[1]) if name == "rename" else words[:4]
            source = self._absolute(thread, at[0], at[1])
            self._add(Operation("rename", source, self._absolute(thread, at[2], at[3])))
        elif name in ("unlink", "unlinkat", "mkdir", "mkdirat"):
            folder, text = (words[0], words[1]) if name.endswith("at") else (None, words[0])
            kind = name.removesuffix("at")
            self._add(Operation(kind, self._absolute(thread, folder, text)))

    def _add(self, operation: Operation) -> None:
        if self._is_ours(operation.path):
            self.log.append(operation)

    def _wrote(self, thread: int, name: str, words: tuple[int, ...], result: int) -> None:
        path = self._path_of(thread, words[0])
        if path.startswith("pipe:") and words[0] == 1 and name == "write":
            self.log.append(Operation("said", "", data=self._memory(thread, words[1], result)))
            return
        if not self._is_ours(path):
            return
        if name in ("write", "pwrite"):
            data = self._memory(thread, words[1], result)
        else:
            vector = self._memory(thread, words[1], 16 * words[2])
            parts = [struct.unpack_from("<QQ", vector, at) for at in range(0, len(vector), 16)]
            data = b"".join(self._memory(thread, start, size) for start, size in parts)[:result]
        position, flags = self._file_state(thread, words[0])
        offset = words[3] if name.startswith("p") else position - result
        durable = flags & (os.O_DSYNC | os.O_SYNC)
        self._add(Operation("wsync" if durable else "write", path, offset=offset, data=data))

    def _opened(self, thread: int, name: str, words: tuple[int, ...], existed: bool) -> None:
        path = self._opened_path(thread, name, words)
        flags = words[2] if name == "openat" else words[1]
        if name == "creat":
            flags = os.O_CREAT | os.O_TRUNC
        if not existed:
            self._add(Operation("create", path))
        elif flags & os.O_TRUNC:
            self._add(Operation("size", path))

    def _opened_path(self, thread: int, name: str, words: tuple[int, ...]) -> str:
        if name == "openat":
            return self._absolute(thread, words[0], words[1])
        return self._absolute(thread, None, words[0])

    # ---- looking into the program

    def _memory(self, thread: int, address: int, length: int) -> bytes:
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as file:  # noqa: PTH123 - by number
            file.seek(address)
            data = b""
            while len(data) < length and (piece := file.read(length - len(data))):
                data += piece
            return data

    def _text(self, thread: int, address: int) -> str:
        data = b""
        with open(f"/proc/{thread}/mem", "rb", buffering=0) as file:  # noqa: PTH123 - by number
            while b"\0" not in data and len(data) < 8192:
                file.seek(address + len(data))
                # Not past the page: the next may not be there.
                piece = file.read(4096 - (address + len(data)) % 4096)
                if not piece:
                    break
                data += piece
        return os.fsdecode(data.partition(b"\0")[0])

    def _absolute(self, thread: int, folder: int | None, address: int | None) -> str:
        text = self._text(thread, address or 0)
        if text.startswith("/"):
            return os.path.normpath(text)
        signed = None if folder is None else ctypes.c_int(folder & 0xFFFFFFFF).value
        if signed is None or signed == _AT_FDCWD:
            base = os.readlink(f"/proc/{thread}/cwd")  # noqa: PTH115 - text, not a file
        else:
            base = self._path_of(thread, signed)
        return os.path.normpath(f"{base}/{text}")

    def _path_of(self, thread: int, descriptor: int) -> str:
        try:
            text = os.readlink(f"/proc/{thread}/fd/{ctypes.c_int(descriptor).value}")  # noqa: PTH115
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.EACCES):
                return ""
            raise
        return text.removesuffix(" (deleted)")

    def _file_state(self, thread: int, descriptor: int) -> tuple[int, int]:
        """Return (position, flags) of an open file."""
        lines = Path(f"/proc/{thread}/fdinfo/{descriptor}").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        return int(facts["pos"]), int(facts["flags"], 8)


def _write_log(log: list[Operation | None], file: BinaryIO) -> None:
    for operation in log:
        if operation is not None:
            one = replace(operation, data=bytes(operation.data))
            head = f"{one.kind}\t{one.path}\t{one.other}\t{one.offset}\t{len(one.data)}\n"
            file.write(head.encode("utf-8", "surrogateescape") + one.data)


def main(log: str, root: str, command: list[str]) -> int:
    """Trace a command; return its exit status."""
    tracer = _Tracer(root)
    status = tracer.run(command)
    with Path(log).open("wb") as file:
        _write_log(tracer.log, file)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
