"""Pack headers and records: bytes to values and back; nothing here touches a file.

A record is a fixed part, its refs, a check of both, and a payload (docs/format.md, section 5):

    fixed (80 B) | refs (32 B each) | header check (16 B) | payload (stored length)

The header check is keyed with the pack's uuid and the record's offset, so that a record copied to
another place, or a whole pack stored inside another, is never taken for a record.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from casckpt import native
from casckpt.errors import Corrupt, NewerFormat
from casckpt.ids import ID_BYTES
from casckpt.store import layout

Buffer = bytes | bytearray | memoryview

_HEADER = struct.Struct("<8sII16s16s16s")
_FIXED = struct.Struct("<8sBBBBI32sQQ16s")
_CHECK_BYTES = 16
FIXED_BYTES = _FIXED.size
OVERHEAD_BYTES = FIXED_BYTES + _CHECK_BYTES
_RECORD_VERSION = 1
assert FIXED_BYTES == 80


@dataclass(frozen=True, slots=True)
class Record:
    """The header of one record.

    `logical` and `stored` are lengths in bytes: of the body as a reader sees it, and of the
    payload on disk. `refs` are ids: a chunk's base, a list's members, a manifest's blobs.
    """

    kind: int
    encoding: int
    id: bytes
    logical: int
    stored: int
    refs: tuple[bytes, ...]
    payload_check: bytes
    offset: int = 0

    @property
    def base(self) -> bytes:
        """The id of a chunk's base; empty for one that is stored whole, and for other objects."""
        return self.refs[0] if self.kind == layout.TYPE_CHUNK and self.refs else b""

    @property
    def header_bytes(self) -> int:
        """Bytes from the record's magic to its payload."""
        return OVERHEAD_BYTES + ID_BYTES * len(self.refs)

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole record in its pack."""
        return self.header_bytes + self.stored


@cache
def _context(name: str) -> native.IdContext:
    return native.IdContext(name)


_CONTEXT_OF = {
    layout.TYPE_CHUNK: layout.CHUNK_CONTEXT,
    layout.TYPE_LIST: layout.LIST_CONTEXT,
    layout.TYPE_MANIFEST: layout.MANIFEST_CONTEXT,
    layout.TYPE_FACT: layout.FACT_CONTEXT,
    layout.TYPE_SNAPSHOT: layout.SNAPSHOT_CONTEXT,
}


def chunk_context() -> native.IdContext:
    """Return the hashing context of chunk ids."""
    return _context(layout.CHUNK_CONTEXT)


def object_id(kind: int, refs: tuple[bytes, ...], body: Buffer) -> bytes:
    """Return the id of an object: of a chunk its bytes, of the others refs and body.

    FORMAT: a chunk's refs (its base) say how it is stored, not what it is, and are left out.
    """
    context = _context(_CONTEXT_OF[kind])
    if kind == layout.TYPE_CHUNK:
        return context.hash(body)
    return context.hash_parts(struct.pack("<I", len(refs)), b"".join(refs), body)


def payload_check(payload: Buffer) -> bytes:
    """Return the 16-byte check of stored bytes."""
    return native.blake3(payload, out_len=_CHECK_BYTES)


def check_of(kind: int, encoding: int, identity: bytes, payload: Buffer) -> bytes:
    """Return the payload check of a record to be written.

    FORMAT: of a raw chunk it is the beginning of its id, which is a hash of the same bytes.
    """
    if kind == layout.TYPE_CHUNK and encoding == layout.ENCODING_RAW:
        return identity[:_CHECK_BYTES]
    return payload_check(payload)


def row_hash(table: str, key: bytes, value: bytes) -> int:
    """Return the 128-bit hash of a root row, summed in `meta.roots`."""
    name = table.encode()
    head = struct.pack("<BH", len(name), len(key)) + name
    return int.from_bytes(_context(layout.ROW_CONTEXT).hash(head + key + value)[:16], "little")


def row_hash_sum(table: str, pairs: Sequence[tuple[bytes, bytes]]) -> int:
    """Return the sum of the `row_hash` of rows, in one call into C."""
    name = table.encode()
    heads: dict[int, bytes] = {}
    pieces: list[bytes] = []
    ends: list[int] = []
    end = 0
    for key, value in pairs:
        head = heads.get(len(key))
        if head is None:
            head = heads[len(key)] = struct.pack("<BH", len(name), len(key)) + name
        pieces += (head, key, value)
        end += len(head) + len(key) + len(value)
        ends.append(end)
    ids = _context(layout.ROW_CONTEXT).hash_pieces(b"".join(pieces), ends)
    words: tuple[int, ...] = struct.unpack(f"<{len(ids) // 8}Q", ids)
    return sum(words[::4]) + (sum(words[1::4]) << 64)


def _header_key(pack: bytes, offset: int) -> bytes:
    return pack + struct.pack("<QQ", offset, 0)


def encode_header(
    pack: bytes,
    offset: int,
    kind: int,
    encoding: int,
    identity: bytes,
    logical: int,
    refs: tuple[bytes, ...],
    stored: int,
    check: bytes,
) -> bytes:
    """Return the bytes before the payload of a record that will stand at `offset` of `pack`."""
    fixed = _FIXED.pack(
        layout.RECORD_MAGIC,
        _RECORD_VERSION,
        kind,
        encoding,
        0,
        len(refs),
        identity,
        logical,
        stored,
        check,
    )
    head = fixed + b"".join(refs)
    return head + native.keyed(_header_key(pack, offset), head, out_len=_CHECK_BYTES)


def header_length(fixed: Buffer) -> int:
    """Return the header length that a record's fixed part announces; Corrupt if it is none."""
    if len(fixed) < FIXED_BYTES or bytes(fixed[:8]) != layout.RECORD_MAGIC:
        raise Corrupt("no record where one should be", "the magic bytes are missing")
    (count,) = struct.unpack_from("<I", fixed, 12)
    if count > layout.REFS_MAX:
        raise Corrupt("bad record header", f"{count} refs are more than {layout.REFS_MAX}")
    return OVERHEAD_BYTES + ID_BYTES * int(count)


def decode_header(data: Buffer, pack: bytes, offset: int) -> Record:
    """Return the record whose header is `data`, checked against the place it was read from.

    Raises:
        Corrupt: the check fails, or a length is beyond what the format allows.
        NewerFormat: the header is whole and has a version that this program does not know.
    """
    length = header_length(data)
    if len(data) < length:
        raise Corrupt("bad record header", "it is cut off")
    head = bytes(data[: length - _CHECK_BYTES])
    if native.keyed(_header_key(pack, offset), head, out_len=_CHECK_BYTES) != bytes(
        data[length - _CHECK_BYTES : length]
    ):
        raise Corrupt("bad record header", f"its check fails at offset {offset}")
    _, version, kind, encoding, _, count, identity, logical, stored, check = _FIXED.unpack_from(
        head
    )
    if version != _RECORD_VERSION:
        raise NewerFormat("a record of a newer version", f"version {version} at offset {offset}")
    if kind == layout.TYPE_CHUNK and count > 1:
        raise Corrupt("bad record header", f"a chunk with {count} bases")
    limit = layout.CHUNK_MAX_BYTES if kind == layout.TYPE_CHUNK else layout.BODY_MAX_BYTES
    if logical > limit or stored > limit + 4096:
        raise Corrupt("bad record header", f"length {logical} is beyond {limit}")
    refs = tuple(
        head[at : at + ID_BYTES]
        for at in range(FIXED_BYTES, FIXED_BYTES + ID_BYTES * count, ID_BYTES)
    )
    return Record(kind, encoding, identity, logical, stored, refs, check, offset)


def check_payload(record: Record, payload: Buffer) -> None:
    """Raise Corrupt unless `payload` is what the record's header announces."""
    if len(payload) != record.stored or not _fits(record, payload):
        raise Corrupt(
            f"damaged {layout.TYPE_NAMES.get(record.kind, 'record')} {record.id.hex()[:10]}",
            f"the stored bytes at offset {record.offset} fail their check",
        )


def _fits(record: Record, payload: Buffer) -> bool:
    raw_chunk = record.kind == layout.TYPE_CHUNK and record.encoding == layout.ENCODING_RAW
    if raw_chunk and record.payload_check == record.id[:_CHECK_BYTES]:
        return chunk_context().hash(payload) == record.id
    return payload_check(payload) == record.payload_check


# ---- pack header


def encode_pack_header(pack: bytes, store: bytes, session: bytes) -> bytes:
    """Return the first 80 bytes of a pack."""
    head = _HEADER.pack(layout.PACK_MAGIC, layout.FORMAT_VERSION, 0, pack, store, session)
    return head + native.blake3(head, out_len=_CHECK_BYTES)


def decode_pack_header(data: Buffer) -> tuple[bytes, bytes, bytes]:
    """Return (pack, store, session) uuids of a pack's header; Corrupt or NewerFormat."""
    if len(data) < layout.PACK_HEADER_BYTES:
        raise Corrupt("bad pack header", "the file is shorter than a header")
    head = bytes(data[: _HEADER.size])
    if native.blake3(head, out_len=_CHECK_BYTES) != bytes(
        data[_HEADER.size : layout.PACK_HEADER_BYTES]
    ):
        raise Corrupt("bad pack header", "its check fails")
    magic, version, _, pack, store, session = _HEADER.unpack(head)
    if magic != layout.PACK_MAGIC:
        raise Corrupt("bad pack header", "the magic bytes are missing")
    if version != layout.FORMAT_VERSION:
        raise NewerFormat("a pack of a newer version", f"version {version}")
    return pack, store, session


def encode_footer(end: int, count: int) -> bytes:
    """Return the footer of a sealed pack: where its records end, and how many there are."""
    head = layout.FOOTER_MAGIC + struct.pack("<QQ", end, count)
    return head + native.blake3(head, out_len=_CHECK_BYTES)


FOOTER_BYTES = 8 + 16 + _CHECK_BYTES
