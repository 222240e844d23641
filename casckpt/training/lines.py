"""The row of a run: its numbered lines, where each came from and how it stands.

One row of the table `runs` per run, JSON behind a version number. Everything about checkpoints
is in their own rows; what is lost with this one is names, settings and status, never a state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from casckpt.errors import Corrupt, NewerFormat
from casckpt.store import rows
from casckpt.supervised import supervised_start

if TYPE_CHECKING:
    from casckpt.store import Repository

VERSION: Final = 1
"""FORMAT: version of a run's row; a reader refuses a larger one."""

_Record = TypeVar("_Record", "Branch", "Line")


@dataclass
class Branch:
    """The checkpoint that a line began at.

    Attributes:
        ref: its REF as it was then.
        id: hex id of its manifest; empty if the line brought stages, folds and trials along, and
            there was no checkpoint.
        run: its run.
        line: its line.
        step: its step.
        batch: its batch.
        store: path of its store, empty for the same one.
        log: how many pieces of that line's log belong to it.
    """

    ref: str
    id: str
    run: str
    line: int
    step: int
    batch: int = 0
    store: str = ""
    log: int = 0


@dataclass
class Line:
    """One line of a run.

    Attributes:
        number: from 0, in the order of opening.
        opened: when, RFC 3339.
        opened_by: in which start of a supervised command; empty without `casckpt run`.
        branch: where it began; None for one that began from nothing.
        under: line of the parent run that this line belongs to; None without a parent.
        continued: ids of checkpoints a REF named when this line went on there.
        named: the REF itself, as it was typed: what it means may move while the line is trained.
        guarded: the settings recorded last: "config", "data", "env" and "model", each field to
            value.
        monitor: the metric that decides what is best.
        mode: "min" or "max".
        status: running, finished, stopped or failed; a running one whose process is gone is lost.
        reason: why it stopped or failed.
        pid: process of the last session.
        host: its machine.
        started: when the last session began, RFC 3339.
        started_by: in which start of a supervised command it began.
        updated: when this row was last written, RFC 3339.
        elapsed_s: work so far, all sessions.
        loop: what the last loop was: kind, total, done, best, best_at.
    """

    number: int
    opened: str = ""
    opened_by: str = ""
    branch: Branch | None = None
    under: int | None = None
    continued: list[str] = field(default_factory=list)
    named: str = ""
    guarded: dict[str, dict[str, Any]] = field(default_factory=dict)
    monitor: str = ""
    mode: str = ""
    status: str = ""
    reason: str = ""
    pid: int = 0
    host: str = ""
    started: str = ""
    started_by: str = ""
    updated: str = ""
    elapsed_s: float = 0.0
    loop: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunRecord:
    """What the row of a run holds.

    Attributes:
        current: number of the line opened last, or gone on with last.
        lines: by number.
        expected: glob over children to how many there will be.
    """

    current: int = 0
    lines: dict[int, Line] = field(default_factory=dict)
    expected: dict[str, int] = field(default_factory=dict)

    def line(self, number: int) -> Line:
        """Return a line, made if there is none of that number."""
        return self.lines.setdefault(number, _opened(number))

    def opened_alone(self, start: str) -> Line | None:
        """Return the one line that earlier starts of a supervised command opened.

        Args:
            start: this start, as `supervised_start` says it; None is returned where it has begun
                work on that line itself, or is empty.
        """
        before = start.rpartition("/")[0]
        found = [
            line
            for line in self.lines.values()
            if before and line.opened_by.rpartition("/")[0] == before and line.opened_by != start
        ]
        return found[0] if len(found) == 1 and found[0].started_by != start else None

    def open_line(self, *, branch: Branch | None, under: int | None, used: int) -> Line:
        """Open the next line and make it the current one.

        Args:
            branch: where it begins.
            under: line of the parent run.
            used: the next number that no checkpoint has.
        """
        number = max([used, *(one + 1 for one in self.lines)])
        self.current = number
        self.lines[number] = replace(_opened(number), branch=branch, under=under)
        return self.lines[number]


def scope(run: str, line: int) -> bytes:
    """Return the prefix of the keys of what belongs to one line of a run."""
    return rows.line_prefix(run, line)


def read_record(repository: Repository, run: str) -> RunRecord:
    """Return the row of a run; an empty record if there is none."""
    return decode(repository.run_row(run))


def read_records(repository: Repository, prefix: str = "") -> dict[str, RunRecord]:
    """Return the rows of all runs whose names begin with `prefix`."""
    return {name: decode(payload) for name, payload in repository.run_rows(prefix)}


def edit_record(repository: Repository, run: str, change: Callable[[RunRecord], None]) -> RunRecord:
    """Change the row of a run; durable when this returns.

    `change` may run again, on a newer record, if another writer was faster.
    """

    def edit(payload: bytes | None) -> bytes:
        record = decode(payload)
        change(record)
        return encode(record)

    return decode(repository.edit_run(run, edit))


def encode(record: RunRecord) -> bytes:
    """Return the payload of a record."""
    document = {
        "version": VERSION,
        "current": record.current,
        "expected": record.expected,
        "lines": [asdict(line) for line in record.lines.values()],
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


def decode(payload: bytes | None) -> RunRecord:
    """Return the record of a payload.

    Raises:
        NewerFormat: if a newer casckpt wrote it.
        Corrupt: if it does not decode.
    """
    if not payload:
        return RunRecord()
    try:
        document = json.loads(payload)
        version = document["version"]
        if version > VERSION:
            raise NewerFormat(
                "the row of a run was written by a newer casckpt",
                f"its version is {version}, this casckpt reads {VERSION}",
            )
        lines = [_line(one) for one in document["lines"]]
        return RunRecord(
            document["current"], {line.number: line for line in lines}, document["expected"]
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise Corrupt("the row of a run does not decode", str(exc)) from exc


def now_text() -> str:
    """Return the time as it stands in rows: RFC 3339, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _opened(number: int) -> Line:
    return Line(number, opened=now_text(), opened_by=supervised_start())


def _line(document: dict[str, Any]) -> Line:
    line = _known(Line, document)
    if document.get("branch") is not None:
        line.branch = _known(Branch, document["branch"])
    return line


def _known(cls: type[_Record], document: dict[str, Any]) -> _Record:
    names = {one.name for one in fields(cls)}
    return cls(**{name: value for name, value in document.items() if name in names})
