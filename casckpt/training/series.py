"""What a run logs: rows of epochs and series on axes of their own, in pieces that a resume cuts.

Log calls go to memory. A piece is a row of the table `history`: some rows of epochs and some
points of series, in the order of logging. Every checkpoint remembers how many pieces came before
it, and a resume deletes the ones after: what is logged again is never there twice.

The last piece is rewritten while it is small, so that a quiet run leaves few; a checkpoint closes
it. What could not be written, as on a full disk, is kept and goes before what comes next.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.history import History
from casckpt.checkpoint.records import check_metrics
from casckpt.errors import BadRequest, Corrupt
from casckpt.training.lines import RunRecord, scope

if TYPE_CHECKING:
    from casckpt.store import Repository
    from casckpt.store.commits import RowWrite

PIECE_POINTS: Final = 2000
"""A piece is closed at so many values: about 50 KB, rewritten at most once a second until then."""

_GROUP_PIECES: Final = 20
"""Pieces of one transaction, about a megabyte: many wait where a disk was full for long."""

_PIECE = struct.Struct(">cQ")
_MARK: Final = b"l"


class Piece:
    """Values in the order of logging, not yet closed.

    Attributes:
        rows: (epoch, metrics).
        series: metric to its axis and its values.
        points: how many values both have.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.series: dict[str, tuple[list[int], list[float]]] = {}
        self.points = 0

    def encode(self) -> bytes:
        """Return the payload of its row; NaN and infinities as Python's json writes them."""
        document = {"version": 1, "rows": self.rows, "series": self.series}
        return json.dumps(document, separators=(",", ":")).encode()


class Log:
    """The log of one line of a run. Thread safe."""

    def __init__(self, repository: Repository, run: str, line: int) -> None:
        """Log to a line; `begin` says after which piece."""
        self._repository = repository
        self._prefix = scope(run, line)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._piece = Piece()
        self._number = 0
        self._durable = 0  # values of the piece at hand that are written
        self._unwritten: list[RowWrite] = []  # closed pieces, in order
        self.last: dict[str, float] = {}

    def begin(self, count: int | None) -> None:
        """Go on after piece `count`; later ones belong to work that is done again.

        With None all stay: there is no checkpoint to go by, and of two values at one step the
        later one counts.
        """
        from casckpt.store.commits import RowWrite

        keys = [key for key, _ in self._repository.rows("history", self._prefix + _MARK)]
        if count is None:
            count = _number_of(keys[-1]) + 1 if keys else 0
        doomed = [RowWrite("history", key, None) for key in keys if _number_of(key) >= count]
        if doomed:
            self._repository.write_rows(doomed)
        with self._lock:
            self._number, self._piece, self._durable = count, Piece(), 0
            self._unwritten = []

    def add_row(self, epoch: int, values: Mapping[str, float]) -> None:
        """Add the row of an epoch; a later one of the same epoch adds to it."""
        if not values:
            return
        with self._lock:
            self._piece.rows.append((epoch, dict(values)))
            self._piece.points += len(values)
            self.last.update(values)

    def add_points(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the series of each metric."""
        with self._lock:
            series = self._piece.series
            for name, value in values.items():
                points = series.get(name)
                if points is None:
                    points = series[name] = ([], [])
                points[0].append(step)
                points[1].append(value)
            self._piece.points += len(values)
            self.last.update(values)

    def close_piece(self) -> int:
        """Close the piece at hand: what is logged from now on comes after.

        Returns:
            How many pieces there are then; `write_closed` makes them durable, which must be done
            before a checkpoint says so.
        """
        with self._lock:
            self._close()
            return self._number

    def write_closed(self) -> None:
        """Write the closed pieces that are not written; durable when this returns.

        Raises:
            NoSpace, OperationFailed: as the disk says; what was not written is kept.
        """
        with self._writing:
            self._write_unwritten()

    def flush(self) -> None:
        """Write what is new; durable when this returns.

        Raises:
            NoSpace, OperationFailed: as the disk says; what was not written is kept.
        """
        with self._writing:
            with self._lock:
                if self._piece.points >= PIECE_POINTS:
                    self._close()
            self._write_unwritten()
            with self._lock:
                piece, points = self._piece, self._piece.points
                row = self._row() if points > self._durable else None
            if row is None:
                return
            self._repository.write_rows([row])
            with self._lock:
                # Closed meanwhile, it is among the unwritten ones and is written once more.
                if self._piece is piece:
                    self._durable = points

    def _close(self) -> None:
        if not self._piece.points:
            return
        if self._piece.points > self._durable:
            self._unwritten.append(self._row())
        self._number += 1
        self._piece, self._durable = Piece(), 0

    def _write_unwritten(self) -> None:
        while True:
            with self._lock:
                held = self._unwritten
                group = held[:_GROUP_PIECES]
            if not group:
                return
            self._repository.write_rows(group)
            with self._lock:
                del held[: len(group)]

    def _row(self) -> RowWrite:
        from casckpt.store.commits import RowWrite

        key = self._prefix + _PIECE.pack(_MARK, self._number)
        return RowWrite("history", key, self._piece.encode())


class FollowerLog(Log):
    """The log of a process that does not lead: the last values, and nothing else."""

    def begin(self, count: int | None) -> None:
        """Change nothing."""

    def add_row(self, epoch: int, values: Mapping[str, float]) -> None:
        """Note the values."""
        self.last.update(values)

    def add_points(self, step: int, values: Mapping[str, float]) -> None:
        """Note the values."""
        self.last.update(values)


def read(
    repository: Repository, run: str, line: int, count: int | None = None
) -> Iterable[dict[str, Any]]:
    """Yield the pieces of one line in order, the first `count` of them or all."""
    prefix = scope(run, line) + _MARK
    for key, row in repository.rows("history", prefix):
        if count is not None and _number_of(key) >= count:
            return
        try:
            piece = json.loads(row.payload)
            if piece["version"] != 1:
                raise ValueError(f"version {piece['version']}")
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise Corrupt(f"a row of the log of {run} does not decode", str(exc)) from exc
        yield piece


def logged(
    repository: Repository, record: RunRecord, run: str, line: int, count: int | None = None
) -> History:
    """Return what a line logged, with what it inherited up to its branch point.

    Args:
        repository: where the log is.
        record: of the run.
        run: its name.
        line: number of the line.
        count: how many pieces of the line itself; None for all.

    Returns:
        Metric to its (step, value) pairs, in order; of two at one step the later one counts.
    """
    chain: list[tuple[str, int, int | None]] = [(run, line, count)]
    seen = {line}
    while (found := record.lines.get(chain[-1][1])) is not None and found.branch is not None:
        branch = found.branch
        if branch.run != run or branch.store or branch.line in seen:
            break
        seen.add(branch.line)
        chain.append((run, branch.line, branch.log))
    series: dict[str, dict[int, float]] = {}
    for name, number, until in reversed(chain):
        for piece in read(repository, name, number, until):
            for epoch, values in piece["rows"]:
                for metric, value in values.items():
                    series.setdefault(metric, {})[epoch] = value
            for metric, (steps, values) in piece["series"].items():
                series.setdefault(metric, {}).update(zip(steps, values, strict=True))
    return {name: sorted(values.items()) for name, values in series.items()}


def numbers(values: Mapping[str, Any] | None, more: Mapping[str, Any]) -> dict[str, float]:
    """Return logged values as floats.

    Raises:
        BadRequest: one is no number, or is named twice.
    """
    if values and more and not values.keys().isdisjoint(more):
        raise BadRequest(
            f"logged twice in one call: {min(values.keys() & more.keys())}",
            "it is in the mapping and among the keywords",
            "pass it once",
        )
    both = {**values, **more} if values else more
    for name, value in both.items():
        # Of a name that is not printable `check_metrics` tells whether it can be kept.
        if type(value) is not float or type(name) is not str or not (name and name.isprintable()):
            return check_metrics({name: _detached(value) for name, value in both.items()})
    return dict(both)


def _detached(value: Any) -> Any:
    """Return a tensor without its graph: float() of a loss warns that it would lose it."""
    detach = getattr(value, "detach", None)
    return detach() if callable(detach) else value


def _number_of(key: bytes) -> int:
    return int.from_bytes(key[-8:], "big")
