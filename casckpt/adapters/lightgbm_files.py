"""Boosters of LightGBM in files of others: pickles, and LightGBM's own text."""

from __future__ import annotations

from typing import Any

from casckpt.adapters import missing_extra
from casckpt.checkpoint.exchange.boosters import ModelNode, load_tried, parts_of
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol

try:
    import lightgbm
except ModuleNotFoundError as exc:
    raise missing_extra("lightgbm") from exc


class BoosterNode(Node):
    """A pickled Booster."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Take the state: its handle is the model's text, under one of two names."""
        if type(state) is not dict:
            raise ValueError("the state of a booster is no dict")
        self._state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return the booster."""
        text = resolve(self._state.get("_handle", self._state.get("handle")))
        best = resolve(self._state.get("best_iteration", -1))
        if type(text) is not str or type(best) is not int:
            raise ValueError("a booster without its model")
        self.logical_bytes = len(text)
        booster = load(text.encode(), self._path)
        booster.best_iteration = best
        return booster


def symbol(module: str, name: str, path: str) -> Symbol | None:
    """Return what a name of LightGBM in a pickle means."""
    if (module, name) == ("lightgbm.basic", "Booster"):
        return Symbol("lightgbm.Booster", lambda args: BoosterNode(path))
    if module == "lightgbm.sklearn" and name.startswith("LGBM"):
        return Symbol(f"lightgbm.{name}", lambda args: ModelNode())
    return None


def load(data: bytes, path: str) -> lightgbm.Booster:
    """Return the booster in LightGBM's text.

    Raises:
        Corrupt: LightGBM cannot read it.
    """
    return load_tried(__name__, data, path, _load, lightgbm.basic.LightGBMError)


def trial(data: bytes) -> None:
    """Load a booster and use it once, in a process that may die of it."""
    import numpy as np

    booster = _load(data)
    booster.model_to_string(num_iteration=-1)
    for fill in (0.0, 1e30, -1e30):
        booster.predict(np.full((1, booster.num_feature()), fill))


def raw(value: Any) -> bytes | None:
    """Return None: its text is no format that an export has."""
    return None


def run_state(value: Any, every: int | None) -> tuple[Any, int] | None:
    """Return what `casckpt.lightgbm.train` goes on from."""
    found = parts_of(value, lightgbm.Booster)
    if found is None:
        return None
    rounds = int(found["booster"].current_iteration())
    state = {**found, "rounds": rounds, "segment": every or 100, "history": {}, "stopping": None}
    return state, rounds


def _load(data: bytes) -> lightgbm.Booster:
    return lightgbm.Booster(model_str=data.decode())
