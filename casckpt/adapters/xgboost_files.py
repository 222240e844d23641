"""Boosters of xgboost in files of others: pickles, and xgboost's own JSON and UBJSON."""

from __future__ import annotations

from typing import Any

from casckpt.adapters import missing_extra
from casckpt.checkpoint.exchange.foreign import try_in_child
from casckpt.checkpoint.exchange.refusals import damaged
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


class ModelNode(Node):
    """A model of xgboost's interface for scikit-learn: its booster and plain parameters."""

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise ValueError("the state of a model is no dict")
        self._state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return {"booster", "params"}."""
        if "_Booster" not in self._state:
            raise ValueError("a model that was never fitted")
        params = {
            name: resolve(value)
            for name, value in self._state.items()
            if isinstance(name, str) and name != "_Booster"
            if isinstance(value, int | float | str | bool | dict | list | tuple)
        }
        return {"booster": resolve(self._state["_Booster"]), "params": params}


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
    try_in_child(__name__, data, path)
    try:
        return _load(data)
    except (ValueError, TypeError, xgboost.core.XGBoostError) as exc:
        raise damaged(path, f"xgboost refuses it: {str(exc)[:200]!a}") from exc


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
    found = value if type(value) is dict else {"booster": value}
    booster = found.get("booster")
    if not isinstance(booster, xgboost.Booster) or not set(found) <= {"booster", "params"}:
        return None
    rounds = int(booster.num_boosted_rounds())
    segment = every or 100
    marked: Any = booster
    marked.casckpt_every = segment
    return {**found, "rounds": rounds, "segment": segment, "history": {}, "tuned": {}}, rounds


def _load(data: bytes) -> xgboost.Booster:
    if _SERIALIZED not in data[:32]:
        return xgboost.Booster(model_file=bytearray(data))
    booster = xgboost.Booster()
    booster.__setstate__({"handle": bytearray(data)})
    return booster
