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
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from casckpt.checkpoint.records import Checkpoint, CheckpointSource
from casckpt.errors import BadRequest, Corrupt, NewerFormat

if TYPE_CHECKING:
    from casckpt.store import CheckpointRow

PAYLOAD_VERSION: Final = 1
"""First byte of a row's payload."""

RECOVERED: Final = "recovered"
"""Reason of a checkpoint whose row was made from its manifest while rebuilding the index."""

_HEAD: Final = struct.Struct("<BBHIqQQQQQ32s")  # FORMAT: docs/format.md, section 14
_COUNTED: Final = struct.Struct("<HI")
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
_COUNTS: Final = slice(2, 8)  # of the head: how many metrics, and how long their names are
_Repeated = tuple[tuple[str, ...], struct.Struct, tuple[str, ...], tuple[str, ...]]
_repeated_cache: dict[bytes, _Repeated] = {}


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
    run, seq, manifest_id, line, step, batch, state, trashed_at_ns, payload = row
    payload = payload or _RECOVERED_PAYLOAD
    try:
        (version, flags, count, _, created_us, logical, new, stored, stall_us, durable_us,
         parent) = _HEAD.unpack_from(payload)  # fmt: skip
        if version != PAYLOAD_VERSION:
            raise _newer(version)
        repeated = payload[_COUNTS] + payload[_HEAD.size + 8 * count :]
        names, values, reasons, tags = _repeated_cache.get(repeated) or _parse_repeated(repeated)
        name = f"{run}~{line}" if line or many_lines else run
        # As long as it is a draft its fields are plain attributes, which take a tenth of the time
        # that those of a frozen dataclass take, and less memory than a dict of its own.
        draft = _Draft()
        draft.ref = f"{name}@{step}+{batch}" if batch else f"{name}@{step}"
        draft.id = manifest_id.hex()
        draft.run = run
        draft.line = line
        draft.step = step
        draft.batch = batch
        draft.created = _from_timestamp(created_us / 1e6, UTC)
        # As many values as names, since their Struct was made for these.
        draft.metrics = dict(zip(names, values.unpack_from(payload, _HEAD.size)))  # noqa: B905
        draft.tags = tags
        draft.pinned = flags & _PINNED != 0
        draft.reasons = reasons
        draft.parent = parent.hex() if flags & _HAS_PARENT else None
        draft.logical_bytes = logical
        draft.new_bytes = new
        draft.stored_bytes = stored
        draft.stall_s = stall_us / 1e6
        draft.durable_s = durable_us / 1e6
        draft.seq = seq
        draft.trashed_at = None if state == "live" else _when(trashed_at_ns)
        draft.source = source
    except _UNDECODED as exc:
        raise Corrupt(
            f"the row of {run} at step {step} does not decode", str(exc), run=run
        ) from exc
    draft.__class__ = Checkpoint  # type: ignore[assignment]
    return cast("Checkpoint", draft)


class _Draft:
    """A Checkpoint that is being filled."""

    if TYPE_CHECKING:

        def __setattr__(self, name: str, value: Any) -> None: ...


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
        names = _names(payload[names_at : names_at + names_length], count)
        values = struct.unpack_from(f"<{count}d", payload, _HEAD.size)
        metrics = dict(zip(names, values, strict=True))
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


def _names(raw: bytes, count: int) -> tuple[str, ...]:
    names = tuple(raw.decode().split("\0")) if count else ()
    if len(names) != count:
        raise ValueError(f"{count} metrics, {len(names)} names")
    return names


def _parse_repeated(raw: bytes) -> _Repeated:
    """Return names of metrics, the Struct of their values, reasons and tags, of `_COUNTS` and tail.

    Remembered by these bytes: the names and reasons of a run's checkpoints are mostly the same.
    """
    count, names_length = _COUNTED.unpack_from(raw)
    rest_at = _COUNTED.size + names_length
    names = _names(raw[_COUNTED.size : rest_at], count)
    rest = json.loads(raw[rest_at:])
    if not isinstance(rest, dict):
        raise ValueError("its last part is no object")
    if len(_repeated_cache) >= _CACHE_MAX:
        _repeated_cache.clear()
    found = (
        names,
        struct.Struct(f"<{count}d"),
        tuple(rest.get("r", ())),
        tuple(rest.get("t", ())),
    )
    _repeated_cache[raw] = found
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
