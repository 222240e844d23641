"""How runs stand, as JSON records and as text: the same in `status`, `top` and `status --watch`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from casckpt.cli import checkpoints as views
from casckpt.cli import formatting
from casckpt.errors import NotFound
from casckpt.strictjson import plain

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.training.watching.outlook import Group, Outlook
    from casckpt.training.watching.progress import Progress

BAR_WIDTH = 20

STATUS_COLORS = {
    "running": "green",
    "finished": "cyan",
    "stopped": "yellow",
    "pruned": "yellow",
    "failed": "red",
    "lost": "red",
}


def look(store: Store, name: str | None = None) -> list[Outlook]:
    """Return how a run stands, those a pattern fits, or all; of these none that is part of another.

    Raises:
        NotFound: there is no such run.
    """
    from casckpt.checkpoint.refs import is_glob
    from casckpt.training.watching.outlook import outlook_of
    from casckpt.training.watching.status import is_under

    found = store.runs()
    names = {one.name for one in (store.runs(name) if name and is_glob(name) else found)}
    if name is not None and not is_glob(name):
        tops = [one for one in found if one.name == name]
    else:
        tops = [one for one in found if one.name in names and not _has_parent(one.name, names)]
    if name is not None and not tops:
        what = f"no run matches {name!r}" if is_glob(name) else f"there is no run {name}"
        raise NotFound(what, "", "see `casckpt status`", run=name)
    repository = store._repository
    outlooks = []
    for one in tops:
        below = [child for child in found if child.name.startswith(f"{one.name}/")]
        children = [child for child in below if is_under(repository, child, one.line)]
        outlooks.append(outlook_of(repository, one, children))
    return outlooks


def parts(store: Store, name: str) -> list[Outlook]:
    """Return how the runs below a run stand, those on its current line."""
    from casckpt.training.watching.outlook import outlook_of
    from casckpt.training.watching.status import is_under

    repository = store._repository
    line = next((one.line for one in store.runs(name)), 0)
    below = [one for one in store.runs(f"{name}/*") if is_under(repository, one, line)]
    return [outlook_of(repository, one) for one in below]


def record(outlook: Outlook, *, now_s: float | None = None) -> dict[str, Any]:
    """Return how a run stands as JSON holds it; durations are seconds."""
    info = outlook.info
    age_s = age_of(outlook.saved, now_s)
    return {
        "run": info.name,
        "line": info.line,
        "status": info.status,
        # Programs get the words of `RunInfo.status`, of which "pruned" is none.
        "reason": outlook.reason if outlook.status == info.status else info.reason.rstrip(": "),
        "progress": [
            {
                "part": part.part,
                "done": part.done,
                "total": part.total,
                "failed": outlook.failed.get(part.part, 0),
                "ratio": part.ratio,
                "unit_s": part.unit_s,
                "eta_s": part.eta_s,
                "updated": part.updated,
            }
            for part in info.progress
        ],
        "eta_s": outlook.eta_s,
        "elapsed_s": round(outlook.elapsed_s, 3),
        "metrics": plain(info.metrics),
        "monitor": outlook.monitor or None,
        "last": views.record(info.last) if info.last is not None else None,
        "best": views.record(info.best) if info.best is not None else None,
        "saved": formatting.rfc3339(outlook.saved) if outlook.saved is not None else None,
        "saved_age_s": None if age_s is None else round(age_s, 3),
        "save_gap_s": outlook.saves.gap_s,
        "children": [
            {
                "pattern": group.pattern,
                "counts": dict(group.counts),
                "total": group.total,
                "eta_s": group.eta_s,
            }
            for group in outlook.groups
        ],
        "checkpoint_count": info.checkpoint_count,
        "stored_bytes": info.stored_bytes,
        "alarms": list(outlook.alarms),
    }


def age_of(moment: datetime | None, now_s: float | None = None) -> float | None:
    """Return the seconds since a moment; 0 for one that another clock puts into the future."""
    if moment is None:
        return None
    return max(0.0, (time.time() if now_s is None else now_s) - moment.timestamp())


def age(moment: datetime | None, now_s: float | None = None) -> str:
    """Return how long ago a save was, to the second while it is fresh."""
    seconds = age_of(moment, now_s)
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f} s ago"
    return formatting.ago(moment, now_s) if moment is not None else "-"


def left(seconds: float | None) -> str:
    """Return a time that is left; `-` if nobody knows."""
    return "-" if seconds is None else formatting.duration(max(seconds, 1.0))


def progress(outlook: Outlook) -> str:
    """Return how far a run is, in a few words."""
    words = [_amount(part) for part in outlook.info.progress[-1:]]
    if outlook.failed:
        words.append(f"{sum(outlook.failed.values()):,} failed")
    for group in outlook.groups:
        if not group.counts.keys() - {"saved"}:
            continue  # nothing is to be done there
        total = "" if group.total is None else f"/{group.total}"
        words.append(f"{group.done}{total} {_named(group)}")
    return ", ".join(words) or "-"


def best(outlook: Outlook) -> str:
    """Return the best checkpoint and its metric."""
    found, monitor = outlook.info.best, outlook.monitor
    if found is None or monitor not in found.metrics:
        return "-"
    return f"{monitor} {formatting.number(found.metrics[monitor])} at {views.place(found)[1]}"


def facts(outlook: Outlook) -> Iterator[tuple[str, str]]:
    """Yield what is known of a run, a name and a text each; what is empty is left out."""
    info = outlook.info
    yield "run", f"{info.name}~{info.line}" if info.lines > 1 else info.name
    if outlook.status:
        yield "status", outlook.status + (f": {outlook.reason}" if outlook.reason else "")
    if outlook.elapsed_s:
        yield "worked", f"{formatting.duration(outlook.elapsed_s)}, all sessions"
    for part in info.progress:
        failed = outlook.failed.get(part.part, 0)
        yield "progress", f"{bar(part)}{_amount(part)}{f', {failed:,} failed' if failed else ''}"
    for group in outlook.groups:
        yield "children", _counts(group)
    if outlook.eta_s is not None and info.status == "running":
        yield "left", left(outlook.eta_s)
    if info.last is not None:
        gap_s = outlook.saves.gap_s
        often = f", one every {formatting.duration(gap_s)}" if gap_s is not None else ""
        yield "last save", f"{info.last.ref}, {age(info.last.created)}{often}"
    if (text := best(outlook)) != "-":
        yield "best", text
    if info.metrics:
        yield "metrics", formatting.metrics_line(info.metrics)
    if info.checkpoint_count:
        count = formatting.count(info.checkpoint_count, "checkpoint")
        yield "written", f"{count}, {formatting.size(info.stored_bytes)} by their saves"


def bar(part: Progress, width: int = BAR_WIDTH) -> str:
    """Return the progress of a part as a bar, empty if nobody knows the total."""
    return "" if part.total is None else f"{part.bar(width)}  "


def _amount(part: Progress) -> str:
    if part.total is None:
        return f"{part.done:,} {part.part}"
    share = f", {100 * (part.ratio or 0.0):.0f} %" if part.total else ""
    return f"{part.done:,}/{part.total:,} {part.part}{share}"


def _named(group: Group) -> str:
    """Return what a group of children is called: those of no pattern are runs like any."""
    if group.pattern != "*":
        return group.pattern
    return "other run" if group.done == 1 else "other runs"


def _counts(group: Group) -> str:
    """Return the children of a group in words: `23 of 50 model-* finished, 1 running`."""
    total = "" if group.total is None else f" of {group.total}"
    words = [f"{group.done}{total} {_named(group)} finished"]
    others = [f"{n} {status}" for status, n in sorted(group.counts.items()) if status != "finished"]
    if not group.done and group.total is None and others:
        words = [f"{_named(group)}: {others.pop(0)}"]
    words += others
    return ", ".join(words)


def _has_parent(name: str, names: set[str]) -> bool:
    parts = name.split("/")
    return any("/".join(parts[:end]) in names for end in range(1, len(parts)))
