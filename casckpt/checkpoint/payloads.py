"""The payload of a checkpoint's row in the index.

The store keeps it as opaque bytes with a version byte in front; only this module reads or
writes them. What changes from row to row is fixed-width, so that `ls` decodes ten thousand rows
in a few tens of milliseconds; what repeats (names of metrics, tags, reasons) is parsed once and
then looked up by its bytes.

    offset  size
         0     1  version, 1
         1     1  flags: 1 pinned, 2 has a parent
         2     2  number of metrics, n
         4     4  length of the names, k
         8     8  created, microseconds since 1970 UTC, signed
        16     8  logical bytes
        24     8  new bytes
        32     8  stored bytes
        40     8  stall, microseconds
        48     8  time until durable, microseconds
        56    32  id of the parent's manifest, or zeros
        88    8n  values of the metrics, IEEE 754 binary64
             k    their names, UTF-8, a zero byte between two
             -    JSON object: r reasons, t tags; other keys are kept as they are

Integers and floats are little-endian.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casckpt.checkpoint.records import Checkpoint, CheckpointSource
from casckpt.errors import BadRequest, Corrupt, NewerFormat

if TYPE_CHECKING:
    from casckpt.store import CheckpointRow

PAYLOAD_VERSION: Final = 1
"""First byte of a row's payload."""

RECOVERED: Final = "recovered"
"""Reason of a checkpoint whose row was made from its manifest while rebuilding the index."""

_HEAD: Final = struct.Struct("<BBHIqQQQQQ32s")  # FORMAT: docs/format.md, Rows
_PINNED: Final = 1
_HAS_PARENT: Final = 2
_METRICS_MAX: Final = 0xFFFF
_NO_PARENT: Final = bytes(32)
# Exact to the microsecond until the year 2242, where a double's spacing passes 0.5 us.
_from_timestamp: Final = datetime.fromtimestamp

# Few runs have more than a handful of distinct sets of names and reasons. The caches are
# emptied rather than trimmed: that is rare, and a lookup stays one dict access.
_CACHE_MAX: Final = 4096
_UNDECODED: Final = (
    struct.error,
    ValueError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_names_cache: dict[bytes, tuple[tuple[str, ...], struct.Struct]] = {}
_rest_cache: dict[bytes, tuple[tuple[str, ...], tuple[str, ...]]] = {}


@dataclass(frozen=True)
class RowFacts:
    """What a save writes into the payload of its row."""

    created_us: int
    metrics: Mapping[str, float]
    tags: Sequence[str]
    reasons: Sequence[str]
    parent: str | None
    logical_bytes: int
    new_bytes: int
    stored_bytes: int
    stall_s: float
    durable_s: float


class _Parts(NamedTuple):
    """A payload taken apart for editing."""

    head: tuple[Any, ...]
    metrics: dict[str, float]
    rest: dict[str, Any]


def encode_payload(facts: RowFacts) -> bytes:
    """Return the payload of a new row.

    Raises:
        BadRequest: if there are more than 65,535 metrics.
    """
    parent = bytes.fromhex(facts.parent) if facts.parent else _NO_PARENT
    head = (
        PAYLOAD_VERSION,
        _HAS_PARENT if facts.parent else 0,
        0,
        0,
        facts.created_us,
        facts.logical_bytes,
        facts.new_bytes,
        facts.stored_bytes,
        _microseconds(facts.stall_s),
        _microseconds(facts.durable_s),
        parent,
    )
    rest = {"r": list(facts.reasons), "t": sorted(set(facts.tags))}
    return _join(_Parts(head, dict(facts.metrics), rest))


def edit_payload(
    payload: bytes,
    *,
    metrics: Mapping[str, float] | None = None,
    add_tags: Sequence[str] = (),
    drop_tags: Sequence[str] = (),
    pinned: bool | None = None,
    durable_s: float | None = None,
    stall_s: float | None = None,
) -> bytes:
    """Return the payload with some fields changed; keys this version does not know stay.

    Args:
        payload: the row's payload now.
        metrics: values to add or replace.
        add_tags: tags to add.
        drop_tags: tags to remove; not an error if they are not there.
        pinned: the new state of the pin, None to leave it.
        durable_s: seconds until durable, once they are known.
        stall_s: seconds that the caller waited, once they are known.

    Raises:
        NewerFormat: if the payload's version is above 1.
        Corrupt: if it does not decode.
    """
    parts = _split(payload)
    head, rest = list(parts.head), parts.rest
    if metrics:
        parts.metrics.update(metrics)
    if add_tags or drop_tags:
        rest["t"] = sorted((set(rest.get("t", ())) | set(add_tags)) - set(drop_tags))
    if pinned is not None:
        head[1] = head[1] | _PINNED if pinned else head[1] & ~_PINNED
    if stall_s is not None:
        head[8] = _microseconds(stall_s)
    if durable_s is not None:
        head[9] = _microseconds(durable_s)
    return _join(_Parts(tuple(head), parts.metrics, rest))


def decode_row(
    row: CheckpointRow, *, many_lines: bool = False, source: CheckpointSource | None = None
) -> Checkpoint:
    """Return the Checkpoint of a row.

    Args:
        row: the row as the store gives it; an empty payload is a recovered row.
        many_lines: the run has other lines, so the REF of line 0 says `~0` too.
        source: where the Checkpoint looks up what the row does not hold.

    Raises:
        NewerFormat: if the payload's version is above 1.
        Corrupt: if the payload does not decode.
    """
    payload = row.payload or _RECOVERED_PAYLOAD
    try:
        (version, flags, count, names_length, created_us, logical, new, stored, stall_us,
         durable_us, parent) = _HEAD.unpack_from(payload)  # fmt: skip
        if version != PAYLOAD_VERSION:
            raise _newer(version)
        names_at = _HEAD.size + 8 * count
        rest_at = names_at + names_length
        if count:
            names, values = _names(payload[names_at:rest_at], count)
            metrics = dict(zip(names, values.unpack_from(payload, _HEAD.size), strict=True))
        else:
            metrics = {}
        rest = payload[rest_at:]
        reasons, tags = _rest_cache.get(rest) or _parse_rest(rest)
        run, line, step, batch = row.run, row.line, row.step, row.batch
        name = f"{run}~{line}" if line or many_lines else run
        # A frozen dataclass assigns each field through object.__setattr__, which for ten
        # thousand rows is most of the time of `ls`; filling the dict at once is not.
        checkpoint = object.__new__(Checkpoint)
        checkpoint.__dict__.update(
            ref=f"{name}@{step}+{batch}" if batch else f"{name}@{step}",
            id=row.manifest_id.hex(),
            run=run,
            line=line,
            step=step,
            batch=batch,
            created=_from_timestamp(created_us / 1e6, UTC),
            metrics=metrics,
            tags=tags,
            pinned=flags & _PINNED != 0,
            reasons=reasons,
            parent=parent.hex() if flags & _HAS_PARENT else None,
            logical_bytes=logical,
            new_bytes=new,
            stored_bytes=stored,
            stall_s=stall_us / 1e6,
            durable_s=durable_us / 1e6,
            seq=row.seq,
            trashed_at=None if row.state == "live" else _when(row.trashed_at_ns),
            source=source,
        )
    except _UNDECODED as exc:
        raise Corrupt(
            f"the row of {row.run} at step {row.step} does not decode", str(exc), run=row.run
        ) from exc
    return checkpoint


def payload_tags(payload: bytes) -> tuple[str, ...]:
    """Return the tags in a payload."""
    return tuple(_split(payload).rest.get("t", ()))


def make_ref(run: str, line: int, step: int, batch: int, *, many_lines: bool = False) -> str:
    """Return the REF of a place in a run; line 0 is named only where there are others."""
    name = f"{run}~{line}" if line or many_lines else run
    return f"{name}@{step}+{batch}" if batch else f"{name}@{step}"


def _split(payload: bytes) -> _Parts:
    payload = payload or _RECOVERED_PAYLOAD
    try:
        head = _HEAD.unpack_from(payload)
        if head[0] != PAYLOAD_VERSION:
            raise _newer(head[0])
        count, names_length = head[2], head[3]
        names_at = _HEAD.size + 8 * count
        names, values = _names(payload[names_at : names_at + names_length], count)
        metrics = dict(zip(names, values.unpack_from(payload, _HEAD.size), strict=True))
        rest = json.loads(payload[names_at + names_length :])
        if not isinstance(rest, dict):
            raise ValueError("its last part is no object")
    except (struct.error, ValueError, RecursionError) as exc:
        raise Corrupt("a row of a checkpoint does not decode", str(exc)) from exc
    return _Parts(head, metrics, rest)


def _join(parts: _Parts) -> bytes:
    if len(parts.metrics) > _METRICS_MAX:
        raise BadRequest(
            f"{len(parts.metrics)} metrics on one checkpoint",
            f"the limit is {_METRICS_MAX}",
            "keep long series as an array in the state",
        )
    names = "\0".join(parts.metrics).encode()
    head = list(parts.head)
    head[2], head[3] = len(parts.metrics), len(names)
    values = struct.pack(f"<{len(parts.metrics)}d", *parts.metrics.values())
    rest = json.dumps(parts.rest, separators=(",", ":"), sort_keys=True, allow_nan=False)
    return _HEAD.pack(*head) + values + names + rest.encode("ascii")


def _names(raw: bytes, count: int) -> tuple[tuple[str, ...], struct.Struct]:
    found = _names_cache.get(raw)
    if found is None or len(found[0]) != count:
        if len(_names_cache) >= _CACHE_MAX:
            _names_cache.clear()
        names = tuple(raw.decode().split("\0")) if count else ()
        if len(names) != count:
            raise ValueError(f"{count} metrics, {len(names)} names")
        found = _names_cache[raw] = (names, struct.Struct(f"<{count}d"))
    return found


def _parse_rest(raw: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
    rest = json.loads(raw)
    if not isinstance(rest, dict):
        raise ValueError("its last part is no object")
    if len(_rest_cache) >= _CACHE_MAX:
        _rest_cache.clear()
    found = _rest_cache[raw] = (tuple(rest.get("r", ())), tuple(rest.get("t", ())))
    return found


def _when(time_ns: int) -> datetime:
    return _from_timestamp(time_ns // 1000 / 1e6, UTC)


def _microseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e6))


def _newer(version: int) -> NewerFormat:
    return NewerFormat(
        "a row of this store was written by a newer casckpt",
        f"its version is {version}, this casckpt reads {PAYLOAD_VERSION}",
    )


_RECOVERED_PAYLOAD: Final = encode_payload(
    RowFacts(0, {}, (), (RECOVERED,), None, 0, 0, 0, 0.0, 0.0)
)
