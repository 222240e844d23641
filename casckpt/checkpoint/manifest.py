"""The immutable description of one checkpoint, and its canonical bytes.

A manifest is JSON in one possible spelling: ASCII, sorted keys, no spaces, no key twice, no number
with a fraction (metrics are hex floats). `encode(decode(body)) == body` is checked on every read,
so two readers can never see two things in the same bytes. Blobs are named by their index in the
record's refs; no id but the parent's appears in the body.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from casckpt.checkpoint.scalars import Node
from casckpt.errors import Corrupt

FORMAT: Final = 1
"""FORMAT: version of the body; a reader refuses a larger one."""

RESULT: Final = {"kind": "result"}
"""FORMAT: `config` of a manifest that holds the result of a stage's item: no checkpoint."""

BESIDE_MAX_BYTES: Final = 16 * 1024 * 1024
"""FORMAT: most bytes that a checkpoint keeps beside its state: generators, positions, counters.

What casckpt writes is smaller (`casckpt/training/extras.py`, LIMIT_BYTES).
"""

_BESIDE: Final = "beside"

KINDS: Final = frozenset({"array", "tensor", "storage", "str", "bytes", "bytearray", "pickle"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One leaf of a checkpoint.

    Attributes:
        path: dotted path in the tree, for people and globs.
        kind: one of KINDS.
        dtype: as the kind's handler writes it.
        shape: lengths of the axes.
        order: "C", "F", or the axes from slowest to fastest.
        flags: sorted words.
        blob: index into the manifest's refs; None if there are no bytes.
        offset: of a leaf: where it starts in its blob. Of a view: where in the other's bytes.
        length: bytes.
        alias: index of the entry whose memory this one shares; None for a leaf of its own.
        stride: of an alias that is another view of that memory, in items; None: the same object.
    """

    path: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    order: str = "C"
    flags: tuple[str, ...] = ()
    blob: int | None = None
    offset: int = 0
    length: int = 0
    alias: int | None = None
    stride: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Manifest:
    """What one checkpoint is: where it belongs, the tree, and where each leaf's bytes are.

    Attributes:
        run: name of the run.
        line: number of the line in the run.
        step: step, and `batch` within it.
        created: RFC 3339 in UTC with microseconds.
        tree: nodes, see `tree.py`.
        entries: leaves, in tree order.
        parent: hex id of the manifest this one continued from.
        reasons: why it was kept: "latest", "best", "every", ...
        config: fingerprint of the run's configuration, any JSON without fractions.
        environment: allow-listed facts, see `environment.py`.
        metrics: numbers as they were at the save.
        captured: what a resume will find (RNG streams, positions).
        missing: what it will not.
    """

    run: str
    line: int
    step: int
    batch: int
    created: str
    tree: Node
    entries: tuple[Entry, ...]
    parent: str | None = None
    reasons: tuple[str, ...] = ()
    config: Node = None
    environment: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    captured: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def logical_bytes(self) -> int:
        """Bytes a restore writes, each alias counted once with what it aliases."""
        return sum(entry.length for entry in self.entries)


def encode(manifest: Manifest) -> bytes:
    """Return the canonical body of a manifest."""
    with without_collector():
        return canonical(
            {
                "format": FORMAT,
                "run": manifest.run,
                "line": manifest.line,
                "step": manifest.step,
                "batch": manifest.batch,
                "parent": manifest.parent,
                "created": manifest.created,
                "reasons": list(manifest.reasons),
                "config": manifest.config,
                "environment": dict(manifest.environment),
                "metrics": {name: float(value).hex() for name, value in manifest.metrics.items()},
                "captured": list(manifest.captured),
                "missing": list(manifest.missing),
                "tree": manifest.tree,
                "entries": [_entry_document(entry) for entry in manifest.entries],
            }
        )


def unreadable(ref: str, error: Corrupt) -> Corrupt:
    """Return the error for a checkpoint whose manifest is damaged."""
    why = f"its list of tensors cannot be read: {error.why or error.what}"
    return Corrupt(f"{ref} is damaged", why, ref=ref)


def decode(body: bytes | bytearray | memoryview, ref_count: int) -> Manifest:
    """Return the manifest of a body, after checking everything that can be checked without blobs.

    Args:
        body: as stored; may be hostile.
        ref_count: how many blobs the record names.

    Raises:
        Corrupt: if it is not what `encode` writes.
        NewerFormat: if a newer casckpt wrote it.
    """
    from casckpt.checkpoint.manifest_reader import read_manifest  # it builds on this module

    with without_collector():
        return read_manifest(bytes(body), ref_count)


def is_result(body: bytes | bytearray | memoryview) -> bool:
    """Return whether a body is the manifest of a result; False for one that does not parse."""
    try:
        document = json.loads(bytes(body))
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("config") == RESULT


@contextmanager
def without_collector() -> Iterator[None]:
    """Pause the cycle collector while many small objects are made, none of them in a cycle.

    It would walk all of them again and again: half of the time of a manifest of 100,000 entries.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def config_beside(blob: int, length: int) -> Node:
    """Return the `config` of a checkpoint that keeps bytes beside its state.

    FORMAT: `{"beside": {"blob": index into the refs, "length": bytes}}`.
    """
    return {_BESIDE: {"blob": blob, "length": length}}


def beside_of(manifest: Manifest, blob_count: int) -> tuple[int, int] | None:
    """Return the blob's index and the length of what is kept beside the state; None for nothing.

    Raises:
        Corrupt: if `config` says it in a way that it must not.
    """
    if not isinstance(manifest.config, dict) or _BESIDE not in manifest.config:
        return None
    found = manifest.config[_BESIDE]
    blob, length = (found.get("blob"), found.get("length")) if isinstance(found, dict) else (0, 0)
    if (
        type(blob) is int
        and type(length) is int
        and 0 <= blob < blob_count
        and 0 < length <= BESIDE_MAX_BYTES
    ):
        return blob, length
    raise Corrupt("the manifest is damaged", f"it keeps {str(found)[:80]} beside the state")


def same_content(
    a: Manifest, refs_a: Sequence[bytes], b: Manifest, refs_b: Sequence[bytes]
) -> bool:
    """Return whether two checkpoints hold the same state: same tree, entries and bytes.

    When they were made, on what machine, under which step and with which metrics does not count.
    """
    return (
        a.entries == b.entries
        and _blobs(a, refs_a) == _blobs(b, refs_b)
        # As text: in Python [1] == [True].
        and canonical(a.tree) == canonical(b.tree)
    )


def _blobs(manifest: Manifest, refs: Sequence[bytes]) -> list[bytes]:
    used = {entry.blob for entry in manifest.entries if entry.blob is not None}
    return [ref for index, ref in enumerate(refs) if index in used]


def canonical(document: Node) -> bytes:
    """Return the one spelling of a document."""
    return json.dumps(
        document, ensure_ascii=True, allow_nan=False, sort_keys=True, separators=(",", ":")
    ).encode("ascii")


def _entry_document(entry: Entry) -> dict[str, Node]:
    if entry.alias is None:
        return {
            "blob": entry.blob,
            "dtype": entry.dtype,
            "flags": list(entry.flags),
            "kind": entry.kind,
            "length": entry.length,
            "offset": entry.offset,
            "order": entry.order,
            "path": entry.path,
            "shape": list(entry.shape),
        }
    if entry.stride is None:
        return {"alias": entry.alias, "path": entry.path}
    return {
        "alias": entry.alias,
        "dtype": entry.dtype,
        "flags": list(entry.flags),
        "kind": entry.kind,
        "offset": entry.offset,
        "path": entry.path,
        "shape": list(entry.shape),
        "stride": list(entry.stride),
    }
