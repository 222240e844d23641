"""`casckpt status`: how runs stand, once or again and again."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import completers, formatting, outlooks, stores
from casckpt.cli.options import command
from casckpt.cli.output import Column, Output, json_line, layout, terminal_columns
from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.training.watching.outlook import Outlook

INTERVAL_S = 2.0

_HOME_AND_CLEAR = "\x1b[H\x1b[J"

_OVER = frozenset({"finished", "stopped", "failed", ""})
"""How a run stands that nobody will go on with by itself; a lost one may have a supervisor."""

_MOVING = ("saved_age_s", "eta_s", "elapsed_s")
"""What changes by itself, and is no news."""


@command(
    "status",
    examples=(
        "casckpt status",
        "casckpt status bpm/nn --watch",
        "casckpt status bpm/nn --exit-code || mail -s alarm me",
    ),
)
@click.argument("name", required=False, shell_complete=completers.runs)
@click.option(
    "-w", "--watch", "again", is_flag=True, help="Look again and again; a line per change."
)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    metavar="S",
    help=f"Seconds between looks with --watch.  [default: {INTERVAL_S:g}]",
)
@click.option("--exit-code", is_flag=True, help="Exit 1 if there is an alarm.")
def status(
    output: Output, name: str | None, again: bool, interval: float | None, exit_code: bool
) -> int:
    """Show how far NAME is, or all runs: progress, time left, last durable save, best, alarms.

    NAME may be a pattern such as 'bpm/*'.

    There is an alarm if saves have stopped while training goes on, if a save failed, if nothing
    moves, or if the process is silent. --watch ends when NAME does; with --json it prints a line
    for each change.
    """
    if interval is not None and not again:
        raise BadRequest("--interval without --watch", "", "add --watch")
    if name is not None:
        (name,) = stores.split(output.settings, name)
    if again:
        with stores.opened(output.settings) as store:
            alarmed = watch(output, store, "status", name, interval or INTERVAL_S)
        return int(exit_code and alarmed)
    with stores.opened(output.settings) as store:
        found = outlooks.look(store, name)
    if output.json:
        output.document("status", runs=[outlooks.record(one) for one in found])
    elif output.quiet:
        output.lines(one.info.name for one in found)
    else:
        output.lines(screen(output, found, named=_is_one(name)))
        if not found:
            output.note("No runs yet.")
    return int(exit_code and any(one.alarms for one in found))


def _is_one(name: str | None) -> bool:
    """Return whether one run is asked for, and not all or those that a pattern fits."""
    from casckpt.checkpoint.refs import is_glob

    return bool(name) and not is_glob(str(name))


def screen(output: Output, found: Sequence[Outlook], *, named: bool) -> list[str]:
    """Return what is shown of runs: all that is known of one, or a table; then the alarms."""
    if named:
        lines = []
        for one in found:
            facts = list(outlooks.facts(one))
            width = max(len(title) for title, _ in facts)
            lines += [
                f"{output.style(title.ljust(width), dim=True)}  {formatting.printable(text)}"
                for title, text in facts
            ]
    else:
        lines = _table(output, found)
    lines += [
        output.style(f"ALARM {formatting.printable(one.info.name)}: ", fg="red", bold=True)
        + formatting.printable(text)
        for one in found
        for text in one.alarms
    ]
    return lines


def _table(output: Output, found: Sequence[Outlook]) -> list[str]:
    if not found:
        return []
    columns = [
        Column("RUN"),
        Column("STATUS", color="green"),
        Column("PROGRESS"),
        Column("LEFT", right=True, rank=1),
        Column("LAST SAVE", right=True),
        Column("BEST", rank=2),
        Column("WRITTEN", right=True, rank=3),
    ]
    rows = [
        (
            one.info.name,
            f"{one.status or '-'}{' !' if one.alarms else ''}",
            outlooks.progress(one),
            outlooks.left(one.eta_s) if one.info.status == "running" else "-",
            outlooks.age(one.saved),
            outlooks.best(one),
            formatting.size(one.info.stored_bytes),
        )
        for one in found
    ]
    width = terminal_columns() if output.is_terminal else None
    return layout(columns, rows, output.color, width)


def watch(
    output: Output,
    store: Store,
    command: str,
    name: str | None,
    interval_s: float,
    *,
    rounds: int | None = None,
) -> bool:
    """Show the runs again and again: a screen on a terminal, lines for changes elsewhere.

    Args:
        output: where to.
        store: the store.
        command: what JSON lines are called.
        name: the run to show, until nobody will go on with it by itself; None for all.
        interval_s: seconds between looks.
        rounds: how often to look; None for as long as there is something to see.

    Returns:
        Whether there was an alarm.
    """
    alarmed = False
    before: dict[str, Any] = {}
    while True:
        found = outlooks.look(store, name)
        alarmed |= any(one.alarms for one in found)
        if output.json:
            for _, about in _news(found, before):
                json_line(command, at=_now(), **about)
        elif output.is_terminal:
            output.line(_HOME_AND_CLEAR + "\n".join(screen(output, found, named=_is_one(name))))
        else:
            output.lines(_sentence(one) for one, _ in _news(found, before))
        output.flush()
        rounds = None if rounds is None else rounds - 1
        is_over = name is not None and all(one.info.status in _OVER for one in found)
        if rounds == 0 or is_over:
            return alarmed
        time.sleep(interval_s)


def _news(
    found: Sequence[Outlook], before: dict[str, Any]
) -> Iterator[tuple[Outlook, dict[str, Any]]]:
    """Yield the runs that stand otherwise than at the last look, with their records."""
    for one in found:
        about = outlooks.record(one)
        news = {key: value for key, value in about.items() if key not in _MOVING}
        if before.get(one.info.name) != news:
            before[one.info.name] = news
            yield one, about


def _sentence(one: Outlook) -> str:
    """Return how a run stands in one line of a log."""
    words = [
        time.strftime("%H:%M:%S"),
        one.info.name,
        one.status or "-",
        outlooks.progress(one),
        f"saved {outlooks.age(one.saved)}" if one.saved is not None else "nothing saved",
    ]
    if one.eta_s is not None and one.info.status == "running":
        words.append(f"{outlooks.left(one.eta_s)} left")
    if one.info.metrics:
        words.append(formatting.metrics_line(one.info.metrics))
    words += [f"ALARM {text}" for text in one.alarms]
    return "  ".join(formatting.printable(word) for word in words)


def _now() -> str:
    from casckpt.training.lines import now_text

    return now_text()
