"""What `casckpt.xgboost` is made of: boosters as leaves, and callbacks that know the whole run."""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from casckpt.adapters import missing_extra, xgboost_pieces
from casckpt.checkpoint.opaque import OpaqueHandler
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.checkpoint.tree_paths import join
from casckpt.logs import logger

try:
    import xgboost
except ModuleNotFoundError as exc:
    raise missing_extra("xgboost") from exc

if TYPE_CHECKING:
    from casckpt.checkpoint.leaves import RestoreOptions, Walker

Log = dict[str, dict[str, list[float]]]
"""Data set to metric to its value after each round, as xgboost keeps it."""

_ALIASES: Final = (
    ("eta", "learning_rate"),
    ("gamma", "min_split_loss"),
    ("lambda", "reg_lambda"),
    ("alpha", "reg_alpha"),
)
OTHER_NAME: Final = {one: other for pair in _ALIASES for one, other in (pair, pair[::-1])}
"""The other name of parameters of xgboost that have two."""

_STOP_CHECK_S: Final = 0.2
_WHOLE: Final = "ubj"


class XgboostHandler(OpaqueHandler):
    """Boosters in state trees: xgboost's own UBJSON, which is byte for byte the same each time.

    A model holds no parameters of training, so xgboost's configuration stands beside it.
    """

    library = "xgboost"
    noun = "a booster"

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of a booster; None for other values of the library."""
        if not isinstance(value, xgboost.Booster):
            return None
        parts = bytes(value.save_raw("ubj")), value.save_config().encode()
        nodes = [walker.walk(part, join(path, place)) for place, part in enumerate(parts)]
        return {"x": ["xgboost", "booster"], "a": _WHOLE, "v": nodes}

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return the booster of its bytes, or of pieces, as older stores have it."""
        if kind != "booster" or not all(isinstance(piece, bytes) for piece in children):
            raise malformed(f"a value of xgboost of the unknown kind {kind[:40]!r}")
        try:
            if attributes != _WHOLE:
                return _loaded(xgboost_pieces.join(children))
            model, *config = children  # older stores have no configuration
            booster = _loaded(model)
        except (ValueError, xgboost.core.XGBoostError) as exc:
            raise malformed(f"a booster that xgboost refuses: {str(exc)[:200]}") from exc
        try:
            for text in config:
                _configure(booster, text.decode())
        except (ValueError, TypeError, KeyError, xgboost.core.XGBoostError) as exc:
            logger.warning(
                "a booster is restored without its parameters: %s",
                str(exc).partition("\n")[0][:200],
            )
            return _loaded(model)  # the other one may have taken a part of them
        return booster


HANDLER = XgboostHandler()


def without_config(booster: xgboost.Booster) -> xgboost.Booster:
    """Return the model alone, as from a model file."""
    return _loaded(booster.save_raw("ubj"))


def _configure(booster: xgboost.Booster, text: str) -> None:
    """Give a booster its parameters, or raise."""
    saved, own = (json.loads(config)["version"] for config in (text, booster.save_config()))
    if saved != own:
        # load_config would return as if it had taken them.
        raise ValueError(f"they are of xgboost {saved}, this is {own}")
    booster.load_config(text)
    booster.save_config()  # looks for the device, which may not be there


def _loaded(model: bytes | bytearray) -> xgboost.Booster:
    return xgboost.Booster(model_file=bytearray(model))


def seed_at(seed: int, rounds: int) -> int:
    """Return the seed of the segment that begins after `rounds`; the first has the seed itself."""
    if rounds == 0:
        return seed
    digest = hashlib.sha256(f"casckpt segment {seed} {rounds}".encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1  # xgboost's seeds are signed


def cuts_stay(params: Mapping[str, Any]) -> bool:
    """Say whether the first round on a matrix decides the bins of all that follow on it.

    `approx` cuts features where the first round's hessians say, which are zero for rows that were
    not sampled, and the matrix keeps the cuts as long as the process lives.
    """
    updater = str(params.get("updater", ""))
    return params.get("tree_method") == "approx" or "grow_histmaker" in updater


def cut_again(params: Mapping[str, Any], dtrain: Any, obj: Any, done: int) -> None:
    """Give a matrix the cuts it had in the process that trained the first round.

    Args:
        params: of the first segment.
        dtrain: training data; whatever was trained on it before is forgotten.
        obj: as in xgboost.
        done: rounds that are trained; with 0 the first one is still to come.
    """
    # Another number of bins makes the matrix drop what it keeps.
    bins = 3 if int(params.get("max_bin", 256)) == 2 else 2
    xgboost.train({**params, "max_bin": bins}, dtrain, 1, obj=obj)
    if done:
        xgboost.train(dict(params), dtrain, 1, obj=obj)


class Recorder(xgboost.callback.TrainingCallback):
    """Puts the values of each round behind those of the rounds before."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Take the newest value of every metric."""
        for data, metrics in evals_log.items():
            for metric, values in metrics.items():
                self.log.setdefault(data, {}).setdefault(metric, []).append(values[-1])
        return False


class Shifted(xgboost.callback.TrainingCallback):
    """A callback of the caller's, which sees one training and not its segments."""

    def __init__(self, inner: Any, done: int, log: Log, is_first: bool) -> None:
        super().__init__()
        self.inner = inner
        self._done = done
        self._log = log
        self._is_first = is_first

    def before_training(self, model: Any) -> Any:
        """Pass on the beginning of a session."""
        return self.inner.before_training(model) if self._is_first else model

    def before_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Pass on with the round counted from the first of all."""
        return bool(self.inner.before_iteration(model, epoch + self._done, self._log))

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Pass on with the round counted from the first of all, and all values."""
        return bool(self.inner.after_iteration(model, epoch + self._done, self._log))


class Tuned(xgboost.callback.TrainingCallback):
    """Notes the parameters that callbacks set, as schedules of the learning rate do.

    They live in the booster of one segment and not in the model, so the next one is given them.
    """

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        self.params = params

    def before_training(self, model: Any) -> Any:
        """Look at what is set from now on."""
        set_param = model.set_param

        def noting(params: Any, value: Any = None) -> None:
            if isinstance(params, str):
                pairs = [(params, value)]
            else:
                pairs = list(params.items() if isinstance(params, dict) else params)
            for name, one in pairs:
                self.params.pop(OTHER_NAME.get(name, ""), None)
                self.params[name] = one
            set_param(pairs)

        model.set_param = noting
        return model

    def after_training(self, model: Any) -> Any:
        """Stop looking."""
        del model.set_param
        return model


class Watch(xgboost.callback.TrainingCallback):
    """Calls a function after rounds, a few times a second at most."""

    def __init__(self, call: Callable[[int], None], done: int) -> None:
        super().__init__()
        self._call = call
        self._done = done
        self._next_s = 0.0

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Call, if it is time, with the rounds that are done."""
        if time.monotonic() >= self._next_s:
            self._call(self._done + epoch + 1)
            self._next_s = time.monotonic() + _STOP_CHECK_S
        return False


class Stopping:
    """Early stopping that survives a resume: xgboost's own callback, with its state put back.

    Args:
        callback: as the caller configured it.
        state: what `state` gave in another session; None at the beginning.
    """

    _FIELDS = ("stopping_history", "best_scores", "current_rounds", "maximize")

    def __init__(self, callback: xgboost.callback.EarlyStopping, state: Any) -> None:
        self._callback = callback
        self.state: dict[str, Any] | None = state

    @property
    def is_over(self) -> bool:
        """Whether patience has run out, by what the caller grants now."""
        return self.state is not None and self.state["current_rounds"] >= self._callback.rounds

    def segment(self) -> xgboost.callback.EarlyStopping:
        """Return the callback for the next segment, which ends with the last model, not the best.

        After the segment `take` reads its state.
        """
        callback = copy.copy(self._callback)
        callback.save_best = False
        callback.stopping_history, callback.best_scores, callback.current_rounds = {}, {}, 0
        for name, value in copy.deepcopy(self.state or {}).items():
            setattr(callback, name, value)
        return callback

    def take(self, callback: xgboost.callback.EarlyStopping) -> None:
        """Keep the state of a segment's callback."""
        self.state = {name: copy.deepcopy(getattr(callback, name)) for name in self._FIELDS}

    def finish(self, booster: xgboost.Booster) -> xgboost.Booster:
        """Return what the caller gets: the best rounds only, with `save_best`."""
        result: xgboost.Booster = self._callback.after_training(booster)
        return result


def early_stopping(
    callbacks: Sequence[Any], rounds: int | None, maximize: bool | None, state: Any
) -> tuple[list[Any], Stopping | None]:
    """Return the caller's other callbacks, and early stopping if there is any."""
    found = [one for one in callbacks if isinstance(one, xgboost.callback.EarlyStopping)]
    others = [one for one in callbacks if one not in found]
    if rounds:
        found.append(xgboost.callback.EarlyStopping(rounds=rounds, maximize=maximize))
    if len(found) > 1:
        raise ValueError("early stopping is asked for more than once")
    return others, Stopping(found[0], state) if found else None
