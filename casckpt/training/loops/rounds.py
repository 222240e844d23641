"""What adapters of boosting libraries share: the checkpoint of a booster, and its log by rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final

from casckpt.errors import BadRequest
from casckpt.training.guards import flat_config, say_new_parameters

if TYPE_CHECKING:
    from casckpt.training.run import Run

History = Mapping[str, Mapping[str, list[float]]]
"""Data to metric to one value per round."""

_PARTS: Final = frozenset({"booster", "rounds", "segment"})


def check_counts(**counts: Any) -> None:
    """Raise BadRequest unless every count is a whole number from 1 on."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise BadRequest(f"{name}={count!r:.60}", "it is a whole number from 1 on")


def restored(run: Run, framework: str) -> dict[str, Any] | None:
    """Return what a run has saved of a booster's training, None at its beginning.

    Raises:
        BadRequest: the run holds something else.
        Corrupt: it is damaged.
    """
    checkpoint, _ = run._position()
    if checkpoint is None:
        return None
    state = run.store.restore(checkpoint)
    if not isinstance(state, dict) or not state.keys() >= _PARTS:
        raise BadRequest(
            f"{checkpoint.ref} holds no training of {framework}",
            "the run was used for something else",
            f"give each part a run of its own: run.child('{framework}')",
        )
    return state


def settle_params(run: Run, state: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as a checkpoint keeps them; warn where those of its rounds were others."""
    given = flat_config(dict(params))
    if state["rounds"] and "params" in state:  # older checkpoints have none
        say_new_parameters(run.name, state["rounds"], state["params"], given)
    return given


def log(run: Run, history: History, before: int, done: int) -> None:
    """Log the rounds from `before` to `done`, each as a step of its own."""
    for data, metrics in history.items():
        for metric, values in metrics.items():
            for at in range(before, min(done, len(values))):
                run.log({f"{data}-{metric}": values[at]}, step=at + 1)


def last(history: History) -> dict[str, float]:
    """Return the metrics of the last round, as a checkpoint has them: NaN where there is none."""
    return {
        f"{data}-{metric}": values[-1] if values else math.nan
        for data, metrics in history.items()
        for metric, values in metrics.items()
    }
