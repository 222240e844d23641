"""One save: lease, chunks, lists, manifest, commit (docs/protocol.md, SAVE 1 to 7)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from casckpt.errors import Corrupt, Deleted, NewerFormat, NoSpace
from casckpt.store import creation, cutting, files, layout, lists, lock_files
from casckpt.store.commits import (
    CommitRequest,
    RowWrite,
    add_rows,
    insert_checkpoint,
    keep_usable,
)
from casckpt.store.cutting import BlobSource as BlobSource
from casckpt.store.cutting import Chunks
from casckpt.store.objects import (
    BaseBlob,
    BaseChunk,
    ObjectWriter,
    Piece,
    Placed,
    SaveAgain,
    Stored,
)
from casckpt.store.pack_writer import PackFailed
from casckpt.store.reading import Reader
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction
from casckpt.store.workers import Workers

_Result = TypeVar("_Result")

# Pieces handed to a worker at a time: enough to make the hand-over cheap, few enough that all
# workers are busy in a small save.
_UNIT_BYTES = 4 * layout.MIB
_UNIT_PIECES = 256


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A stored blob: `new_bytes` are the logical bytes this save had to write for it.

    `stored_bytes` is what those took on disk, headers and lists included.
    """

    id: bytes
    length: int
    new_bytes: int
    stored_bytes: int


class Saver:
    """One save in flight; made by `Repository.saver`. Its methods are called from one thread."""

    def __init__(
        self,
        shared: SharedStore,
        pool: Workers,
        level: str,
        memory_bytes: int,
        max_delta_depth: int,
    ) -> None:
        self._shared = shared
        self._pool = pool
        self._reader = Reader(shared, pool)
        self._objects = ObjectWriter(shared, self._reader, level, max_delta_depth)
        self._recent_bytes = memory_bytes // 2
        self._window_bytes = max(memory_bytes // 4, 2 * _UNIT_BYTES)
        self._committed = False

    @property
    def new_bytes(self) -> int:
        """Logical bytes of the chunks this save had to write."""
        return self._objects.new_bytes

    @property
    def stored_bytes(self) -> int:
        """What the records of this save took on disk."""
        return self._objects.stored_bytes

    def __enter__(self) -> Self:
        """Begin: take the lease that tells collectors what this save may rely on."""
        # ORDER: the session first: to make room for its file it may take the ballast, and a save
        # must not go on in the space that freeing needs
        self._shared.session()
        self._shared.require_write_features()
        self._shared.packs.let_go()
        self._shared.own.leave_lost()
        self._shared.forget_damage_gone()
        _require_ballast(self._shared)
        self._shared.recent.begin_save(self._recent_bytes)
        # ORDER: the session shows epoch 0 while gc_epoch is read, so no collector overtakes it
        self._lease = self._shared.session().take_lease(self._collector_epoch)
        return self

    def _collector_epoch(self) -> int:
        with self._shared.environment.read() as tx:
            return tx.number("gc_epoch")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the lease; what was not committed becomes garbage."""
        if os.getpid() != self._shared.pid:
            return
        self._shared.session().end_lease(self._lease)
        if self._committed:
            self._shared.own.release_reserved()
        else:
            # What was written is garbage now; sealed, the next gc takes it.
            self._shared.own.seal_all()
            if isinstance(error, NoSpace):
                error.left_bytes = self.stored_bytes

    # ---- chunks

    def put_blobs(self, sources: Iterable[BlobSource]) -> list[BlobInfo]:
        """Store blobs, each chunk once, and return what names them, in order.

        Sources are taken one by one, and at most a quarter of the memory limit is under way.

        Raises:
            NoSpace, OperationFailed: as the disk says; nothing was committed.
            SaveAgain: another thread's write failed; begin the save anew.
        """
        finished: list[list[Stored]] = []
        styles: list[lists.Style] = []
        under_way: deque[tuple[int, Future[list[tuple[int, Stored]]]]] = deque()
        window = 0
        try:
            for unit, size, count in self._units(sources, styles):
                while len(finished) < count:
                    finished.append([])
                under_way.append((size, self._pool.submit(self._objects.store_unit, unit)))
                window += size
                while window > self._window_bytes:
                    window -= self._collect(under_way, finished)
            while under_way:
                self._collect(under_way, finished)
        except PackFailed as exc:
            raise SaveAgain("the save was interrupted", str(exc)) from exc
        finally:
            # Workers hold the caller's buffers: nobody may still read them after the return.
            for _, future in under_way:
                if not future.cancel():
                    future.exception()
        return [self._name(*named) for named in zip(finished, styles, strict=True)]

    @staticmethod
    def _collect(
        under_way: deque[tuple[int, Future[list[tuple[int, Stored]]]]],
        finished: list[list[Stored]],
    ) -> int:
        size, future = under_way[0]
        try:
            stored = future.result()
        finally:
            # Its error must not be named by a frame of its own traceback (see reading.py).
            del future
        under_way.popleft()
        for blob, piece in stored:
            finished[blob].append(piece)
        return size

    def _units(
        self, sources: Iterable[BlobSource], styles: list[lists.Style]
    ) -> Iterator[tuple[list[Piece], int, int]]:
        """Yield (pieces for one worker, their bytes, blobs begun so far); add each blob's style."""
        unit: list[Piece] = []
        size = count = 0
        for blob, source in enumerate(sources):
            count = blob + 1
            styles.append(lists.OPAQUE if source.opaque else lists.ARRAY)
            blob_base = None if source.opaque else self._base_blob(source)
            chunks = self._base_chunks(source) if source.opaque else ()
            for index, piece in enumerate(cutting.cut(source, chunks)):
                base = blob_base if piece.base is None else BaseChunk(piece.base)
                unit.append(Piece(blob, index, piece.view, source.item_size, base, piece.id))
                size += len(piece.view)
                if size >= _UNIT_BYTES or len(unit) >= _UNIT_PIECES:
                    yield unit, size, count
                    unit, size = [], 0
        if unit or count:
            yield unit, size, count

    def _base_blob(self, source: BlobSource) -> BaseBlob | None:
        if source.base is None:
            return None
        return BaseBlob(self._reader, source.base, source.length, source.whole)

    def _base_chunks(self, source: BlobSource) -> Chunks:
        """Return the chunks of a source's base, none if it has no base that can be used."""
        if source.base is None:
            return ()
        try:
            return self._reader.chunks_of(source.base)
        except (Corrupt, Deleted, NewerFormat):
            return ()

    def _name(self, pieces: list[Stored], style: lists.Style) -> BlobInfo:
        before = self.stored_bytes
        identity = lists.build(
            [piece.id for piece in pieces],
            [piece.length for piece in pieces],
            lambda refs, body: self._objects.put_object(layout.TYPE_LIST, tuple(refs), body),
            style,
        )
        return BlobInfo(
            identity,
            sum(piece.length for piece in pieces),
            sum(piece.new_bytes for piece in pieces),
            sum(piece.stored_bytes for piece in pieces) + self.stored_bytes - before,
        )

    def put_manifest(self, refs: Sequence[bytes], body: bytes) -> BlobInfo:
        """Store a manifest; its refs are ids that `put_blobs` of this save returned."""
        stranger = next((ref for ref in refs if ref not in self._objects.known), None)
        if stranger is not None:
            raise ValueError(f"blob {stranger.hex()} was not put by this save")
        before = self.stored_bytes
        try:
            identity = self._objects.put_object(layout.TYPE_MANIFEST, tuple(refs), body)
        except PackFailed as exc:
            raise SaveAgain("the save was interrupted", str(exc)) from exc
        stored = self.stored_bytes - before
        return BlobInfo(identity, len(body), len(body) if stored else 0, stored)

    # ---- commit

    def commit(self, request: CommitRequest) -> int:
        """Make the checkpoint exist; durable when this returns. Return its commit seq.

        Raises:
            RunMoved: the line's head is not `expect_head`; nothing was committed.
            SaveAgain: a collector took something this save relies on; begin it anew.
        """
        return self._finish(partial(insert_checkpoint, request=request), row_count=3)

    def put_back(self) -> None:
        """Register what was stored, for checkpoints that name it already: it was lost or damaged.

        Raises:
            SaveAgain: a collector took something this save relies on; begin it anew.
        """
        self._finish(lambda tx: None, row_count=0)

    def add_rows(self, writes: Sequence[RowWrite]) -> list[bool]:
        """Put rows whose roots are manifests of this save where there are none; durable on return.

        Returns:
            For each write whether it took effect: the first of two processes wins.

        Raises:
            SaveAgain: a collector took something this save relies on; begin it anew.
        """
        self._check_roots(writes)
        return self._finish(partial(add_rows, writes=writes), row_count=len(writes))

    def _check_roots(self, writes: Sequence[RowWrite]) -> None:
        known = self._objects.known
        if any(root not in known for write in writes for root in write.roots):
            raise ValueError("a row names a manifest that this save has not put")

    def _finish(self, publish: Callable[[Transaction], _Result], row_count: int) -> _Result:
        try:
            # ORDER: bytes durable, then rows that name them, then the row that makes them roots
            self._shared.own.sync(self._objects.written.values())
        except PackFailed as exc:
            raise SaveAgain("the save was interrupted", str(exc)) from exc
        files.crash_point("records durable")
        placed = list(self._objects.placed.items())
        step = layout.ONE_TRANSACTION_ROWS
        while len(placed) > step:
            batch, placed = placed[:step], placed[step:]
            self._shared.writer.run(
                partial(self._objects.register, placed=batch), row_count=step, facts=False
            )
        result = self._shared.writer.run(
            partial(self._publish, placed=placed, publish=publish),
            row_count=len(placed) + row_count,
        )
        self._committed = True
        self._shared.collect_if_due()
        return result

    def _publish(
        self,
        tx: Transaction,
        placed: Placed,
        publish: Callable[[Transaction], _Result],
    ) -> _Result:
        """Register the rest, check what may have gone, and add the roots (protocol, SAVE 6)."""
        self._objects.register(tx, placed)
        if tx.number("gc_epoch") != self._lease.epoch:
            # A collector condemned packs since this save began: look at everything once more.
            for identity in self._objects.known:
                if not keep_usable(tx, identity):
                    raise SaveAgain(
                        "the save was interrupted", "a collector freed a chunk that it had found"
                    )
        return publish(tx)


def _require_ballast(shared: SharedStore) -> None:
    """Fail as full, before anything is reserved, while the ballast cannot be made again."""
    if files.is_there(shared.path / layout.BALLAST_FILE):
        return
    gc_lock = shared.path / layout.GC_LOCK_FILE
    descriptor = lock_files.open_to_lock(gc_lock, os.O_RDWR | os.O_CREAT)
    try:
        if files.try_lock(descriptor, exclusive=True) and not creation.make_ballast(shared.path):
            inodes = files.free_inodes(shared.path)
            few = inodes < layout.RESERVE_FILES
            free = f"{inodes} inodes" if few else f"{files.free_bytes(shared.path)} bytes"
            raise NoSpace(
                "cannot save: the disk is full",
                f"{free} are free, not enough even for the ballast, which removing needs",
            )
    finally:
        lock_files.close_lock(descriptor)
