"""Option values with parts: counts, sizes, and the best N by a metric.

Each function is the `callback` of an option: it gets the text and returns the value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from casckpt.checkpoint.refs import Mode

# Compiled at first use, and kept by `re`: few calls of a command name a quantity.
_AGE = r"(?i)(\d+(?:\.\d+)?)\s*([mhdw])\Z"
_AGE_S = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_SIZE = r"(?i)(\d+(?:\.\d+)?)\s*([KMGTP]?)(?:i?B)?\Z"


def count(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Return a whole number from 1 on."""
    if text is None:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise _refused(context, parameter, f"{text!r} is no number from 1 on")
    return int(text)


def size(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Return bytes; K, M, G, T and P are powers of 1024: `50G`, `1.5T`, `800M`."""
    if text is None:
        return None
    match = re.match(_SIZE, text)
    if match is None:
        raise _refused(context, parameter, f"{text!r} is no size\nwrite bytes, or 50G, 1.5T, 800M")
    return int(float(match[1]) * 1024 ** " KMGTP".index(match[2].upper() or " "))


def rate(context: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    """Return bytes a second, as in `50MB/s` or `50M`: with a unit, above 0."""
    if text is None:
        return None
    match = re.match(_SIZE, text.removesuffix("/s"))
    # A bare number is meant to be something else than bytes.
    value = None if match is None or not match[2] else size(context, parameter, match[0])
    if not value:
        raise _refused(context, parameter, f"{text!r} is no rate\nwrite 50MB/s, 800K/s, 1.5G/s")
    return value


def age(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Return seconds, as in `30d`, `12h`, `2w` or `90m`; above 0."""
    if text is None:
        return None
    match = re.match(_AGE, text)
    if match is None or not float(match[1]):
        raise _refused(context, parameter, f"{text!r} is no age\nwrite 30d, 12h, 2w or 90m")
    return float(match[1]) * _AGE_S[match[2].lower()]


def share(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Return a share above 0, at most 1, written as `5%` or `0.05`."""
    if text is None:
        return None
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise _refused(context, parameter, f"{text!r} is no share\nwrite 5%, 0.05 or 100%")
    return value


def best(
    context: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> list[tuple[str, Mode | None, int]]:
    """Return metric, mode (or None) and number of each: `val_loss`, `corr:max`, `corr:max:3`."""
    values = []
    for text in texts:
        rest, number = text, 1
        head, colon, tail = rest.rpartition(":")
        if colon and tail.isdecimal():
            rest, number = head, int(tail)
        metric, mode = _metric_and_mode(rest)
        if not metric or number < 1:
            raise _refused(
                context, parameter, f"{text!r} names no metric\nwrite METRIC:min or METRIC:max:3"
            )
        values.append((metric, mode, number))
    return values


def ranking(
    context: click.Context, parameter: click.Parameter, text: str | None
) -> tuple[str, Mode | None] | None:
    """Return metric and mode (or None): `val_loss`, `corr:max`."""
    if text is None:
        return None
    metric, mode = _metric_and_mode(text)
    if not metric:
        raise _refused(context, parameter, f"{text!r} names no metric\nwrite METRIC:min")
    return metric, mode


def _metric_and_mode(text: str) -> tuple[str, Mode | None]:
    # From the right: the name of a metric may itself hold colons.
    head, colon, tail = text.rpartition(":")
    if colon and tail == "min":
        return head, "min"
    return (head, "max") if colon and tail == "max" else (text, None)


def _refused(
    context: click.Context, parameter: click.Parameter, message: str
) -> click.BadParameter:
    return click.BadParameter(message, ctx=context, param=parameter)
