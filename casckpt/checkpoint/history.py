"""How the metrics of a run went: one series per metric."""

from __future__ import annotations

from collections.abc import Iterable

from casckpt.checkpoint.records import Checkpoint

History = dict[str, list[tuple[int, float]]]
"""Metric to its (step, value) pairs, in the order of steps."""


def history_of(checkpoints: Iterable[Checkpoint]) -> History:
    """Return the series of every metric.

    Args:
        checkpoints: those of one run, oldest first. Of several at one step (saves inside an
            epoch), the last one that has the metric counts.

    Returns:
        Metrics in the order they first appear; NaN and infinities as they were given.
    """
    series: dict[str, dict[int, float]] = {}
    for checkpoint in checkpoints:
        for name, value in checkpoint.metrics.items():
            series.setdefault(name, {})[checkpoint.step] = value
    return {name: sorted(values.items()) for name, values in series.items()}
