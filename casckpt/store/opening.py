"""The rules of opening a store: format, features, lock, the clean stamp, an index that is old.

docs/format.md, section 11. Everything here either lets the store be used or says why not; nothing
here creates or repairs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from casckpt.errors import (
    CasckptError,
    Corrupt,
    NewerFormat,
    NoStore,
    OperationFailed,
    PermissionRefused,
    StoreBusy,
)
from casckpt.programs import command_of, environment_of
from casckpt.store import clock, creation, files, layout, lock_files, packs, rows
from casckpt.store.environment import Environment

_SMALL_FILE_BYTES = 64 * layout.KIB
_WALK_LIMIT_S = 60.0
_LOCK_WAIT_S = 75.0


@dataclass(frozen=True, slots=True)
class Format:
    """What format.json says: whose store, and which features a program must know."""

    uuid: bytes
    read: frozenset[str]
    write: frozenset[str]
    collect: frozenset[str]


def read_format(path: Path) -> Format:
    """Return the format of the store at `path`.

    Raises:
        NoStore: there is no store, or the folder is something else.
        NewerFormat: the version, or a feature that reading needs, is not known here.
    """
    try:
        text = files.read_whole(path / layout.FORMAT_FILE, _SMALL_FILE_BYTES)
    except (FileNotFoundError, NotADirectoryError) as exc:
        why = "the folder is not a casckpt store" if path.exists() else "there is no such folder"
        raise NoStore(f"no store at {path}", why, f"run `casckpt init {path}`") from exc
    try:
        document = json.loads(text)
        version = document["version"]
        if type(version) is not int:
            raise ValueError("a version that is no number")
        uuid = bytes.fromhex(document["uuid"])
        read, write, collect = (
            frozenset(str(name) for name in document[key]) for key in ("read", "write", "collect")
        )
        if len(uuid) != 16:
            raise ValueError("uuid")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise NoStore(
            f"no store at {path}",
            f"{layout.FORMAT_FILE} does not decode: {exc}",
            "if it is a store all the same, run `casckpt repair --rebuild-index`",
        ) from exc
    if version != layout.FORMAT_VERSION or not read <= layout.READ_FEATURES:
        unknown = ", ".join(sorted(read - layout.READ_FEATURES)) or f"version {version}"
        raise NewerFormat(f"cannot read the store at {path}", f"it needs {unknown}")
    return Format(uuid, read, write, collect)


def require_features(needed: frozenset[str], known: frozenset[str], verb: str) -> None:
    """Raise NewerFormat if `verb` (write, collect) needs a feature that is not known here."""
    unknown = sorted(needed - known)
    if unknown:
        raise NewerFormat(f"cannot {verb} in this store", f"it needs {', '.join(unknown)}")


def name_features(path: Path) -> None:
    """Make format.json ask of readers all that the records of this program may need; durably.

    A store of an older program does not, and that program would take new records for damage.
    """
    document = json.loads(files.read_whole(path / layout.FORMAT_FILE, _SMALL_FILE_BYTES))
    if set(document["read"]) >= layout.READ_FEATURES:
        return
    document["read"] = sorted(layout.READ_FEATURES.union(document["read"]))
    body = (json.dumps(document, indent=1) + "\n").encode()
    # Others may be about to do the same: a name for each, so that none is renamed half written.
    temporary = path / f"{layout.FORMAT_FILE}.{os.urandom(8).hex()}.new"
    files.write_whole(path / layout.FORMAT_FILE, body, temporary)


def current_index(path: Path) -> Path:
    """Return the folder of the store's index, as CURRENT names it."""
    try:
        name = files.read_whole(path / layout.CURRENT_FILE, 64).decode("ascii", "replace").strip()
    except FileNotFoundError as exc:
        raise Corrupt(
            f"the store at {path} has no {layout.CURRENT_FILE}",
            "the file that names the index was removed",
            "run `casckpt repair --rebuild-index`",
        ) from exc
    if not name.startswith(layout.INDEX_PREFIX) or not name[len(layout.INDEX_PREFIX) :].isdigit():
        raise Corrupt(
            f"{layout.CURRENT_FILE} of {path} is damaged",
            f"it says {name!r}",
            "run `casckpt repair --rebuild-index`",
        )
    return path / name


def refuse_strangers(path: Path, index: Path) -> None:
    """Raise NoStore if what should be a folder or file of the store is something else.

    A store that came from elsewhere may hold symbolic links, devices and pipes. Files are opened
    by `files.open_file`, which refuses them; this is for the folders on the way, and for the files
    that LMDB opens by itself.
    """
    for entry in files.entries(path):
        if entry.name in creation.KNOWN_NAMES or entry.name.startswith(layout.INDEX_PREFIX):
            _refuse_stranger(entry)
    for name in (layout.PACKS_FOLDER, layout.SESSIONS_FOLDER, layout.RESERVE_FOLDER):
        if files.is_there(path / name) and not (path / name).is_dir():
            raise files.stranger(path / name, "it is a file and no folder")
    for folder in (path / layout.PACKS_FOLDER, index):
        for entry in files.entries(folder):
            _refuse_stranger(entry)


def _refuse_stranger(entry: os.DirEntry[str]) -> None:
    if entry.is_symlink():
        raise files.stranger(entry.path, "it is a symbolic link, which a store never contains")
    if not (entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)):
        raise files.stranger(entry.path, "it is a device, a pipe or a socket, and no file")


# ---- the lock every opener holds


def take_store_lock(path: Path, *, readonly: bool) -> tuple[int, bool]:
    """Return (descriptor, whether we are alone and may look at the index before others).

    Alone, the lock is still exclusive: call `share_lock` when done. A descriptor of -1 means that
    the lock cannot be opened at all (read-only folder). Close it with `lock_files.close_lock`.
    """
    lock = path / layout.LOCK_FILE
    try:
        descriptor = lock_files.open_to_lock(lock, os.O_RDWR)
    except PermissionRefused:
        if not readonly:
            raise
        return -1, False
    except FileNotFoundError as exc:
        if not readonly:
            raise Corrupt(
                f"the store at {path} has no {layout.LOCK_FILE}",
                "the file that keeps its users apart was removed",
                f"once nobody uses the store, make it anew: touch {lock}",
            ) from exc
        return -1, False
    try:
        if files.try_lock(descriptor, exclusive=True):
            return descriptor, True
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not files.try_lock(descriptor, exclusive=False):
            if time.monotonic() > deadline:
                raise StoreBusy(
                    f"cannot open the store at {path}",
                    "another process holds it exclusively (rebuilding its index?)",
                )
            time.sleep(0.01)
        return descriptor, False
    except BaseException:
        lock_files.close_lock(descriptor)
        raise


def share_lock(descriptor: int) -> None:
    """Turn the exclusive lock into a shared one."""
    files.try_lock(descriptor, exclusive=False)


# ---- the clean stamp


def _stamp(index: Path, transaction: int) -> dict[str, object]:
    facts_of_file = (index / "data.mdb").stat()
    return {
        "boot": clock.boot_id().hex(),
        "inode": facts_of_file.st_ino,
        "size": facts_of_file.st_size,
        "mtime_ns": facts_of_file.st_mtime_ns,
        # What a copy that keeps inode and mtime cannot keep: a stamp put back with its index
        "ctime_ns": facts_of_file.st_ctime_ns,
        "transaction": transaction,
    }


def stamp_fits(index: Path) -> bool:
    """Tell whether the index is as its last closer left it, in this boot."""
    try:
        text = files.read_whole(index / layout.CLEAN_FILE, _SMALL_FILE_BYTES)
        stamp = json.loads(text)
        wanted = _stamp(index, 0)
    except (OSError, ValueError, RecursionError, CasckptError):
        return False
    return isinstance(stamp, dict) and all(
        stamp.get(key) == value for key, value in wanted.items() if key != "transaction"
    )


def write_stamp(index: Path, transaction: int) -> None:
    """Say that the index was closed in order; only the last closer may."""
    body = json.dumps(_stamp(index, transaction)).encode()
    files.write_whole(index / layout.CLEAN_FILE, body, index / (layout.CLEAN_FILE + ".new"))


def remove_stamp(index: Path) -> None:
    """Take the stamp back before the first write."""
    files.unlink(index / layout.CLEAN_FILE, missing_ok=True)


def walk_index(index: Path) -> bool:
    """Read every row of the index in a child process: damage may kill whoever reads it.

    Raises Corrupt if the child dies or reports damage, OperationFailed if it cannot begin. Past a
    minute the walk is given up and the index trusted, as it is by every process that finds others
    at work.

    Returns:
        Whether the walk came to its end.
    """
    # Only after a crash: `ls` on a store that was closed in order does without.
    import subprocess

    command = command_of("casckpt.store.walk", str(index))
    try:
        outcome = subprocess.run(
            command,
            env=environment_of(),
            capture_output=True,
            timeout=_WALK_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    except OSError as exc:
        raise files.translate(exc, f"cannot start {sys.executable} to look at {index}") from exc
    if outcome.returncode != 0:
        said = outcome.stderr.decode("utf-8", "replace").strip().splitlines()
        if said and said[-1].startswith(("ImportError", "ModuleNotFoundError")):
            raise OperationFailed(
                f"the index {index.name} cannot be looked at",
                f"{sys.executable} finds other packages than this process: {said[-1]}",
                "start it with the interpreter of the environment that casckpt is installed in",
            )
        raise Corrupt(
            f"the index {index.name} is damaged",
            said[-1] if said else f"reading it ended with status {outcome.returncode}",
            "run `casckpt repair --rebuild-index`; the packs still hold everything",
        )
    return True


# ---- an index older than its packs


def refuse_old_index(path: Path, store_uuid: bytes, environment: Environment) -> None:
    """Raise Corrupt if a pack holds a fact newer than the index knows.

    An index that was put back from a backup would take the newer packs for garbage.
    """
    newest = 0
    # ORDER: packs first, meta.seq after, so that a commit between the two is no false alarm
    with environment.read() as tx:
        known_packs = [rows.PackRow.decode(value) for _, value in tx.scan("packs")]
    registered = {row.uuid: row.size for row in known_packs}
    for file in packs.pack_files(path):
        newest = max(newest, _newest_fact(file, store_uuid, registered))
    with environment.read() as tx:
        known = tx.number("seq")
    if newest > known:
        raise Corrupt(
            f"the index of {path} is older than its packs",
            f"a pack holds commit {newest}, the index ends at {known}",
            "run `casckpt repair --rebuild-index`",
        )


def _newest_fact(file: Path, store_uuid: bytes, registered: dict[bytes, int]) -> int:
    from casckpt.store import codec, facts

    try:
        uuid = packs.uuid_in_name(file)
        descriptor = files.open_file(file, os.O_RDONLY)
    except (FileNotFoundError, CasckptError):
        return 0
    newest = 0
    try:
        start = max(registered.get(uuid, 0), layout.PACK_HEADER_BYTES)
        if os.fstat(descriptor).st_size <= start:
            return 0
        packs.read_pack_header(descriptor, file, uuid, store_uuid)
        for record in packs.scan_pack(descriptor, file, uuid, start):
            if record.kind == layout.TYPE_FACT:
                payload = packs.read_payload(descriptor, file, record)
                body = codec.decode_body(record.encoding, payload, record.logical)
                newest = max(newest, facts.decode_fact(body).seq)
    except CasckptError:
        return newest
    finally:
        files.close_file(descriptor)
    return newest
