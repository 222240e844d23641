"""A booster that grows: ten saves on the way to 300 rounds, as bytes in xgboost's own UBJSON."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVERY = 30
TOTAL_ROUNDS = 300
PARAMETERS = {"objective": "reg:squarederror", "max_depth": 6, "eta": 0.05, "nthread": 1, "seed": 0}


def missing() -> str | None:
    """Return why this input cannot be made here, or None."""
    for module in ("xgboost", "sklearn"):
        if importlib.util.find_spec(module) is None:
            return f"the Python package {module} is not installed"
    return None


def states(cache: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (rounds, state) while a booster for the handwritten digits of scikit-learn grows.

    The target is the digit as a number, which keeps one tree a round and all trees busy.
    """
    folder = cache / "booster"
    paths = [folder / f"round-{n:04d}.ubj" for n in range(EVERY, TOTAL_ROUNDS + 1, EVERY)]
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        _train(paths)
    for path in paths:
        rounds = int(path.stem.split("-")[1])
        yield rounds, {"model": path.read_bytes(), "rounds": rounds}


def _train(paths: list[Path]) -> None:
    import xgboost
    from sklearn.datasets import load_digits

    features, target = load_digits(return_X_y=True)
    data = xgboost.DMatrix(features, label=target)
    booster = None
    for path in paths:
        booster = xgboost.train(PARAMETERS, data, EVERY, xgb_model=booster)
        path.write_bytes(booster.save_raw("ubj"))
