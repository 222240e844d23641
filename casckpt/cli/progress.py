"""Progress of long work on stderr: a bar on a terminal, a line every 30 s elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from casckpt.cli import formatting
from casckpt.cli.output import Output

INTERVAL_S = 30.0
"""Between lines where there is no terminal: a log of a day's work stays readable."""

BAR_AFTER_S = 0.5
"""Shorter work shows no bar, and does not pay for importing rich."""

Report = Callable[[int, int], None]
"""Called with bytes done and bytes in all; 0 in all while that is not known."""


@contextmanager
def progress(output: Output, title: str) -> Iterator[Report]:
    """Show how far some work is, for the length of a `with`.

    Args:
        output: decides with its settings whether anything is shown: nothing with -q.
        title: what is being done, as in "verifying".
    """
    if output.settings.quiet:
        yield lambda done, total: None
    elif sys.stderr.isatty():
        with _bar(title) as report:
            yield report
    else:
        yield _lines(title)


@contextmanager
def waiting(output: Output, title: str) -> Iterator[None]:
    """Show that some work of unknown length goes on, and for how long, for the length of a `with`.

    Args:
        output: decides with its settings whether anything is shown: nothing with -q.
        title: what is being done, as in "collecting".
    """
    if output.settings.quiet:
        yield
        return
    done = threading.Event()
    show = _spin if sys.stderr.isatty() else _say
    teller = threading.Thread(target=show, args=(title, done), daemon=True)
    with suppress(RuntimeError):  # no thread can begin: the work is what matters
        teller.start()
    try:
        yield
    finally:
        done.set()
        if teller.ident:
            teller.join()


def _say(title: str, done: threading.Event) -> None:
    """Write a line every 30 s."""
    began_s = time.monotonic()
    while not done.wait(INTERVAL_S):
        spent = formatting.duration(time.monotonic() - began_s)
        print(f"{title}: {spent} so far", file=sys.stderr, flush=True)


def _spin(title: str, done: threading.Event) -> None:
    """Draw a line that moves; it disappears when the work is done."""
    if done.wait(BAR_AFTER_S):
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(title, total=None)
        done.wait()


def _lines(title: str) -> Report:
    """Return a report that writes one line every 30 s."""
    began_s = last_s = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last_s
        now_s = time.monotonic()
        if now_s - last_s < INTERVAL_S:
            return
        last_s = now_s
        rate = done / (now_s - began_s)
        words = [f"{title}: {formatting.size(done)}"]
        if total:
            words.append(f"of {formatting.size(total)} ({formatting.share(done, total)})")
        words.append(f"{formatting.size(int(rate))}/s")
        if total and rate:
            words.append(f"{formatting.duration((total - done) / rate)} left")
        print(", ".join(words), file=sys.stderr, flush=True)

    return report


@contextmanager
def _bar(title: str) -> Iterator[Report]:
    """Draw a bar with bytes, rate and the time left; it disappears when the work is done."""
    began_s = time.monotonic()
    opened: list[tuple[object, object]] = []

    def report(done: int, total: int) -> None:
        if not opened:
            if time.monotonic() - began_s < BAR_AFTER_S:
                return
            opened.append(_open_bar(title))
        bar, task = opened[0]
        bar.update(task, completed=done, total=total or None)  # type: ignore[attr-defined]

    try:
        yield report
    finally:
        for bar, _ in opened:
            bar.stop()  # type: ignore[attr-defined]


def _open_bar(title: str) -> tuple[object, object]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    bar.start()
    return bar, bar.add_task(title, total=None)
