"""One pack while its session appends to it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

from casckpt.errors import CasckptError, NoSpace, OperationFailed
from casckpt.store import files, layout, records
from casckpt.store.packs import pack_path
from casckpt.store.records import Buffer, Record

_RESERVE_BYTES = 16 * layout.MIB
# Handing this much to the disk at a time keeps it busy while the next chunks are coded.
_WRITEBACK_BYTES = 8 * layout.MIB
# A footer and a small fact must still fit after the chunks of a save.
_TAIL_BYTES = 64 * layout.KIB
# Where memory is short, who should say that something has changed may fail to: look again.
_LOOK_AGAIN_S = 1.0


def new_uuid(store: Path) -> bytes:
    """Return the uuid of a pack to be made.

    Where inodes are short its folder is one that is there: removing takes one inode less then.
    """
    uuid = os.urandom(16)
    if files.free_inodes(store) < layout.RESERVE_FILES:
        names = [entry.name for entry in files.entries(store / layout.PACKS_FOLDER)]
        folders = [name for name in names if re.fullmatch("[0-9a-f]{2}", name)]
        if folders:
            return bytes.fromhex(folders[uuid[0] % len(folders)]) + uuid[1:]
    return uuid


class PackFailed(OperationFailed):
    """An earlier write to this pack failed, in any thread: what is not synced goes elsewhere."""


class PackWriter:
    """One pack while its session appends to it. Thread safe.

    Appends reserve their place under the lock and write outside it; `sync` waits for the writes
    that were begun. One failed write or fdatasync ends the pack for the whole process: it takes
    no more records, and what lies above `synced` is not to be trusted (format.md, B3).
    """

    def __init__(
        self, store: Path, uuid: bytes, number: int, store_uuid: bytes, session: bytes
    ) -> None:
        self.number = number
        self.uuid = uuid
        self.path = pack_path(store, uuid)
        self.end = layout.PACK_HEADER_BYTES
        self.synced = 0
        self.seal_bytes = layout.PACK_SEAL_BYTES
        self.failed = False
        self.sealed = False
        self._reserved = 0
        self._released = 0
        self._begun = 0
        # Who is at work on the file, each by an object of its own: out of a set one comes without
        # memory and without the lock, where to count down may fail, and all would wait for ever.
        self._writing: set[object] = set()
        self._flushing: set[object] = set()
        self._closed = False
        self._records = 0
        self._changed = threading.Condition()
        # ORDER: the row in `packs` is durable before this; then file, its folder, their parents
        folder = self.path.parent
        files.make_folder(folder, exist_ok=True)
        self._descriptor = files.open_file(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            files.write_at(
                self._descriptor,
                records.encode_pack_header(uuid, store_uuid, session),
                0,
                self.path,
            )
            files.sync_file(self._descriptor, self.path)
            files.sync_folder(folder)
            # Even if the folder was there: who made it may have died before this.
            files.sync_folder(folder.parent)
        except BaseException:
            self.failed = True
            files.close_file(self._descriptor)
            raise
        self.synced = self.end
        self._file = files.identity(self.path)

    @property
    def full(self) -> bool:
        """Whether a new record should go to another pack."""
        return self.failed or self.sealed or self.end >= self.seal_bytes

    def append(
        self,
        kind: int,
        encoding: int,
        identity: bytes,
        logical: int,
        refs: tuple[bytes, ...],
        payload: Buffer,
    ) -> Record:
        """Append a record and return its header; it is durable after the next `sync`."""
        check = records.check_of(kind, encoding, identity, payload)
        length = records.OVERHEAD_BYTES + 32 * len(refs) + len(payload)
        me, counted = object(), False
        try:
            with self._changed:
                if self.failed or self.sealed:
                    raise PackFailed(
                        f"cannot write to {self.path.name}", "an earlier write to this pack failed"
                    )
                offset, end = self.end, self.end + length
                if end > max(layout.PACK_CAP_BYTES, layout.PACK_SEAL_BYTES + length):
                    raise OperationFailed(f"cannot write to {self.path.name}", "the pack is full")
                self._reserve(end + _TAIL_BYTES)
                begun, count = self._begun, self._records + 1
                due = end - begun >= _WRITEBACK_BYTES
                self._writing.add(me)
                # ORDER: nothing from here on allocates: a place is taken and counted, or neither
                self.end, self._records = end, count
                counted = True
                if due:
                    self._begun = end
            header = records.encode_header(
                self.uuid, offset, kind, encoding, identity, logical, refs, len(payload), check
            )
            files.write_vector(self._descriptor, [header, memoryview(payload)], offset, self.path)
            if due:
                files.start_writeback(self._descriptor, begun, end - begun)
        except BaseException:
            if counted:  # not `|=`: another thread's failure must not be written over
                self.failed = True
            raise
        finally:
            self._writing.discard(me)
            with self._changed:
                self._changed.notify_all()
        return Record(kind, encoding, identity, logical, len(payload), refs, check, offset)

    def _reserve(self, end: int) -> None:
        if end <= self._reserved:
            return
        # Grow by doubling up to 16 MiB, anew after each save: a save of a few bytes, or a fact
        # after it, reserves little however long the pack is.
        step = min(_RESERVE_BYTES, max(_TAIL_BYTES, end - self._released))
        target = end + step
        try:
            try:
                files.reserve(self._descriptor, self.end, target - self.end, self.path)
            except NoSpace:
                # No room for what may come later; perhaps for what comes now.
                target = end
                files.reserve(self._descriptor, self.end, target - self.end, self.path)
        except CasckptError:
            # Nothing was written yet: the pack stays good, the save fails here.
            self.release_reserved()
            raise
        self._reserved = target

    def stands(self) -> bool:
        """Tell whether the file is where readers look for it, and has all that was made durable.

        The disk takes what is written to a file that somebody has moved away, or removed, as well.
        """
        return files.identity(self.path) == self._file and files.length_of(self.path) >= self.synced

    def release_reserved(self) -> None:
        """Give back the space reserved past the end (the lock is held, or nobody else writes)."""
        with self._changed:
            while self._writing:
                self._changed.wait(_LOOK_AGAIN_S)
            if self._reserved > self.end and not self.failed and not self.sealed:
                files.truncate(self._descriptor, self.end, self.path)
            self._reserved = self._released = self.end

    def sync(self) -> int:
        """Make every record appended before the call durable; return the synced length."""
        me, counted = object(), False
        try:
            with self._changed:
                target = self.end
                # Whoever seals the pack flushes it; to return before that would promise too much.
                while self.synced < target and (
                    self._writing or (self.sealed and not self._closed)
                ):
                    self._changed.wait(_LOOK_AGAIN_S)
                if self.synced >= target and not self.failed:
                    return self.synced
                if self.failed or self._closed:
                    raise PackFailed(
                        f"cannot flush {self.path.name}", "an earlier write to this pack failed"
                    )
                end = self.end
                self._flushing.add(me)
                counted = True
            files.sync_data(self._descriptor, self.path)
        except BaseException:
            # The kernel forgets a failed write-back: a second fdatasync would say "ok".
            if counted:
                self.failed = True
            raise
        finally:
            if counted:
                self._flushing.discard(me)
                with self._changed:
                    self._changed.notify_all()
        with self._changed:
            self.synced = max(self.synced, end)
            return self.synced

    def seal(self) -> int:
        """End the pack: footer, sync, close. Return the end of its records, all durable.

        After a failure the pack is closed without a footer; a missing footer is no error.
        """
        sealing = False
        try:
            with self._changed:
                if self.sealed:
                    return self.synced
                self.sealed = sealing = True
                while self._writing or self._flushing:
                    self._changed.wait(_LOOK_AGAIN_S)
                end = self.end
            if not self.failed:
                files.sync_data(self._descriptor, self.path)
                self.synced = end
                footer = records.encode_footer(end, self._records)
                files.write_at(self._descriptor, footer, end, self.path)
                files.truncate(self._descriptor, end + len(footer), self.path)
        except CasckptError:
            if self.synced < end:
                self.failed = True
                raise
        finally:
            if sealing:
                self._closed = True
                # Without memory to wait, others may be at it still: rather a descriptor too many
                # than their bytes in a file that gets its number.
                if not self._writing and not self._flushing:
                    files.close_file(self._descriptor)
                with self._changed:
                    self._changed.notify_all()
        return self.synced

    def abandon(self) -> None:
        """Close the descriptor and nothing else: for the child of a fork."""
        self.sealed = True
        # That of a sealed pack is closed, and its number may be somebody else's by now.
        if not self._closed:
            self._closed = True
            files.close_file(self._descriptor)
