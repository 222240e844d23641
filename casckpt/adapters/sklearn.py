"""scikit-learn: estimators that learn in rounds, with a checkpoint every few of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from casckpt.adapters.sklearn_objects import HANDLER as HANDLER
from casckpt.errors import BadRequest
from casckpt.training import randomness
from casckpt.training.guards import say_new_parameters
from casckpt.training.loops.rounds import check_counts

if TYPE_CHECKING:
    from casckpt.training.run import Run

Estimator = TypeVar("Estimator")

_PART: Final = "rounds"


def fit(
    run: Run,
    est: Estimator,
    X: Any,
    y: Any = None,
    *,
    rounds: int,
    every: int = 10,
    classes: Any = None,
) -> Estimator:
    """Fit an estimator in rounds, and save it every few; the same call goes on after a kill.

    A round is one more tree or stage where the estimator has `warm_start` and `n_estimators`
    (forests, gradient boosting, bagging), else one pass over the data by `partial_fit`
    (`SGDClassifier`, `MLPClassifier` and the like), else one more iteration where it has
    `warm_start` and `max_iter` (histogram gradient boosting). A kill loses at most `every` rounds,
    and the result is that of a training nobody killed, random states included. Called again when
    it is done, it returns the stored estimator.

    A new run begins afresh, as `est.fit` does, also with an estimator that was fitted before. Only
    one that was made with `warm_start=True` goes on from what it has.

    Args:
        run: where to save; the step of a checkpoint is its rounds.
        est: the estimator; it is the one that is fitted and returned. Its `warm_start` stays what
            it was.
        X: training data, as `est.fit` takes it.
        y: targets, as `est.fit` takes them.
        rounds: in all, over all sessions. A larger number goes on.
        every: rounds between two checkpoints, fixed by the first call.
        classes: for classifiers with `partial_fit`: all classes; None for those in y.

    Raises:
        BadRequest: the estimator cannot learn in rounds, or the run holds something else.
        BadLeaf: an attribute of the estimator cannot be stored.
        RunBusy: another live process trains the run.
        Stopped: somebody asked for it.
    """
    check_counts(rounds=rounds, every=every)
    kind = _kind(est)
    checkpoint, extra = run._position()
    done, segment = 0, every
    if checkpoint is not None:
        state = run.store.restore(checkpoint)
        if not isinstance(state, dict) or not {"estimator", "rounds"} <= state.keys():
            raise BadRequest(
                f"{checkpoint.ref} holds no estimator",
                "the run was used for something else",
                "give each part a run of its own: run.child('forest')",
            )
        stored, done, segment = state["estimator"], state["rounds"], state["segment"]
        _take(est, stored)  # its parameters stay the caller's
        say_new_parameters(run.name, done, _params(stored, kind), _params(est, kind))
        _count(est, kind, done)
        # An estimator without a random_state draws from numpy's own generator.
        randomness.restore(extra.streams)
    with run._watching():
        while done < rounds:
            run._alone("sklearn")
            run._begin(None)
            if done == 0:
                _begin_afresh(est)
            target = min(done - done % segment + segment, rounds)
            _learn(est, kind, X, y, done, target, classes)
            done = target
            run.save({"estimator": est, "rounds": done, "segment": segment}, done)
            run.note_progress(_PART, done, rounds)
            run.check_stop()
    run._part_done = True
    return est


def _kind(est: Any) -> str:
    """Return the parameter that counts rounds, or "partial_fit"."""
    params = est.get_params(deep=False) if callable(getattr(est, "get_params", None)) else {}
    if "warm_start" in params and "n_estimators" in params:
        return "n_estimators"
    if callable(getattr(est, "partial_fit", None)):
        return "partial_fit"
    if "warm_start" in params and "max_iter" in params:
        return "max_iter"
    raise BadRequest(
        f"{type(est).__name__} cannot learn in rounds",
        "it has neither partial_fit nor warm_start",
        "fit it as it is, and save it: run.save({'model': est})",
    )


def _params(est: Any, kind: str) -> dict[str, Any]:
    """Return the plain parameters of an estimator, but for the one that counts rounds."""
    return {
        name: value
        for name, value in est.get_params().items()
        if name != kind and isinstance(value, bool | int | float | str | None)
    }


def _begin_afresh(est: Any) -> None:
    """Let an estimator forget what it was fitted to, unless it was made to go on from that."""
    from sklearn.base import clone

    params = est.get_params(deep=False)
    is_fitted = any(name.endswith("_") and not name.startswith("__") for name in vars(est))
    if params.get("warm_start") or not is_fitted:
        return
    # Private attributes hold some of it too, optimizers for example, and only a clone tells them
    # from what belongs to the unfitted estimator.
    fresh = vars(clone(est))
    vars(est).clear()
    vars(est).update(fresh)
    for name, value in params.items():
        setattr(est, name, value)  # the same objects: a clone has generators of its own


def _learn(est: Any, kind: str, data: Any, target: Any, done: int, to: int, classes: Any) -> None:
    if kind != "partial_fit":
        # For this call only: it is the caller's word on what `fit` does, the next one of `fit` too.
        own = est.get_params(deep=False)["warm_start"]
        est.set_params(warm_start=True, **{kind: to})
        try:
            est.fit(data, target)
        finally:
            est.set_params(warm_start=own)
        return
    for index in range(done, to):
        if target is None:
            est.partial_fit(data)
        elif index == 0 and _is_classifier(est):
            est.partial_fit(data, target, classes=_classes(target) if classes is None else classes)
        else:
            est.partial_fit(data, target)


def _count(est: Any, kind: str, rounds: int) -> None:
    """Set the parameter that counts rounds, by which bagging also divides when it predicts."""
    if kind != "partial_fit":
        est.set_params(**{kind: rounds})


def _is_classifier(est: Any) -> bool:
    from sklearn.base import is_classifier

    return bool(is_classifier(est))


def _classes(target: Any) -> Any:
    from sklearn.utils.multiclass import unique_labels

    return unique_labels(target)


def _take(est: Any, stored: Any) -> None:
    """Let the caller's estimator be the stored one; parameters stay as the caller set them."""
    if type(est) is not type(stored):
        raise BadRequest(
            f"the run holds a {type(stored).__name__}",
            f"it is asked to fit a {type(est).__name__}",
            "use another run",
        )
    own = est.get_params(deep=False)
    vars(est).update(vars(stored))
    for name, value in own.items():
        # A generator among the parameters has moved on since.
        if not hasattr(value, "get_state") and not hasattr(value, "bit_generator"):
            setattr(est, name, value)
