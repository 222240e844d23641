"""Plots of the results, as SVG beside them: disk over saves, and size against speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]
INK, GRID = "#333333", "#dddddd"


def draw(folder: Path) -> list[Path]:
    """Draw disk used over saves for each input, and size against speed for each trajectory.

    Returns: the files written; none without matplotlib or without a size result.
    """
    try:
        import matplotlib
    except ImportError:
        return []
    if not (folder / "size.json").exists():
        return []
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "casckpt"  # the same result gives the same file
    sizes = json.loads((folder / "size.json").read_text())["rows"]
    inputs = list(dict.fromkeys(row["input"] for row in sizes))
    drawn = [_disk(sizes, name, folder / f"disk-{name}.svg") for name in inputs]
    if (folder / "save.json").exists():
        saves = json.loads((folder / "save.json").read_text())["rows"]
        for name in dict.fromkeys(row["input"] for row in saves):
            drawn.append(_trade(sizes, saves, name, folder / f"trade-{name}.svg"))
    return drawn


def _disk(sizes: list[Row], name: str, path: Path) -> Path:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    rows = [row for row in sizes if row["input"] == name]
    unit, divisor = ("GB", 1e9) if rows[0]["logical_bytes"] > 5e8 else ("MB", 1e6)
    ends: list[tuple[float, str, Any]] = []
    for row in rows:
        points = [row["empty_bytes"], *(entry[2] for entry in row["disk"])]
        used = [point / divisor for point in points]
        ours = row["name"].startswith("casckpt")
        style: dict[str, Any] = {
            "linewidth": 2.2 if ours else 1.2,
            "linestyle": "-" if ours else "--",
        }
        (line,) = axes.plot(range(len(used)), used, **style)
        ends.append((used[-1], f"{row['name']}  {row['ratio']:.3f}", line.get_color()))
    _label_ends(axes, ends, len(rows[0]["disk"]))
    axes.set_xlabel("checkpoints saved", color=INK)
    axes.set_ylabel(f"disk used, {unit}", color=INK)
    axes.set_title(f"Disk used over saves, {name} (number: stored / logical)", color=INK)
    axes.set_ylim(bottom=0)
    return _finish(figure, axes, path)


def _trade(sizes: list[Row], saves: list[Row], name: str, path: Path) -> Path:
    """Draw a point per contender: how fast it saves, and what share of the bytes it keeps."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.5))
    ratio = {row["name"]: row["ratio"] for row in sizes if row["input"] == name}
    for row in saves:
        if row["input"] != name or row["name"] not in ratio:
            continue
        ours = row["name"].startswith("casckpt")
        at = (row["gb_per_s"], ratio[row["name"]])
        axes.scatter(*at, s=60 if ours else 30, color="C0" if ours else "C7", zorder=3)
        axes.annotate(row["name"], at, xytext=(6, 5), textcoords="offset points", fontsize=9)
    axes.set_xscale("log")
    axes.set_xlabel("durable save, GB/s (right is faster)", color=INK)
    axes.set_ylabel("stored / logical (down is smaller)", color=INK)
    axes.set_title(f"Size against speed, {name}", color=INK)
    return _finish(figure, axes, path)


def _finish(figure: Any, axes: Any, path: Path) -> Path:
    from matplotlib import pyplot

    axes.grid(color=GRID, linewidth=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return path


def _label_ends(axes: Any, ends: list[tuple[float, str, Any]], last: int) -> None:
    """Write each line's name at its end, pushed apart where they would overlap."""
    gap = max(value for value, _, _ in ends) * 0.055
    below = float("-inf")
    for value, label, color in sorted(ends):
        height = max(value, below + gap)
        axes.text(last + 0.15, height, label, color=color, va="center", fontsize=9)
        below = height
