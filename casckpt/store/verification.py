"""Verify: check a store at three depths, beside savers and collectors, and change nothing.

    structure   rows decode, the roots checksum fits, every row points at the header it names
    refs        and what checkpoints reach is there: manifests and lists decoded, chains whole
    bytes       and every record below each pack's registered end is read, needed or not

docs/format.md, section 12, says what is a finding and what is only garbage.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from casckpt.errors import BadRequest, CasckptError, Corrupt
from casckpt.store import files, layout, pack_check, packs, records, rows, sessions
from casckpt.store.closure_check import ClosureCheck
from casckpt.store.effort import Effort
from casckpt.store.findings import Findings, Key
from casckpt.store.index_writer import read_roots
from casckpt.store.packs import pack_path
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction
from casckpt.store.workers import Workers

Progress = Callable[[int, int], None]
LEVELS: Final = ("structure", "refs", "bytes")


@dataclass(frozen=True, slots=True)
class Damage:
    """One finding.

    Attributes:
        pack: name of the pack file, or of the index; empty for an object that is nowhere.
        offset: where the record begins in it, in bytes.
        id: the object's id; empty if it cannot be told.
        kind: "record", "pack" (missing, cut off, of another store), "index" or "missing".
        message: what is wrong.
        blobs: blobs that need it, and manifests that are it; empty if nobody does.
    """

    pack: str
    offset: int
    id: bytes
    kind: str
    message: str
    blobs: frozenset[bytes] = frozenset()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What verify found.

    Attributes:
        damaged: the findings, by pack and offset; empty means that all is whole.
        damaged_manifests: by manifest id, the ids of its blobs that cannot be read whole; the
            manifest's own id if it is the manifest that cannot.
        whole: ids of the other manifests of live checkpoints and those in the trash.
        checked_bytes: bytes of records read and checked; 0 below level bytes.
        garbage_bytes: torn or unregistered bytes, foreign packs, files of dead sessions.
    """

    damaged: tuple[Damage, ...]
    damaged_manifests: dict[bytes, frozenset[bytes]]
    whole: tuple[bytes, ...]
    checked_bytes: int
    garbage_bytes: int


def verify(
    shared: SharedStore,
    pool: Workers,
    level: str = "bytes",
    progress: Progress | None = None,
    effort: Effort | None = None,
) -> VerifyReport:
    """Check a store and change nothing.

    What a collector removes meanwhile is no finding. Memory: some bytes for each reachable object.

    Args:
        shared: the open store.
        pool: runs the checks of level bytes.
        level: structure, refs or bytes.
        progress: called with (bytes done, bytes in all) from this thread.
        effort: how fast level bytes reads, how much of it, and from where on.
    """
    if level not in LEVELS:
        raise BadRequest(f"bad level {level!r}", "", f"use {', '.join(LEVELS)}")
    found = Findings()
    index = _Index()
    try:
        index = _check_index(shared, found)
        deep = (effort or Effort()) if level == "bytes" else None
        check = pack_check.PackCheck(shared, pool, found, deep)
        checked = check.run(index.packs, progress or _ignore)
    except Corrupt as exc:
        # LMDB itself gave up: nothing that the index says can be trusted any further.
        found.index(shared.index.name, exc.why or exc.what)
        checked = 0
    closures: dict[bytes, dict[bytes, frozenset[Key]]] = {}
    if level != "structure" or found.by_key:
        with contextlib.suppress(Corrupt):
            closures = ClosureCheck(shared, found).run(index.manifests, index.others)
    # What a collector took meanwhile is no damage.
    found.forget_dropped(shared)
    shared.damaged |= found.places()
    return _report(shared, found, index, closures, checked)


def _ignore(done: int, total: int) -> None:
    """Show nothing."""


# ---- the index


@dataclass
class _Index:
    """What the index says to begin with."""

    packs: dict[int, rows.PackRow] = field(default_factory=dict)
    manifests: list[bytes] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)
    foreign_bytes: int = 0


def _check_index(shared: SharedStore, found: Findings) -> _Index:
    """Decode every row but those of `objects`; return packs and roots."""
    index = _Index()
    # ORDER: files first, rows after: a pack is a row before it is a file
    on_disk = packs.pack_files(shared.path)
    name = shared.index.name
    manifests: dict[bytes, None] = {}
    others: dict[bytes, None] = {}
    with shared.environment.read() as tx:
        for key, value in tx.scan("packs"):
            try:
                index.packs[rows.read_u64(key)] = rows.PackRow.decode(value)
            except Corrupt as exc:
                found.index(name, f"packs: {exc.why}")
        count = total = 0
        for table, key, value in _described_rows(tx):
            try:
                row = rows.Row.decode(value)
                if table == "checkpoints":
                    rows.decode_checkpoint(key, value)
            except Corrupt as exc:
                found.index(name, f"{table}: {exc.why}")
                continue
            if row.is_root and table in layout.ROOT_TABLES:
                count += 1
                total += records.row_hash(table, key, value)
                (manifests if table == "checkpoints" else others).update(dict.fromkeys(row.roots))
        if (count, total % 2**128) != read_roots(tx):
            found.index(
                name, "the checksum of its root rows does not fit: some were lost or changed"
            )
    known = {pack_path(shared.path, row.uuid) for row in index.packs.values()}
    index.foreign_bytes = sum(files.allocated_bytes(path) for path in on_disk if path not in known)
    index.manifests, index.others = list(manifests), list(others)
    return index


def _described_rows(tx: Transaction) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield (table, key, value) of the tables whose values begin with a row's head."""
    for table in ("checkpoints", "runs", "history", "progress", "cache"):
        for key, value in tx.scan(table):
            yield table, key, value


# ---- the report


def _report(
    shared: SharedStore,
    found: Findings,
    index: _Index,
    closures: dict[bytes, dict[bytes, frozenset[Key]]],
    checked_bytes: int,
) -> VerifyReport:
    """Put what was found into words."""
    manifests = frozenset(index.manifests)
    needed: dict[Key, set[bytes]] = {}
    damaged_manifests = {}
    for manifest, blobs in closures.items():
        for blob, keys in blobs.items():
            for key in keys & found.by_key.keys():
                needed.setdefault(key, set()).add(blob)
        hurt = frozenset(blob for blob, keys in blobs.items() if keys & found.by_key.keys())
        if hurt and manifest in manifests:
            damaged_manifests[manifest] = hurt
    damaged = [
        Damage(one.pack, one.offset, one.id, one.kind, one.message, frozenset(needed.get(key, ())))
        for key, one in found.by_key.items()
    ]
    return VerifyReport(
        tuple(sorted(damaged, key=lambda one: (one.pack, one.offset, one.id))),
        damaged_manifests,
        tuple(identity for identity in index.manifests if identity not in damaged_manifests),
        checked_bytes,
        index.foreign_bytes + _garbage_bytes(shared),
    )


def _garbage_bytes(shared: SharedStore) -> int:
    """Return the bytes past registered ends, of dropped packs, and of dead sessions' files."""
    alive: set[bytes] = set()
    garbage = 0
    with contextlib.suppress(CasckptError):
        for info in sessions.list_sessions(shared.path):
            if info.alive:
                alive.add(info.uuid)
            else:
                garbage += files.allocated_bytes(info.path)
    with contextlib.suppress(Corrupt), shared.environment.read() as tx:
        registered = [rows.PackRow.decode(value) for _, value in tx.scan("packs")]
        for row in registered:
            path = pack_path(shared.path, row.uuid)
            if row.state == rows.DROPPED:
                garbage += files.allocated_bytes(path)
            elif row.session not in alive:
                garbage += pack_check.torn_bytes(path, row)
    return garbage
