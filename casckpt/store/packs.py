"""Pack files: read by everybody, scan for recovery; `pack_writer.py` writes them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from casckpt.errors import Corrupt, NewerFormat
from casckpt.store import files, layout, records
from casckpt.store.records import Record

_OPEN_PACKS = 128
_SCAN_BYTES = 4 * layout.MIB


def pack_path(store: Path, uuid: bytes) -> Path:
    """Return where the pack of a uuid is."""
    name = uuid.hex()
    return store / layout.PACKS_FOLDER / name[:2] / (name + layout.PACK_SUFFIX)


def pack_files(store: Path) -> list[Path]:
    """Return the files of all packs of a store, in order; PermissionRefused if we may not look."""
    return [
        Path(entry.path)
        for folder in files.entries(store / layout.PACKS_FOLDER)
        if folder.is_dir(follow_symlinks=False)
        for entry in files.entries(Path(folder.path))
        if entry.name.endswith(layout.PACK_SUFFIX)
    ]


def read_pack_header(fd: int, path: Path, uuid: bytes, store_uuid: bytes) -> tuple[bytes, str]:
    """Return the session that wrote a pack, and what is wrong with its header, if anything is.

    A damaged header takes no record with it: the check of each says which pack it belongs to, and
    the file's name which this is. The session is not known then: 16 bytes of zero.

    Raises:
        Corrupt: the header is whole, and that of another pack or store.
        NewerFormat: it is of a newer version.
    """
    head = files.read_at(fd, layout.PACK_HEADER_BYTES, 0, path)
    try:
        pack, store, session = records.decode_pack_header(head)
    except Corrupt as exc:
        return bytes(16), f"its header is damaged: {exc.why}"
    if pack != uuid or store != store_uuid:
        raise Corrupt(f"{path.name} is another pack", "its header names another pack or store")
    return session, ""


def uuid_in_name(path: Path) -> bytes:
    """Return the uuid of a pack by the name of its file; Corrupt if that is no name of a pack."""
    try:
        uuid = bytes.fromhex(path.name.removesuffix(layout.PACK_SUFFIX))
    except ValueError:
        uuid = b""
    if len(uuid) != 16 or path.name != uuid.hex() + layout.PACK_SUFFIX:
        raise Corrupt("a foreign pack", f"no pack has a name like {path.name}")
    return uuid


class PackFiles:
    """Open packs for reading, at most 128 at a time. Thread safe."""

    def __init__(self, store: Path, store_uuid: bytes) -> None:
        self._store = store
        self._store_uuid = store_uuid
        self._lock = threading.Lock()
        self._open: OrderedDict[bytes, _OpenPack] = OrderedDict()

    def borrow(self, uuid: bytes) -> _OpenPack:
        """Return an open pack; call `release` on it.

        Raises:
            FileNotFoundError: there is no such file.
            Corrupt: its header is that of another pack, or of another store.
            NoStore: a file is where its folder should be.
        """
        with self._lock:
            entry = self._open.get(uuid)
            if entry is not None:
                self._open.move_to_end(uuid)
                entry.users += 1
                return entry
        path = pack_path(self._store, uuid)
        try:
            descriptor = files.open_file(path, os.O_RDONLY)
        except NotADirectoryError as exc:
            raise files.stranger(path.parent, "it is a file and no folder") from exc
        try:
            read_pack_header(descriptor, path, uuid, self._store_uuid)
        except BaseException:
            files.close_file(descriptor)
            raise
        with self._lock:
            entry = self._open.get(uuid)
            if entry is None:
                entry = self._open[uuid] = _OpenPack(self, descriptor, path)
            else:
                files.close_file(descriptor)
            entry.users += 1
            self._evict()
            return entry

    def _evict(self) -> None:
        for uuid in list(self._open):
            if len(self._open) <= _OPEN_PACKS:
                return
            if self._open[uuid].users == 0:
                files.close_file(self._open.pop(uuid).descriptor)

    def let_go(self) -> None:
        """Close the packs that were removed or moved away, by whomever.

        The disk does not get the space of a removed file back as long as it is open. And what is
        read here only, since it was opened in time, is lost to everybody else.
        """
        with self._lock:
            for uuid, entry in list(self._open.items()):
                if entry.users == 0 and not entry.stands():
                    files.close_file(self._open.pop(uuid).descriptor)

    def release(self, entry: _OpenPack) -> None:
        """Give back what `borrow` returned."""
        with self._lock:
            entry.users -= 1
            if entry.closing and entry.users == 0:
                files.close_file(entry.descriptor)

    def abandon(self) -> None:
        """Close all descriptors without the lock, which a thread of the parent may have held."""
        for entry in self._open.values():
            files.close_file(entry.descriptor)

    def close(self) -> None:
        """Close all descriptors; those in use close when they are released."""
        with self._lock:
            for entry in self._open.values():
                entry.closing = True
                if entry.users == 0:
                    files.close_file(entry.descriptor)
            self._open.clear()


class _OpenPack:
    """A descriptor with a count of its users."""

    __slots__ = ("_owner", "closing", "descriptor", "path", "users")

    def __init__(self, owner: PackFiles, descriptor: int, path: Path) -> None:
        self._owner = owner
        self.descriptor = descriptor
        self.path = path
        self.users = 0
        self.closing = False

    def stands(self) -> bool:
        """Tell whether it is the file at its path still."""
        return files.identity_of(self.descriptor) == files.identity(self.path)

    def __enter__(self) -> _OpenPack:
        return self

    def __exit__(self, *_: object) -> None:
        self._owner.release(self)


def read_header(descriptor: int, path: Path, pack: bytes, offset: int) -> Record:
    """Return the header of the record at `offset`, checked."""
    fixed = files.read_at(descriptor, 512, offset, path)
    length = records.header_length(fixed)
    if len(fixed) < length:
        fixed = files.read_at(descriptor, length, offset, path)
    return records.decode_header(fixed[:length], pack, offset)


def read_payload(descriptor: int, path: Path, record: Record) -> bytes:
    """Return the stored bytes of a record, checked against its header."""
    payload = files.read_at(descriptor, record.stored, record.offset + record.header_bytes, path)
    records.check_payload(record, payload)
    return payload


def scan_pack(
    descriptor: int,
    path: Path,
    pack: bytes,
    start: int = layout.PACK_HEADER_BYTES,
    *,
    end: int | None = None,
    problems: list[tuple[int, str]] | None = None,
) -> Iterator[Record]:
    """Yield every record whose header is whole, from `start` on; payloads are not read.

    Where no whole header stands, the scan goes on at the next magic, and the gap is added to
    `problems` as (offset, message), unless it is the footer or the end of the file. Nothing that
    begins at `end` or later is looked for.
    """
    size = os.fstat(descriptor).st_size
    end = size if end is None else min(end, size)
    offset = start
    while offset < end:
        try:
            record = read_header(descriptor, path, pack, offset)
            if offset + record.total_bytes > size:
                raise Corrupt("bad record", "its payload is cut off")
        except (Corrupt, NewerFormat) as exc:
            following = _next_magic(descriptor, path, offset + 1, end)
            if problems is not None and not _is_footer(descriptor, path, offset, size):
                problems.append((offset, exc.why or exc.what))
            if following is None:
                return
            offset = following
            continue
        yield record
        offset += record.total_bytes


def _is_footer(descriptor: int, path: Path, offset: int, size: int) -> bool:
    footer = files.read_at(descriptor, records.FOOTER_BYTES + 1, offset, path)
    return len(footer) == size - offset and footer.startswith(layout.FOOTER_MAGIC)


def _next_magic(descriptor: int, path: Path, offset: int, end: int) -> int | None:
    """Return where the next magic stands that begins before `end`; None if none does."""
    keep = len(layout.RECORD_MAGIC) - 1
    while offset < end:
        # A damaged pack may be a tebibyte of nothing. A magic has no zeros: none begins in a hole.
        data = files.data_from(descriptor, offset)
        if data is None or data >= end:
            return None
        window = files.read_at(descriptor, min(_SCAN_BYTES, end + keep - data), data, path)
        found = window.find(layout.RECORD_MAGIC)
        if found >= 0:
            return data + found
        if len(window) <= keep:
            return None
        offset = data + len(window) - keep
    return None
