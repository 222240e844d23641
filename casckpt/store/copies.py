"""Other copies of objects: records elsewhere in a store, in what was set aside, in another store.

Nothing is trusted: what is returned was decoded and has the id that was asked for.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from casckpt.errors import CasckptError, Corrupt
from casckpt.store import codec, files, layout, packs, records, rows
from casckpt.store.reading import Reader
from casckpt.store.records import Record
from casckpt.store.sharing import SharedStore
from casckpt.store.workers import Workers


@dataclass(frozen=True, slots=True)
class Copy:
    """An object as it was found: ready to be appended, needing no base."""

    kind: int
    encoding: int
    logical: int
    refs: tuple[bytes, ...]
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Place:
    path: Path
    pack: bytes
    record: Record


class Copies:
    """Finds whole copies of objects. Not thread safe.

    Args:
        shared: the store that lacks them.
        pool: threads of the reader.
        other: another open store to look in, or None.
    """

    def __init__(self, shared: SharedStore, pool: Workers, other: SharedStore | None) -> None:
        self._shared = shared
        self._reader = Reader(shared, pool)
        self._other = other
        self._other_reader = None if other is None else Reader(other, pool)
        self._places: dict[bytes, list[_Place]] = {}
        self._wanted: set[bytes] = set()

    # ---- where records are

    def look_for(self, wanted: Collection[bytes]) -> None:
        """Find every record of these ids in the files of the store, and of the bases they need."""
        fresh = set(wanted) - self._wanted
        while fresh:
            self._wanted |= fresh
            found = self._scan(fresh)
            bases = {
                place.record.refs[0]
                for place in found
                if place.record.kind == layout.TYPE_CHUNK and place.record.refs
            }
            fresh = bases - self._wanted

    def _scan(self, wanted: set[bytes]) -> list[_Place]:
        found = []
        paths = packs.pack_files(self._shared.path)
        for entry in files.entries(self._shared.path / layout.QUARANTINE_FOLDER):
            if entry.name.endswith(layout.PACK_SUFFIX):
                paths.append(Path(entry.path))
        for path in paths:
            try:
                found += self._scan_file(path, wanted)
            except (*files.DAMAGE, NotADirectoryError):
                continue  # what cannot be read holds no copy
        for place in found:
            self._places.setdefault(place.record.id, []).append(place)
        return found

    def _scan_file(self, path: Path, wanted: set[bytes]) -> list[_Place]:
        descriptor = files.open_file(path, os.O_RDONLY)
        try:
            uuid = packs.uuid_in_name(path)
            packs.read_pack_header(descriptor, path, uuid, self._shared.format.uuid)
            return [
                _Place(path, uuid, record)
                for record in packs.scan_pack(descriptor, path, uuid)
                if record.id in wanted
            ]
        finally:
            files.close_file(descriptor)

    # ---- one object

    def find(self, identity: bytes) -> Copy | None:
        """Return a whole copy of an object, or None if there is none that can be decoded."""
        return self._find(identity, frozenset())

    def _find(self, identity: bytes, above: frozenset[bytes]) -> Copy | None:
        """Do as `find`; `above` are the deltas that need it, which it cannot rest on."""
        for place in self._places.get(identity, ()):
            try:
                return self._decoded(place, above | {identity})
            except files.DAMAGE:
                continue
        return self._from_other(identity)

    def _decoded(self, place: _Place, above: frozenset[bytes]) -> Copy:
        record = place.record
        descriptor = files.open_file(place.path, os.O_RDONLY)
        try:
            payload = packs.read_payload(descriptor, place.path, record)
        finally:
            files.close_file(descriptor)
        if record.kind != layout.TYPE_CHUNK:
            body = codec.decode_body(record.encoding, payload, record.logical)
            if records.object_id(record.kind, record.refs, body) != record.id:
                raise Corrupt("damaged record", "its bytes have another id")
            return Copy(record.kind, record.encoding, record.logical, record.refs, payload)
        base = self._bytes(record.refs[0], above) if record.refs else None
        chunk = memoryview(bytearray(record.logical))
        codec.decode_chunk(record.encoding, payload, chunk, base)
        if records.chunk_context().hash(chunk) != record.id:
            raise Corrupt("damaged record", "its bytes have another id")
        if base is None:
            return Copy(record.kind, record.encoding, record.logical, (), payload)
        return _whole(chunk)

    def _bytes(self, identity: bytes, above: frozenset[bytes]) -> memoryview:
        """Return the bytes of a base, read as usual or put together from copies."""
        if identity in above:
            raise Corrupt("a cycle of bases", "a chunk rests on itself")
        try:
            return memoryview(bytes(self._reader.read_base(identity)))
        except CasckptError:
            copy = self._find(identity, above)
            if copy is None or copy.logical > layout.CHUNK_MAX_BYTES:
                raise
            chunk = memoryview(bytearray(copy.logical))
            codec.decode_chunk(copy.encoding, copy.payload, chunk, None)
            return chunk

    def _from_other(self, identity: bytes) -> Copy | None:
        if self._other is None or self._other_reader is None:
            return None
        try:
            with self._other.environment.read() as tx:
                row = tx.object(identity)
            if row is None or row.pack == layout.LOST:
                return None
            if row.kind == layout.TYPE_CHUNK:
                return self._chunk_of_other(identity, row)
            refs, body = self._other_reader.read_object(identity, row.kind)
        except (CasckptError, OSError):
            return None
        encoded = codec.encode_body(body)
        return Copy(row.kind, encoded.encoding, len(body), refs, bytes(encoded.payload))

    def _chunk_of_other(self, identity: bytes, row: rows.ObjectRow) -> Copy:
        assert self._other_reader is not None
        chunk = memoryview(bytearray(row.logical))
        self._other_reader.read_chunk(identity, chunk)
        return _whole(chunk)


def _whole(chunk: memoryview) -> Copy:
    """Return a chunk coded without a base. Its item size is not known here: planes are left out."""
    encoded = codec.encode_chunk(chunk, 1, "balanced")
    return Copy(layout.TYPE_CHUNK, encoded.encoding, len(chunk), (), bytes(encoded.payload))
