"""The rows of the index: keys and values of every table, as bytes and back.

docs/format.md, section 8, has the byte tables. Everything decoded here is bounds-checked: a value
that does not decode is Corrupt, never a guess.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from casckpt.errors import Corrupt
from casckpt.ids import ID_BYTES
from casckpt.store import layout

if TYPE_CHECKING:
    from casckpt.store.records import Record

RowState = Literal["live", "trash", "tombstone"]
_STATES: Final[tuple[RowState, ...]] = ("live", "trash", "tombstone")
_ROW_VERSION = 1

_OBJECT = struct.Struct("<BBHIQQQQ")
# As a record's header has it (format.md, section 5): what coding may add to incompressible bytes
_STORED_SLACK_BYTES = 4096
# A pack ends with a record that begins below its cap.
_OFFSET_MAX = layout.PACK_CAP_BYTES + layout.BODY_MAX_BYTES
# Far above what any store counts up to, and low enough to be counted on.
_COUNTED_MAX = 2**62
_PACK = struct.Struct("<16s16sBBHIQQQ")
_ROW = struct.Struct("<BBHI")
_TRASH = struct.Struct("<QQ16s")
_PLACE = struct.Struct("<IIQQ")
_LIVE_CHECKPOINT = struct.Struct("<8s32sIIQQ")
_LIVE_HEAD = _ROW.pack(_ROW_VERSION, 0, 0, 1)
_U32, _U64 = struct.Struct(">I"), struct.Struct(">Q")

LIVE, CONDEMNED, DROPPED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """Where an object is: a row of `objects`.

    `stored` is the payload's length; `depth` counts the links of the base chain below it.
    """

    kind: int
    encoding: int
    depth: int
    ref_count: int
    pack: int
    offset: int
    stored: int
    logical: int
    base: bytes = b""

    @staticmethod
    def of(record: Record, pack: int, depth: int) -> ObjectRow:
        """Return the row of a record in a pack, `depth` links above the end of its chain."""
        return ObjectRow(
            record.kind,
            record.encoding,
            depth,
            len(record.refs),
            pack,
            record.offset,
            record.stored,
            record.logical,
            record.base,
        )

    @property
    def total_bytes(self) -> int:
        """Bytes of the whole record in its pack."""
        from casckpt.store import records

        return records.OVERHEAD_BYTES + ID_BYTES * self.ref_count + self.stored

    def encode(self) -> bytes:
        """Return the row's value."""
        return (
            _OBJECT.pack(
                self.kind,
                self.encoding,
                self.depth,
                self.ref_count,
                self.pack,
                self.offset,
                self.stored,
                self.logical,
            )
            + self.base
        )

    @staticmethod
    def decode(value: bytes) -> ObjectRow:
        """Return the row of a value; Corrupt if a length is beyond what a record may have."""
        if len(value) not in (_OBJECT.size, _OBJECT.size + ID_BYTES):
            raise Corrupt("damaged index", f"an objects row of {len(value)} bytes")
        fields: tuple[int, ...] = _OBJECT.unpack_from(value)
        kind, encoding, depth, refs, pack, offset, stored, logical = fields
        # LMDB has no checksums: a flipped bit here must not become 2^60 bytes of memory.
        is_chunk = kind == layout.TYPE_CHUNK
        if (
            logical > (layout.CHUNK_MAX_BYTES if is_chunk else layout.BODY_MAX_BYTES)
            or stored > layout.BODY_MAX_BYTES + _STORED_SLACK_BYTES
            or refs > layout.REFS_MAX
            or offset > _OFFSET_MAX
        ):
            raise Corrupt("damaged index", f"an objects row of {stored} bytes at {offset}")
        base = value[_OBJECT.size :]
        return ObjectRow(kind, encoding, depth, refs, pack, offset, stored, logical, base)


@dataclass(frozen=True, slots=True)
class PackRow:
    """One pack: whose it is, how far it is registered, and its state.

    `size` is the registered end in bytes; `highest_fact` the seq of its newest fact or snapshot;
    `epoch` counts only while the state is condemned.
    """

    uuid: bytes
    session: bytes
    state: int = LIVE
    sealed: bool = False
    epoch: int = 0
    size: int = 0
    highest_fact: int = 0

    def encode(self) -> bytes:
        """Return the row's value."""
        return _PACK.pack(
            self.uuid,
            self.session,
            self.state,
            int(self.sealed),
            0,
            0,
            self.epoch,
            self.size,
            self.highest_fact,
        )

    @staticmethod
    def decode(value: bytes) -> PackRow:
        """Return the row of a value; Corrupt if it has another length or state."""
        if len(value) != _PACK.size:
            raise Corrupt("damaged index", f"a packs row of {len(value)} bytes")
        uuid, session, state, sealed, _, _, epoch, size, fact = _PACK.unpack(value)
        if state not in (LIVE, CONDEMNED, DROPPED):
            raise Corrupt("damaged index", f"a pack in state {state}")
        if max(epoch, size, fact) > _COUNTED_MAX:
            raise Corrupt("damaged index", f"a pack of {size} bytes and epoch {epoch}")
        return PackRow(uuid, session, state, bool(sealed), epoch, size, fact)


@dataclass(frozen=True, slots=True)
class Row:
    """A row of checkpoints, runs, history, progress or cache: head, rooted ids, opaque payload."""

    state: RowState
    roots: tuple[bytes, ...]
    payload: bytes
    trashed_at_ns: int = 0
    trashed_boot_ns: int = 0
    trashed_boot: bytes = bytes(16)

    def encode(self) -> bytes:
        """Return the row's value."""
        head = _ROW.pack(_ROW_VERSION, _STATES.index(self.state), 0, len(self.roots))
        if self.state == "trash":
            head += _TRASH.pack(self.trashed_at_ns, self.trashed_boot_ns, self.trashed_boot)
        return head + b"".join(self.roots) + self.payload

    @staticmethod
    def decode(value: bytes) -> Row:
        """Return the row of a value; Corrupt if it is cut off or of an unknown state."""
        if len(value) < _ROW.size:
            raise Corrupt("damaged index", f"a row of {len(value)} bytes")
        version, state, _, count = _ROW.unpack_from(value)
        if version != _ROW_VERSION or state >= len(_STATES):
            raise Corrupt("damaged index", f"a row of version {version} in state {state}")
        at = _ROW.size
        trash: tuple[int, int, bytes] = (0, 0, bytes(16))
        if state == 1:
            if len(value) < at + _TRASH.size:
                raise Corrupt("damaged index", "a trash row is cut off")
            trash = _TRASH.unpack_from(value, at)
            at += _TRASH.size
        end = at + ID_BYTES * count
        if len(value) < end:
            raise Corrupt("damaged index", "a row's ids are cut off")
        roots = tuple(value[i : i + ID_BYTES] for i in range(at, end, ID_BYTES))
        return Row(_STATES[state], roots, value[end:], *trash)

    @property
    def is_root(self) -> bool:
        """Whether what it names must be kept: live and trash rows, not tombstones."""
        return self.state != "tombstone"


def encode_live(roots: tuple[bytes, ...], payload: bytes) -> bytes:
    """Return `Row("live", roots, payload).encode()` without the row."""
    return _ROW.pack(_ROW_VERSION, 0, 0, len(roots)) + b"".join(roots) + payload


def is_root(value: bytes) -> bool:
    """Return `Row.decode(value).is_root` from the head alone; Corrupt if that does not decode.

    Every write to a root table asks, and stages write tens of thousands of rows a second.
    """
    if len(value) >= _ROW.size and value[0] == _ROW_VERSION and value[1] == 0:
        return True
    return Row.decode(value).is_root


def kept_ids(value: bytes | None) -> frozenset[bytes]:
    """Return the ids that a row of a root table keeps: none of a tombstone, or where none is."""
    row = None if value is None else Row.decode(value)
    return frozenset(row.roots) if row is not None and row.is_root else frozenset()


class CheckpointRow(NamedTuple):
    """A row of `checkpoints`: a committed manifest at its place in a run.

    `seq` is the commit's number in the store; `payload` belongs to the floor above. A tuple, since
    `ls` makes ten thousand of them while somebody waits.
    """

    run: str
    seq: int
    manifest_id: bytes
    line: int
    step: int
    batch: int
    state: RowState
    trashed_at_ns: int
    payload: bytes


def name_part(name: str) -> bytes:
    """Return a key part for a name: itself, or its hash when it is long (keys end at 511 B)."""
    raw = name.encode()
    if len(raw) <= layout.KEY_PART_MAX_BYTES:
        return raw
    from casckpt import native

    return b"\x01" + native.blake3(raw)


def checkpoint_key(run: str, seq: int) -> bytes:
    """Return the key of a row of `checkpoints`."""
    return name_part(run) + b"\0" + _U64.pack(seq)


def run_prefix(run: str) -> bytes:
    """Return the prefix of all keys of one run in `checkpoints`."""
    return name_part(run) + b"\0"


def step_key(run: str, line: int, step: int, batch: int) -> bytes:
    """Return the key of a row of `steps`."""
    return line_prefix(run, line) + _U64.pack(step) + _U64.pack(batch)


def line_prefix(run: str, line: int) -> bytes:
    """Return the prefix of all keys of one line in `steps`."""
    return name_part(run) + b"\0" + _U32.pack(line)


def u64(number: int) -> bytes:
    """Return an unsigned 64-bit integer as it stands in keys and in `meta` (big-endian)."""
    return _U64.pack(number)


def read_u64(value: bytes | None) -> int:
    """Return the integer of `u64`; 0 for a missing value."""
    if value is None:
        return 0
    if len(value) != 8:
        raise Corrupt("damaged index", "a number of another length")
    number = int(_U64.unpack(value)[0])
    if number > _COUNTED_MAX:
        raise Corrupt("damaged index", f"the number {number}, which no store counts up to")
    return number


def pack_key(number: int) -> bytes:
    """Return the key of a row of `packs`."""
    return _U64.pack(number)


def encode_checkpoint(
    run: str, line: int, step: int, batch: int, manifest_id: bytes, payload: bytes
) -> Row:
    """Return the live row of a new checkpoint."""
    name = run.encode()
    head = _PLACE.pack(line, len(name), step, batch) + name
    return Row("live", (manifest_id,), head + payload)


def decode_checkpoint(key: bytes, value: bytes) -> CheckpointRow:
    """Return a row of `checkpoints`; Corrupt if it does not decode."""
    if len(value) >= _LIVE_CHECKPOINT.size and len(key) >= 9:
        # Nearly all rows are live: one unpack instead of three. What is odd goes the long way.
        head, manifest_id, line, length, step, batch = _LIVE_CHECKPOINT.unpack_from(value)
        end = _LIVE_CHECKPOINT.size + length
        name = value[_LIVE_CHECKPOINT.size : end]
        if head == _LIVE_HEAD and len(name) == length and name.isascii():
            (seq,) = _U64.unpack_from(key, len(key) - 8)
            fields = (name.decode(), seq, manifest_id, line, step, batch, "live", 0, value[end:])
            # The constructor of a named tuple takes twice as long.
            return tuple.__new__(CheckpointRow, fields)
    row = Row.decode(value)
    payload = row.payload
    if len(payload) < _PLACE.size or len(row.roots) != 1 or len(key) < 9:
        raise Corrupt("damaged index", "a checkpoints row is cut off")
    line, length, step, batch = _PLACE.unpack_from(payload)
    name = payload[_PLACE.size : _PLACE.size + length]
    if len(name) != length:
        raise Corrupt("damaged index", "the run name of a checkpoints row is cut off")
    try:
        run = name.decode("ascii")
    except UnicodeDecodeError as exc:
        raise Corrupt("damaged index", "a run name that is no name") from exc
    (seq,) = _U64.unpack_from(key, len(key) - 8)
    return CheckpointRow(
        run,
        seq,
        row.roots[0],
        line,
        step,
        batch,
        row.state,
        row.trashed_at_ns,
        payload[_PLACE.size + length :],
    )


def with_checkpoint_payload(row: Row, payload: bytes) -> Row:
    """Return the row with another payload of the floor above, its place kept."""
    _, length, _, _ = _PLACE.unpack_from(row.payload)
    return replace(row, payload=row.payload[: _PLACE.size + length] + payload)


def with_name(name: str, payload: bytes) -> bytes:
    """Return the payload of a row of `runs`: the run's name, then the rest."""
    return bytes([len(name)]) + name.encode() + payload


def named(payload: bytes) -> tuple[str, bytes]:
    """Return the run's name and the rest of the payload of a row of `runs`."""
    length = payload[0]
    return payload[1 : 1 + length].decode("ascii", "replace"), payload[1 + length :]
