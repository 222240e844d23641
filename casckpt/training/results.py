"""Results as rows: small ones inside, large ones as a manifest that the row is the root of.

A row is written once and never changed: of two processes that finish the same item the first one
counts. Nothing is pickled; a result is what a state may be.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint import manifest as manifests
from casckpt.checkpoint.decode import restore_tree
from casckpt.checkpoint.leaves import BytesSource, RestoreOptions, refused
from casckpt.checkpoint.scalars import JSON_INT_MAX, Node, encode_int, encode_str
from casckpt.checkpoint.tree import FlatState, flatten
from casckpt.checkpoint.tree_build import Builder
from casckpt.errors import BadLeaf, BadRequest, Corrupt, NewerFormat
from casckpt.logs import logger
from casckpt.store import layout
from casckpt.training import extras

if TYPE_CHECKING:
    from casckpt.store import Repository
    from casckpt.store.commits import RowWrite
    from casckpt.store.rows import Row

VERSION: Final = 1
"""FORMAT: first byte of the payload of a result; a reader refuses a larger one."""

INLINE_BYTES: Final = 4096
"""Larger payloads go to packs: the index stays small, and equal results are stored once."""

TREE, PACKED, MANIFEST, FAILED = b"t", b"p", b"m", b"f"
"""FORMAT: second byte: a tree; a packed tree with its arrays; only numbers, the rest is in the
manifest; the text of an error. Then a JSON list: key, numbers, and what was said."""

_ATTEMPTS: Final = 5
_NAME_MAX: Final = 200
"""Characters of a key that its row shows; a key may be a whole document."""

_ERROR_MAX: Final = 1000

_DEPTH: Final = 8
_SHORT: Final = 256
"""Characters of a string that is a node of its own however it is encoded."""
_NO_TIME: Final = "1970-01-01T00:00:00.000000Z"
"""Equal results are equal manifests, whenever they were made."""

_encode_json: Final = json.JSONEncoder(
    ensure_ascii=True, allow_nan=False, separators=(",", ":"), check_circular=False
).encode

_quote: Final = json.encoder.encode_basestring_ascii
_DOUBLE: Final = struct.Struct(">d")
_TREE_HEAD: Final = bytes([VERSION]) + TREE

Number = int | float


@dataclass(frozen=True)
class Result:
    """What a function hands back with numbers beside it, for `Stage.map`.

    Args:
        value: the result.
        numbers: such as tokens=3; they add up in `Stage.totals`.
    """

    value: Any
    numbers: Mapping[str, Number]

    def __init__(self, value: Any, **numbers: Number) -> None:
        """Put a value and its numbers together."""
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "numbers", numbers)


@dataclass(slots=True)
class Pending:
    """A row that is not written yet.

    Attributes:
        table: its table.
        key: its key.
        payload: all of it; what goes before the manifest's id if `flat` is there.
        flat: a large result.
        size: bytes of its leaves.
        remove: key of a row that this one replaces: the item's failure.
    """

    table: str
    key: bytes
    payload: bytes
    flat: FlatState | None = None
    size: int = 0
    remove: bytes | None = None


def check_numbers(numbers: Mapping[str, Any], where: str) -> dict[str, Number]:
    """Return numbers as int and float.

    Raises:
        BadRequest: one is no number.
    """
    found: dict[str, Number] = {}
    for name, value in numbers.items():
        if type(value) is int or type(value) is float:
            found[name] = value
            continue
        try:
            found[name] = value.__index__() if hasattr(value, "__index__") else float(value)
        except (TypeError, ValueError) as exc:
            raise BadRequest(
                f"{where}: {name}={value!r:.60} is no number",
                "what is given by name beside a result adds up in totals",
                "put it into the result",
            ) from exc
    return found


def pending(
    table: str, key: bytes, name: str, result: Any, numbers: Mapping[str, Number]
) -> Pending:
    """Return the row of a result, which does not change with the result from here on.

    Args:
        table: table of the row.
        key: key of the row.
        name: the item's key, as text.
        result: what `Store.save` takes; no Pickled.
        numbers: of this result.

    Raises:
        BadLeaf: the result cannot be stored.
    """
    shown = name[:_NAME_MAX]
    about: list[Node] = [shown, _numbers_node(numbers) if numbers else {}]
    try:
        said = _encode_json(about[1]) if numbers else "{}"
        text = f"[{_quote(shown)},{said},{_plain_text(result, 0)}]"
        if len(text) <= INLINE_BYTES - len(_TREE_HEAD):
            return Pending(table, key, _TREE_HEAD + text.encode("ascii"))
    except _NotPlain:
        pass
    flat = flatten(result)
    if not flat.leaves:
        payload = _payload(TREE, [*about, flat.tree])
        if len(payload) <= INLINE_BYTES:
            return Pending(table, key, payload)
        return _large(table, key, about, flat)
    for leaf in flat.leaves:
        if leaf.kind == "pickle":
            raise refused(result, leaf.path, "results of a stage are never pickled")
    if sum(leaf.length for leaf in flat.leaves) <= INLINE_BYTES:
        payload = _payload(PACKED, [*about, extras.pack(result)])
        if len(payload) <= INLINE_BYTES:
            return Pending(table, key, payload)
    return _large(table, key, about, flat)


def unfit(error: BadLeaf, whose: str) -> BadLeaf:
    """Return the error of a result that cannot be stored, with whose result it is."""
    return BadLeaf(
        f"the result of {whose}: {error.what.removeprefix('the root: ')}",
        error.why,
        "return arrays, numbers, texts and containers of them; of a file, its path or its bytes",
        **error.details,
    )


class _NotPlain(Exception):
    """A result needs more than `_plain_text`."""


def _plain_text(value: Any, depth: int) -> str:
    """Return what `flatten` makes of a result of plain values as JSON, in a sixth of its time."""
    cls = type(value)
    if cls is str and len(value) <= _SHORT:
        return _quote(value) if value.isascii() else _encode_json(encode_str(value))
    if cls is float:
        return f'{{"f":"{_DOUBLE.pack(value).hex()}"}}'
    if cls is int:
        return (
            str(value)
            if -JSON_INT_MAX <= value <= JSON_INT_MAX
            else _encode_json(encode_int(value))
        )
    if value is None:
        return "null"
    if cls is bool:
        return "true" if value else "false"
    if depth >= _DEPTH:
        raise _NotPlain
    if cls is list:
        return f"[{','.join([_plain_text(one, depth + 1) for one in value])}]"
    if cls is tuple:
        return f'{{"t":[{",".join([_plain_text(one, depth + 1) for one in value])}]}}'
    if cls is not dict:
        raise _NotPlain
    keys = []
    for key in value:
        if type(key) is not str or len(key) > _SHORT:
            raise _NotPlain
        keys.append(_quote(key) if key.isascii() else _encode_json(encode_str(key)))
    nodes = [_plain_text(one, depth + 1) for one in value.values()]
    return f'{{"d":[{",".join(keys)}],"v":[{",".join(nodes)}]}}'


def _large(table: str, key: bytes, about: list[Any], flat: FlatState) -> Pending:
    size = 0
    for leaf in flat.leaves:
        if leaf.source is not None:
            # Arrays may be used again by the caller before the group is written.
            data = leaf.source.view()
            leaf.source = BytesSource(data if isinstance(data.obj, bytes) else bytes(data))
            size += leaf.length
    return Pending(table, key, _payload(MANIFEST, about), flat, size)


def failure(table: str, key: bytes, name: str, text: str) -> Pending:
    """Return the row of an item that failed."""
    return Pending(table, key, _payload(FAILED, [name[:_NAME_MAX], {}, text[:_ERROR_MAX]]))


def write(repository: Repository, rows: Sequence[Pending]) -> Iterator[list[bool]]:
    """Write rows where there are none yet, group by group.

    Yields:
        For the rows of each group in turn, when they are durable, whether they were written;
        False if another process was faster.

    Raises:
        NoSpace, OperationFailed: as the disk says. What was yielded before is durable.
    """
    for group in _groups(rows):
        yield _write_group(repository, group)


def read(repository: Repository, row: Row, name: str) -> Any:
    """Return the result of a row.

    Args:
        repository: the store.
        row: as `pending` made it.
        name: what errors call it.

    Raises:
        Corrupt: bytes are damaged.
        NewerFormat: a newer casckpt wrote it.
    """
    kind, about = parse(row)
    try:
        if kind == TREE:
            builder = Builder(_no_leaf, 0, RestoreOptions(), None)
            return builder.build(about[2])
        if kind == PACKED:
            return extras.unpack(about[2])
        refs, body = repository.read_manifest(row.roots[0])
        return restore_tree(repository, manifests.decode(body, len(refs)), refs)
    except Corrupt as exc:
        raise Corrupt(
            f"the result of {name} is damaged: {exc.what}",
            exc.why,
            "clear the stage, or this item's row, and run it again",
            **exc.details,
        ) from exc
    except IndexError as exc:
        raise Corrupt(
            f"the result of {name} does not decode", "it names a leaf that it does not have"
        ) from exc


def parse(row: Row) -> tuple[bytes, list[Any]]:
    """Return (kind, [key, numbers, ...]) of a row.

    Raises:
        Corrupt: it does not decode.
        NewerFormat: a newer casckpt wrote it.
    """
    payload = row.payload
    if payload[:1] and payload[0] > VERSION:
        raise NewerFormat(
            "a result was written by a newer casckpt",
            f"its version is {payload[0]}, this casckpt reads {VERSION}",
        )
    kind = payload[1:2]
    try:
        about = json.loads(payload[2:])
        if kind not in (TREE, PACKED, MANIFEST, FAILED) or not isinstance(about[0], str):
            raise ValueError("no row of a result")
        about[1] = {name: _number(value) for name, value in about[1].items()}
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as exc:
        raise Corrupt("a result does not decode", str(exc)) from exc
    return kind, about


def _payload(kind: bytes, document: Node) -> bytes:
    return bytes([VERSION]) + kind + _encode_json(document).encode("ascii")


def _numbers_node(numbers: Mapping[str, Number]) -> dict[str, Node]:
    # FORMAT: floats as hex, as metrics in manifests: exact, and NaN is one of them.
    return {
        name: value.hex() if isinstance(value, float) else value for name, value in numbers.items()
    }


def _number(node: Node) -> Number:
    return float.fromhex(node) if isinstance(node, str) else int(node)


def _no_leaf(index: int) -> Any:
    raise Corrupt("a result without leaves names one", f"leaf {index}")


def _groups(rows: Sequence[Pending]) -> Iterator[list[Pending]]:
    """Yield what goes into one transaction: bounded in rows and in bytes."""
    group: list[Pending] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.payload)
        is_full = len(group) >= layout.ONE_TRANSACTION_ROWS
        if is_full or size >= layout.TRANSACTION_MAX_BYTES // 2:
            yield group
            group, size = [], 0
    if group:
        yield group


def _write_group(repository: Repository, group: list[Pending]) -> list[bool]:
    from casckpt.store import SaveAgain

    if all(row.flat is None for row in group):
        writes, places = _row_writes(group, {})
        taken = repository.add_rows(writes)
        return [taken[place] for place in places]
    for attempt in range(_ATTEMPTS):
        try:
            return _save_group(repository, group)
        except SaveAgain as exc:
            if attempt == _ATTEMPTS - 1:
                raise
            logger.debug("writing results again: %s", exc.why)
    raise AssertionError("unreachable")


def _save_group(repository: Repository, group: list[Pending]) -> list[bool]:
    from casckpt.checkpoint.encode import write_state

    with repository.saver() as saver:
        roots: dict[int, bytes] = {}
        for number, row in enumerate(group):
            if row.flat is not None:
                refs, entries = write_state(saver, row.flat)
                roots[number] = saver.put_manifest(refs, _body(row.flat, entries)).id
        writes, places = _row_writes(group, roots)
        taken = saver.add_rows(writes)
    return [taken[place] for place in places]


def _body(flat: FlatState, entries: tuple[manifests.Entry, ...]) -> bytes:
    return manifests.encode(
        manifests.Manifest(
            run="result",
            line=0,
            step=0,
            batch=0,
            created=_NO_TIME,
            tree=flat.tree,
            entries=entries,
            config=manifests.RESULT,
        )
    )


def _row_writes(
    group: Sequence[Pending], roots: Mapping[int, bytes]
) -> tuple[list[RowWrite], list[int]]:
    """Return the writes, and where each row is among them."""
    from casckpt.store.commits import RowWrite

    writes: list[RowWrite] = []
    places: list[int] = []
    for number, row in enumerate(group):
        places.append(len(writes))
        root = (roots[number],) if number in roots else ()
        writes.append(RowWrite(row.table, row.key, row.payload, root))
        if row.remove is not None:
            writes.append(RowWrite(row.table, row.remove, None))
    return writes, places
