"""What `casckpt.lightgbm` is made of: boosters as leaves, and callbacks that know the whole run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from casckpt.adapters import missing_extra
from casckpt.checkpoint.opaque import OpaqueHandler
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.checkpoint.tree_paths import join

try:
    import lightgbm
except ModuleNotFoundError as exc:
    raise missing_extra("lightgbm") from exc

if TYPE_CHECKING:
    from casckpt.checkpoint.leaves import RestoreOptions, Walker

Log = dict[str, dict[str, list[float]]]
"""Data set to metric to its value after each round."""

_STOP_CHECK_S: Final = 0.2


class LightgbmHandler(OpaqueHandler):
    """Boosters in state trees: LightGBM's own text, all trees."""

    library = "lightgbm"
    noun = "a booster"

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of a booster; None for other values of the library."""
        if not isinstance(value, lightgbm.Booster):
            return None
        text = value.model_to_string(num_iteration=-1).encode()
        node = walker.walk(text, join(path, 0))
        return {"x": ["lightgbm", "booster"], "a": int(value.best_iteration), "v": [node]}

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return the booster of its pieces."""
        if kind != "booster" or not all(isinstance(piece, bytes) for piece in children):
            raise malformed(f"a value of lightgbm of the unknown kind {kind[:40]!r}")
        try:
            booster = lightgbm.Booster(model_str=b"".join(children).decode())
        except (ValueError, lightgbm.basic.LightGBMError) as exc:
            raise malformed(f"a booster that lightgbm refuses: {str(exc)[:200]}") from exc
        booster.best_iteration = int(attributes)
        return booster


HANDLER = LightgbmHandler()


Cut = tuple[int, list[list[Any]]]
"""What training was ended for: the best round, from 0 on, and [data, metric, value] of it."""


def boosts_by(params: Mapping[str, Any], *kinds: str) -> bool:
    """Return whether parameters ask for a kind of boosting, under any name that LightGBM has."""
    return any(params.get(name) in kinds for name in lightgbm.basic._ConfigAliases.get("boosting"))


class End:
    """Notes how a callback of the caller's has ended a segment.

    From the number of rounds it is not to be seen if that was in the last round.

    Attributes:
        cut: what it said; None if none has ended it.
    """

    def __init__(self) -> None:
        self.cut: Cut | None = None

    def noted(self, callback: Any) -> Any:
        """Return a callback that notes when another one ends the training."""
        if getattr(callback, "before_iteration", False):
            return callback  # from there LightGBM lets the exception through to the caller

        def call(env: Any) -> None:
            try:
                callback(env)
            except lightgbm.callback.EarlyStopException as exc:
                results = [[one[0], one[1], float(one[2])] for one in exc.best_score]
                self.cut = int(exc.best_iteration), results
                raise

        # LightGBM gives a place of its own to those that have none.
        if "order" in getattr(callback, "__dict__", {}):
            call.order = callback.order  # type: ignore[attr-defined]
        return call


class Watch:
    """Keeps the values of each round, and calls a function a few times a second."""

    def __init__(self, log: Log, call: Callable[[int], None]) -> None:
        # Of the instance, or LightGBM gives it another. Before all others, which may end the round.
        self.order = -math.inf
        self._log = log
        self._call = call
        self._next_s = 0.0

    def __call__(self, env: Any) -> None:
        """Take the values of a round."""
        for result in env.evaluation_result_list or []:
            data, metric, value = result[:3]
            self._log.setdefault(data, {}).setdefault(metric, []).append(float(value))
        if time.monotonic() >= self._next_s:
            self._call(env.iteration + 1)
            self._next_s = time.monotonic() + _STOP_CHECK_S


class Stopping:
    """Early stopping whose state can be kept: LightGBM's own begins anew with every call.

    Args:
        rounds: without an improvement, of any metric on any validation set.
        first_metric_only: look at the first metric only.
        min_delta: what counts as an improvement.
        state: what `state` was in another session.
    """

    def __init__(self, rounds: int, first_metric_only: bool, min_delta: float, state: Any) -> None:
        self.order = 30  # of LightGBM's own, after those that log and record
        self.rounds = rounds
        self._first_only = first_metric_only
        self._min_delta = min_delta
        self.state: dict[str, Any] = state or {"last": -1, "best": {}}

    @property
    def is_over(self) -> bool:
        """Whether patience has run out, by what the caller grants now."""
        return self.stopped_by is not None

    @property
    def stopped_by(self) -> list[Any] | None:
        """Return [value, round, values of the round] of what has not improved for too long."""
        for best in self._watched().values():
            if self.state["last"] - best[1] >= self.rounds:
                found: list[Any] = best
                return found
        return None

    @property
    def best(self) -> list[Any] | None:
        """Return the same of what is looked at first, None before the first round."""
        return self.stopped_by or next(iter(self._watched().values()), None)

    @property
    def cut(self) -> Cut | None:
        """Return what the training is ended for, now or at its last round."""
        best = self.best
        return None if best is None else (best[1], [one[:3] for one in best[2]])

    def __call__(self, env: Any) -> None:
        """Look at a round.

        Raises:
            EarlyStopException: patience has run out.
        """
        train = env.model._train_data_name
        results = [one for one in env.evaluation_result_list or [] if one[0] != train]
        if not results:
            raise ValueError("early stopping needs a validation set and a metric")
        plain = [[one[0], one[1], float(one[2]), bool(one[3])] for one in results]
        for data, metric, value, maximize in plain:
            best = self.state["best"].get((data, metric))
            sign = 1 if maximize else -1
            if best is None or sign * value > sign * best[0] + self._min_delta:
                self.state["best"][(data, metric)] = [value, env.iteration, plain]
        self.state["last"] = env.iteration
        if self.is_over:
            best = self.best
            assert best is not None
            raise lightgbm.callback.EarlyStopException(best[1], results)

    def _watched(self) -> dict[tuple[str, str], list[Any]]:
        best: dict[tuple[str, str], list[Any]] = self.state["best"]
        if not self._first_only or not best:
            return best
        first = next(iter(best))[1]
        return {key: value for key, value in best.items() if key[1] == first}


@dataclass(frozen=True)
class Asked:
    """What parameters ask of the whole training, which LightGBM would do per segment.

    Attributes:
        params: the others.
        rounds: in all; None if they do not say.
        stopping_rounds: rounds without an improvement; None or 0 for no early stopping.
        first_metric_only: as in LightGBM.
        min_delta: as in LightGBM.
    """

    params: dict[str, Any]
    rounds: int | None
    stopping_rounds: int | None
    first_metric_only: bool
    min_delta: float

    @staticmethod
    def of(params: Mapping[str, Any]) -> Asked:
        """Take apart what a caller gave; names and aliases are LightGBM's."""
        rest = dict(params)

        def take(name: str) -> Any:
            # The name itself goes before its aliases, as in LightGBM.
            names = sorted(lightgbm.basic._ConfigAliases.get(name), key=lambda one: one != name)
            found = [rest.pop(one) for one in names if one in rest]
            return next((one for one in found if one is not None), None)

        rounds, stopping = take("num_iterations"), take("early_stopping_round")
        first, delta = take("first_metric_only"), take("early_stopping_min_delta")
        return Asked(rest, rounds, stopping, bool(first), float(delta or 0.0))


def over_all(callback: Any, rounds: int) -> Any:
    """Return a callback that counts from the first round where LightGBM's counts in a segment."""
    if type(callback).__name__ != "_ResetParameterCallback":
        return callback

    def reset(env: Any) -> None:
        whole = {"begin_iteration": 0, "end_iteration": rounds}
        # A named tuple before LightGBM 4.6.
        callback(env._replace(**whole) if hasattr(env, "_replace") else replace(env, **whole))

    reset.before_iteration, reset.order = callback.before_iteration, callback.order  # type: ignore[attr-defined]
    return reset


def early_stopping(
    callbacks: Sequence[Any],
    rounds: int | None,
    state: Any,
    *,
    first_metric_only: bool,
    min_delta: float,
    is_dart: bool,
) -> tuple[list[Any], Stopping | None]:
    """Return the caller's other callbacks, and early stopping if there is any."""
    theirs = [one for one in callbacks if type(one).__name__ == "_EarlyStoppingCallback"]
    others = [one for one in callbacks if one not in theirs]
    delta: Any = min_delta
    if theirs:
        one = theirs[0]
        rounds, first_metric_only, delta = one.stopping_rounds, one.first_metric_only, one.min_delta
    if not rounds or rounds <= 0:
        return others, None
    if is_dart:
        # Dropped trees change the ones before them: there are no best rounds to go back to.
        lightgbm.basic._log_warning("Early stopping is not available in dart mode")
        return others, None
    if isinstance(delta, list):
        raise ValueError("early stopping with a min_delta per metric cannot be resumed")
    return others, Stopping(rounds, first_metric_only, delta, state)


def final(booster: lightgbm.Booster, cut: Cut | None, history: Log) -> lightgbm.Booster:
    """Return what the caller gets: of a training that was ended its best rounds, as in LightGBM."""
    if cut is None:
        booster.best_iteration = 0
        last = [
            [data, metric, values[-1]]
            for data, metrics in history.items()
            for metric, values in metrics.items()
        ]
        return _scored(booster, last)
    rounds = cut[0] + 1
    result = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))
    result.best_iteration = rounds
    return _scored(result, cut[1])


def _scored(booster: lightgbm.Booster, results: Sequence[Sequence[Any]]) -> lightgbm.Booster:
    for data, metric, value in results:
        booster.best_score.setdefault(data, {})[metric] = value
    return booster
