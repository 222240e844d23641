"""Making a store, and making an index: the only two places where either comes into being."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from casckpt.errors import CasckptError, Corrupt, NoStore, OperationFailed, PermissionRefused
from casckpt.store import file_systems, files, layout, lock_files, packs
from casckpt.store.environment import Environment

# LMDB computes its reader table from the file's size: header and 1,024 slots of 64 bytes
_LOCK_FILE_BYTES = 72 * layout.KIB
KNOWN_NAMES = frozenset(
    {
        layout.FORMAT_FILE,
        layout.CURRENT_FILE,
        layout.PACKS_FOLDER,
        layout.SESSIONS_FOLDER,
        layout.QUARANTINE_FOLDER,
        layout.LOCK_FILE,
        layout.GC_LOCK_FILE,
        layout.WRITER_FILE,
        layout.BALLAST_FILE,
        layout.RESERVE_FOLDER,
    }
)


def create_store(path: Path) -> None:
    """Make an empty store at `path`; a kill midway leaves what the next call finishes.

    Raises:
        OperationFailed: there is a store already.
        NoStore: the folder holds other things, or its parent is missing.
        FileSystemRefused: the file system is not one to keep a store on.
    """
    path = Path(path)
    if not path.absolute().parent.is_dir():
        raise NoStore(
            f"cannot make a store at {path}",
            "the folder that would hold it does not exist",
            f"make it first: mkdir -p {path.parent}",
        )
    if files.is_there(path) and not path.is_dir():
        raise NoStore(f"cannot make a store at {path}", "a file of that name is in the way")
    files.make_folder(path, exist_ok=True, private=True)
    file_systems.refuse_remote(path)
    if not _is_ours(path):
        raise NoStore(
            f"cannot make a store at {path}",
            "the folder is not empty",
            "name a new or an empty folder",
        )
    lock = lock_files.open_to_lock(path / layout.LOCK_FILE, os.O_RDWR | os.O_CREAT)
    try:
        is_alone = files.try_lock(lock, exclusive=True)
        # ORDER: packs first. Who makes a store makes format.json before any pack
        has_packs = bool(packs.pack_files(path))
        if files.is_there(path / layout.FORMAT_FILE):
            raise OperationFailed(
                f"there is a store at {path} already", "", "use it, or name another folder"
            )
        if has_packs:
            # An init that was interrupted leaves no packs.
            raise Corrupt(
                f"the store at {path} has lost its {layout.FORMAT_FILE}",
                "there are packs, and an empty store here would look like a loss of them",
                "close it everywhere and run `casckpt repair --rebuild-index`; nothing was changed",
            )
        if not is_alone:
            raise OperationFailed(f"cannot make a store at {path}", "another process is making it")
        _fill(path)
    finally:
        lock_files.close_lock(lock)


def _is_ours(path: Path) -> bool:
    """Tell whether a folder is empty or holds only what an interrupted init leaves."""
    return all(
        entry.name.removesuffix(".new") in KNOWN_NAMES or entry.name.startswith(layout.INDEX_PREFIX)
        for entry in files.entries(path)
    )


def _fill(path: Path) -> None:
    for name in (layout.PACKS_FOLDER, layout.SESSIONS_FOLDER, layout.QUARANTINE_FOLDER):
        files.make_folder(path / name, exist_ok=True)
    for name in (layout.GC_LOCK_FILE, layout.WRITER_FILE):
        files.close_file(files.open_file(path / name, os.O_RDWR | os.O_CREAT))
    store_uuid = os.urandom(16)
    number = create_index(path, store_uuid)
    make_ballast(path)
    set_current(path, number)
    # ORDER: format.json last; its presence says that everything else is there
    write_format(path, store_uuid)
    # Whoever made the folder may have died before this. A parent that we may not read is not ours
    # to flush, and holds the folder since before.
    with contextlib.suppress(PermissionRefused):
        files.sync_folder(path.parent)


def write_format(path: Path, store_uuid: bytes) -> None:
    """Write the format.json of a store that has none, durably: all features of this program."""
    document = {
        "version": layout.FORMAT_VERSION,
        "uuid": store_uuid.hex(),
        "read": sorted(layout.READ_FEATURES),
        "write": sorted(layout.WRITE_FEATURES),
        "collect": sorted(layout.COLLECT_FEATURES),
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "writer": "casckpt 0.1.0",
    }
    body = (json.dumps(document, indent=1) + "\n").encode()
    files.write_whole(path / layout.FORMAT_FILE, body, path / (layout.FORMAT_FILE + ".new"))


def create_index(path: Path, store_uuid: bytes) -> int:
    """Make a new, empty index in the first free folder `index.<n>`; return n, all durable."""
    number = 0
    while True:
        folder = path / f"{layout.INDEX_PREFIX}{number}"
        try:
            files.make_folder(folder)
            break
        except FileExistsError:
            number += 1
    # LMDB writes to its lock file through a memory map: a hole in it is a SIGBUS on a full disk.
    lock_file = folder / "lock.mdb"
    descriptor = files.open_file(lock_file, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        if files.file_system_type(path) == file_systems.BTRFS_MAGIC:
            files.set_no_copy_on_write(descriptor)
        files.write_at(descriptor, bytes(_LOCK_FILE_BYTES), 0, lock_file)
        files.sync_file(descriptor, lock_file)
    finally:
        files.close_file(descriptor)
    files.crash_point("create index", folder)
    Environment.create(folder)
    environment = Environment(folder, readonly=False)
    try:
        environment.write(lambda tx: tx.put("meta", b"uuid", store_uuid))
        environment.write(lambda tx: tx.set_number("seq", 0))
    finally:
        environment.close()
    # ORDER: LMDB syncs its files, not the folders they are in
    files.sync_folder(folder)
    files.sync_folder(path)
    return number


def set_current(path: Path, number: int) -> None:
    """Make `index.<number>` the index of the store."""
    text = f"{layout.INDEX_PREFIX}{number}\n".encode()
    files.write_whole(path / layout.CURRENT_FILE, text, path / (layout.CURRENT_FILE + ".new"))


def make_ballast(path: Path) -> bool:
    """Reserve what freeing works from on a full disk, space and inodes; return whether it is there.

    Space: min(64 MiB, 1 % of what is free), at least 4 MiB. Files: 16, or the 4 that a collection
    needs while fewer than 16 more could be made. Left out where even that is not free.
    """
    ballast = path / layout.BALLAST_FILE
    if files.is_there(ballast) and len(_reserve(path)) == layout.RESERVE_FILES:
        return True
    temporary = path / (layout.BALLAST_FILE + ".new")
    try:
        # ORDER: the ballast last, and given back first: where it is, a collection has its inodes
        _make_reserve(path)
        if files.is_there(ballast):
            return True
        share = files.free_bytes(path) // 100
        length = max(layout.BALLAST_MIN_BYTES, min(layout.BALLAST_MAX_BYTES, share))
        descriptor = files.open_file(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            files.allocate(descriptor, length, temporary)
        finally:
            files.close_file(descriptor)
        files.rename(temporary, ballast)
    except CasckptError:
        with contextlib.suppress(CasckptError):
            files.unlink(temporary, missing_ok=True)
        return False
    return True


def _make_reserve(path: Path) -> None:
    folder = path / layout.RESERVE_FOLDER
    files.make_folder(folder, exist_ok=True)
    for number in range(layout.RESERVE_FILES):
        last = number < layout.RESERVE_COLLECT_FILES
        # The next save is to find some too.
        if not last and files.free_inodes(path) < layout.RESERVE_FILES:
            return
        files.close_file(files.open_file(folder / f"{number:02d}", os.O_RDWR | os.O_CREAT))


def _reserve(path: Path) -> list[Path]:
    return [Path(entry.path) for entry in files.entries(path / layout.RESERVE_FOLDER)]


def is_nearly_full(path: Path) -> bool:
    """Tell whether a collection needs the ballast."""
    return (
        files.free_bytes(path) < layout.BALLAST_MIN_BYTES
        or files.free_inodes(path) < layout.RESERVE_FILES
    )


def free_ballast(path: Path, *, collecting: bool = False) -> None:
    """Give what is reserved to whoever frees more of it.

    Of the inodes all to a collection, and two to others: a session's and a pack's.
    """
    files.unlink(path / layout.BALLAST_FILE, missing_ok=True)
    spare = _reserve(path)
    for file in spare if collecting else spare[layout.RESERVE_COLLECT_FILES :][-2:]:
        files.unlink(file, missing_ok=True)


def check_index(environment: Environment, store_uuid: bytes) -> None:
    """Raise Corrupt if the index is that of another store, or empty."""
    with environment.read() as tx:
        found = tx.get("meta", b"uuid")
    if found != store_uuid:
        raise Corrupt(
            f"the index {environment.path.name} does not belong to this store",
            "it is empty" if found is None else f"it was made for store {found.hex()[:10]}",
            "run `casckpt repair --rebuild-index`",
        )
