"""A run and its children as plain files: results.json, and a history per run as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.records import Checkpoint, RunInfo
from casckpt.store import files
from casckpt.training.watching import status

if TYPE_CHECKING:
    from casckpt.api import Store

SCHEMA = 1


def export_run(store: Store, name: str, folder: str | Path) -> None:
    """Write results.json and `histories/RUN.csv` of a run and the runs below it.

    Each file is replaced whole. Cheap enough to call after each child.

    Raises:
        NotFound: there is no such run.
    """
    repository, catalog = store._repository, store._catalog
    found = [
        one for pattern in (name, f"{name}/*") for one in status.infos(repository, catalog, pattern)
    ]
    if not found:
        raise catalog.no_run(name)
    target = Path(folder).expanduser().absolute()
    target.mkdir(parents=True, exist_ok=True)
    (target / "histories").mkdir(exist_ok=True)
    for info in found:
        path = target / "histories" / f"{info.name.replace('/', '.')}.csv"
        _write(path, _csv(store.history(info.name)))
    document = {"schema": SCHEMA, "run": name, "runs": [_run(info) for info in found]}
    _write(target / "results.json", json.dumps(document, indent=2) + "\n")


def _run(info: RunInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "line": info.line,
        "status": info.status,
        "reason": info.reason,
        "metrics": _numbers(info.metrics),
        "best": _checkpoint(info.best),
        "last": _checkpoint(info.last),
        "config": info.config,
        "elapsed_s": round(info.elapsed_s, 3),
        "progress": [
            {"part": one.part, "done": one.done, "total": one.total} for one in info.progress
        ],
    }


def _checkpoint(checkpoint: Checkpoint | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    return {
        "ref": checkpoint.ref,
        "id": checkpoint.id,
        "step": checkpoint.step,
        "metrics": _numbers(checkpoint.metrics),
    }


def _numbers(metrics: Any) -> dict[str, Any]:
    # JSON has no NaN: they are strings, as everywhere in our JSON.
    return {name: value if math.isfinite(value) else str(value) for name, value in metrics.items()}


def _csv(history: dict[str, list[tuple[int, float]]]) -> str:
    """Return a table: one row a step, one column a metric, empty where a metric has no value."""
    columns = {name: dict(values) for name, values in history.items()}
    steps = sorted({step for values in columns.values() for step in values})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", *columns])
    for step in steps:
        writer.writerow([step, *(columns[name].get(step, "") for name in columns)])
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    files.write_whole(path, text.encode(), path.with_name(f".{path.name}.new"))
