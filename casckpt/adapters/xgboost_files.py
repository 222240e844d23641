"""Boosters of xgboost in files of others: pickles, and xgboost's own JSON and UBJSON."""

from __future__ import annotations

from typing import Any

from casckpt.adapters import missing_extra
from casckpt.checkpoint.exchange.boosters import ModelNode, load_tried, parts_of
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol

try:
    import xgboost
except ModuleNotFoundError as exc:
    raise missing_extra("xgboost") from exc

_SERIALIZED = b"\0\0\0\6Config"
"""In the head of what pickles hold: model and configuration together."""


class BoosterNode(Node):
    """A pickled Booster."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._handle: Any = None

    def build(self, state: Any) -> None:
        """Take the state: its `handle` is the model's bytes."""
        if type(state) is not dict or "handle" not in state:
            raise ValueError("a booster without its model")
        self._handle = state["handle"]

    def finish(self, resolve: Resolve) -> Any:
        """Return the booster."""
        raw = resolve(self._handle)
        if not isinstance(raw, bytes | bytearray):
            raise ValueError("a booster that was never trained")
        self.logical_bytes = len(raw)
        return load(bytes(raw), self._path)


def symbol(module: str, name: str, path: str) -> Symbol | None:
    """Return what a name of xgboost in a pickle means."""
    if (module, name) == ("xgboost.core", "Booster"):
        return Symbol("xgboost.Booster", lambda args: BoosterNode(path))
    if module == "xgboost.sklearn" and name.startswith("XGB"):
        return Symbol(f"xgboost.{name}", lambda args: ModelNode())
    return None


def load(data: bytes, path: str) -> xgboost.Booster:
    """Return the booster in JSON, UBJSON or the bytes of a pickled one.

    Raises:
        Corrupt: xgboost cannot read it.
    """
    return load_tried(__name__, data, path, _load, xgboost.core.XGBoostError)


def trial(data: bytes) -> None:
    """Load a booster and use it once, in a process that may die of it."""
    import numpy as np

    booster = _load(data)
    booster.save_raw("ubj")
    count = booster.num_features()
    for fill in (0.0, 1e30, -1e30):
        booster.predict(xgboost.DMatrix(np.full((1, count), fill)), validate_features=False)


def raw(value: Any) -> bytes | None:
    """Return a booster as UBJSON."""
    return bytes(value.save_raw("ubj")) if isinstance(value, xgboost.Booster) else None


def run_state(value: Any, every: int | None) -> tuple[Any, int] | None:
    """Return what `casckpt.xgboost.train` goes on from."""
    found = parts_of(value, xgboost.Booster)
    if found is None:
        return None
    booster = found["booster"]
    rounds = int(booster.num_boosted_rounds())
    segment = every or 100
    booster.casckpt_every = segment
    return {**found, "rounds": rounds, "segment": segment, "history": {}, "tuned": {}}, rounds


def _load(data: bytes) -> xgboost.Booster:
    if _SERIALIZED not in data[:32]:
        return xgboost.Booster(model_file=bytearray(data))
    booster = xgboost.Booster()
    booster.__setstate__({"handle": bytearray(data)})
    return booster
