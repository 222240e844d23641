"""The store without one of its rules: what the tests of this folder are tested with.

Each mutant changes the code of the process it is called in. `CAUGHT_BY` says which points of the
campaign, or which scenario of `interleave.py`, must find a violation when it is on.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from casckpt.errors import CasckptError
from casckpt.store import (
    collection,
    commits,
    compaction,
    creation,
    engine_locks,
    environment,
    files,
    index_writer,
    layout,
    objects,
    opening,
    own_packs,
    pack_writer,
    rebuilding,
    recoding,
    recoding_columns,
    records,
    rows,
    saving,
    snapshots,
)


def _replace(owner: object, name: str, value: object) -> None:
    setattr(owner, name, value)


def no_flush_before_commit() -> None:
    """Rows name records that are not durable (SAVE 4)."""

    def sync(pack: pack_writer.PackWriter) -> int:
        pack.synced = pack.end
        return pack.end

    _replace(pack_writer.PackWriter, "sync", sync)
    _replace(files, "sync_data", lambda descriptor, path: None)


def rename_before_flush() -> None:
    """A file gets its name before its bytes are durable."""

    def write_whole(path: Path, data: bytes, temporary: Path) -> None:
        descriptor = files.open_file(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        files.write_at(descriptor, data, 0, temporary)
        files.rename(temporary, path)
        files.sync_folder(path.parent)
        files.sync_file(descriptor, path)
        files.close_file(descriptor)

    _replace(files, "write_whole", write_whole)


def no_flush_of_pack_folders() -> None:
    """A pack's bytes are durable, its name is not (format.md, B2)."""
    real = files.sync_folder

    def sync_folder(path: Path) -> None:
        if layout.PACKS_FOLDER not in path.parts:
            real(path)

    _replace(files, "sync_folder", sync_folder)


def no_flush_of_index_folder() -> None:
    """LMDB's files are durable, their names are not (format.md, section 2)."""
    real = files.sync_folder

    def sync_folder(path: Path) -> None:
        if not path.name.startswith(layout.INDEX_PREFIX):
            real(path)

    _replace(files, "sync_folder", sync_folder)


def flush_again_after_failure() -> None:
    """fdatasync is tried again, and the kernel says that all is well (format.md, B3)."""
    real = os.fdatasync

    def sync_data(descriptor: int, path: Path) -> None:
        try:
            real(descriptor)
        except OSError:
            try:
                real(descriptor)
            except OSError as exc:
                raise files.translate(exc, f"cannot fdatasync {path}") from exc

    _replace(files, "sync_data", sync_data)


def failed_flush_is_no_error() -> None:
    """fdatasync fails, and the save goes on."""

    def sync_data(descriptor: int, path: Path) -> None:
        try:
            os.fdatasync(descriptor)
        except OSError as exc:
            if exc.errno != errno.EIO:
                raise

    _replace(files, "sync_data", sync_data)


def no_write_loop() -> None:
    """A short write counts as a whole one (format.md, B1)."""

    def write_vector(descriptor: int, buffers: list[Any], offset: int, path: Path) -> int:
        os.pwritev(descriptor, buffers, offset)
        return sum(len(buffer) for buffer in buffers)

    _replace(files, "write_vector", write_vector)


def format_first() -> None:
    """init says that the store is there before it is."""

    def create_index(path: Path, uuid: bytes) -> int:
        body = (
            f'{{"version": 1, "uuid": "{uuid.hex()}", "read": [], "write": [], "collect": []}}'
        ).encode()
        files.write_whole(path / layout.FORMAT_FILE, body, path / "format.json.new")
        return real_create(path, uuid)

    real_create = creation.create_index
    _replace(creation, "create_index", create_index)


def current_first() -> None:
    """A rebuild names its index before it is filled (REBUILD)."""
    real = creation.create_index

    def create_index(path: Path, uuid: bytes) -> int:
        number = real(path, uuid)
        if (path / layout.FORMAT_FILE).exists():
            creation.set_current(path, number)
        return number

    _replace(rebuilding.creation, "create_index", create_index)


def no_facts() -> None:
    """Transactions leave no fact, so packs alone cannot give the index back (Facts)."""
    _replace(own_packs.OwnPacks, "append_fact", lambda self, pack, seq, changes: None)


def facts_die_with_their_pack() -> None:
    """Facts are not copied out of packs that go (GC 4)."""
    _replace(snapshots, "copy_facts", lambda shared, numbers: None)
    _replace(snapshots, "write_snapshot", lambda shared: None)
    _replace(collection.snapshots, "snapshot_packs", lambda tx: frozenset())
    real = collection._Collector._keep_facts

    def keep_facts(self: Any, dead: set[int]) -> None:
        real(self, dead)
        self._copied = dict.fromkeys(dead, 2**62)

    _replace(collection._Collector, "_keep_facts", keep_facts)


def copies_not_flushed() -> None:
    """Compaction repoints rows at copies that are not durable (GC 3)."""
    real = compaction.publish

    def publish(shared: Any, *rest: Any) -> Any:
        kept = own_packs.OwnPacks.sync

        def no_sync(self: Any, written: Any) -> None:
            for pack in written:
                pack.synced = pack.end

        _replace(own_packs.OwnPacks, "sync", no_sync)
        try:
            return real(shared, *rest)
        finally:
            _replace(own_packs.OwnPacks, "sync", kept)

    _replace(compaction, "publish", publish)
    _replace(recoding, "publish", publish)


def coded_against_another_chunk() -> None:
    """Chunks stored anew name one base and are coded against other bytes, proof included (GC 3)."""
    real = recoding_columns.ColumnCoder._bytes

    def read(self: Any, work: Any, identity: bytes) -> Any:
        view = real(self, work, identity)
        if view is None or identity != work.column.ids[0] or not work.undo:
            return view
        other = bytearray(view)
        other[len(other) // 2] ^= 1
        return memoryview(other)

    _replace(recoding_columns.ColumnCoder, "_bytes", read)
    _replace(recoding_columns.codec, "delta_pays", lambda chunk, base, item_size: True)


def chains_not_checked_when_moved() -> None:
    """Rows move without a look at the chain below, and not from the root on (GC 3)."""
    real = compaction._repoint

    def repoint(tx: Any, **how: Any) -> Any:
        class Blind:
            def __getattr__(self, name: str) -> Any:
                return getattr(tx, name)

            def chain(self, identity: bytes) -> Any:
                return []

        how["moves"] = list(reversed(how["moves"]))[:1]
        return real(Blind(), **how)

    _replace(compaction, "_repoint", repoint)


def _chain_is_enough(tx: Any, identity: bytes) -> bool:
    return tx.chain(identity) is not None


def lease_ignored() -> None:
    """The commit does not look whether packs were condemned meanwhile (SAVE 6)."""
    _replace(saving, "keep_usable", _chain_is_enough)


def condemned_is_not_revived() -> None:
    """A hit in a condemned pack counts, and the pack stays condemned (SAVE 2)."""
    _replace(objects, "revive", lambda tx, ids: set())
    for module in (commits, objects, saving):
        _replace(module, "keep_usable", _chain_is_enough)


def no_hash_check() -> None:
    """What is read is not compared with its id, its header or its payload check (READ)."""
    _replace(records, "check_payload", lambda record, payload: None)
    real = records.chunk_context()

    class Blind:
        expected = b""

        def hash(self, data: Any) -> bytes:
            return Blind.expected

        def hash_many(self, many: Any) -> Any:
            return real.hash_many(many)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    from casckpt.store import reading

    read = reading.Reader._read_link

    def read_link(self: Any, identity: bytes, *rest: Any) -> None:
        Blind.expected = identity
        context = records.chunk_context
        _replace(records, "chunk_context", Blind)
        try:
            read(self, identity, *rest)
        finally:
            _replace(records, "chunk_context", context)

    _replace(reading.Reader, "_read_link", read_link)


def commit_before_rows_are_durable() -> None:
    """A commit returns although its transaction failed."""
    real = index_writer.IndexWriter.run

    def run(self: Any, job: Any, **how: Any) -> Any:
        try:
            return real(self, job, **how)
        except CasckptError as exc:
            if exc.exit_code == 3:
                return 1
            raise

    _replace(index_writer.IndexWriter, "run", run)


def current_in_place() -> None:
    """CURRENT is written where it stands, not beside and renamed."""

    def set_current(path: Path, number: int) -> None:
        place = path / layout.CURRENT_FILE
        descriptor = files.open_file(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        files.write_at(descriptor, f"{layout.INDEX_PREFIX}{number}\n".encode(), 0, place)
        files.sync_file(descriptor, place)
        files.close_file(descriptor)

    _replace(creation, "set_current", set_current)


def no_flush_of_store_folder() -> None:
    """The names in the store's own folder are not made durable: CURRENT, format.json, the index."""
    real = files.sync_folder

    def sync_folder(path: Path) -> None:
        if not (path / layout.PACKS_FOLDER).is_dir():
            real(path)

    _replace(files, "sync_folder", sync_folder)


def _lmdb_opened_with(**options: bool) -> None:
    real = environment.lmdb.open

    def opened(*arguments: Any, **how: Any) -> Any:
        return real(*arguments, **{**how, **options})

    _replace(environment.lmdb, "open", opened)


def index_never_flushed() -> None:
    """LMDB commits without a flush."""
    _lmdb_opened_with(sync=False)


def index_head_not_flushed() -> None:
    """LMDB flushes its pages, not the head that names them."""
    _lmdb_opened_with(metasync=False)


def index_not_walked() -> None:
    """An index is used as it is found, whoever closed it (format.md, section 11)."""
    _replace(opening, "stamp_fits", lambda index: True)


def old_index_accepted() -> None:
    """An index from a backup is not told from the newest (format.md, section 11)."""
    _replace(opening, "refuse_old_index", lambda path, uuid, environment: None)


def locks_always_granted() -> None:
    """Whoever asks for a lock has it, though others hold it."""
    _replace(files, "try_lock", lambda descriptor, **options: True)


def locks_of_the_engine_are_its_own() -> None:
    """The locks on lock.mdb are left to LMDB, whose POSIX locks any close of that file drops."""
    _replace(engine_locks.EngineLocks, "__init__", lambda self, index: None)
    _replace(engine_locks.EngineLocks, "are_of", lambda self, path: True)
    _replace(engine_locks.EngineLocks, "close", lambda self: None)


def older_index_is_written() -> None:
    """Nothing tells a process that the index it has open is older than it was."""
    _replace(environment.Environment, "_seen", property(lambda index: 0, lambda index, value: None))


def failed_write_is_no_error() -> None:
    """A write fails, and the save goes on."""
    real = files.write_vector

    def write_vector(descriptor: int, buffers: list[Any], offset: int, path: Path) -> int:
        try:
            return real(descriptor, buffers, offset, path)
        except CasckptError:
            return sum(len(buffer) for buffer in buffers)

    _replace(files, "write_vector", write_vector)


def poisoned_pack_goes_on() -> None:
    """A pack takes records after a flush of it failed (format.md, B3)."""
    _replace(
        pack_writer.PackWriter, "failed", property(lambda pack: False, lambda pack, value: None)
    )
    real = pack_writer.PackWriter.sync

    def sync(pack: pack_writer.PackWriter) -> int:
        try:
            return real(pack)
        except CasckptError:
            return real(pack)

    _replace(pack_writer.PackWriter, "sync", sync)


def removals_leave_no_fact() -> None:
    """What was removed is in no fact, so a rebuild brings it back (GC 4)."""
    real = own_packs.OwnPacks.append_fact

    def append_fact(self: Any, pack: int, seq: int, changes: list[Any]) -> None:
        real(self, pack, seq, [one for one in changes if _is_live(one)])

    def _is_live(change: Any) -> bool:
        table, _, value = change
        if table not in layout.ROOT_TABLES or value is None:
            return True
        return rows.Row.decode(value).state == "live"

    _replace(own_packs.OwnPacks, "append_fact", append_fact)


MUTANTS: dict[str, Callable[[], None]] = {
    mutant.__name__: mutant
    for mutant in (
        no_flush_before_commit,
        rename_before_flush,
        no_flush_of_pack_folders,
        no_flush_of_index_folder,
        flush_again_after_failure,
        failed_flush_is_no_error,
        no_write_loop,
        format_first,
        current_first,
        no_facts,
        facts_die_with_their_pack,
        copies_not_flushed,
        coded_against_another_chunk,
        chains_not_checked_when_moved,
        lease_ignored,
        condemned_is_not_revived,
        no_hash_check,
        commit_before_rows_are_durable,
        current_in_place,
        no_flush_of_store_folder,
        index_never_flushed,
        index_head_not_flushed,
        index_not_walked,
        old_index_accepted,
        locks_always_granted,
        locks_of_the_engine_are_its_own,
        older_index_is_written,
        failed_write_is_no_error,
        poisoned_pack_goes_on,
        removals_leave_no_fact,
    )
}

_SEEDS = ("--seed-range", "0:12")

CAUGHT_BY: dict[str, tuple[str, ...]] = {
    "no_flush_before_commit": ("--kind", "power", "--workload", "first_save", *_SEEDS),
    "rename_before_flush": ("--kind", "power", "--workload", "init", *_SEEDS),
    "no_flush_of_pack_folders": ("--kind", "power", "--workload", "first_save", *_SEEDS),
    "no_flush_of_index_folder": ("--kind", "power", "--workload", "init", *_SEEDS),
    "flush_again_after_failure": ("--kind", "lie", "--workload", "first_save"),
    "failed_flush_is_no_error": ("--kind", "lie", "--workload", "first_save"),
    "no_write_loop": ("--kind", "short", "--workload", "first_save"),
    "format_first": ("--kind", "kill", "--workload", "init"),
    "current_first": ("--kind", "kill", "--workload", "rebuild"),
    "no_facts": ("--kind", "lost", "--workload", "attach"),
    "facts_die_with_their_pack": ("--kind", "lost", "--workload", "turn_chains"),
    "copies_not_flushed": ("--kind", "power", "--workload", "compact", *_SEEDS),
    "coded_against_another_chunk": ("--kind", "none", "--workload", "turn_chains"),
    "chains_not_checked_when_moved": ("--kind", "none", "--workload", "turn_chains"),
    "lease_ignored": ("--kind", "beside"),
    "condemned_is_not_revived": ("--kind", "beside"),
    "no_hash_check": ("--kind", "flip"),
    "commit_before_rows_are_durable": ("--kind", "error", "--workload", "first_save"),
    "current_in_place": ("--kind", "kill", "--workload", "rebuild"),
    "no_flush_of_store_folder": ("--kind", "power", "--workload", "init", *_SEEDS),
    "index_never_flushed": ("--kind", "power", "--workload", "first_save", *_SEEDS),
    "index_head_not_flushed": ("--kind", "power", "--workload", "first_save", *_SEEDS),
    "index_not_walked": ("--replay", *(f"rot:{seed}" for seed in range(6))),
    "old_index_accepted": ("--kind", "beside"),
    "locks_always_granted": ("--kind", "beside"),
    "locks_of_the_engine_are_its_own": ("--kind", "beside"),
    "older_index_is_written": ("--kind", "beside"),
    "failed_write_is_no_error": ("--kind", "error", "--workload", "first_save"),
    "poisoned_pack_goes_on": ("--kind", "lie", "--workload", "first_save"),
    "removals_leave_no_fact": ("--kind", "lost", "--workload", "delete"),
}
