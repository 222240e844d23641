"""Reading objects: resolve, read, check, decode, in parallel, into the caller's buffers.

Locations are resolved in one read transaction, the files are read after it has ended. What then
is not there, or fails its check, is resolved again from the top: a collector may have moved it
meanwhile. It is Deleted when the index does not know it, and Corrupt when it fails where it stands
and stands where it stood (docs/protocol.md, READ).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from casckpt.errors import CasckptError, Corrupt, Deleted, NewerFormat
from casckpt.store import ahead, codec, files, layout, lists, packs, records, rows
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Chain
from casckpt.store.workers import Workers

_ATTEMPTS = 3
_UNIT_BYTES = 4 * layout.MIB
_UNIT_PIECES = 256
# So many units are asked of the disk before the first of them is decoded: enough to keep it busy,
# few enough that their pages are still there when their turn comes.
_UNITS_AHEAD = 8


@dataclass(frozen=True, slots=True)
class BlobRead:
    """A wish to fill `dest` with the logical bytes of a blob from `offset` on.

    `length` is the blob's whole logical length, as its manifest says.
    """

    id: bytes
    length: int
    offset: int
    dest: memoryview | bytearray


@dataclass(frozen=True, slots=True)
class _Part:
    """A chunk, or a piece of one, and where it goes: dest[...] = chunk[skip : skip + len(dest)]."""

    blob: bytes
    id: bytes
    length: int
    skip: int
    dest: memoryview


class _Patience:
    """Counts attempts at one place: a reader gives up only where nothing moves any more.

    Collections may move a record each time a reader has looked it up; counting all attempts would
    call a live checkpoint corrupt (found by the model in 43 steps).
    """

    def __init__(self) -> None:
        self._place: object = None
        self._attempts = 0

    def saw(self, chain: Chain | None) -> None:
        """Note where the object was found this time."""
        place = None if chain is None else [(row.pack, row.offset) for _, row, _ in chain]
        self._attempts = self._attempts + 1 if place == self._place else 1
        self._place = place

    @property
    def is_over(self) -> bool:
        """Whether the same place has failed three times."""
        return self._attempts >= _ATTEMPTS


class Reader:
    """Reads objects of one open store. Thread safe."""

    def __init__(self, shared: SharedStore, pool: Workers) -> None:
        self._shared = shared
        self._pool = pool

    # ---- objects that are refs and a body

    def read_object(self, identity: bytes, kind: int) -> tuple[tuple[bytes, ...], bytes]:
        """Return (refs, body) of a list or manifest, its id checked.

        Raises:
            Deleted: the index does not know it.
            Corrupt: its bytes are damaged, or it is an object of another kind.
        """
        problem: CasckptError | None = None
        patience = _Patience()
        while not patience.is_over:
            chain = self._resolve([identity])[0]
            patience.saw(chain)
            if chain is None:
                problem = problem or self._absent(layout.TYPE_NAMES[kind], identity)
                continue
            try:
                return self._read_object(identity, kind, chain)
            except (Corrupt, FileNotFoundError) as exc:
                problem = self._as_corrupt(exc, identity)
                if patience.is_over:
                    self._note_damage(chain)
        assert problem is not None
        try:
            raise problem
        finally:
            del problem

    def _read_object(
        self, identity: bytes, kind: int, chain: Chain
    ) -> tuple[tuple[bytes, ...], bytes]:
        _, row, pack = chain[0]
        if row.kind != kind:
            raise Corrupt(
                f"object {identity.hex()[:10]} is a {layout.TYPE_NAMES.get(row.kind, 'thing')}",
                f"a {layout.TYPE_NAMES[kind]} was expected",
            )
        with self._shared.packs.borrow(pack.uuid) as file:
            record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
            payload = packs.read_payload(file.descriptor, file.path, record)
        body = codec.decode_body(record.encoding, payload, record.logical)
        if records.object_id(kind, record.refs, body) != identity:
            raise Corrupt(
                f"damaged {layout.TYPE_NAMES[kind]} {identity.hex()[:10]}",
                "its bytes have another id",
            )
        return record.refs, body

    def _resolve(self, ids: Sequence[bytes]) -> list[Chain | None]:
        with self._shared.environment.read() as tx:
            return [tx.chain(identity) for identity in ids]

    def _absent(self, kind: str, identity: bytes) -> CasckptError:
        """Return the error for an object without a place: lost by damage, or removed."""
        name = f"{kind} {identity.hex()[:10]}"
        with self._shared.environment.read() as tx:
            is_lost = tx.is_lost(identity)
        if is_lost:
            return Corrupt(
                f"{name} is lost",
                "it was damaged, and repair found no copy of it",
                "run `casckpt repair --from STORE` if another store has it",
            )
        return Deleted(f"no {name}", "it was removed")

    def _note_damage(self, chain: Chain) -> None:
        """Remember which records of a chain cannot be read; the first, if each is as written.

        What a collector has moved or removed meanwhile is noted in vain: no row names its place.
        """
        hurt = [row for _, row, pack in chain if not self._is_whole(row, pack)]
        for row in hurt or [chain[0][1]]:
            self._shared.damaged.add((row.pack, row.offset))

    def _is_whole(self, row: rows.ObjectRow, pack: rows.PackRow) -> bool:
        try:
            with self._shared.packs.borrow(pack.uuid) as file:
                record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
                packs.read_payload(file.descriptor, file.path, record)
        except files.DAMAGE:
            return False
        return True

    def _as_corrupt(self, error: Exception, identity: bytes) -> CasckptError:
        if isinstance(error, FileNotFoundError):
            name = f"object {identity.hex()[:10]}"
            if self._shared.is_copy:
                return Deleted(
                    f"{name} is gone",
                    "the store has changed since it was opened, and may not be written here",
                    "open it again",
                )
            return Corrupt(f"{name} is lost", f"its pack is missing: {error.filename}")
        assert isinstance(error, CasckptError)
        # Without the frames of the worker, whose buffers it would keep alive.
        return error.with_traceback(None)

    # ---- blobs

    def read_blobs(self, wishes: Sequence[BlobRead], *, verify: bool = True) -> None:
        """Fill the destinations, in parallel; every chunk is checked against its id.

        With `verify=False` the hash of raw chunks is skipped; encoded ones are always decoded
        and length-checked.

        Raises:
            Corrupt: with `blob_ids`, the set of ids of the blobs that could not be read whole.
            Deleted: a blob is gone.
        """
        damaged: dict[bytes, CasckptError] = {}
        lock = threading.Lock()

        def work(unit: list[_Part], chains: list[Chain | None]) -> None:
            for part, problem in self._read_parts(unit, chains, verify):
                with lock:
                    damaged.setdefault(part.blob, problem)

        futures: list[Future[None]] = []
        try:
            for unit in self._units(wishes, damaged):
                if len(futures) >= _UNITS_AHEAD:
                    futures[-_UNITS_AHEAD].exception()
                chains = self._resolve([part.id for part in unit])
                ahead.fetch(self._shared.packs, chains)
                futures.append(self._pool.submit(work, unit, chains))
        finally:
            problems = [future.exception() for future in futures]
        error = next((problem for problem in problems if problem is not None), None)
        if error is None and damaged:
            error = _worst(damaged)
        # An exception that a frame of its own traceback names is a cycle, and Python before 3.12.4
        # crashes when its collector clears a cycle with a memoryview in it (gh-77894).
        futures.clear()
        problems.clear()
        damaged.clear()
        try:
            if error is not None:
                raise error
        finally:
            del error

    def _units(
        self, wishes: Sequence[BlobRead], damaged: dict[bytes, CasckptError]
    ) -> Iterator[list[_Part]]:
        unit: list[_Part] = []
        size = 0
        for wish in wishes:
            dest = memoryview(wish.dest).cast("B")
            if wish.offset < 0 or wish.offset + len(dest) > wish.length:
                damaged[wish.id] = Corrupt(
                    f"blob {wish.id.hex()[:10]} is shorter than what is asked of it",
                    f"{wish.length} bytes, asked for {wish.offset}..{wish.offset + len(dest)}",
                )
                continue
            try:
                parts = list(self._parts(wish, wish.id, wish.length, wish.offset, dest, 0))
            except (Corrupt, Deleted, NewerFormat) as exc:
                damaged[wish.id] = exc
                continue
            for part in parts:
                unit.append(part)
                size += part.length
                if size >= _UNIT_BYTES or len(unit) >= _UNIT_PIECES:
                    yield unit
                    unit, size = [], 0
        if unit:
            yield unit

    def _parts(
        self,
        wish: BlobRead,
        identity: bytes,
        length: int,
        offset: int,
        dest: memoryview,
        depth: int,
    ) -> Iterator[_Part]:
        """Yield the chunks with [offset, offset + len(dest)) of an object of `length` bytes."""
        if length <= layout.CHUNK_MAX_BYTES and self._kind(identity) != layout.TYPE_LIST:
            yield _Part(wish.id, identity, length, offset, dest)
            return
        if depth > layout.LIST_MAX_LEVELS:
            raise Corrupt(f"damaged list {identity.hex()[:10]}", "lists are nested too deep")
        refs, body = self.read_object(identity, layout.TYPE_LIST)
        members = lists.decode_list(body, len(refs))
        if sum(members.lengths) != length:
            raise Corrupt(
                f"damaged list {identity.hex()[:10]}",
                f"its members have {sum(members.lengths)} bytes, the blob {length}",
            )
        start = 0
        for ref, size in zip(refs, members.lengths, strict=True):
            low, high = max(offset, start), min(offset + len(dest), start + size)
            if low < high or (length == 0 and size == 0):
                piece = dest[low - offset : high - offset]
                if members.level == 1:
                    yield _Part(wish.id, ref, size, low - start, piece)
                else:
                    yield from self._parts(wish, ref, size, low - start, piece, depth + 1)
            start += size

    def _kind(self, identity: bytes) -> int | None:
        with self._shared.environment.read() as tx:
            row = tx.object(identity)
        return None if row is None else row.kind

    def _read_parts(
        self, unit: list[_Part], chains: list[Chain | None], verify: bool
    ) -> Iterator[tuple[_Part, CasckptError]]:
        """Read a unit; yield the parts that three attempts could not read. Runs on a worker.

        `chains` are where its parts were a moment ago.
        """
        left = unit
        patience = {id(part): _Patience() for part in unit}
        while True:
            again = []
            for part, chain in zip(left, chains, strict=True):
                patience[id(part)].saw(chain)
                try:
                    if chain is None:
                        raise self._absent("chunk", part.id)
                    self._read_part(part, chain, verify)
                except (Corrupt, Deleted, NewerFormat, FileNotFoundError) as exc:
                    if patience[id(part)].is_over:
                        if chain is not None and not isinstance(exc, NewerFormat):
                            self._note_damage(chain)
                        yield part, self._as_corrupt(exc, part.id)
                    else:
                        again.append(part)
            if not again:
                return
            left = again
            chains = self._resolve([part.id for part in left])

    def _read_part(self, part: _Part, chain: Chain, verify: bool) -> None:
        if part.skip == 0 and len(part.dest) == part.length:
            self._read_chunk(chain, part.id, part.dest, verify)
            return
        whole = codec.scratch("whole chunk", part.length)
        self._read_chunk(chain, part.id, whole, verify)
        part.dest[:] = whole[part.skip : part.skip + len(part.dest)]

    def chunks_of(self, blob: bytes) -> list[tuple[bytes, int]]:
        """Return (id, logical length) of the chunks of a blob, in order.

        Raises:
            Deleted, Corrupt: the blob or a list of it is gone or damaged.
        """
        with self._shared.environment.read() as tx:
            row = tx.object(blob)
        if row is not None and row.kind == layout.TYPE_CHUNK:
            return [(blob, row.logical)]
        refs, body = self.read_object(blob, layout.TYPE_LIST)
        members = lists.decode_list(body, len(refs))
        pairs = list(zip(refs, members.lengths, strict=True))
        if members.level == 1:
            return pairs
        return [chunk for ref, _ in pairs for chunk in self.chunks_of(ref)]

    def read_chunk(self, identity: bytes, dest: memoryview) -> None:
        """Fill `dest` with a chunk of exactly that length, its id checked; in this thread.

        Raises Deleted if it or a base of it has no place, Corrupt if it cannot be read whole.
        """
        self._read_now(identity, self._chunk_chain(identity), dest)

    def read_base(self, identity: bytes) -> memoryview:
        """Return a chunk of any length as `read_chunk` does, in a buffer of this thread."""
        chain = self._chunk_chain(identity)
        dest = codec.scratch("base", chain[0][1].logical)
        self._read_now(identity, chain, dest)
        return dest

    def _chunk_chain(self, identity: bytes) -> Chain:
        chain = self._resolve([identity])[0]
        if chain is None:
            raise self._absent("chunk", identity)
        return chain

    def _read_now(self, identity: bytes, chain: Chain, dest: memoryview) -> None:
        try:
            self._read_chunk(chain, identity, dest, True)
        except FileNotFoundError as exc:
            raise self._as_corrupt(exc, identity) from exc

    def _read_chunk(self, chain: Chain, identity: bytes, dest: memoryview, verify: bool) -> None:
        if any(codec.is_large(max(row.logical, row.stored)) for _, row, _ in chain):
            with self._shared.large_chunk:
                self._decode_chain(chain, identity, dest, verify)
        else:
            self._decode_chain(chain, identity, dest, verify)

    def _decode_chain(self, chain: Chain, identity: bytes, dest: memoryview, verify: bool) -> None:
        """Decode a chunk and the chain below it into `dest`, keyframe first."""
        base: memoryview | None = None
        for at, (link, row, pack) in enumerate(reversed(chain)):
            last = link == identity
            if row.kind != layout.TYPE_CHUNK or (last and row.logical != len(dest)):
                raise Corrupt(
                    f"chunk {link.hex()[:10]} has another length",
                    f"{row.logical} bytes, {len(dest)} were expected",
                )
            # Two buffers in turn: a link is read from the one below it. Only the last needs the
            # check, since its id is wrong if any link below was.
            out = dest if last else codec.scratch(f"link {at % 2}", row.logical)
            self._read_link(link, row, pack, out, base, verify and last)
            base = out

    def _read_link(
        self,
        identity: bytes,
        row: rows.ObjectRow,
        pack: rows.PackRow,
        dest: memoryview,
        base: memoryview | None,
        verify: bool,
    ) -> None:
        with self._shared.packs.borrow(pack.uuid) as file:
            header = records.OVERHEAD_BYTES + 32 * row.ref_count
            if row.encoding == layout.ENCODING_RAW and row.stored == len(dest):
                # Straight into the destination: no copy, and the id is the check.
                head = files.read_at(file.descriptor, header, row.offset, file.path)
                record = records.decode_header(head, pack.uuid, row.offset)
                count = files.read_into(file.descriptor, dest, row.offset + header, file.path)
                if record.encoding != row.encoding or count != len(dest):
                    raise Corrupt(f"damaged chunk {identity.hex()[:10]}", "it is cut off")
            else:
                # Into memory of this thread: fresh pages for each record cost more than its bytes.
                data = codec.scratch("record", header + row.stored)
                count = files.read_into(file.descriptor, data, row.offset, file.path)
                record = records.decode_header(data[:header], pack.uuid, row.offset)
                if count != header + record.stored or record.logical != len(dest):
                    raise Corrupt(f"damaged chunk {identity.hex()[:10]}", "it is cut off")
                payload = data[header:]
                try:
                    codec.decode_chunk(record.encoding, payload, dest, base)
                except NewerFormat:
                    # A flipped bit can look like a layout of a newer version.
                    records.check_payload(record, payload)
                    raise
        if record.id != identity or (verify and records.chunk_context().hash(dest) != identity):
            raise Corrupt(
                f"damaged chunk {identity.hex()[:10]}",
                f"the bytes at offset {row.offset} of {file.path.name} are not what was written",
            )


def _worst(damaged: dict[bytes, CasckptError]) -> CasckptError:
    """Return the error for blobs that could not be read whole."""
    first = next(iter(damaged.values()))
    if isinstance(first, NewerFormat) or all(
        isinstance(problem, Deleted) for problem in damaged.values()
    ):
        return first
    return Corrupt(
        f"{len(damaged)} blob(s) cannot be read whole, first {first.what}",
        first.why,
        blob_ids=frozenset(damaged),
    )
