"""Storing objects: look up, find a base, encode, prove, append, register.

The part of a save that works on one object at a time. `Saver` drives it (`saving.py`): it cuts
blobs into pieces, hands them out to workers, and commits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

from casckpt import native
from casckpt.errors import BadRequest, Busy, Corrupt, Deleted, NewerFormat
from casckpt.store import codec, files, layout, records, rows
from casckpt.store.collectors import fence
from casckpt.store.commits import keep_usable, revive, set_live
from casckpt.store.own_packs import register_ends
from casckpt.store.pack_writer import PackWriter
from casckpt.store.packs import pack_path
from casckpt.store.reading import Reader
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Chain, Transaction

# After this many chunks of a blob in a row for which a delta did not pay, its bases are not read.
_REFUSALS = 2
# What a dictionary must leave of a chunk; one from further back, since the chain is full, must
# leave less: otherwise the chunk is stored whole, and those after it are close to something again.
_BASE_BELOW = 0.97
_DISTANT_BELOW = 0.25

Placed = list[tuple[bytes, tuple[PackWriter, records.Record]]]


class SaveAgain(Busy):
    """The save met a collector or a failed pack halfway: nothing was committed, begin it anew."""

    default_hint = "save again; what is already stored is not written twice"


class BaseBlob:
    """The stored blob that a blob of the save resembles: which chunk stands where. Thread safe.

    It is read when a chunk is found missing: an unchanged state asks for none. With `whole`, its
    chunks are what others take the place of, and none to code against.
    """

    def __init__(self, reader: Reader, identity: bytes, length: int, whole: bool = False) -> None:
        self.whole = whole
        self._reader = reader
        self._id = identity
        self._length = length
        self._lock = threading.Lock()
        self._chunks: list[bytes] | None = None

    def chunk(self, index: int) -> bytes | None:
        """Return the id of its chunk at that place of the grid; None if it cannot be used."""
        with self._lock:
            if self._chunks is None:
                self._chunks = self._on_grid()
        return self._chunks[index] if self._chunks else None

    def _on_grid(self) -> list[bytes]:
        try:
            chunks = self._reader.chunks_of(self._id)
        except (Corrupt, Deleted, NewerFormat):
            return []
        sizes = [size for _, size in chunks]
        whole = all(size == layout.GRID_BYTES for size in sizes[:-1])
        return [key for key, _ in chunks] if whole and sum(sizes) == self._length else []


@dataclass(frozen=True, slots=True)
class BaseChunk:
    """A chunk that another may resemble, wherever that stands."""

    id: bytes
    whole = False

    def chunk(self, index: int) -> bytes:
        """Return its id."""
        return self.id


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk to be: of which blob of the save, its place there, its bytes, its id if known.

    `base` gives for that place the id of a chunk that it may resemble.
    """

    blob: int
    index: int
    view: memoryview
    item_size: int
    base: BaseBlob | BaseChunk | None = None
    id: bytes | None = None


@dataclass(slots=True)
class Stored:
    """What became of a piece; `new_bytes` and `stored_bytes` are 0 if it was there already."""

    id: bytes
    length: int
    new_bytes: int = 0
    stored_bytes: int = 0


class ObjectWriter:
    """The objects of one save. Thread safe: workers store units side by side.

    `known` are all ids that the save relies on, `placed` the records it appended, `written` the
    packs they are in.
    """

    def __init__(
        self, shared: SharedStore, reader: Reader, level: str, max_delta_depth: int
    ) -> None:
        self._shared = shared
        self._reader = reader
        self._level = level
        self._max_delta_depth = max_delta_depth
        self._refused: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._lock = threading.Lock()
        self.known: set[bytes] = set()
        self.placed: dict[bytes, tuple[PackWriter, records.Record]] = {}
        self.written: dict[int, PackWriter] = {}
        self.new_bytes = 0
        self.stored_bytes = 0

    def store_unit(self, unit: list[Piece]) -> list[tuple[int, Stored]]:
        """Hash the pieces, look them up, store what is missing. Runs on a worker."""
        ids = _ids(unit)
        missing = self._claim_missing(dict(zip(ids, unit, strict=True)))
        stored = []
        for identity, piece in zip(ids, unit, strict=True):
            outcome = Stored(identity, len(piece.view))
            if identity in missing:
                record = self._store_chunk(identity, piece, missing.pop(identity))
                outcome.new_bytes = len(piece.view)
                outcome.stored_bytes = record.total_bytes
            else:
                self._shared.recent.keep(identity)
            stored.append((piece.blob, outcome))
        return stored

    def _claim_missing(self, wanted: Mapping[bytes, Piece | None]) -> dict[bytes, bytes | None]:
        """Return the ids that this caller must store, each with a base that can be used, or None.

        The other ids are stored already, or another worker of this save is about to.
        """
        with self._lock:
            mine = [identity for identity in wanted if identity not in self.known]
            self.known.update(mine)
        if not mine:
            return {}
        cold: list[bytes] = []
        hurt: set[bytes] = set()
        missing: dict[bytes, bytes | None] = {}
        with self._shared.environment.read() as tx:
            for identity in mine:
                chain = tx.chain(identity)
                if chain is None:
                    missing[identity] = None
                elif not self._reaches(chain):
                    missing[identity] = None
                    hurt.add(identity)
                elif _is_cold(chain):
                    cold.append(identity)
        bases = {
            identity: base
            for identity in missing
            # Stored whole, what takes the place of something damaged rests on nothing that does.
            if identity not in hurt and (base := self._base_of(wanted[identity])) is not None
        }
        if bases:
            with self._shared.environment.read() as tx:
                for identity, base in bases.items():
                    missing[identity] = self._usable_base(tx, wanted[identity], base, cold)
        if cold:
            # The bytes are there, in a pack that waits to be swept: bring the whole chain back.
            late = self._shared.writer.run(lambda tx: revive(tx, cold), facts=False)
            missing = {key: None if base in late else base for key, base in missing.items()}
            missing.update({identity: None for identity in mine if identity in late})
        return missing

    def _reaches(self, chain: Chain) -> bool:
        """Tell whether the packs of a chain are there, and as long as its records need them.

        A lost or cut file is seen at one look. Whether bytes have changed in it only reading tells.
        """
        for _, row, pack in chain:
            end = row.offset + row.total_bytes
            if end > self._lengths.get(row.pack, 0):
                # Not looked at yet, or one that has grown since.
                length = files.length_of(pack_path(self._shared.path, pack.uuid))
                self._lengths[row.pack] = length
                if end > length:
                    self._shared.damaged.add((row.pack, row.offset))
        return not self._shared.rests_on_damage(chain)

    def _base_of(self, piece: Piece | None) -> bytes | None:
        """Return what a piece is likely to resemble, unless it is to be stored whole."""
        if piece is None or piece.base is None or piece.base.whole:
            return None
        return self._before(piece)

    def _before(self, piece: Piece) -> bytes | None:
        """Return what stood in the place of a piece."""
        if piece.base is None or not self._may_have_base(piece):
            return None
        return piece.base.chunk(piece.index)

    def _usable_base(
        self, tx: Transaction, piece: Piece | None, base: bytes, cold: list[bytes]
    ) -> bytes | None:
        """Return what a piece may be stored against; a base to be revived goes to `cold`."""
        chain = tx.chain(base)
        if piece is None or chain is None or not self._reaches(chain):
            return None
        # Every link is one more record to read at each restore.
        spare = len(chain) - self._max_delta_depth
        if spare > 0:
            if codec.plane_width(piece.item_size) > 1:
                return None
            # A dictionary may be any bytes: what the one at hand is itself stored against.
            chain = chain[spare:]
        base = chain[0][0]
        if _is_cold(chain):
            cold.append(base)
        return base

    def _store_chunk(self, identity: bytes, piece: Piece, base: bytes | None) -> records.Record:
        before = self._before(piece)
        # Needed no more, whether or not the new chunk rests on it: it would keep that one out.
        memory = None if before is None else self._shared.recent.take(before, len(piece.view))
        is_near = base is not None and base == before
        old = None
        if base is not None:
            old = self._base_bytes(piece, base, memory if is_near else None)
        pays = _BASE_BELOW if is_near else _DISTANT_BELOW
        encoded = codec.encode_chunk(piece.view, piece.item_size, self._level, old, pays)
        if is_near:
            refused = 0 if encoded.uses_base else self._refused.get(piece.blob, 0) + 1
            self._refused[piece.blob] = refused
        if encoded.encoding != layout.ENCODING_RAW:
            self._prove(identity, encoded, piece, old)
        if memory is not None:
            self._shared.recent.give_back(memory)
        refs = (base,) if base is not None and encoded.uses_base else ()
        return self._append(
            layout.TYPE_CHUNK, encoded.encoding, identity, len(piece.view), refs, encoded.payload
        )

    def _may_have_base(self, piece: Piece) -> bool:
        return self._max_delta_depth > 0 and self._refused.get(piece.blob, 0) < _REFUSALS

    def _base_bytes(self, piece: Piece, base: bytes, memory: bytearray | None) -> memoryview | None:
        """Return the bytes of a base chunk, checked, if a delta against them may pay.

        `memory` are these bytes, if they are at hand.
        """
        try:
            old = self._reader.read_base(base) if memory is None else memoryview(memory)
        except (Corrupt, Deleted, NewerFormat):
            # Damage in the old checkpoint is not handed on to the new one.
            return None
        return old if codec.delta_pays(piece.view, old, piece.item_size) else None

    def _prove(
        self, identity: bytes, encoded: codec.Encoded, piece: Piece, base: memoryview | None
    ) -> None:
        """Decode what was encoded and compare: compressors have corrupted data before.

        What was decoded is kept for the next save, if that may be coded against it.
        """
        recent, length = self._shared.recent, len(piece.view)
        keeps = self._may_have_base(piece) and codec.plane_width(piece.item_size) > 1
        decoded = recent.room(length) if keeps else codec.scratch("proof", length)
        codec.decode_chunk(encoded.encoding, encoded.payload, memoryview(decoded), base)
        if not native.equal(piece.view, decoded):
            raise Corrupt(
                f"chunk {identity.hex()[:10]} does not decode to what was encoded",
                "a fault of the machine or a compressor, or the state changed while it was saved",
                "save again; nothing was committed",
            )
        if isinstance(decoded, bytearray):
            recent.put(identity, decoded)

    def _append(
        self,
        kind: int,
        encoding: int,
        identity: bytes,
        logical: int,
        refs: tuple[bytes, ...],
        payload: records.Buffer,
    ) -> records.Record:
        pack, record = self._shared.own.append(kind, encoding, identity, logical, refs, payload)
        with self._lock:
            self.placed[identity] = (pack, record)
            self.written[pack.number] = pack
            self.stored_bytes += record.total_bytes
            if kind == layout.TYPE_CHUNK:
                self.new_bytes += logical
        return record

    def put_object(self, kind: int, refs: tuple[bytes, ...], body: bytes) -> bytes:
        """Store a list or manifest unless it is there; return its id.

        Raises:
            BadRequest: it is larger than a reader takes.
        """
        if len(body) > layout.BODY_MAX_BYTES or len(refs) > layout.REFS_MAX:
            raise BadRequest(
                f"the state's structure takes {len(body):,} bytes and {len(refs):,} blobs",
                f"the limits are {layout.BODY_MAX_BYTES:,} and {layout.REFS_MAX:,}: names, short "
                "texts and single numbers stand there",
                "keep long lists of texts or numbers as one array, or as one text",
            )
        identity = records.object_id(kind, refs, body)
        if self._claim_missing({identity: None}):
            encoded = codec.encode_body(body)
            self._append(kind, encoded.encoding, identity, len(body), refs, encoded.payload)
        return identity

    def register(self, tx: Transaction, placed: Placed) -> None:
        """Register records, each only where no usable one is registered (protocol, SAVE 5)."""
        for number in self.written:
            row = tx.pack(number)
            if row is None or row.state == rows.DROPPED:
                raise SaveAgain(
                    "the save was interrupted", "a collector took its pack for abandoned"
                )
            set_live(tx, number, row)
        register_ends(tx, self.written.values())
        for identity, (pack, record) in placed:
            here = tx.chain(identity)
            if here is not None and not self._shared.rests_on_damage(here):
                keep_usable(tx, identity)
                continue
            base = record.base
            if here is not None:
                # A collection that has seen the row where it was counts the new pack as dead.
                fence(tx)
            below = tx.chain(base) if base else []
            if below is None or any(link == identity for link, _, _ in below):
                raise SaveAgain("the save was interrupted", "a collector freed a base it relies on")
            if base:
                keep_usable(tx, base)
            placed_at = rows.ObjectRow.of(record, pack.number, len(below))
            tx.put("objects", identity, placed_at.encode())


def _ids(unit: list[Piece]) -> list[bytes]:
    if all(piece.id is not None for piece in unit):
        return [piece.id for piece in unit if piece.id is not None]
    return records.chunk_context().hash_many([piece.view for piece in unit])


def _is_cold(chain: Chain) -> bool:
    return any(pack.state == rows.CONDEMNED for _, _, pack in chain)
