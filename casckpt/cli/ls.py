"""`casckpt ls`: checkpoints in columns, ranked by a metric if asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, quantities, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output
from casckpt.errors import BadRequest, NotFound
from casckpt.ids import ABBREVIATION

if TYPE_CHECKING:
    from casckpt.checkpoint.queries import Catalog
    from casckpt.checkpoint.records import Checkpoint
    from casckpt.checkpoint.refs import Mode

METRICS_SHOWN = 3
"""Metric columns of a list; the others are in `show` and `history`. More would wrap 100 columns."""

_FIELDS = ("run", "step", "created", "size", "new")


@command(
    "ls",
    examples=(
        "casckpt ls                              all checkpoints, run by run",
        "casckpt ls --best val_loss              the lowest val_loss first",
        "casckpt ls bpm/nn --best corr --mode max --limit 5",
        "casckpt ls -q --tag paper-v1            ids for scripts",
    ),
)
@click.argument("run", required=False, shell_complete=completers.runs)
@click.option(
    "--best",
    metavar="METRIC[:min|max]",
    callback=quantities.ranking,
    shell_complete=completers.metrics,
    help="Rank by a metric, NaN last.",
)
@click.option(
    "--mode", type=click.Choice(["min", "max"]), help="Which end of --best METRIC is good."
)
@click.option("--limit", callback=quantities.count, metavar="N", help="Show N checkpoints.")
@click.option(
    "--sort",
    metavar="FIELD",
    help="Sort by run, step, created, size, new or a metric; -FIELD turns it round.",
)
@click.option(
    "--tag", metavar="TAG", shell_complete=completers.tags, help="Only checkpoints with this tag."
)
@click.option("--trash", is_flag=True, help="What `undelete` can bring back, instead.")
def ls(
    output: Output,
    run: str | None,
    best: tuple[str, Mode | None] | None,
    mode: Mode | None,
    limit: int | None,
    sort: str | None,
    tag: str | None,
    trash: bool,
) -> None:
    """List checkpoints, of RUN or of all runs.

    RUN may be a pattern such as 'bpm/*'. Without --best and --sort the order is run, line, step,
    and --limit shows the newest N. SIZE is what the state holds, NEW how much of that
    was not stored before, with some KB of the save's own records; both before compression.
    """
    if best and sort:
        raise BadRequest("ls takes --best or --sort, not both", "each of them sets the order")
    if mode and not best:
        raise BadRequest(
            "--mode without --best",
            "it says which end of a metric is good",
            "name the metric: --best METRIC --mode max",
        )
    metric, end = best or (None, None)
    if mode and end and mode != end:
        raise BadRequest(
            f"--mode {mode} beside --best {metric}:{end}", "they differ", "leave one of them out"
        )
    pattern = stores.split(output.settings, run)[0] if run else "*"
    with stores.rows(output.settings) as catalog:
        try:
            found = catalog.checkpoints(pattern, trash=trash)
        except NotFound:
            if not trash:
                raise
            found = []
        if not found:
            output.note(_nothing(pattern, trash))
        if metric:
            mode = mode or end or _declared(output, catalog, found, metric)
    everything = found
    if tag:
        found = [checkpoint for checkpoint in found if tag in checkpoint.tags]
    if metric:
        found = _ranked(output, found, metric, mode)
    elif sort:
        found = _sorted(found, sort)
    if limit:
        found = found[:limit] if metric or sort else _newest(found, limit)
    if output.json:
        output.document("ls", checkpoints=[views.record(checkpoint) for checkpoint in found])
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in found)
    else:
        latest = set() if trash else views.newest(everything, pattern)
        _table(output, found, latest, metric, trash)
        _sum(output, found, everything)


def _nothing(pattern: str, trash: bool) -> str:
    """Return what to say where there is nothing to list."""
    if pattern != "*":
        where = " in the trash" if trash else ""
        return f"No checkpoint of {pattern}{where}."
    return "The trash is empty." if trash else "No checkpoints yet."


def _declared(
    output: Output, catalog: Catalog, found: Sequence[Checkpoint], metric: str
) -> Mode | None:
    """Return the end of a metric that the loops of the runs have declared as good, and say so."""
    from casckpt.checkpoint.lines import declared_mode

    mode = declared_mode(map(catalog.view, {checkpoint.run for checkpoint in found}), metric)
    if mode is not None:
        first, other = ("highest", "min") if mode == "max" else ("lowest", "max")
        output.note(
            f"{metric}: {first} first, as declared by its loop. Turn it round: --mode {other}"
        )
    return mode


def _ranked(
    output: Output, found: Sequence[Checkpoint], metric: str, mode: str | None
) -> list[Checkpoint]:
    """Return the checkpoints best first: then NaN and infinities, then those without the metric."""
    from casckpt.checkpoint.refs import require_metric

    require_metric(found, metric)
    if mode is None:
        output.note(f"{metric}: lowest first. Highest first: --mode max")
    sign = -1.0 if mode == "max" else 1.0

    def key(checkpoint: Checkpoint) -> tuple[int, float]:
        value = checkpoint.metrics.get(metric)
        if value is None:
            return (2, 0.0)
        return (0, sign * value) if math.isfinite(value) else (1, 0.0)

    return sorted(found, key=key)


def _sorted(found: Sequence[Checkpoint], field: str) -> list[Checkpoint]:
    """Return the checkpoints in the order of a field or metric; those without it come last."""
    name = field.removeprefix("-")
    if name not in _FIELDS and not any(name in checkpoint.metrics for checkpoint in found):
        raise BadRequest(
            f"cannot sort by {name!r}",
            f"fields are {', '.join(_FIELDS)}; and no checkpoint here has a metric of that name",
            "`casckpt ls --sort created`, or --sort -created for the newest first",
        )

    def value(checkpoint: Checkpoint) -> tuple[object, ...] | None:
        if name == "run":
            return (checkpoint.run, checkpoint.line, checkpoint.step, checkpoint.batch)
        if name == "step":
            return (checkpoint.step, checkpoint.batch)
        if name == "created":
            return (checkpoint.created,)
        if name == "size":
            return (checkpoint.logical_bytes,)
        if name == "new":
            return (checkpoint.new_bytes,)
        metric = checkpoint.metrics.get(name)
        return None if metric is None or math.isnan(metric) else (metric,)

    present = [checkpoint for checkpoint in found if value(checkpoint) is not None]
    absent = [checkpoint for checkpoint in found if value(checkpoint) is None]
    return sorted(present, key=value, reverse=field.startswith("-")) + absent  # type: ignore[arg-type]


def _newest(found: Sequence[Checkpoint], limit: int) -> list[Checkpoint]:
    """Return the `limit` newest checkpoints, in the order they stand in."""
    chosen = sorted(range(len(found)), key=lambda i: found[i].created)[-limit:]
    return [found[i] for i in sorted(chosen)]


def _table(
    output: Output,
    found: Sequence[Checkpoint],
    latest: set[str],
    best: str | None,
    trash: bool,
) -> None:
    """Write one line per checkpoint; `*` marks the best of the ranking."""
    frequency = Counter(chain.from_iterable(checkpoint.metrics for checkpoint in found))
    frequency.pop(best or "", None)
    others = [name for name, _ in sorted(frequency.items(), key=lambda item: (-item[1], item[0]))]
    shown = ([best] if best else []) + others
    shown = shown[:METRICS_SHOWN]
    ranked = best is not None and bool(found) and math.isfinite(found[0].metrics[best])
    best_of_run: dict[str, str] = {}
    if best:
        for checkpoint in found:
            if math.isfinite(checkpoint.metrics.get(best, math.nan)):
                best_of_run.setdefault(checkpoint.run, checkpoint.id)

    noted = latest | set(best_of_run.values())

    def notes(checkpoint: Checkpoint) -> str:
        words = ["best"] if best_of_run.get(checkpoint.run) == checkpoint.id else []
        words += ["latest"] if checkpoint.id in latest else []
        words += ["pinned"] if checkpoint.pinned else []
        return ", ".join((*words, *checkpoint.tags))

    metric_cells = [
        formatting.numbers(checkpoint.metrics.get(name) for checkpoint in found) for name in shown
    ]
    columns = [
        *([Column("")] if best else []),
        Column("ID", color="yellow"),
        Column("RUN"),
        Column("STEP", right=True),
        Column("DROPPED AT" if trash else "SAVED AT", rank=1),
        *(Column(name, right=True, rank=0 if name == best else 2) for name in shown),
        Column("SIZE", right=True),
        Column("NEW", right=True, rank=3),
        Column("NOTES", color="cyan"),
    ]
    places = [views.place(checkpoint) for checkpoint in found]
    size = lru_cache(maxsize=None)(formatting.size)  # few sizes, many checkpoints
    cells = [
        *([["*" if ranked and not place else "" for place in range(len(found))]] if best else []),
        [checkpoint.id[:ABBREVIATION] for checkpoint in found],
        [run for run, _ in places],
        [step for _, step in places],
        formatting.local_times(
            (trash and checkpoint.trashed_at) or checkpoint.created for checkpoint in found
        ),
        *metric_cells,
        [size(checkpoint.logical_bytes) for checkpoint in found],
        [size(checkpoint.new_bytes) for checkpoint in found],
        [
            notes(checkpoint)
            if checkpoint.tags or checkpoint.pinned or checkpoint.id in noted
            else ""
            for checkpoint in found
        ],
    ]
    rows = list(zip(*cells, strict=True))
    output.table(columns, rows, bold_rows=frozenset({0}) if ranked else frozenset())


def _sum(output: Output, found: Sequence[Checkpoint], everything: Sequence[Checkpoint]) -> None:
    """Say what the list amounts to, on stderr."""
    if not everything:
        return
    logical_bytes = sum(map(attrgetter("logical_bytes"), everything))
    new_bytes = sum(map(attrgetter("new_bytes"), everything))
    shown = (
        formatting.count(len(found), "checkpoint")
        if len(found) == len(everything)
        else f"{len(found):,} of {formatting.count(len(everything), 'checkpoint')} shown"
    )
    output.note(
        f"{shown}. {formatting.size(logical_bytes)} logical, {formatting.size(new_bytes)} new "
        "when saved. `casckpt du` shows the disk."
    )
