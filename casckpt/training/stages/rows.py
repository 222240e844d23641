"""Where the rows of a stage are: on the line of its run, on lines that it came from, or shared."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from casckpt.errors import BadRequest, CasckptError
from casckpt.logs import logger
from casckpt.store import layout, rows
from casckpt.training.lines import Line, read_record, scope

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.store import Repository
    from casckpt.store.rows import Row

SHARED: Final = b"s\0"
"""FORMAT: rows of `cache` that belong to shared stages begin with this, then NAME, 0."""

_OF_LINE: Final = b"s\0"
"""FORMAT: in `progress`, after the line's prefix: this, NAME, 0, then one of the next."""

_DONE, _FAILED, _NOTE = b"d", b"f", b"n"

_ID_BYTES: Final = 32
_SCAN_WHOLE_BELOW: Final = 2000
"""Items up to which a shelf is read in one go; more are read in 256 parts, to bound memory."""

NAME_MAX: Final = 200


@dataclass(frozen=True)
class Shelf:
    """The rows of one stage in one place.

    Attributes:
        repository: the store.
        table: "progress", or "cache" for a shared stage.
        prefix: of all its keys.
    """

    repository: Repository
    table: str
    prefix: bytes

    def done_key(self, identity: bytes) -> bytes:
        """Return the key of an item's result."""
        return self.prefix + _DONE + identity

    def failed_key(self, identity: bytes) -> bytes:
        """Return the key of an item's failure."""
        return self.prefix + _FAILED + identity

    @property
    def note_key(self) -> bytes:
        """Key of what is noted about the stage itself."""
        return self.prefix + _NOTE

    def done(self, wanted: Collection[bytes]) -> Iterator[tuple[bytes, Row]]:
        """Yield (identity, row) of the results among `wanted`."""
        return self._scan(_DONE, wanted)

    def failed(self, wanted: Collection[bytes]) -> Iterator[tuple[bytes, Row]]:
        """Yield (identity, row) of the failures among `wanted`."""
        return self._scan(_FAILED, wanted)

    def _scan(self, kind: bytes, wanted: Collection[bytes]) -> Iterator[tuple[bytes, Row]]:
        whole = len(wanted) <= _SCAN_WHOLE_BELOW
        for part in (b"",) if whole else map(bytes, zip(range(256), strict=True)):
            for key, row in self.repository.rows(self.table, self.prefix + kind + part):
                identity = key[-_ID_BYTES:]
                if identity in wanted:
                    yield identity, row

    def count(self) -> int | None:
        """Return how many results there are; None if there is nothing at all."""
        at = len(self.prefix)
        kinds = [key[at : at + 1] for key, _ in self.repository.rows(self.table, self.prefix)]
        return kinds.count(_DONE) if kinds else None

    def clear(self) -> int:
        """Remove everything; return how many results there were."""
        from casckpt.store.commits import RowWrite

        keys = [key for key, _ in self.repository.rows(self.table, self.prefix)]
        for start in range(0, len(keys), layout.ONE_TRANSACTION_ROWS):
            group = keys[start : start + layout.ONE_TRANSACTION_ROWS]
            self.repository.write_rows([RowWrite(self.table, key, None) for key in group])
        at = len(self.prefix)
        return sum(key[at : at + 1] == _DONE for key in keys)


def check_name(name: str) -> str:
    """Return the name of a stage.

    Raises:
        BadRequest: it is empty, too long, or has characters that do not print.
    """
    if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise BadRequest(
            f"bad stage name {name!r:.60}", f"it is printable text of 1 to {NAME_MAX} characters"
        )
    return name


def own_shelf(repository: Repository, run: str, line: int, name: str) -> Shelf:
    """Return the shelf of a stage on one line of a run."""
    return Shelf(repository, "progress", scope(run, line) + _OF_LINE + _part(name))


def shared_shelf(repository: Repository, name: str) -> Shelf:
    """Return the shelf that all runs of a store share."""
    return Shelf(repository, "cache", SHARED + _part(name))


def inherited(store: Store, run: str, line: int, name: str) -> Iterator[Shelf]:
    """Yield the shelves of the lines that a line came from, the nearest first.

    A branch brings the stages of its run along, also from another store. The line of a child
    comes from the child's line under the line that its parent's line came from.
    """
    home, seen = store, {(str(store.path), run, line)}
    while True:
        found = _before(home, run, line)
        if found is None:
            return
        path, run, line = found
        if path:
            try:
                home = home._other(Path(path), write=False)
            except CasckptError as exc:
                logger.warning("results of %s in %s are out of reach: %s", name, path, exc.what)
                return
        if (str(home.path), run, line) in seen:
            return
        seen.add((str(home.path), run, line))
        yield own_shelf(home._repository, run, line, name)


def clear_stages(store: Store, run: str, line: int | None = None) -> int:
    """Remove all stages of a run, or of one of its lines; return how many results there were."""
    from casckpt.store.commits import RowWrite

    record = read_record(store._repository, run)
    numbers = list(record.lines) if line is None else [line]
    count = 0
    for number in numbers:
        prefix = scope(run, number) + _OF_LINE
        count += sum(1 for _ in result_rows(store._repository, run, number))
        keys = [key for key, _ in store._repository.rows("progress", prefix)]
        for start in range(0, len(keys), layout.ONE_TRANSACTION_ROWS):
            group = keys[start : start + layout.ONE_TRANSACTION_ROWS]
            store._repository.write_rows([RowWrite("progress", key, None) for key in group])
    return count


def clear_stage(store: Store, run: str, name: str) -> int:
    """Remove a stage from the line of a run that was opened last, for `rm RUN --stage`.

    Returns:
        How many results there were. Their bytes are freed by gc.
    """
    line = read_record(store._repository, run).current
    return own_shelf(store._repository, run, line, check_name(name)).clear()


def result_rows(repository: Repository, run: str, line: int) -> Iterator[tuple[bytes, Row]]:
    """Yield the results of all stages on a line: a key without run and line, and the row."""
    prefix = scope(run, line) + _OF_LINE
    for key, row in repository.rows("progress", prefix):
        rest = key[len(prefix) :]
        # NAME, 0, kind, then the identity: a note has none.
        if len(rest) > _ID_BYTES + 1 and rest[-_ID_BYTES - 2 : -_ID_BYTES] == b"\0" + _DONE:
            yield rest, row


def count_stage(store: Store, run: str, name: str) -> int | None:
    """Return how many results `clear_stage` would remove; None if there is nothing of the stage."""
    line = read_record(store._repository, run).current
    return own_shelf(store._repository, run, line, check_name(name)).count()


def _before(store: Store, run: str, line: int) -> tuple[str, str, int] | None:
    """Return (store or empty, run, line) that a line of a run came from."""
    record = read_record(store._repository, run).lines.get(line)
    if record is None:
        return None
    if record.branch is not None:
        return record.branch.store, record.branch.run, record.branch.line
    return _before_parent(store, run, record)


def _before_parent(store: Store, run: str, record: Line) -> tuple[str, str, int] | None:
    parent, _, child = run.rpartition("/")
    if not parent or record.under is None:
        return None
    above = _before(store, parent, record.under)
    if above is None:
        return None
    path, origin, number = above
    home = store._other(Path(path), write=False) if path else store
    lines = read_record(home._repository, f"{origin}/{child}").lines.values()
    mine = [one.number for one in lines if one.under == number]
    return (path, f"{origin}/{child}", max(mine)) if mine else None


def _part(name: str) -> bytes:
    return rows.name_part(name) + b"\0"
