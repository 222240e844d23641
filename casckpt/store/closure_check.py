"""What roots reach, checked: manifests and lists decoded, base chains whole, each object once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from casckpt.errors import Corrupt, NewerFormat
from casckpt.native import PrefixSet
from casckpt.store import codec, files, layout, lists, packs, records, rows
from casckpt.store.findings import WHOLE_PACK, Findings, Key, reason
from casckpt.store.packs import pack_path
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Chain, Transaction

Keys = frozenset[Key]
# Ids resolved in one read transaction: the gate is given back in between.
_BATCH: Final = 2000
# A manifest, eight levels of lists, a chunk; what nests deeper is no object of this format.
_DEPTH_MAX: Final = layout.LIST_MAX_LEVELS + 2
_NOTHING: Final[Keys] = frozenset()


class ClosureCheck:
    """Follows roots down to their chunks, and says which findings hurt which blobs."""

    def __init__(self, shared: SharedStore, found: Findings) -> None:
        self._shared = shared
        self._found = found
        self._seen = PrefixSet()
        self._bad: dict[bytes, Keys] = {}

    def run(
        self, manifests: Iterable[bytes], others: Iterable[bytes]
    ) -> dict[bytes, dict[bytes, Keys]]:
        """Return what hurts each blob of each manifest that is not whole.

        Args:
            manifests: ids that checkpoints name.
            others: ids that other root tables name.
        """
        hurt = {identity: blobs for identity in manifests if (blobs := self._manifest(identity))}
        for identity in others:
            if keys := self._object(identity, None, 0):
                hurt[identity] = {identity: keys}
        if hurt:
            # What was removed while this went on was allowed to go.
            rooted = self._roots()
            hurt = {identity: blobs for identity, blobs in hurt.items() if identity in rooted}
        for blobs in hurt.values():
            for keys in blobs.values():
                for key in keys:
                    if isinstance(key, bytes):
                        self._found.missing(key)
        return hurt

    def _roots(self) -> set[bytes]:
        with self._shared.environment.read() as tx:
            return {
                identity
                for table in layout.ROOT_TABLES
                for _, value in tx.scan(table)
                if (row := _decoded(value)) is not None and row.is_root
                for identity in row.roots
            }

    def _manifest(self, identity: bytes) -> dict[bytes, Keys]:
        """Return what hurts each blob of a manifest, or the manifest itself."""
        chain = self._chains([identity])[0]
        keys = self._place(identity, chain)
        refs: tuple[bytes, ...] = ()
        if not keys and chain is not None:
            refs, keys = self._refs(chain, layout.TYPE_MANIFEST)
        if keys:
            return {identity: keys}
        return {ref: below for ref, below in self._objects(refs, 1) if below}

    def _objects(self, ids: Sequence[bytes], depth: int) -> Iterator[tuple[bytes, Keys]]:
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            flags = self._seen.contains_many(b"".join(batch))
            fresh = [identity for identity, flag in zip(batch, flags, strict=True) if not flag]
            chains = dict(zip(fresh, self._chains(fresh), strict=True))
            for identity in batch:
                yield identity, self._object(identity, chains.get(identity), depth)

    def _object(self, identity: bytes, chain: Chain | None, depth: int) -> Keys:
        """Return what hurts an object and everything below it."""
        before = self._bad.get(identity)
        if before is None and not self._seen.add(identity):
            return _NOTHING
        if before is not None and not any(isinstance(key, bytes) for key in before):
            return before
        # What was missing is looked for again: the same bytes may have been saved meanwhile.
        chain = chain or self._chains([identity])[0]
        keys = self._place(identity, chain)
        if not keys and chain is not None and chain[0][1].kind != layout.TYPE_CHUNK:
            refs, keys = self._refs(chain, None)
            if refs and depth >= _DEPTH_MAX:
                keys = self._damaged(chain, "objects are nested too deep")
            else:
                keys = keys.union(*(below for _, below in self._objects(refs, depth + 1)))
        if keys:
            self._bad[identity] = keys
        else:
            self._bad.pop(identity, None)
        return keys

    def _chains(self, ids: Sequence[bytes]) -> list[Chain | None]:
        with self._shared.environment.read() as tx:
            return [_chain(tx, identity) for identity in ids]

    def _place(self, identity: bytes, chain: Chain | None) -> Keys:
        """Return the findings where an object and its bases stand; its id if it is nowhere."""
        if chain is None:
            return frozenset({identity})
        known = self._found.by_key
        places = ((row.pack, at) for _, row, _ in chain for at in (row.offset, WHOLE_PACK))
        return frozenset(place for place in places if place in known)

    def _refs(self, chain: Chain, kind: int | None) -> tuple[tuple[bytes, ...], Keys]:
        """Return the refs of a manifest, a list or an object of unknown type, read and checked."""
        identity, row, pack = chain[0]
        try:
            with self._shared.packs.borrow(pack.uuid) as file:
                record = packs.read_header(file.descriptor, file.path, pack.uuid, row.offset)
                payload = packs.read_payload(file.descriptor, file.path, record)
            if record.id != identity or kind not in (None, record.kind):
                raise Corrupt("damaged record", "another object stands where the index says")
            _check_body(record, payload)
        except NewerFormat:
            # An encoding of a newer version: its refs are readable, its body is not ours to judge.
            return record.refs, _NOTHING
        except files.DAMAGE as exc:
            again = self._chains([identity])[0]
            if again is not None and again[0][1] != row:
                return self._refs(again, kind)  # a collector has moved it meanwhile
            return (), self._damaged(chain, reason(exc))
        return record.refs, _NOTHING

    def _damaged(self, chain: Chain, message: str) -> Keys:
        identity, row, pack = chain[0]
        name = pack_path(self._shared.path, pack.uuid).name
        return frozenset({self._found.record(row.pack, row.offset, name, identity, message)})


def _chain(tx: Transaction, identity: bytes) -> Chain | None:
    """Return the links of an object; None if one is not usable, or its row cannot be read."""
    try:
        return tx.chain(identity)
    except Corrupt:
        return None


def _check_body(record: records.Record, payload: bytes) -> None:
    if record.kind not in (layout.TYPE_LIST, layout.TYPE_MANIFEST):
        return
    body = codec.decode_body(record.encoding, payload, record.logical)
    if records.object_id(record.kind, record.refs, body) != record.id:
        raise Corrupt("damaged record", "its bytes have another id")
    if record.kind == layout.TYPE_LIST:
        lists.decode_list(body, len(record.refs))


def _decoded(value: bytes) -> rows.Row | None:
    try:
        return rows.Row.decode(value)
    except Corrupt:
        return None
