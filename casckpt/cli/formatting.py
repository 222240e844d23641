"""How bytes, times, numbers and names look to a person; pure functions, used by every command."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

_MONTH_S = 30.44 * 86400
_DTYPE = r"([<>|])([biufc])(\d+)"
_DTYPE_KINDS = {"i": "int", "u": "uint", "f": "float", "c": "complex"}
_STRUCTURED = "structured"
_UNITS = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(byte_count: int) -> str:
    """Return a byte count in IEC units with three digits: `812 B`, `96.1 MiB`, `1.42 GiB`."""
    value = float(abs(byte_count))
    sign = "-" if byte_count < 0 else ""
    if value < 1024:
        return f"{sign}{int(value)} B"
    for unit in _UNITS:
        value /= 1024
        # 999.5 and not 1024: "1012 KiB" would have four digits.
        if value < 999.5 or unit == _UNITS[-1]:
            break
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{sign}{value:.{digits}f} {unit}"


_ARRAY = re.compile(r"(\{.*\}|\S+) (\[(?:\d+(?:, \d+)*)?\](?: .*)?)")
"""The description of an array: dtype, shape, and what else is known; any other value is JSON."""


def dtype_name(dtype: str) -> str:
    """Return the name of a dtype for numpy's code of it, `float32` for `<f4`; others as it is."""
    found = re.fullmatch(_DTYPE, dtype)
    if found is None:
        # FORMAT: a structured dtype is JSON, as long as it has fields.
        return _STRUCTURED if dtype.startswith("{") else dtype
    order, kind, size_bytes = found[1], found[2], int(found[3])
    name = "bool" if kind == "b" else f"{_DTYPE_KINDS[kind]}{8 * size_bytes}"
    return f"{name} big-endian" if order == ">" else name


def value_text(text: str) -> str:
    """Return the description of a value, `<f4 [3, 4]`, with its dtype by name."""
    found = _ARRAY.fullmatch(text)
    return text if found is None else f"{dtype_name(found[1])} {found[2]}"


def exact(byte_count: int) -> str:
    """Return a byte count with every digit: `432,332,116 bytes`."""
    return f"{byte_count:,} byte{'' if byte_count == 1 else 's'}"


def count(number: int, noun: str, plural: str = "") -> str:
    """Return `1 checkpoint`, `10,000 checkpoints`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def share(part: int, whole: int) -> str:
    """Return `part` as a percentage of `whole`, or `-` when there is no whole."""
    return f"{100 * part / whole:.1f} %" if whole > 0 else "-"


def saved(stored_bytes: int, logical_bytes: int) -> str:
    """Return 1 - stored/logical as a percentage."""
    return share(logical_bytes - stored_bytes, logical_bytes)


def local_time(moment: datetime, *, seconds: bool = False) -> str:
    """Return a moment in the local time zone: `2026-11-20 14:02`."""
    parts = time.localtime(moment.timestamp())
    minute = f"{parts[0]}-{parts[1]:02d}-{parts[2]:02d} {parts[3]:02d}:{parts[4]:02d}"
    return f"{minute}:{parts[5]:02d}" if seconds else minute


def local_times(moments: Iterable[datetime]) -> list[str]:
    """Return many moments in the local time zone, to the minute."""
    # Checkpoints of one minute share the text. Zones differ from UTC by whole minutes.
    by_minute: dict[datetime, str] = {}
    texts = []
    first = last = None
    text = ""
    for moment in moments:
        # Mostly the minute of the one before, and to compare is cheaper than to look up.
        if first is None or last is None or not first <= moment <= last:
            first = moment.replace(second=0, microsecond=0)
            last = moment.replace(second=59, microsecond=999_999)
            text = by_minute.get(first) or by_minute.setdefault(first, local_time(first))
        texts.append(text)
    return texts


def rfc3339(moment: datetime) -> str:
    """Return a moment as JSON holds it: `2026-11-20T13:02:11.250000Z`."""
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def ago(moment: datetime, now_s: float | None = None) -> str:
    """Return how long ago a moment was: `just now`, `5 min ago`, `3 days ago`."""
    elapsed_s = (time.time() if now_s is None else now_s) - moment.timestamp()
    if elapsed_s < 45:
        return "just now"
    for unit_s, limit, name in ((60, 60, "min"), (3600, 48, "h"), (86400, 60, "day")):
        number = max(1, round(elapsed_s / unit_s))
        if number < limit:
            return f"{count(number, name, 'days' if name == 'day' else name)} ago"
    return f"{count(round(elapsed_s / _MONTH_S), 'month')} ago"


def duration(seconds: float) -> str:
    """Return a span of time: `0.8 ms`, `42 ms`, `1.3 s`, `4:05 min`, `2:13 h`."""
    if seconds < 1:
        return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def number(value: float) -> str:
    """Return one metric value with about five digits."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.5g}"


def numbers(values: Iterable[float | None]) -> list[str]:
    """Return a column of metric values with one number of decimals; a missing one is `-`.

    The decimals follow from the largest value, so that a column lines up at the point and shows
    about five digits. Columns with very large or very small values show each value on its own.
    """
    column = list(values)
    known = [value for value in column if value is not None]
    finite = list(map(abs, filter(math.isfinite, known)))
    if all(value == int(value) and value < 1e6 for value in finite):
        return ["-" if v is None else f"{v:.0f}" for v in column]
    largest = max(finite)
    smallest = min(filter(None, finite))
    decimals = min(6, max(0, 4 - math.floor(math.log10(largest))))
    if largest >= 1e6 or smallest < 10.0**-decimals:
        return ["-" if v is None else f"{v:.5g}" for v in column]
    pattern = f"%.{decimals}f"
    return ["-" if v is None else pattern % v for v in column]


def metrics_line(metrics: Mapping[str, float]) -> str:
    """Return all metrics in one line: `val_loss 0.183, accuracy 0.97`."""
    return ", ".join(f"{name} {number(value)}" for name, value in metrics.items())


def printable(text: str) -> str:
    """Return the text with control characters escaped, so that a name cannot drive a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Return the text with all control characters but the ends of lines escaped."""
    return "\n".join(map(printable, text.split("\n")))
