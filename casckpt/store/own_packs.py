"""The packs that this process appends to: chunks of its saves, and the facts of its transactions.

One pack is open at a time; a full one is sealed on a thread of its own, so that its flush to the
disk overlaps the coding of the next chunks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

from casckpt.errors import CasckptError
from casckpt.store import codec, facts, files, layout, records, rows
from casckpt.store.index_writer import IndexWriter
from casckpt.store.pack_writer import PackFailed, PackWriter, new_uuid
from casckpt.store.records import Buffer, Record
from casckpt.store.sessions import Session
from casckpt.store.transactions import Transaction
from casckpt.store.workers import Workers

_PACKS_IN_FREE_SPACE = 16


class OwnPacks:
    """Appends records to packs of this session. Thread safe; implements `FactSink`."""

    def __init__(self, store: Path, store_uuid: bytes, session: Callable[[], Session]) -> None:
        self._store = store
        self._store_uuid = store_uuid
        self._session = session
        self.writer: IndexWriter | None = None
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._current: PackWriter | None = None
        self._all: dict[int, PackWriter] = {}
        self._sealing: dict[int, Future[int]] = {}
        self._sealer: Workers | None = None
        self._pending: list[tuple[int, bytes]] = []

    def leave_lost(self) -> None:
        """Write no more to a pack whose file was moved, removed or cut; another is opened."""
        with self._lock:
            pack = self._current
        if pack is not None and not pack.sealed and not pack.stands():
            pack.failed = True

    # ---- opening and rotating

    def _open_pack(self, highest_fact: int = 0) -> PackWriter:
        """Register a new pack, make its file, and return it."""
        assert self.writer is not None
        uuid = new_uuid(self._store)
        session = self._session().uuid
        most_bytes = seal_bytes(self._store)

        def register(tx: Transaction) -> int:
            number = max(tx.number("next_pack"), 1)
            tx.set_number("next_pack", number + 1)
            row = rows.PackRow(
                uuid, session, size=layout.PACK_HEADER_BYTES, highest_fact=highest_fact
            )
            tx.put("packs", rows.pack_key(number), row.encode())
            return number

        # ORDER: the row first, so that no file is ever without an owner (format.md, B2)
        number = self.writer.run(register, facts=False)
        pack = PackWriter(self._store, uuid, number, self._store_uuid, session)
        pack.seal_bytes = most_bytes
        with self._lock:
            self._all[number] = pack
        return pack

    def _usable(self) -> PackWriter | None:
        with self._lock:
            current = self._current
            return current if current is not None and not current.full else None

    def _pack(self) -> PackWriter:
        """Return a pack with room, opening one if need be."""
        pack = self._usable()
        if pack is not None:
            return pack
        with self._opening:
            pack = self._usable()
            if pack is None:
                pack = self._open_pack()
                with self._lock:
                    old, self._current = self._current, pack
                if old is not None and not old.sealed and not old.failed:
                    self._seal_later(old)
        return pack

    def _seal_later(self, pack: PackWriter) -> None:
        with self._lock:
            if self._sealer is None:
                self._sealer = Workers(1, "casckpt-seal")
            sealer = self._sealer
        sealing = sealer.submit(pack.seal)
        with self._lock:
            self._sealing[pack.number] = sealing

    def append(
        self,
        kind: int,
        encoding: int,
        identity: bytes,
        logical: int,
        refs: tuple[bytes, ...],
        payload: Buffer,
    ) -> tuple[PackWriter, Record]:
        """Append a record to a pack of this session; durable after `sync` of that pack."""
        while True:
            pack = self._pack()
            try:
                return pack, pack.append(kind, encoding, identity, logical, refs, payload)
            except CasckptError:
                # Sealed or failed by another thread between the look and the write: take the
                # next pack. Our own failure is ours to report.
                if not pack.sealed:
                    raise

    def sync(self, packs: Iterable[PackWriter]) -> None:
        """Make all records in `packs` durable, where readers look for them (protocol, SAVE 4)."""
        for pack in packs:
            with self._lock:
                sealing = self._sealing.pop(pack.number, None)
            if sealing is not None:
                sealing.result()
            # Sealed or not: another thread may be about to flush it, and may fail.
            pack.sync()
            if not pack.stands():
                pack.failed = True
                raise PackFailed(f"cannot write to {pack.path.name}", "somebody took it away")

    # ---- facts

    def fact_pack(self) -> int:
        """Return the number of a pack that takes a fact now; its row exists."""
        self.leave_lost()
        with self._lock:
            current = self._current
            if current is not None and not current.failed and not current.sealed:
                return current.number
        pack = self._open_pack()
        with self._lock:
            self._current = pack
        return pack.number

    def pack_gone(self) -> None:
        """Leave the current pack: a collector has dropped it."""
        with self._lock:
            self._current = None

    def append_fact(self, pack: int, seq: int, changes: list[facts.Change]) -> None:
        """Append the fact of a committed transaction; it is kept for later if that fails."""
        self._pending.append((seq, facts.encode_fact(seq, time.time_ns(), changes)))
        # The transaction is committed: a fact that cannot be written now costs nothing but a
        # rebuild after the loss of the index, so it never turns a success into an error.
        with contextlib.suppress(CasckptError):
            self._append_pending(pack)

    def _append_pending(self, number: int) -> None:
        while self._pending:
            seq, body = self._pending[0]
            encoded = codec.encode_body(body)
            identity = records.object_id(layout.TYPE_FACT, (), body)
            arguments = (
                layout.TYPE_FACT,
                encoded.encoding,
                identity,
                len(body),
                (),
                encoded.payload,
            )
            pack = self._all.get(number)
            try:
                if pack is None or pack.failed or pack.sealed:
                    raise PackFailed("the pack takes no more records")
                pack.append(*arguments)
            except CasckptError:
                # The pack named in the transaction was sealed meanwhile; the new one carries the
                # seq in its row before the fact is in its file.
                pack = self._open_pack(highest_fact=seq)
                with self._lock:
                    self._current = pack
                number = pack.number
                pack.append(*arguments)
            self._pending.pop(0)

    def sync_facts(self) -> None:
        """Make the appended facts durable."""
        with self._lock:
            current = self._current
        if self._pending and current is not None:
            self._append_pending(current.number)
        if current is not None and not current.sealed and not current.failed:
            current.sync()

    def beat(self) -> None:
        """Write the session's heartbeat."""
        self._session().beat()

    # ---- sealing

    def release_reserved(self) -> None:
        """Give back the space reserved past the end of the open pack."""
        with self._lock:
            pack = self._current
        if pack is not None:
            with contextlib.suppress(CasckptError):
                pack.release_reserved()

    def seal_all(self) -> None:
        """Seal every open pack and register how far it goes; the next append opens another.

        Errors are kept quiet: what was committed is durable, and what was not is no loss.
        """
        with self._lock:
            packs = list(self._all.values())
            self._current = None
            sealing, self._sealing = self._sealing, {}
        for future in sealing.values():
            with contextlib.suppress(CasckptError):
                future.result()
        for pack in packs:
            with contextlib.suppress(CasckptError):
                pack.seal()
        if packs and self.writer is not None:
            with contextlib.suppress(CasckptError):
                self.writer.run(lambda tx: register_ends(tx, packs), facts=False)
        with self._lock:
            for pack in packs:
                self._all.pop(pack.number, None)

    def close(self) -> None:
        """Seal everything and stop the sealing thread."""
        self.seal_all()
        if self._sealer is not None:
            self._sealer.shutdown()

    def abandon(self) -> None:
        """Close the descriptors only: in the child of a fork."""
        for pack in self._all.values():
            pack.abandon()


def seal_bytes(store: Path) -> int:
    """Return how large a pack gets: small where there is little room.

    What lives in a pack must be moved before the rest of it is freed, and moved to where there is
    room for it. Of small packs most die as a whole.
    """
    share = files.free_bytes(store) // _PACKS_IN_FREE_SPACE
    return min(layout.PACK_SEAL_BYTES, max(share, layout.MIB))


def register_ends(tx: Transaction, packs: Iterable[PackWriter]) -> None:
    """Set in the index how far each pack is durable, and whether it is sealed."""
    for pack in packs:
        row = tx.pack(pack.number)
        if row is not None and row.state != rows.DROPPED:
            changed = replace(row, size=max(row.size, pack.synced), sealed=pack.sealed)
            if changed != row:
                tx.put("packs", rows.pack_key(pack.number), changed.encode())
