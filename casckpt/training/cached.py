"""`run.cached`: a function's result, kept for as long as function and arguments stay the same."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from casckpt.errors import BadLeaf, CasckptError, Corrupt, Deleted
from casckpt.logs import logger
from casckpt.store import layout, rows
from casckpt.training import results
from casckpt.training.fingerprints import files as fingerprint_files
from casckpt.training.fingerprints.files import FileHashes
from casckpt.training.fingerprints.values import Fingerprinter
from casckpt.training.stages import rows as stage_rows

if TYPE_CHECKING:
    from casckpt.store import Repository
    from casckpt.training.run import Run

PREFIX: Final = b"c\0"
"""FORMAT: rows of `cache` that hold a cached value begin with this; then NAME, 0, its hash."""

_HASHED: Final = b"\x01"
_HASH: Final = "[0-9a-f]{64}"
"""How `rows.name_part` begins for a name that is too long for a key, and how the rest is shown."""

_TELL_ABOVE_S: Final = 1.0


@dataclass(frozen=True)
class CacheEntry:
    """What the cache of a store holds under one name.

    Attributes:
        kind: "value" of `cached`, "stage" shared by runs, or "files": hashes of files.
        name: the name it was given.
        count: how many values or results.
        manifests: hex ids of what is kept in packs; the rest is in the index.
    """

    kind: str
    name: str
    count: int
    manifests: tuple[str, ...]


def run_cached(
    run: Run, name: str, fn: Callable[..., Any], args: Any, kwargs: Any, version: str
) -> Any:
    """Return what `fn` returned for these arguments, or call it; see `Run.cached`."""
    stage_rows.check_name(name)
    repository = run.repository
    files = FileHashes(repository)
    try:
        identity = Fingerprinter(files).of((name, str(version), fn, args, kwargs), f"cached {name}")
    finally:
        files.save()
    key = PREFIX + rows.name_part(name) + b"\0" + identity
    row = repository.row("cache", key)
    if row is not None:
        try:
            value = results.read(repository, row, f"cached {name}")
        except (Corrupt, Deleted) as exc:
            logger.warning("%s: %s; it is computed again", run.name, exc.what)
            _remove(repository, [key])
        else:
            seconds = results.parse(row)[1][1].get("seconds", 0.0)
            if seconds >= _TELL_ABOVE_S:
                logger.info("%s: %s loaded; it took %.0f s once", run.name, name, seconds)
            return value
    began_s = time.monotonic()
    value = fn(*args, **kwargs)
    numbers = {"seconds": time.monotonic() - began_s}
    try:
        pending = results.pending("cache", key, name, value, numbers)
    except BadLeaf as exc:
        raise results.unfit(exc, f"cached {name}") from exc
    for _ in results.write(repository, [pending]):
        pass
    return value


def entries(repository: Repository) -> list[CacheEntry]:
    """Return what the cache of a store holds, by kind and name."""
    found: dict[tuple[str, str], tuple[int, list[str]]] = {}
    for key, row in repository.rows("cache"):
        described = _describe(key, row)
        if described is not None:
            count, manifests = found.get(described, (0, []))
            manifests.extend(root.hex() for root in row.roots)
            found[described] = count + 1, manifests
    return [
        CacheEntry(kind, name, count, tuple(manifests))
        for (kind, name), (count, manifests) in sorted(found.items())
    ]


def drop(repository: Repository, name: str) -> int:
    """Remove what `cached` and shared stages keep under a name; return how many rows.

    The bytes are freed by gc.

    Args:
        repository: the store.
        name: as it was given, or as `entries` shows it.
    """
    stage_rows.check_name(name)
    part = rows.name_part(name)
    prefixes = {PREFIX + part, stage_rows.SHARED + part}
    if re.fullmatch(_HASH, name):
        prefixes.add(stage_rows.SHARED + _HASHED + bytes.fromhex(name))
    keys = [
        key for prefix in sorted(prefixes) for key, _ in repository.rows("cache", prefix + b"\0")
    ]
    _remove(repository, keys)
    return len(keys)


def shown_as(name: str) -> set[str]:
    """Return the names of entries that hold what was kept under a name.

    A shared stage's rows do not say its name if that is too long for a key: its hash stands there.
    """
    part = rows.name_part(name)
    return {name, part[1:].hex()} if part[:1] == _HASHED else {name}


def _describe(key: bytes, row: rows.Row) -> tuple[str, str] | None:
    """Return (kind, name) of a row; None for notes."""
    if key.startswith(fingerprint_files.PREFIX):
        return "files", ""
    kind = "value" if key.startswith(PREFIX) else "stage"
    head = key[len(PREFIX) :]
    if head[:1] != _HASHED:
        name, _, rest = head.partition(b"\0")
        text = name.decode("utf-8", "replace")
    else:
        # The name was too long for a key: its hash stands for it.
        text, rest = head[1:33].hex(), head[34:]
    if kind == "stage" and not rest.startswith(b"d"):
        return None
    try:
        if kind == "value":
            text = results.parse(row)[1][0]
    except CasckptError:
        logger.debug("a row of the cache does not decode")
    return kind, text


def _remove(repository: Repository, keys: list[bytes]) -> None:
    from casckpt.store.commits import RowWrite

    for start in range(0, len(keys), layout.ONE_TRANSACTION_ROWS):
        group = keys[start : start + layout.ONE_TRANSACTION_ROWS]
        repository.write_rows([RowWrite("cache", key, None) for key in group])
