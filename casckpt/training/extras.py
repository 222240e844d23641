"""What a resume needs beside the state, as one JSON value beside the state.

Generators, loader positions and counters are small trees, with an array here and there. They are
written as a state is, into memory instead of packs, so every kind of leaf that a state may have
comes back exactly. They are not part of the state: `restore` does not show them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, cast

from casckpt import native
from casckpt.checkpoint import manifest
from casckpt.checkpoint.scalars import Node
from casckpt.errors import BadLeaf, Corrupt

if TYPE_CHECKING:
    from casckpt.store import BlobInfo, BlobRead, BlobSource, Repository
    from casckpt.store.saving import Saver

LIMIT_BYTES: Final = 4 * 1024 * 1024
"""Largest extra: the thread that trains encodes it at each save, and a resume reads it whole.

Positions and generators take kilobytes. There are two limits more: the format allows four times as
much beside a state (`manifest.BESIDE_MAX_BYTES`), which readers hold to, and of one loader a
sixteenth of this is kept between epochs (`loops/boundary.py`, KEPT_BYTES).
"""

POSITION_BYTES: Final = LIMIT_BYTES // 4 * 3
"""Largest position of loaders, of all processes together: the rest is for what is beside it."""


class _Memory:
    """Takes and gives blobs as a store does."""

    def __init__(self, blobs: Iterable[bytes] = ()) -> None:
        self.blobs = {native.blake3(blob): blob for blob in blobs}

    def put_blobs(self, sources: Iterable[BlobSource]) -> list[BlobInfo]:
        from casckpt.store import BlobInfo

        infos = []
        for source in sources:
            blob = b"".join(bytes(memoryview(buffer).cast("B")) for buffer in source.buffers)
            identity = native.blake3(blob)
            self.blobs[identity] = blob
            infos.append(BlobInfo(identity, len(blob), len(blob), len(blob)))
        return infos

    def read_blobs(self, wishes: Sequence[BlobRead], *, verify: bool = True) -> None:
        for wish in wishes:
            target = memoryview(wish.dest).cast("B")
            target[:] = self.blobs[wish.id][wish.offset : wish.offset + len(target)]


def pack(value: Any) -> Node:
    """Return a JSON value, without fractions, that `unpack` turns back into the tree.

    Raises:
        BadLeaf: something in it cannot be stored, or it is too large.
    """
    from casckpt.checkpoint.encode import write_state
    from casckpt.checkpoint.tree import flatten

    flat = flatten(value)
    memory = _Memory()
    refs, entries = write_state(cast("Saver", memory), flat)
    body = manifest.encode(
        manifest.Manifest(
            run="extra", line=0, step=0, batch=0, created=_NO_TIME, tree=flat.tree, entries=entries
        )
    )
    blobs = [base64.b85encode(memory.blobs[ref]).decode("ascii") for ref in refs]
    size = len(body) + sum(map(len, blobs))
    if size > LIMIT_BYTES:
        raise BadLeaf(
            f"{size:,} bytes beside the state",
            f"the limit is {LIMIT_BYTES:,}; a loader's position and generators are kept there",
            "keep what is large in the state",
        )
    return {"body": body.decode("ascii"), "blobs": blobs}


def why_not(value: Any, limit_bytes: int) -> str:
    """Return why a tree cannot be kept beside a state in so many bytes; empty if it can."""
    try:
        node = pack(value)
    except BadLeaf as exc:
        return f"{exc.what}: {exc.why}"
    size = len(node["body"]) + sum(map(len, node["blobs"]))
    return f"it takes {size:,} bytes of {limit_bytes:,}" if size > limit_bytes else ""


def unpack(node: Node) -> Any:
    """Return the tree of a packed value.

    Raises:
        Corrupt: if it is none.
        MissingExtra: it holds tensors, and their library is not installed.
    """
    from casckpt.checkpoint.decode import restore_tree

    try:
        memory = _Memory(base64.b85decode(text) for text in node["blobs"])
        refs = [native.blake3(base64.b85decode(text)) for text in node["blobs"]]
        body = manifest.decode(node["body"].encode("ascii"), len(refs))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Corrupt("what a checkpoint keeps beside the state does not decode", str(exc)) from exc
    return restore_tree(cast("Repository", memory), body, refs)


def unpack_text(text: bytes) -> Any:
    """Return the tree of a packed value that was written as JSON text.

    Raises:
        Corrupt: if it is none.
    """
    try:
        node = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Corrupt("what a checkpoint keeps beside the state does not decode", str(exc)) from exc
    return unpack(node)


_NO_TIME: Final = "1970-01-01T00:00:00.000000Z"
