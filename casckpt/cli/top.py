"""`casckpt top`: runs at work, live in the terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import completers, formatting, outlooks, plot, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.cli.status import INTERVAL_S, watch

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from casckpt.api import Store
    from casckpt.training.watching.outlook import Outlook

_DETAILED = 4
"""Runs at work whose metrics are drawn; more do not fit a screen."""

_METRICS = 6
_SPARK_WIDTH = 40

_COLUMNS = ("RUN", "STATUS", "", "PROGRESS", "LEFT", "LAST SAVE", "BEST", "WRITTEN")
_WIDE_ONLY = frozenset({"", "WRITTEN"})
_WIDE = 110
"""Terminals have 80 columns more often than not: there the bar and the size are left out."""


@command(
    "top",
    examples=(
        "casckpt top",
        "casckpt top nas --interval 5",
        "casckpt top --json                     a line per change, for programs",
    ),
)
@click.argument("name", required=False, shell_complete=completers.runs)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=INTERVAL_S,
    show_default=True,
    metavar="S",
    help="Seconds between looks.",
)
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Look N times, then leave.")
def top(output: Output, name: str | None, interval: float, count: int | None) -> int | None:
    """Show runs live: progress, time left, age of the last save, metrics and alarms.

    NAME shows one run and its parts. q leaves; r looks at once. Where there is no terminal it
    prints a line for each change, as `status --watch` does. Nothing is written to the store.
    """
    if name is not None:
        (name,) = stores.split(output.settings, name)
    if output.json or not output.is_terminal:
        with stores.opened(output.settings) as store:
            watch(output, store, "top", name, interval, rounds=count)
        return None
    from rich.console import Console
    from rich.live import Live

    console = Console(no_color=not output.color, highlight=False)
    with (
        stores.opened(output.settings) as store,
        _keys() as wait_for_key,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        rounds = 0
        while True:
            live.update(_screen(store, name, console.width), refresh=True)
            rounds += 1
            if rounds == count or wait_for_key(interval) == "q":
                return None


def _screen(store: Store, name: str | None, width: int) -> RenderableType:
    """Return what is on a screen of so many columns."""
    from rich.console import Group
    from rich.text import Text

    found = outlooks.look(store, name)
    if name is not None:
        found += outlooks.parts(store, name)
    found.sort(key=lambda one: one.info.status != "running")
    moment = time.strftime("%H:%M:%S")
    head = Text(f"casckpt  {formatting.printable(str(store.path))}  {moment}   q leaves", "dim")
    parts: list[RenderableType] = [head, Text(), _table(found, width)]
    for one in found:
        for text in one.alarms:
            words = f"ALARM {one.info.name}: {text}"
            parts.append(Text(formatting.printable(words), style="bold red"))
    for one in [one for one in found if one.info.status == "running"][:_DETAILED]:
        parts += [Text(), *_metrics(store, one)]
    return Group(*parts)


def _table(found: Sequence[Outlook], width: int) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    titles = [title for title in _COLUMNS if width >= _WIDE or title not in _WIDE_ONLY]
    for title in titles:
        # Of what does not fit, names and metrics lose their end before anything else does.
        table.add_column(title, no_wrap=title not in ("RUN", "BEST"), overflow="ellipsis")
    for one in found:
        info = one.info
        known = [part for part in info.progress if part.total]
        done = known[-1] if known else None
        color = outlooks.STATUS_COLORS.get(one.status, "")
        cells = {
            "RUN": _cut(info.name, "bold"),
            "STATUS": Text(one.status or "-", style=color),
            "": ProgressBar(total=done.total or 1, completed=done.done, width=16) if done else "",
            "PROGRESS": Text(outlooks.progress(one)),
            "LEFT": Text(outlooks.left(one.eta_s) if info.status == "running" else "-"),
            "LAST SAVE": Text(outlooks.age(one.saved)),
            "BEST": _cut(outlooks.best(one)),
            "WRITTEN": Text(formatting.size(info.stored_bytes)),
        }
        table.add_row(*(cells[title] for title in titles))
    return table


def _cut(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(formatting.printable(text), style=style, no_wrap=True, overflow="ellipsis")


def _metrics(store: Store, one: Outlook) -> Iterator[RenderableType]:
    """Yield the metrics of a run, each with its newest values as a line."""
    from rich.text import Text

    series: dict[str, Any] = dict(store.history(one.info.name))
    yield Text(formatting.printable(one.info.name), style="bold")
    shown = list(series.items())[:_METRICS]
    width = max((len(metric) for metric, _ in shown), default=0)
    for metric, points in shown:
        values = [value for _, value in points]
        line = plot.sparkline(values, _SPARK_WIDTH)
        text = f"  {metric.ljust(width)}  {line}  {formatting.number(values[-1])}"
        yield Text(formatting.printable(text))


@contextmanager
def _keys() -> Iterator[Any]:
    """Read single keys from the terminal; yields a function that waits and returns a key or ""."""
    if not sys.stdin.isatty():

        def sleep(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield sleep
        return
    import select
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def wait(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        # Not sys.stdin: it would take all keys that wait, and select would see none of the others.
        return os.read(descriptor, 1).decode("latin-1") if ready else ""

    try:
        tty.setcbreak(descriptor)
        yield wait
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
