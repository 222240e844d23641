"""Stores that the power may leave behind, made from the log of a workload's operations.

The model is strict POSIX, as in ALICE (Pillai et al., OSDI 2014): what was not flushed may be there
or not, in any combination. A file's flush makes its bytes and its size durable, not its name; a
folder's flush makes the names in it durable. A write may be torn at 512 bytes, and a file may have
its new size without the new bytes. Of all those states a seed draws some after every operation.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.crash import oracle, shim
from tests.crash.acks import Expected
from tests.crash.points import Lab
from tests.crash.workloads import WORKLOADS

_SECTOR = 512
_PAGE = 4096
_FOLDER = -1

# (kind, ...): write inode offset data | size inode length | name path inode | folder path
# | move from to inode | gone path
Change = tuple[object, ...]


class Disk:
    """Files by number and names by path."""

    def __init__(self) -> None:
        self.files: dict[int, bytearray] = {}
        self.names: dict[str, int] = {}

    def copy(self) -> Disk:
        other = Disk()
        other.files = {inode: bytearray(data) for inode, data in self.files.items()}
        other.names = dict(self.names)
        return other

    def apply(self, change: Change) -> None:
        kind, *rest = change
        if kind == "write":
            inode, offset, data = rest
            content = self.files.setdefault(inode, bytearray())
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        elif kind == "size":
            inode, length = rest
            content = self.files.setdefault(inode, bytearray())
            content.extend(bytes(max(length - len(content), 0)))
            del content[length:]
        elif kind in ("name", "folder"):
            self.names[rest[0]] = rest[1]
        elif kind == "move":
            source, target, inode = rest
            if self.names.get(source) == inode:
                del self.names[source]
            self.names[target] = inode
        else:
            self.names.pop(rest[0], None)

    def fingerprint(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for path, inode in sorted(self.names.items()):
            digest.update(f"{path}\0".encode())
            if inode != _FOLDER:
                digest.update(hashlib.blake2b(self.files.get(inode, b""), digest_size=16).digest())
        return digest.digest()

    def write_to(self, root: Path) -> None:
        shutil.rmtree(root, ignore_errors=True)
        for path, inode in sorted(self.names.items()):
            place = root / path if path else root
            if not place.parent.is_dir():
                continue  # the folder's own name was lost
            if inode == _FOLDER:
                place.mkdir(exist_ok=True)
            else:
                place.write_bytes(self.files.get(inode, b""))


class Replay:
    """Goes through a log, keeping apart what is durable and what is on its way."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root, self.draw = root, draw
        self.durable, self.now = Disk(), Disk()
        self.pending: list[tuple[Change, object]] = []
        self._inodes = 0

    def start_from(self, template: Path) -> None:
        """Take a prepared store as durable."""
        if not template.exists():
            return
        for path in (template, *sorted(template.rglob("*"))):
            name = "" if path == template else str(path.relative_to(template))
            change: Change = ("folder", name, _FOLDER)
            if path.is_file():
                self._inodes += 1
                self.durable.files[self._inodes] = bytearray(path.read_bytes())
                change = ("name", name, self._inodes)
            self.durable.apply(change)
        self.now = self.durable.copy()

    def _name(self, path: str) -> str:
        return "" if path == str(self.root) else str(Path(path).relative_to(self.root))

    def _folder_of(self, name: str) -> str:
        return ".." if name == "" else str(Path(name).parent).removeprefix(".")

    def _begin(self, change: Change, key: object) -> None:
        self.pending.append((change, key))
        self.now.apply(change)

    def step(self, operation: shim.Operation) -> None:
        """Take in one operation of the log."""
        if Path(operation.path) == self.root.parent:
            self._flush("..")
            return
        name = self._name(operation.path)
        inode = self.now.names.get(name, 0)
        if operation.name in ("write", "wsync"):
            self._begin(("write", inode, operation.offset, operation.data), inode)
            if operation.name == "wsync":
                self._flush_pages(inode, operation.offset, len(operation.data))
        elif operation.name == "size":
            self._begin(("size", inode, operation.offset), inode)
        elif operation.name == "create":
            self._inodes += 1
            self._begin(("name", name, self._inodes), self._folder_of(name))
        elif operation.name == "mkdir":
            self._begin(("folder", name, _FOLDER), self._folder_of(name))
        elif operation.name == "rename":
            target = self._name(operation.other)
            self._begin(("move", name, target, inode), self._folder_of(target))
        elif operation.name == "unlink":
            self._begin(("gone", name), self._folder_of(name))
        elif operation.name == "sync":
            self._flush(name if inode == _FOLDER else inode)

    def _flush(self, key: object) -> None:
        for change, owner in self.pending:
            if owner == key:
                self.durable.apply(change)
        self.pending = [entry for entry in self.pending if entry[1] != key]

    def _flush_pages(self, inode: int, offset: int, length: int) -> None:
        """O_DSYNC: the pages that were written, with what was pending in them."""
        low, high = offset // _PAGE * _PAGE, -(-(offset + length) // _PAGE) * _PAGE
        kept = []
        for change, owner in self.pending:
            inside = owner == inode and change[0] == "write" and low <= change[2] < high
            if inside:
                self.durable.apply(change)
            else:
                kept.append((change, owner))
        self.pending = kept

    def crashes(self, count: int) -> Iterator[Disk]:
        """Yield states that a power failure may leave here: the two extremes, and `count` drawn."""
        full = [change for change, _ in self.pending]
        chosen: list[list[Change]] = [[], full]
        for _ in range(count if full else 0):
            chosen.append(self.draw.choice(_WAYS)(full, self.draw))
        for changes in chosen:
            disk = self.durable.copy()
            for change in changes:
                disk.apply(change)
            yield disk


def _drop_one(full: list[Change], draw: random.Random) -> list[Change]:
    at = draw.randrange(len(full))
    return full[:at] + full[at + 1 :]


def _only_one(full: list[Change], draw: random.Random) -> list[Change]:
    return [draw.choice(full)]


def _some(full: list[Change], draw: random.Random) -> list[Change]:
    return [change for change in full if draw.random() < 0.5]


def _torn(full: list[Change], draw: random.Random) -> list[Change]:
    kept: list[Change] = []
    for change in full:
        if change[0] != "write":
            kept += [change] if draw.random() < 0.8 else []
            continue
        _, inode, offset, data = change
        at = 0
        while at < len(data):
            end = min((offset + at) // _SECTOR * _SECTOR + _SECTOR - offset, len(data))
            if draw.random() < 0.5:
                kept.append(("write", inode, offset + at, data[at:end]))
            at = end
    return kept


def _sizes_only(full: list[Change], draw: random.Random) -> list[Change]:
    kept: list[Change] = []
    for change in full:
        if change[0] == "write" and draw.random() < 0.7:
            _, inode, offset, data = change
            kept.append(("write", inode, offset + len(data), b""))
        else:
            kept.append(change)
    return kept


_WAYS: tuple[Callable[[list[Change], random.Random], list[Change]], ...] = (
    _drop_one,
    _only_one,
    _some,
    _torn,
    _sizes_only,
)


def run(
    lab: Lab, point: str, deadline: float | None, *, share: float = 0.15, first: bool = False
) -> tuple[list[tuple[str, str]], int]:
    """Carry out `power:WORKLOAD:SEED`; return the findings, and how many states were looked at.

    Crashes follow every flush, every answer that the workload got, and `share` of the other
    operations.
    `power:WORKLOAD:SEED:NUMBER` repeats the
    state with that number alone.
    """
    _, workload, seed, *rest = point.split(":")
    only = int(rest[0]) if rest else None
    draw = random.Random(f"{workload} {seed}")
    lab.reset(workload)
    replay = Replay(lab.place, draw)
    replay.start_from(lab.place)
    lines = lab.log.read_text().splitlines()
    trace = lab.folder / "trace"
    trace.unlink(missing_ok=True)
    said = lab.run(workload, (shim.COUNT, 1, shim.EVER, 0), str(trace))
    if said:
        return [(point, said)], 1
    seen: set[bytes] = set()
    bad: list[tuple[str, str]] = []
    number = 0
    for operation in shim.read_log(trace):
        if operation.name == "note":
            lines.append(operation.path)
        else:
            replay.step(operation)
            if operation.name != "sync" and draw.random() > share:
                continue
        for disk in replay.crashes(2):
            key = disk.fingerprint() + len(lines).to_bytes(4, "big")
            if key in seen:
                continue
            seen.add(key)
            number += 1
            if only is not None and number != only:
                continue
            said = _look(lab, workload, disk, lines, thorough=number % 3 == 0)
            if said:
                bad.append((f"power:{workload}:{seed}:{number}", said))
                if first:
                    return bad, number
        if deadline is not None and time.monotonic() > deadline:
            break
    return bad, len(seen)


def unseen(lab: Lab, workload: str) -> list[str]:
    """Return the files in which a whole replay differs from the disk: calls the shim missed."""
    lab.reset(workload)
    replay = Replay(lab.place, random.Random(0))
    replay.start_from(lab.place)
    trace = lab.folder / "trace"
    trace.unlink(missing_ok=True)
    said = lab.run(workload, (shim.COUNT, 1, shim.EVER, 0), str(trace))
    if said:
        return [said]
    for operation in shim.read_log(trace):
        if operation.name != "note":
            replay.step(operation)
    real = {str(p.relative_to(lab.place)): p for p in lab.place.rglob("*") if p.is_file()}
    replayed = {name for name, inode in replay.now.names.items() if inode != _FOLDER}
    changed = [
        name
        for name in replayed & real.keys()
        if replay.now.files.get(replay.now.names[name], b"") != real[name].read_bytes()
    ]
    # LMDB writes its lock file through a memory map; nothing in it outlives a boot.
    different = {*changed, *(replayed ^ real.keys())}
    return sorted(name for name in different if not name.endswith("lock.mdb"))


def _look(lab: Lab, workload: str, disk: Disk, lines: list[str], *, thorough: bool) -> str:
    disk.write_to(lab.place)
    expected = Expected([json.loads(line) for line in lines])
    repair = WORKLOADS[workload].repair
    mutant = lab.mutant

    def work() -> None:
        if mutant is not None:
            mutant()
        oracle.check(lab.place, expected, repair=repair, thorough=thorough)

    return oracle.in_child(work, lab.folder / "said")
