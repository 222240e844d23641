"""Facts and snapshots: what the index knows beside `objects` and `packs`, kept in packs as well.

Every transaction that changes another table takes the next seq and leaves a fact record with its
row changes; a snapshot holds all such rows at one seq, in one or more parts. So packs alone can
rebuild the index (docs/format.md, section 10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from casckpt.errors import Corrupt
from casckpt.store import layout

Change = tuple[str, bytes, bytes | None]

_FACT = struct.Struct("<QQI")
_SNAPSHOT = struct.Struct("<QQIBI")
_CHANGE = struct.Struct("<BHBI")
_PART_BYTES = 8 * layout.MIB
# FORMAT: the number of a table in a change; append only
_TABLES = ("checkpoints", "steps", "runs", "history", "progress", "cache")
FACT_TABLES = _TABLES


@dataclass(frozen=True, slots=True)
class Fact:
    """The row changes of one transaction; a value of None is a removal."""

    seq: int
    written_at_ns: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class SnapshotPart:
    """A part of all rows at `seq`; the snapshot is whole when the part marked last is there."""

    seq: int
    written_at_ns: int
    part: int
    last: bool
    rows: tuple[Change, ...]


def _encode_changes(changes: Iterable[Change]) -> Iterator[bytes]:
    for table, key, value in changes:
        yield _CHANGE.pack(_TABLES.index(table), len(key), value is not None, len(value or b""))
        yield key
        yield value or b""


def _decode_changes(body: bytes, at: int, count: int) -> tuple[Change, ...]:
    changes: list[Change] = []
    for _ in range(count):
        if len(body) < at + _CHANGE.size:
            raise Corrupt("damaged fact", "it is cut off")
        table, key_length, present, length = _CHANGE.unpack_from(body, at)
        at += _CHANGE.size
        if table >= len(_TABLES) or present > 1 or len(body) < at + key_length + length:
            raise Corrupt("damaged fact", "a change is cut off or names no table")
        key = body[at : at + key_length]
        value = body[at + key_length : at + key_length + length]
        at += key_length + length
        changes.append((_TABLES[table], key, value if present else None))
    if at != len(body):
        raise Corrupt("damaged fact", "bytes stand after the last change")
    return tuple(changes)


def encode_fact(seq: int, written_at_ns: int, changes: list[Change]) -> bytes:
    """Return the body of a fact record."""
    return _FACT.pack(seq, written_at_ns, len(changes)) + b"".join(_encode_changes(changes))


def decode_fact(body: bytes) -> Fact:
    """Return the fact of a record's body; Corrupt if it does not decode."""
    if len(body) < _FACT.size:
        raise Corrupt("damaged fact", "it is cut off")
    seq, written_at_ns, count = _FACT.unpack_from(body)
    return Fact(seq, written_at_ns, _decode_changes(body, _FACT.size, count))


def encode_snapshot(seq: int, written_at_ns: int, rows: Iterable[Change]) -> Iterator[bytes]:
    """Yield the bodies of the parts of a snapshot, the last one marked."""
    part: list[Change] = []
    size = number = 0
    for row in rows:
        part.append(row)
        size += len(row[1]) + len(row[2] or b"") + _CHANGE.size
        if size >= _PART_BYTES:
            yield _snapshot_part(seq, written_at_ns, number, False, part)
            part, size, number = [], 0, number + 1
    yield _snapshot_part(seq, written_at_ns, number, True, part)


def _snapshot_part(
    seq: int, written_at_ns: int, number: int, last: bool, part: list[Change]
) -> bytes:
    head = _SNAPSHOT.pack(seq, written_at_ns, number, last, len(part))
    return head + b"".join(_encode_changes(part))


def decode_snapshot(body: bytes) -> SnapshotPart:
    """Return a part of a snapshot; Corrupt if it does not decode."""
    if len(body) < _SNAPSHOT.size:
        raise Corrupt("damaged snapshot", "it is cut off")
    seq, written_at_ns, part, last, count = _SNAPSHOT.unpack_from(body)
    return SnapshotPart(
        seq, written_at_ns, part, bool(last), _decode_changes(body, _SNAPSHOT.size, count)
    )
