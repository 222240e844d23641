"""A run and its children as plain files: results.json, and a history per run as CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.records import Checkpoint, RunInfo
from casckpt.ids import check_run_name
from casckpt.store import files
from casckpt.strictjson import plain
from casckpt.training.watching import status

if TYPE_CHECKING:
    from casckpt.api import Store

SCHEMA = 1


def export_run(store: Store, name: str, folder: str | Path) -> list[tuple[str, str]]:
    """Write results.json and a history as CSV of a run and of each run below it.

    Each file is replaced whole. Cheap enough to call after each child.

    Returns:
        Each run with the path of its history below the folder.

    Raises:
        BadRef: it is not the name of a run, such as a pattern.
        NotFound: there is no such run.
    """
    check_run_name(name)
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
        _write(target / _history_of(info.name), _csv(store.history(info.name)))
    document = {"schema": SCHEMA, "run": name, "runs": [_run(info) for info in found]}
    text = json.dumps(plain(document), indent=2, allow_nan=False)
    _write(target / "results.json", text + "\n")
    return [(info.name, _history_of(info.name)) for info in found]


def _history_of(run: str) -> str:
    """Return the path of a run's history below the folder; no other run of an export has it."""
    # No name holds a plus: where dots could be its own, it stands between the parts instead.
    return f"histories/{run.replace('/', '+' if '.' in run else '.')}.csv"


def _run(info: RunInfo) -> dict[str, Any]:
    return {
        "name": info.name,
        "line": info.line,
        "status": info.status,
        "reason": info.reason,
        "history": _history_of(info.name),
        "metrics": info.metrics,
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
        "metrics": checkpoint.metrics,
    }


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
    # Names of metrics that no text can hold were logged by earlier versions.
    data = text.encode("utf-8", "backslashreplace")
    files.write_whole(path, data, path.with_name(f".{path.name}.new"))
