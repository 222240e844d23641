"""Which arrays share memory: groups of overlapping byte ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Where an array's items lie: bytes from `start` to before `end` on a device."""

    device: str
    start: int
    end: int
    leaf: int
    item_size: int


def extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return the items from the first to the last of a non-empty array, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def overlapping(spans: Iterable[Span]) -> Iterator[list[Span]]:
    """Yield groups of two or more whose ranges overlap, directly or through others.

    Ranges of interleaved columns overlap without a common item; they count as tied, which costs
    the bytes between them and is never wrong.
    """
    group: list[Span] = []
    end = 0
    for span in sorted(spans):
        if group and span.device == group[0].device and span.start < end:
            end = max(end, span.end)
            group.append(span)
            continue
        if len(group) > 1:
            yield group
        group, end = [span], span.end
    if len(group) > 1:
        yield group
