"""How a run stands, for those who watch: what is left, how old the last save is, alarms.

Everything is read from rows; the process that trains is not asked, and may be on another machine.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from casckpt.training.lines import Line, read_record
from casckpt.training.loops import keeping
from casckpt.training.stages.rows import own_shelf
from casckpt.training.watching import forecast, progress
from casckpt.training.watching.progress import Progress, Saves

if TYPE_CHECKING:
    from casckpt.checkpoint.records import Checkpoint, RunInfo
    from casckpt.store import Repository

QUIET_S: Final = 120.0
"""The row of a run at work is written every 30 s: four times that is no hiccup."""

SAVE_GAPS: Final = 3.0
SAVE_MIN_S: Final = 30.0
"""Saves have stopped if there was none for so many usual gaps, and so many seconds."""

STALL_UNITS: Final = 10.0
"""A part stands still if a unit takes so many times what units took lately."""

PRUNED: Final = "TrialPruned"
"""Class of the error by which a trial of Optuna ends itself."""


@dataclass(frozen=True)
class Group:
    """Children of a run that belong together.

    Attributes:
        pattern: glob over their names below the run.
        counts: status to how many.
        total: how many there are to be; None if the run did not say.
        eta_s: seconds until all are finished; None if nobody knows.
    """

    pattern: str
    counts: Mapping[str, int]
    total: int | None
    eta_s: float | None

    @property
    def done(self) -> int:
        """How many are finished."""
        return self.counts.get("finished", 0)


@dataclass(frozen=True)
class Outlook:
    """What a person wants to know of a run at a glance.

    Attributes:
        info: the run.
        status: how it stands, in a word: `info.status`, or "pruned".
        reason: why it was stopped, failed or ended before its time; empty if nothing is known.
        failed: parts of the run to how many of their items have failed; those without are left out.
        groups: its children.
        eta_s: seconds until it is done, as far as it said what there is to do.
        elapsed_s: work so far, all sessions, this one up to now.
        saved: when its newest checkpoint was saved, of its own or its children's.
        saves: how saving goes in the session at work.
        monitor: the metric that decides what is best; empty if the run declared none.
        alarms: what is wrong, in words; empty if nothing is.
    """

    info: RunInfo
    status: str = ""
    reason: str = ""
    failed: Mapping[str, int] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    eta_s: float | None = None
    elapsed_s: float = 0.0
    saved: datetime | None = None
    saves: Saves = field(default_factory=Saves)
    monitor: str = ""
    alarms: tuple[str, ...] = ()


def outlook_of(
    repository: Repository,
    info: RunInfo,
    children: Sequence[RunInfo] = (),
    *,
    now_s: float | None = None,
) -> Outlook:
    """Return how a run stands.

    Args:
        repository: the store.
        info: the run.
        children: the runs below it, on its line.
        now_s: the time, as `time.time` gives it.
    """
    now_s = time.time() if now_s is None else now_s
    groups = groups_of(info, children)
    own = [part.eta_s for part in info.progress if part.done < (part.total or 0)]
    below = [group.eta_s for group in groups if group.total is not None]
    left = [*own, *below]
    known = [seconds for seconds in left if seconds is not None]
    saved = [one.last.created for one in (info, *children) if one.last is not None]
    newest = max(saved, default=None)
    line = read_record(repository, info.name).lines.get(info.line)
    saves = progress.read_saves(repository, info.name, info.line)
    elapsed_s = info.elapsed_s
    until_s = _alive_until(info, now_s)
    if line is not None and until_s is not None and (row_s := moment(line.updated)):
        elapsed_s += max(0.0, until_s - row_s)
    eta_s = sum(known) if left and len(known) == len(left) else None
    status, reason = standing(info.status, info.reason)
    if line is not None and status == "finished" and not reason:
        reason = _early(line)
    return Outlook(
        info=info,
        status=status,
        reason=reason,
        failed=_failed(repository, info),
        groups=groups,
        eta_s=eta_s,
        elapsed_s=elapsed_s,
        saved=newest,
        saves=saves,
        monitor=line.monitor if line is not None else "",
        alarms=(
            *alarms(
                info.progress,
                saves,
                saved_s=newest.timestamp() if newest is not None else None,
                row_s=moment(line.updated),
                started_s=moment(line.started),
                now_s=now_s,
            ),
            *forecast.alarms(
                _kept(repository, info),
                elapsed_s,
                eta_s,
                repository.path,
                line.loop.get(forecast.MOST),
            ),
        )
        if line is not None and info.status == "running"
        else (),
    )


def standing(status: str, reason: str) -> tuple[str, str]:
    """Return how a run stands and why, as people call it: a pruned trial has not failed.

    Args:
        status: as `RunInfo` has it.
        reason: the same; of a failure, the class of the error and its text.
    """
    kind, _, text = reason.partition(":")
    if status == "failed" and kind == PRUNED:
        return "pruned", text.strip()
    return status, reason.rstrip(": ")


def _early(line: Line) -> str:
    """Return why a loop ended before its last unit, as far as its row tells."""
    done, total = line.loop.get("done"), line.loop.get("total")
    monitor = line.loop.get("monitor")
    if not (isinstance(done, int) and isinstance(total, int) and done < total):
        return ""
    if not isinstance(monitor, dict) or not monitor.get("bad"):
        return ""
    return f"{monitor.get('metric')} was no better {monitor['bad']} times in a row"


def _failed(repository: Repository, info: RunInfo) -> dict[str, int]:
    """Return how many items of each stage have failed and are not done since.

    Failures of items that the stage does not have any more are still there, so there are at most
    as many as items that are not done. Those of shared stages belong to no run.
    """
    found = {}
    for part in info.progress:
        left = (part.total or 0) - part.done
        if left > 0:
            shelf = own_shelf(repository, info.name, info.line, part.part)
            rows = repository.rows(shelf.table, shelf.failed_key(b""))
            if number := min(left, sum(1 for _ in rows)):
                found[part.part] = number
    return found


def _alive_until(info: RunInfo, now_s: float) -> float | None:
    """Return until when a session has worked that its row does not know of; None if none has."""
    if info.status == "running":
        return now_s
    if info.status != "lost":
        return None
    signs = [at for part in info.progress if (at := moment(part.updated)) is not None]
    if info.last is not None:
        signs.append(info.last.created.timestamp())
    return max(signs, default=None)


def _kept(repository: Repository, info: RunInfo) -> list[Checkpoint]:
    """Return the checkpoints of a run's line, without those that the next save replaces."""
    from casckpt.checkpoint.queries import Catalog

    return [
        one
        for one in Catalog(repository).matching(info.name)
        if one.line == info.line and not (one.reasons and keeping.ROLLING.issuperset(one.reasons))
    ]


def groups_of(info: RunInfo, children: Sequence[RunInfo]) -> tuple[Group, ...]:
    """Return the direct children of a run by what it expects, and the rest by itself."""
    below = {one.name[len(info.name) + 1 :]: one for one in children}
    direct = {name: one for name, one in below.items() if "/" not in name}
    groups = []
    for pattern, total in info.expected.items():
        members = [direct.pop(name) for name in sorted(direct) if fnmatchcase(name, pattern)]
        groups.append(_group(pattern, members, total))
    if direct:
        groups.append(_group("*", list(direct.values()), None))
    return tuple(groups)


def alarms(
    parts: Sequence[Progress],
    saves: Saves,
    *,
    saved_s: float | None,
    row_s: float | None,
    started_s: float | None,
    now_s: float,
) -> list[str]:
    """Return what is wrong with a run at work.

    Args:
        parts: its progress.
        saves: how saving goes in its session.
        saved_s: when its newest checkpoint was saved.
        row_s: when its process last wrote to the store.
        started_s: when its session began.
        now_s: the time.
    """
    moved = [moment(part.updated) for part in parts]
    moved_s = max((at for at in moved if at is not None), default=None)
    found = []
    failed_s = moment(saves.failed_at)
    if saves.failed and (started_s is None or failed_s is None or failed_s >= started_s):
        found.append(f"the last save failed: {saves.failed}")
    heard = [at for at in (row_s, moved_s) if at is not None]
    if parts and heard and now_s - max(heard) > QUIET_S:
        found.append(f"its process has written nothing for {_span(now_s - max(heard))}")
        return found
    # The session's own time only: between two of them nobody saves.
    last = [at for at in (saved_s, moment(saves.at), started_s) if at is not None]
    if last and moved_s is not None and saves.gap_s is not None:
        limit_s = max(SAVE_GAPS * saves.gap_s, SAVE_MIN_S)
        # A last save that was followed by no work is no alarm: it may be about to end.
        if now_s - max(last) > limit_s and moved_s > max(last) + saves.gap_s:
            found.append(
                f"training goes on, but nothing was saved for {_span(now_s - max(last))}; "
                f"a save came every {_span(saves.gap_s)}"
            )
    units = [part.unit_s for part in parts if part.unit_s and part.done < (part.total or 0)]
    if units and moved_s is not None:
        limit_s = max(STALL_UNITS * max(units), QUIET_S)
        if now_s - moved_s > limit_s:
            found.append(f"no progress for {_span(now_s - moved_s)}")
    return found


def moment(text: str) -> float | None:
    """Return the seconds of a time as rows hold it; None if it is none."""
    try:
        return datetime.fromisoformat(text).timestamp() if text else None
    except ValueError:
        return None


def _group(pattern: str, members: Sequence[RunInfo], total: int | None) -> Group:
    counts = Counter(standing(one.status, one.reason)[0] or "saved" for one in members)
    return Group(pattern, dict(counts), total, _eta(members, total))


def _eta(members: Sequence[RunInfo], total: int | None) -> float | None:
    """Return the time until all children are finished, if they go on one after the other."""
    if total is None:
        return None
    took = [one.elapsed_s for one in members if one.status == "finished" and one.elapsed_s]
    working = [one for one in members if one.status == "running"]
    left_s = [sum(part.eta_s or 0.0 for part in one.progress) for one in working]
    if not took:
        took = [one.elapsed_s + left for one, left in zip(working, left_s, strict=True) if left]
    finished = sum(one.status == "finished" for one in members)
    waiting = max(0, total - finished - len(working))
    if waiting and not took:
        return None
    return waiting * (statistics.median(took) if took else 0.0) + sum(left_s)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
