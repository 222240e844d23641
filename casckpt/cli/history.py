"""`casckpt history`: a run's metrics over its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import click

from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output, terminal_columns
from casckpt.errors import BadRequest, NotFound
from casckpt.strictjson import plain

Series = Sequence[tuple[int, float]]

_PLOT_COLUMNS_MAX = 120
"""Wider charts are harder to read, not finer: steps are few."""


@command(
    "history",
    examples=(
        "casckpt history bpm/nn",
        "casckpt history bpm/nn --plot",
        "casckpt history bpm/nn val_loss --csv > val_loss.csv",
    ),
)
@click.argument("run", shell_complete=completers.runs)
@click.argument("metric", required=False, shell_complete=completers.metrics)
@click.option("--csv", "as_csv", is_flag=True, help="Comma-separated, with every digit.")
@click.option("--plot", "as_plot", is_flag=True, help="A chart of each metric, as text.")
def history(output: Output, run: str, metric: str | None, as_csv: bool, as_plot: bool) -> None:
    """Show the metrics of RUN, one line per step; with METRIC only that one."""
    if as_csv and as_plot:
        raise BadRequest(
            "history: --csv or --plot?", "each is the whole output", "pass one of them"
        )
    (name,) = stores.split(output.settings, run)
    with stores.opened(output.settings) as store:
        series = dict(store.history(name))
    if metric is not None:
        if metric not in series:
            raise NotFound(
                f"run {name!r} has no metric {metric!r}",
                f"its metrics: {', '.join(sorted(series))}" if series else "it has none",
                f"see `casckpt history {name}`",
            )
        series = {metric: series[metric]}
    if output.json:
        output.document("history", run=name, history=plain(series))
        return
    steps = sorted({step for points in series.values() for step, _ in points})
    columns = {key: dict(points) for key, points in series.items()}
    if as_csv:
        _csv(output, steps, columns)
    elif as_plot:
        _plot(output, series)
    elif output.quiet:
        output.lines(str(step) for step in steps)
    else:
        _table(output, steps, columns)


def _plot(output: Output, series: Mapping[str, Series]) -> None:
    """Draw each metric over its own steps, as wide as the terminal."""
    from casckpt.cli import plot

    width = min(terminal_columns(), _PLOT_COLUMNS_MAX)
    for number, (name, points) in enumerate(series.items()):
        title, *lines = plot.chart(formatting.printable(name), points, width)
        output.lines([*([""] if number else []), output.style(title, bold=True), *lines])
    if not series:
        output.note("No metrics were saved with this run.")


def _csv(output: Output, steps: Sequence[int], columns: dict[str, dict[int, float]]) -> None:
    """Write one line per step; a metric that was not saved at a step leaves its field empty."""
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *columns])
    for step in steps:
        writer.writerow([step, *(values.get(step, "") for values in columns.values())])
    output.lines(text.getvalue().splitlines())


def _table(output: Output, steps: Sequence[int], columns: dict[str, dict[int, float]]) -> None:
    """Write one line per step, and the range of each metric on stderr."""
    cells = [formatting.numbers(values.get(step) for step in steps) for values in columns.values()]
    output.table(
        [Column("STEP", right=True), *(Column(name, right=True) for name in columns)],
        [(str(step), *row) for step, *row in zip(steps, *cells, strict=True)],
    )
    for name, values in columns.items():
        finite = [(value, step) for step, value in values.items() if math.isfinite(value)]
        if finite:
            low, high = min(finite), max(finite)
            output.note(
                f"{name}: lowest {formatting.number(low[0])} at step {low[1]}, "
                f"highest {formatting.number(high[0])} at step {high[1]}"
            )
    if not steps:
        output.note("No metrics were saved with this run.")
