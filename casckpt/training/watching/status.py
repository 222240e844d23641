"""How runs stand: from their rows, their checkpoints and their locks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from casckpt.checkpoint.history import History, history_of
from casckpt.checkpoint.lines import read_view, visible
from casckpt.checkpoint.records import Checkpoint, RunInfo
from casckpt.checkpoint.refs import ALL_LINES, Ref, rank
from casckpt.errors import NotFound
from casckpt.training import runlock
from casckpt.training.lines import Line, RunRecord, encode, read_record, read_records
from casckpt.training.series import logged
from casckpt.training.watching import progress

if TYPE_CHECKING:
    from casckpt.checkpoint.queries import Catalog
    from casckpt.store import Repository


def status_of(repository: Repository, run: str, line: Line) -> str:
    """Return running, finished, stopped, failed or lost; empty for a run without sessions.

    A session that says it runs while nobody holds the run's lock died without a goodbye.
    """
    if line.status == "running" and not runlock.is_held(repository.path, run):
        return "lost"
    return line.status


def info_of(repository: Repository, catalog: Catalog, run: str) -> RunInfo:
    """Return what is known of one run, whether it has checkpoints or not."""
    members = catalog.matching(run)
    base = catalog.runs(run)
    record = read_record(repository, run)
    return _with_record(repository, base[0] if base else None, run, record, members)


def infos(repository: Repository, catalog: Catalog, pattern: str = "*") -> list[RunInfo]:
    """Return the runs that match a glob, those without checkpoints too, by name."""
    records = {
        name: record
        for name, record in read_records(repository).items()
        if fnmatchcase(name, pattern)
    }
    grouped: dict[str, list[Checkpoint]] = {}
    for checkpoint in catalog.matching(pattern):
        grouped.setdefault(checkpoint.run, []).append(checkpoint)
    bases = {info.name: info for info in catalog.runs(pattern)}
    found = []
    for name in sorted({*records, *bases}):
        record = records.get(name)
        if record is None:
            found.append(bases[name])
        else:
            found.append(
                _with_record(repository, bases.get(name), name, record, grouped.get(name, []))
            )
    return found


def history_of_run(repository: Repository, catalog: Catalog, ref: Ref) -> History:
    """Return what a run logged, with the metrics of the checkpoints that its name sees.

    Raises:
        NotFound: there is no such run, or line.
    """
    record = read_record(repository, ref.run)
    if not record.lines:
        return history_of(catalog.of_line(ref.run, ref.line))
    number = record.current if ref.line is None or ref.line == ALL_LINES else ref.line
    try:
        series = history_of(catalog.of_line(ref.run, ref.line))
    except NotFound:
        if number not in record.lines:
            raise
        series = {}
    for name, values in logged(repository, record, ref.run, number).items():
        series[name] = sorted({**dict(series.get(name, ())), **dict(values)}.items())
    return series


def is_under(repository: Repository, info: RunInfo, line: int) -> bool:
    """Return whether a child belongs to this line of its parent; one never opened does to any."""
    known = read_record(repository, info.name).lines.get(info.line)
    return known is None or known.under is None or known.under == line


def _last_logged(repository: Repository, record: RunRecord, run: str) -> dict[str, float]:
    """Return the last value of each metric of a run that logs and saves nothing."""
    series = logged(repository, record, run, record.current)
    return {name: values[-1][1] for name, values in series.items() if values}


def _with_record(
    repository: Repository,
    base: RunInfo | None,
    run: str,
    record: RunRecord,
    members: Sequence[Checkpoint],
) -> RunInfo:
    info = base or RunInfo(run, record.current, len(record.lines), 0, None, {})
    line = record.lines.get(record.current)
    if line is None:
        return info
    seen = visible(members, None, read_view(run, encode(record)))
    last = seen[-1] if seen else None
    best = None
    if line.monitor and line.mode in ("min", "max") and members:
        ranked = rank(seen, line.monitor, line.mode)  # type: ignore[arg-type]
        best = ranked[0][1] if ranked else None
    return replace(
        info,
        line=line.number,
        lines=max(info.lines, len(record.lines)),
        last=last,
        metrics=last.metrics if last is not None else _last_logged(repository, record, run),
        status=status_of(repository, run, line),
        reason=line.reason,
        best=best,
        progress=progress.read(repository, run, line.number),
        config=line.guarded.get("config", {}),
        elapsed_s=line.elapsed_s,
        expected=record.expected,
    )
