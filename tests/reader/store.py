"""Packs, records, the index, lists and rows: sections 2 to 5 and 7 to 12 of `docs/format.md`.

A store is read either by its index or, without one, from its packs alone. It must be at rest: this
reader takes no locks, so it cannot stop a collector. It writes nothing.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import lmdb
from blake3 import blake3

from tests.reader.codec import (
    CHUNK,
    CHUNK_LIMIT,
    FACT,
    LIST,
    MANIFEST,
    RAW,
    SNAPSHOT,
    Refused,
    decode,
    derive,
    identity,
    require,
)

FEATURES = {"packs-1", "planes-1", "entropy-1", "dictionary-1"}
TABLES = ("checkpoints", "steps", "runs", "history", "progress", "cache")
ROOTED = ("checkpoints", "runs", "progress", "cache")
TRASH, TOMBSTONE = 1, 2
DROPPED = 2
MAGIC = bytes.fromhex("ca535245430d0a1a")
PACK_MAGIC = b"\x89CASPACK"
BODY_LIMIT = 1 << 28

Rows = dict[str, dict[bytes, bytes]]
Change = tuple[str, bytes, bytes | None]


@dataclass(frozen=True)
class Record:
    """A record whose header check holds."""

    pack: Path
    offset: int
    end: int
    version: int
    kind: int
    encoding: int
    id: bytes
    logical: int
    refs: list[bytes]
    check: bytes
    payload: bytes

    def verified(self) -> bytes:
        """Return the payload if its check holds."""
        where = f"record at {self.offset} of {self.pack.name}"
        require(self.end - self.offset == 96 + 32 * len(self.refs) + len(self.payload), where)
        holds = blake3(self.payload).digest()[:16] == self.check
        if not holds and self.kind == CHUNK and self.encoding == RAW:
            holds = self.check == self.id[:16] == identity(CHUNK, [], self.payload)[:16]
        require(holds, f"{where}: the payload check fails")
        require(self.version == 1, f"{where} is of a newer program")
        return self.payload

    def logical_bytes(self, base: bytes | None = None) -> bytes:
        """Decode the payload and verify the id."""
        data = decode(self.encoding, self.verified(), self.logical, base)
        require(identity(self.kind, self.refs, data) == self.id, f"{self.id.hex()}: another id")
        return data


class Pack:
    """A file of records."""

    def __init__(self, path: Path, store: bytes) -> None:
        self.path = path
        self.data = data = path.read_bytes()
        self.uuid = bytes.fromhex(path.stem)
        holds = len(data) >= 80 and blake3(data[:64]).digest()[:16] == data[64:80]
        require(holds and data[:8] == PACK_MAGIC, f"{path.name} has no pack header")
        require(data[8:12] == struct.pack("<I", 1), f"{path.name} is of a newer program")
        require(data[16:48] == self.uuid + store, f"{path.name} is of another name or store")

    def record(self, at: int) -> Record | None:
        """Read the record at an offset; None if no whole header with a valid check is there."""
        head = self.data[at : at + 80]
        if len(head) < 80 or not head.startswith(MAGIC):
            return None
        version, kind, encoding, _, count, key, logical, stored, check = struct.unpack(
            "<4BI32sQQ16s", head[8:]
        )
        begin = at + 96 + 32 * count
        if count > 2_000_000 or begin > len(self.data):
            return None
        place = self.uuid + struct.pack("<QQ", at, 0)
        if (
            blake3(self.data[at : begin - 16], key=place).digest()[:16]
            != self.data[begin - 16 : begin]
        ):
            return None
        limit = CHUNK_LIMIT if kind == CHUNK else min(BODY_LIMIT, max(CHUNK_LIMIT, 100 * stored))
        require(logical <= limit and stored <= limit + 4096, f"{key.hex()} is too long")
        require(kind != CHUNK or count <= 1, f"{key.hex()} has two bases")
        refs = [self.data[i : i + 32] for i in range(at + 80, begin - 16, 32)]
        payload = self.data[begin : begin + stored]
        end = begin + stored
        return Record(
            self.path, at, end, version, kind, encoding, key, logical, refs, check, payload
        )

    def records(self) -> Iterator[Record]:
        """Find the records without an index; torn and damaged ones are left out."""
        at = 80
        while at >= 0:
            try:
                record = self.record(at)
                if record is not None:
                    record.verified()
                    yield record
            except Refused:
                record = None
            at = record.end if record else self.data.find(MAGIC, at + 1)


@dataclass(frozen=True)
class Row:
    """A row that may be a root: its state, ids and payload."""

    state: int
    ids: list[bytes]
    payload: bytes

    @classmethod
    def parse(cls, value: bytes) -> Row:
        """Decode the value of a row."""
        require(len(value) >= 8, "a row is cut off")
        version, state, _, count = struct.unpack_from("<BBHI", value)
        require(version == 1 and state <= TOMBSTONE, "a row is of a newer program")
        at = 40 if state == TRASH else 8
        end = at + 32 * count
        require(end <= len(value), "a row is cut off")
        return cls(state, [value[i : i + 32] for i in range(at, end, 32)], value[end:])


class Store:
    """Objects by id, and the rows of the tables that facts carry."""

    def __init__(
        self, find: Callable[[bytes], Record], rows: Rows, unnamed: list[bytes] | None = None
    ) -> None:
        self.find = find
        self.rows = rows
        self.unnamed = unnamed or []  # manifests that no row ever named

    def chunk(self, key: bytes) -> bytes:
        """Return the logical bytes of a chunk: up its chain to the keyframe, and down again."""
        links: list[Record] = []
        while not links or links[-1].refs:
            links.append(self.find(links[-1].refs[0] if links else key))
            require(links[-1].kind == CHUNK, f"{links[-1].id.hex()} is no chunk")
            require(len(links) <= 1000, "a chain of more than 1,000 chunks")
        data = links.pop().logical_bytes()
        while links:
            data = links.pop().logical_bytes(data)
        return data

    def body(self, key: bytes, kind: int) -> tuple[list[bytes], bytes]:
        """Return refs and body of a list or manifest."""
        record = self.find(key)
        require(record.kind == kind, f"{key.hex()} is not of type {kind}")
        return record.refs, record.logical_bytes()

    def blob(self, key: bytes, length: int | None = None, below: int = 9) -> bytes:
        """Return the bytes of a blob, the members of a list of a level less than `below`."""
        if self.find(key).kind == CHUNK:
            data = self.chunk(key)
        else:
            refs, body = self.body(key, LIST)
            level, count = struct.unpack_from("<BI", body) if len(body) >= 5 else (0, 0)
            require(1 <= level < below and 1 <= count <= 64, "a list of a wrong level or size")
            require(count == len(refs) and len(body) == 5 + 8 * count, "a list of a wrong length")
            lengths = struct.unpack_from(f"<{count}Q", body, 5)
            require(sum(lengths) < 1 << 63, "a list of a wrong length")
            parts = []
            for ref, size in zip(refs, lengths, strict=True):
                chunk = self.find(ref).kind == CHUNK
                require(chunk == (level == 1), "a member of a wrong type")
                parts.append(self.chunk(ref) if chunk else self.blob(ref, size, level))
                require(len(parts[-1]) == size, "a member of another length")
            data = b"".join(parts)
        require(length is None or len(data) == length, "a blob of another length")
        return data


def _store_uuid(path: Path) -> bytes:
    """Read `format.json`; refuse what this reader does not know."""
    text = (path / "format.json").read_bytes()
    require(len(text) <= 1 << 16, "format.json is too long")
    document = json.loads(text)
    require(document["version"] == 1, "a store of another version")
    unknown = set(document["read"]) - FEATURES
    require(not unknown, f"the store needs {unknown}")
    return bytes.fromhex(document["uuid"])


def open_index(path: Path) -> Store:
    """Open a store by a copy of its index."""
    uuid = _store_uuid(path)
    tables = _tables(path / (path / "CURRENT").read_text().removesuffix("\n") / "data.mdb")
    require(tables["meta"].get(b"uuid") == uuid, "the index is of another store")
    require(
        tables["meta"].get(b"roots", bytes(24)) == checksum(tables), "the roots' checksum differs"
    )
    packs: dict[int, Pack] = {}

    def find(key: bytes) -> Record:
        row = tables["objects"].get(key)
        require(row is not None and len(row) in (40, 72), f"{key.hex()} is missing")
        assert row is not None
        kind, encoding, _, count, number, offset, stored, logical = struct.unpack_from(
            "<BBHIQQQQ", row
        )
        require(number > 0, f"{key.hex()} is lost")
        pack_row = tables["packs"].get(struct.pack(">Q", number), b"")
        require(len(pack_row) == 64 and pack_row[32] < DROPPED, f"{key.hex()} is missing")
        if number not in packs:
            name = pack_row[:16].hex()
            packs[number] = Pack(path / "packs" / name[:2] / f"{name}.pack", uuid)
        record = packs[number].record(offset)
        require(record is not None, f"no record at {offset} of pack {number}")
        assert record is not None
        there = (record.id, record.kind, record.encoding, len(record.refs), record.logical)
        require(there == (key, kind, encoding, count, logical), f"{key.hex()} is not in its place")
        require(record.end <= struct.unpack_from("<Q", pack_row, 48)[0], "not registered")
        require(kind != CHUNK or b"".join(record.refs) == row[40:], "another base than the row's")
        require(len(record.payload) == stored, "a payload is cut off")
        return record

    return Store(find, {name: tables[name] for name in TABLES})


def _tables(data: Path) -> Rows:
    """Read all tables from a copy of `data.mdb`: one that nobody changed while it was made."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "data.mdb"
        content = data.read_bytes()
        while content[:8192] != (content := data.read_bytes())[:8192]:
            pass
        copy.write_bytes(content)
        with lmdb.open(folder, readonly=True, lock=False, max_dbs=9) as env, env.begin() as txn:
            return {
                name: dict(txn.cursor(env.open_db(name.encode(), txn, create=False)))
                for name in ("meta", "objects", "packs", *TABLES)
            }


def checksum(rows: Rows) -> bytes:
    """Compute what `meta.roots` must be."""
    number = total = 0
    for table in ROOTED:
        for key, value in rows[table].items():
            if Row.parse(value).state != TOMBSTONE:
                head = struct.pack("<BH", len(table), len(key)) + table.encode()
                digest = derive("casckpt row v1", head + key + value)
                total += int.from_bytes(digest[:16], "little")
                number += 1
    return struct.pack(">Q", number) + (total % (1 << 128)).to_bytes(16, "little")


def open_packs(path: Path) -> Store:
    """Open a store without its index, as section 12 rebuilds one."""
    uuid = _store_uuid(path)
    found: list[Record] = []
    for file in sorted(path.glob("packs/??/*.pack")):
        try:
            found += Pack(file, uuid).records()
        except ValueError:
            continue  # of another store, or no pack at all
    objects: dict[bytes, Record] = {}
    waiting = [record for record in found if record.kind not in (FACT, SNAPSHOT)]
    while True:
        left = []
        for record in waiting:
            if record.kind != CHUNK or not record.refs or record.refs[0] in objects:
                objects.setdefault(record.id, record)
            else:
                left.append(record)
        if len(left) == len(waiting):
            break
        waiting = left

    def find(key: bytes) -> Record:
        require(key in objects, f"{key.hex()} is missing")
        return objects[key]

    rows, named = replay(found)
    manifests = [key for key, record in objects.items() if record.kind == MANIFEST]
    return Store(find, rows, [key for key in manifests if key not in named])


def replay(found: list[Record]) -> tuple[Rows, set[bytes]]:
    """Rebuild the rows from facts and snapshots; return them, and all ids they have ever named."""
    facts: dict[int, list[Change]] = {}
    snapshots: dict[tuple[int, int], dict[int, list[Change]]] = {}
    lengths: dict[tuple[int, int], int] = {}
    for record in found:
        if record.kind == FACT:
            body = record.logical_bytes()
            facts[struct.unpack_from("<Q", body)[0]] = list(_changes(body, 16))
        elif record.kind == SNAPSHOT:
            body = record.logical_bytes()
            seq, written, number, last = struct.unpack_from("<QQIB", body)
            snapshots.setdefault((seq, written), {})[number] = list(_changes(body, 21))
            if last:
                lengths[seq, written] = number + 1
    whole = [key for key, parts in snapshots.items() if len(parts) == lengths.get(key)]
    newest = max(whole, default=(0, 0))
    to_apply = list(chain(*(part for _, part in sorted(snapshots.get(newest, {}).items()))))
    to_apply += chain(*(facts[seq] for seq in sorted(facts) if seq > newest[0]))
    rows: Rows = {name: {} for name in TABLES}
    for table, key, value in to_apply:
        rows[table].pop(key, None)
        if value is not None:
            rows[table][key] = value
    ever = chain(
        *facts.values(), *(part for parts in snapshots.values() for part in parts.values())
    )
    named = {
        identity
        for table, _, value in ever
        if table in ROOTED and value is not None
        for identity in Row.parse(value).ids
    }
    return rows, named


def _changes(body: bytes, at: int) -> Iterator[Change]:
    """Decode the changes whose number is at `at` of the body of a fact or snapshot."""
    (count,) = struct.unpack_from("<I", body, at)
    at += 4
    for _ in range(count):
        table, key_length, present, length = struct.unpack_from("<BHBI", body, at)
        middle = at + 8 + key_length
        yield (
            TABLES[table],
            body[at + 8 : middle],
            body[middle : middle + length] if present else None,
        )
        at = middle + length
    require(at == len(body), "a fact of another length")
