"""Curves as text: two by four dots of braille in each character."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from casckpt.cli import formatting

HEIGHT = 10
"""Lines of a chart: four fit a terminal of 50 lines."""

_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of the dot in each row and column of a character (Unicode, Braille Patterns)."""

_LEVELS = "▁▂▃▄▅▆▇█"

Points = Sequence[tuple[int, float]]


def chart(title: str, points: Points, width: int, height: int = HEIGHT) -> list[str]:
    """Return a chart of a metric over its steps.

    Points that are not finite are left out and counted in the title. Where points are denser than
    dots, every dot between the lowest and the highest of a column is set: no peak is lost.

    Args:
        title: what it shows.
        points: (step, value), by step.
        width: characters of a line, axis included; at least 20.
        height: lines of the chart itself.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    hidden = len(points) - len(finite)
    note = f"  ({formatting.count(hidden, 'value')} not finite)" if hidden else ""
    if not finite:
        return [f"{title}{note}"]
    low, high = min(value for _, value in finite), max(value for _, value in finite)
    labels = {0: formatting.number(high), height - 1: formatting.number(low)}
    gutter = max(map(len, labels.values()))
    columns = max(8, width - gutter - 2)
    rows = _raster(finite, low, high, columns, height)
    lines = [f"{title}{note}"]
    for number, row in enumerate(rows):
        axis = "┤" if number in labels else "│"
        lines.append(f"{labels.get(number, '').rjust(gutter)} {axis}{row}".rstrip())
    first, last = str(finite[0][0]), str(finite[-1][0])
    lines.append(f"{' ' * gutter} └{'─' * columns}")
    lines.append(f"{' ' * (gutter + 2)}{first}{last.rjust(columns - len(first))}")
    return lines


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the newest values as one line of bars; `·` stands for one that is not finite."""
    shown = list(values)[-width:]
    finite = [value for value in shown if math.isfinite(value)]
    if not finite:
        return ""
    low, span = min(finite), max(finite) - min(finite)
    return "".join(
        "·"
        if not math.isfinite(value)
        else _LEVELS[round((value - low) / span * (len(_LEVELS) - 1)) if span else 0]
        for value in shown
    )


def _raster(points: Points, low: float, high: float, columns: int, height: int) -> list[str]:
    """Return the lines of the chart's area."""
    wide, tall = columns * 2, height * 4
    first, last = points[0][0], points[-1][0]
    span, steps = (high - low) or 1.0, (last - first) or 1
    cells = [[0] * columns for _ in range(height)]

    def dot(x: int, y: int) -> None:
        cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]

    def place(step: int, value: float) -> tuple[int, int]:
        # In halves: the span of two large values of unlike sign may overflow.
        part = (value / 2 - low / 2) / (span / 2) if math.isfinite(span) else 0.5
        x = round((step - first) / steps * (wide - 1)) if last > first else wide // 2
        return x, (tall - 1) - round(part * (tall - 1))

    before: tuple[int, int] | None = None
    for step, value in points:
        x, y = place(step, value)
        dot(x, y)
        if before is not None:
            _join(dot, before, (x, y))
        before = x, y
    return ["".join(chr(_BLANK + cell) if cell else " " for cell in row) for row in cells]


def _join(dot: Callable[[int, int], None], start: tuple[int, int], end: tuple[int, int]) -> None:
    """Set the dots of a line between two."""
    (x0, y0), (x1, y1) = start, end
    count = max(abs(x1 - x0), abs(y1 - y0))
    for i in range(1, count):
        dot(round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count))
