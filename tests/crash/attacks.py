"""What an attacker may do to a store: the list that `hostile.py` goes through.

Those with `rewrites` put other data under the names of the store's own checkpoints, in a way that
no reader can tell; there only errors, memory and what lies outside are looked at.
"""

from __future__ import annotations

import functools
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lmdb
import zstandard

from casckpt.checkpoint import manifest as manifests
from casckpt.store import CommitRequest, Repository, layout, lists, packs, records, rows
from tests.crash.workloads import open_store, state

MIB = 1024 * 1024
_BODY = "x" * 100


@dataclass(frozen=True)
class Table:
    """Raw access to the tables of an index: nothing is checked, no checksum follows."""

    tx: Any
    tables: dict[str, Any]

    def scan(self, table: str) -> list[tuple[bytes, bytes]]:
        """Return the rows of a table."""
        return list(self.tx.cursor(db=self.tables[table]))

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Put a row."""
        self.tx.put(key, value, db=self.tables[table])


@dataclass(frozen=True)
class Target:
    """The store under attack, and a folder that it must not reach."""

    place: Path
    outside: Path

    @property
    def index(self) -> Path:
        """The folder of the index."""
        return self.place / "index.0"

    def packs(self) -> list[Path]:
        """Return the packs, largest first."""
        found = (self.place / "packs").glob("*/*.pack")
        return sorted(found, key=lambda path: (-path.stat().st_size, path.name))

    def clear(self, name: str) -> Path:
        """Remove what stands under a name, and return its path."""
        path = self.place / name
        if path.is_dir() and not path.is_symlink():
            path.rename(path.with_name(f"was-{path.name}"))
        else:
            path.unlink(missing_ok=True)
        return path

    def edit_index(self, work: Callable[[Table], None]) -> None:
        """Change rows behind the store's back."""
        options = {"max_dbs": 32, "map_size": 1 << 30, "lib_version": 0}
        with lmdb.open(str(self.index), **options) as environment:
            tables = {name: environment.open_db(name.encode()) for name in layout.TABLES}
            with environment.begin(write=True) as tx:
                work(Table(tx, tables))


@dataclass(frozen=True)
class Attack:
    """What is done, and whether the names then stand for other data."""

    work: Callable[[Target], None]
    rewrites: bool = False


ATTACKS: dict[str, Attack] = {}


def _add(name: str, work: Callable[[Target], None], *, rewrites: bool = False) -> None:
    ATTACKS[name] = Attack(work, rewrites)


# ---- files that are something else: links, pipes, folders, noise, far too large


def _instead(kind: str, name: str) -> Callable[[Target], None]:
    def work(target: Target) -> None:
        path = target.clear(name)
        if kind == "link":
            path.symlink_to(target.outside / "precious")
        elif kind == "dangling":
            path.symlink_to(target.outside / "not-there")
        elif kind == "folder link":
            path.symlink_to(target.outside / "folder")
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "device" and os.geteuid() == 0:
            os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5))  # /dev/zero: a file without end
        elif kind == "noise":
            path.write_bytes(bytes(range(256)) * 40)
        elif kind == "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)

    return work


_FILES = ("format.json", "CURRENT", "lock", "gc.lock", "writer", "ballast", "index.0/data.mdb")
for _name in (*_FILES, "index.0/lock.mdb", "index.0/clean", "sessions/0123456789abcdef"):
    for _kind in ("link", "fifo", "folder"):
        _add(f"{_kind} as {_name}", _instead(_kind, _name))
for _name in ("format.json", "CURRENT", "index.0/clean", "index.0/data.mdb", "sessions/feed"):
    for _kind in ("noise", "huge", "device"):
        _add(f"{_kind} as {_name}", _instead(_kind, _name))
_FRESH = ("index.0/clean.new", "CURRENT.new", "format.json.new")
for _name in ("ballast", "writer", "gc.lock", *_FRESH):
    _add(f"dangling link as {_name}", _instead("dangling", _name))
for _name in ("packs", "sessions", "quarantine", "index.0"):
    _add(f"folder link as {_name}", _instead("folder link", _name))
    _add(f"noise as {_name}", _instead("noise", _name))


def _pack_instead(kind: str, target: Target) -> None:
    pack = target.packs()[0]
    _instead(kind, str(pack.relative_to(target.place)))(target)


for _kind in ("link", "fifo", "folder", "noise", "huge", "device"):
    _add(f"{_kind} as a pack", functools.partial(_pack_instead, _kind))


def _pack_folder_link(target: Target) -> None:
    folder = target.packs()[0].parent
    moved = target.outside / "folder" / folder.name
    folder.rename(moved)
    folder.symlink_to(moved)


_add("link as a folder of packs", _pack_folder_link)


# ---- small text files


def _text(name: str, content: bytes | str) -> Callable[[Target], None]:
    raw = content.encode() if isinstance(content, str) else content
    return lambda target: target.clear(name).write_bytes(raw) and None


def _format(**changes: Any) -> Callable[[Target], None]:
    def work(target: Target) -> None:
        path = target.place / "format.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return work


for _label, _content in {
    "empty": "",
    "nested": "[" * 60_000,
    "a list": "[1, 2]",
    "no text": b"\xff\xfe\x00",
    "twice the same key": '{"version": 1, "version": 1e999, "uuid": 5}',
    "a number of a megabyte": '{"version": ' + "9" * 60_000 + "}",
}.items():
    _add(f"format.json is {_label}", _text("format.json", _content))
for _label, _changes in {
    "no number": {"version": "1"},
    "true": {"version": True},
    "negative": {"version": -1},
    "2^63": {"version": 2**63},
    "nothing": {"version": None},
}.items():
    _add(f"version is {_label}", _format(**_changes))
_add("uuid is short", _format(uuid="ab"))
_add("uuid is a path", _format(uuid="../../../../../../etc/passwd00000"))
_add("uuid of another store", _format(uuid="00" * 16))
_add("features are no list", _format(read={"a": 1}))
_add("features are numbers", _format(write=[1, None, []]))
for _content in (
    "../outside/folder",
    "index.0/../../outside/folder",
    "/etc",
    "index.99999999999999999999999999",
    "index.\u0663",
    "index.-1",
    "",
    "index.0\0x",
    "index." + "9" * 55,
):
    _add(f"CURRENT says {_content[:30]!r}", _text("CURRENT", _content))


# ---- the index


def _foreign_lmdb(tables: int, target: Target) -> None:
    target.clear("index.0")
    target.index.mkdir()
    with lmdb.open(str(target.index), max_dbs=64, map_size=MIB, lib_version=0) as other:
        for number in range(tables):
            table = other.open_db(f"table{number}".encode())
            with other.begin(write=True, db=table) as tx:
                tx.put(b"key", b"value")


_add("an LMDB without tables", functools.partial(_foreign_lmdb, 0))
_add("an LMDB of somebody else", functools.partial(_foreign_lmdb, 20))


def _other_store(part: str, target: Target) -> None:
    other = target.outside.with_name("other-store")
    with open_store(other) as store:
        store.save("run", state(10), 0)
        store.save("run", state(40), 1)
    if part == "index":
        (target.index / "data.mdb").write_bytes((other / "index.0" / "data.mdb").read_bytes())
    else:
        for pack in (other / "packs").glob("*/*.pack"):
            kept = target.place / "packs" / pack.parent.name
            kept.mkdir(exist_ok=True)
            (kept / pack.name).write_bytes(pack.read_bytes())
            ours = target.packs()[0]
            ours.write_bytes(pack.read_bytes())


_add("the index of another store", functools.partial(_other_store, "index"))
_add("packs of another store", functools.partial(_other_store, "packs"))


def _objects(change: Callable[[bytes, rows.ObjectRow], bytes]) -> Callable[[Target], None]:
    def work(tx: Table) -> None:
        for key, value in tx.scan("objects"):
            tx.put("objects", key, change(key, rows.ObjectRow.decode(value)))

    return lambda target: target.edit_index(work)


def _raw_row(row: rows.ObjectRow, **fields: int) -> bytes:
    return replace(row, **fields).encode()


_add("every object is its own base", _objects(lambda key, row: replace(row, base=key).encode()))
_add("depths of 255", _objects(lambda key, row: _raw_row(row, depth=255)))
_add("offsets of 2^63", _objects(lambda key, row: _raw_row(row, offset=2**63)))
_add("offsets past the end", _objects(lambda key, row: _raw_row(row, offset=row.offset + 10**9)))
_add("all objects at one place", _objects(lambda key, row: _raw_row(row, offset=80)))
_add("stored lengths of 2^60", _objects(lambda key, row: _raw_row(row, stored=2**60)))
_add("logical lengths of 2^60", _objects(lambda key, row: _raw_row(row, logical=2**60)))
_add("logical lengths of 200 MiB", _objects(lambda key, row: _raw_row(row, logical=200 * MIB)))
_add("ref counts of a million", _objects(lambda key, row: _raw_row(row, ref_count=10**6)))
_add("packs that are not there", _objects(lambda key, row: _raw_row(row, pack=2**40)))
_add("types that are others", _objects(lambda key, row: _raw_row(row, kind=1 + row.kind % 5)))
_add("unknown encodings", _objects(lambda key, row: _raw_row(row, encoding=200)))
_add("objects rows cut off", _objects(lambda key, row: row.encode()[:9]))


def _cycle(target: Target) -> None:
    def work(tx: Table) -> None:
        entries = [(key, rows.ObjectRow.decode(value)) for key, value in tx.scan("objects")]
        for (key, row), (other, _) in zip(entries, entries[1:] + entries[:1], strict=True):
            tx.put("objects", key, replace(row, base=other, depth=1).encode())

    target.edit_index(work)


_add("bases in one large cycle", _cycle)


def _pack_rows(change: Callable[[rows.PackRow], rows.PackRow]) -> Callable[[Target], None]:
    def work(tx: Table) -> None:
        for key, value in tx.scan("packs"):
            tx.put("packs", key, change(rows.PackRow.decode(value)).encode())

    return lambda target: target.edit_index(work)


_add("packs of 2^63 bytes", _pack_rows(lambda row: replace(row, size=2**63)))
_add("packs of no bytes", _pack_rows(lambda row: replace(row, size=0)))
_add("packs condemned for ever", _pack_rows(lambda row: replace(row, state=1, epoch=2**63)))
_add("facts from the future", _pack_rows(lambda row: replace(row, highest_fact=2**63)))
_add("all packs with one name", _pack_rows(lambda row: replace(row, uuid=bytes(16))))


def _meta(name: bytes, value: bytes) -> Callable[[Target], None]:
    return lambda target: target.edit_index(lambda tx: tx.put("meta", name, value))


for _meta_name in (b"seq", b"gc_epoch", b"root_seq"):
    _add(f"{_meta_name.decode()} of 2^64 - 1", _meta(_meta_name, b"\xff" * 8))
    _add(f"{_meta_name.decode()} of three bytes", _meta(_meta_name, b"abc"))


def _checkpoint_rows(change: Callable[[bytes], bytes]) -> Callable[[Target], None]:
    def work(tx: Table) -> None:
        for key, value in tx.scan("checkpoints"):
            tx.put("checkpoints", key, change(value))

    return lambda target: target.edit_index(work)


_add("checkpoint rows of noise", _checkpoint_rows(lambda value: b"\xff" * 100))
_add("checkpoint rows cut off", _checkpoint_rows(lambda value: value[: len(value) // 2]))
_add("checkpoint rows of no bytes", _checkpoint_rows(lambda value: b""))


def _rooted_rows(payload: bytes, table: str, target: Target) -> None:
    """Rows that stand where the store writes its own, with a right checksum of roots."""
    from casckpt.store.commits import RowWrite

    with Repository.open(target.place) as repository:
        repository.write_rows([RowWrite(table, b"evil\0\0", payload, ())])


for _table in ("runs", "progress", "cache", "history"):
    for _label, _payload in {"noise": b"\xfe" * 50, "depth": b"\x01" + b"[" * 60_000}.items():
        _add(f"{_table} rows of {_label}", functools.partial(_rooted_rows, _payload, _table))


# ---- packs


Edit = Callable[[records.Record, bytes], "dict[str, Any] | None"]


def _rewrite(target: Target, edit: Edit) -> None:
    """Write every pack anew with right checks, its records changed by `edit`; rows follow."""
    places: dict[bytes, tuple[int, dict[str, Any], int]] = {}
    for path in target.packs():
        uuid = bytes.fromhex(path.name.removesuffix(".pack"))
        descriptor = os.open(path, os.O_RDONLY)
        out = bytearray(os.pread(descriptor, layout.PACK_HEADER_BYTES, 0))
        for record in list(packs.scan_pack(descriptor, path, uuid, layout.PACK_HEADER_BYTES)):
            payload = packs.read_payload(descriptor, path, record)
            new = {"kind": record.kind, "encoding": record.encoding, "identity": record.id}
            new |= {"logical": record.logical, "refs": record.refs, "payload": payload}
            new |= edit(record, payload) or {}
            stored = new.get("stored", len(new["payload"]))
            check = records.check_of(new["kind"], new["encoding"], new["identity"], new["payload"])
            places[new["identity"]] = (len(out), new, stored)
            out += records.encode_header(
                uuid, len(out), new["kind"], new["encoding"], new["identity"], new["logical"],
                tuple(new["refs"]), stored, check,
            )  # fmt: skip
            out += new["payload"]
        os.close(descriptor)
        path.write_bytes(out)

    def work(tx: Table) -> None:
        for key, value in tx.scan("objects"):
            if key in places:
                offset, new, stored = places[key]
                row = rows.ObjectRow.decode(value)
                row = replace(row, offset=offset, stored=stored, logical=new["logical"])
                row = replace(row, encoding=new["encoding"], ref_count=len(new["refs"]))
                tx.put("objects", key, row.encode())

    target.edit_index(work)


def _bomb(record: records.Record, payload: bytes) -> dict[str, Any] | None:
    if record.kind != layout.TYPE_CHUNK:
        return None
    packed = zstandard.compress(bytes(16 * MIB))
    return {"encoding": layout.ENCODING_ZSTD, "logical": 16 * MIB, "payload": packed, "refs": ()}


def _silent_bomb(record: records.Record, payload: bytes) -> dict[str, Any] | None:
    """A frame that does not say how long it gets."""
    if record.kind != layout.TYPE_CHUNK:
        return None
    packed = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 * MIB))
    return {"encoding": layout.ENCODING_ZSTD, "payload": packed, "refs": ()}


def _of(kind: int, **fields: Any) -> Edit:
    return lambda record, payload: fields if record.kind == kind else None


def _planes(payload: bytes) -> Edit:
    return _of(layout.TYPE_CHUNK, encoding=layout.ENCODING_PLANES, payload=payload, refs=())


def _itself(record: records.Record, payload: bytes) -> dict[str, Any]:
    return {"refs": (record.id,)}


def _body_bomb(record: records.Record, payload: bytes) -> dict[str, Any] | None:
    if record.kind != layout.TYPE_MANIFEST:
        return None
    body = zstandard.compress(b"[" * (200 * MIB))
    return {"encoding": layout.ENCODING_ZSTD, "logical": 200 * MIB, "payload": body}


for _label, _edit in {
    "chunks that swell to 16 MiB": _bomb,
    "frames that hide their length": _silent_bomb,
    "manifests that swell to 200 MiB": _body_bomb,
    "planes without bytes": _planes(b""),
    "planes of noise": _planes(bytes(range(256)) * 4),
    "planes that announce 4 GiB": _planes(b"\x02\x04" + struct.pack("<BI", 2, 2**32 - 1) * 4),
    "chunks with many refs": _of(1, refs=(bytes(32),) * 100_000),
    "chunks of a dictionary that is not there": _of(1, refs=(bytes(32),), encoding=3),
    "records of an unknown type": lambda record, payload: {"kind": 77},
    "facts of noise": _of(4, payload=b"\xff" * 99, logical=99, encoding=0),
    "lengths beyond the file": lambda record, payload: {"stored": 10 * MIB},
    "records that name themselves": _itself,
}.items():
    _add(_label, functools.partial(lambda edit, target: _rewrite(target, edit), _edit))


# ---- manifests and lists with right ids: only reading them tells


def _manifest(edit: Callable[[dict[str, Any]], Any], target: Target) -> None:
    real = manifests.encode

    def encode(made: manifests.Manifest) -> bytes:
        document = json.loads(real(made))
        said = edit(document)
        return manifests.canonical(document) if said is None else bytes(said)

    vars(manifests)["encode"] = encode
    try:
        with open_store(target.place) as store:
            store.save("evil", state(10), 0)
    finally:
        vars(manifests)["encode"] = real


def _entries(**fields: Any) -> Callable[[dict[str, Any]], None]:
    def edit(document: dict[str, Any]) -> None:
        for entry in document["entries"]:
            if "alias" not in entry:
                entry.update({key: value for key, value in fields.items() if key in entry})

    return edit


def _nested(document: dict[str, Any]) -> bytes:
    tree = b"[" * 40_000 + b"]" * 40_000
    document["tree"] = "TREE"
    return manifests.canonical(document).replace(b'"TREE"', tree)


def _set(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update(fields)


def _alias_ring(document: dict[str, Any]) -> None:
    count = len(document["entries"])
    document["entries"] = [{"alias": (at + 1) % count, "path": f"p{at}"} for at in range(count)]


for _label, _change in {
    "shapes of 2^40": _entries(shape=[2**40]),
    "shapes that overflow": _entries(shape=[2**32, 2**32, 2**32]),
    "negative shapes": _entries(shape=[-1]),
    "65 axes": _entries(shape=[1] * 65),
    "offsets beyond the blob": _entries(offset=2**62),
    "lengths of 2^62": _entries(length=2**62),
    "dtype object": _entries(dtype="O"),
    "dtype of a megabyte": _entries(dtype="(" * 60_000),
    "pickles": _entries(kind="pickle"),
    "unknown kinds": _entries(kind="exec"),
    "blobs that are not there": _entries(blob=10**9),
    "one path for all": _entries(path="same"),
    "paths that climb": _entries(path="../../outside/precious"),
    "paths with a newline and an escape": _entries(path="a\n\x1b]0;evil\x07"),
    "an order that is none": _entries(order="9,8,7"),
    "aliases in a ring": _alias_ring,
    "a tree of 40,000 levels": _nested,
    "a tree that is no tree": _set(tree={"evil": [1, 2]}),
    "a tree of leaves that are not there": _set(tree=["leaf", 10**9]),
    "no JSON": lambda document: b"\xff\x00",
    "a body of no bytes": lambda document: b"{}",
    "a step of 2^63": _set(step=2**63),
    "metrics of no numbers": _set(metrics={"loss": "inf"}),
    "a run of another name": _set(run="../../outside"),
    "a parent that is itself": _set(parent="00" * 32),
    "a format of 99": _set(format=99),
}.items():
    _add(f"manifest with {_label}", functools.partial(_manifest, _change))


def _list_bomb(levels: int, target: Target) -> None:
    """Lists of the same list: 64 times as long with each level, with right ids and lengths."""
    with Repository.open(target.place) as repository, repository.saver() as saver:
        from casckpt.store import BlobSource

        blob = saver.put_blobs([BlobSource([bytes(16_384)], 1, True)])[0]
        identity, length = blob.id, blob.length
        for level in range(1, levels + 1):
            body = lists.encode_list(level, [length] * 64)
            identity = saver._objects.put_object(layout.TYPE_LIST, (identity,) * 64, body)
            length *= 64
        entry = {"blob": 0, "dtype": "|u1", "flags": [], "kind": "array", "length": length}
        entry |= {"offset": 0, "order": "C", "path": "w", "shape": [length]}
        made = manifests.Manifest("evil", 0, 0, 0, "2026-01-01T00:00:00.000000Z", None, ())
        document = json.loads(manifests.encode(made))
        document |= {"entries": [entry], "tree": ["leaf", 0]}
        body = manifests.canonical(document)
        manifest = saver.put_manifest([identity], body)
        saver.commit(CommitRequest("evil", 0, 0, 0, manifest.id, b"\x01", None))


for _levels in (2, 5, 8):
    _add(f"lists of lists, {_levels} levels", functools.partial(_list_bomb, _levels))


def _missing(name: str) -> Callable[[Target], None]:
    return lambda target: target.clear(name) and None


for _name in (*_FILES, "index.0/lock.mdb", "index.0/clean", "packs", "sessions", "index.0"):
    _add(f"no {_name}", _missing(_name))


# ---- many


def _many_sessions(target: Target) -> None:
    for number in range(2000):
        (target.place / "sessions" / f"{number:032x}").write_bytes(b"\xff" * 40)


def _many_packs(target: Target) -> None:
    pack = target.packs()[0]
    folder = target.place / "packs" / "ff"
    folder.mkdir(exist_ok=True)
    for number in range(500):
        (folder / f"ff{number:030x}.pack").write_bytes(pack.read_bytes()[:200])


def _deep_folders(target: Target) -> None:
    path = target.place / "packs"
    for _ in range(60):
        path = path / ("d" * 50)
    path.mkdir(parents=True)


def _link_to_itself(target: Target) -> None:
    (target.place / "packs" / "loop").symlink_to(target.place)
    target.clear("quarantine").symlink_to(target.outside / "folder")


_add("two thousand sessions", _many_sessions)
_add("five hundred packs that nobody knows", _many_packs)
_add("folders without end", _deep_folders)
_add("a folder that holds itself", _link_to_itself)
