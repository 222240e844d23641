"""xgboost: training that goes on exactly, also with sampling and early stopping.

A sampled booster cannot simply be continued: its random generator is not in the model, and a new
call of `xgboost.train` begins at round 0. So training is cut into segments whose seed is a function
of the caller's seed and of where the segment begins. A segment that was cut off is done again from
its beginning, and comes out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from casckpt.adapters import missing_extra
from casckpt.adapters.xgboost_parts import (
    HANDLER as HANDLER,
)
from casckpt.adapters.xgboost_parts import (
    OTHER_NAME,
    Log,
    Recorder,
    Shifted,
    Tuned,
    Watch,
    cut_again,
    cuts_stay,
    early_stopping,
    seed_at,
    without_config,
)
from casckpt.training import randomness
from casckpt.training.loops import rounds as rounds_of

try:
    import xgboost
except ModuleNotFoundError as exc:
    raise missing_extra("xgboost") from exc

if TYPE_CHECKING:
    from casckpt.training.run import Run

_PART = "rounds"


def train(
    run: Run,
    params: Mapping[str, Any],
    dtrain: xgboost.DMatrix,
    num_boost_round: int = 10,
    *,
    every: int = 100,
    exact: bool = True,
    evals: Sequence[tuple[xgboost.DMatrix, str]] = (),
    obj: Callable[..., Any] | None = None,
    maximize: bool | None = None,
    early_stopping_rounds: int | None = None,
    evals_result: dict[str, Any] | None = None,
    verbose_eval: bool | int = True,
    custom_metric: Callable[..., Any] | None = None,
    callbacks: Sequence[xgboost.callback.TrainingCallback] | None = None,
) -> xgboost.Booster:
    """Train a booster, with a checkpoint every so many rounds; the same call goes on after a kill.

    A kill at any moment loses at most the rounds of one segment. The result of interrupted and
    uninterrupted training is byte for byte the same; where nothing is sampled it is also that of
    `xgboost.train`. Early stopping, the values of `evals` and the state of callbacks that have
    `state_dict()` and `load_state_dict()` go on as well. Called again when it is done, it returns
    the stored booster.

    Args:
        run: where to save; the step of a checkpoint is its rounds.
        params: of xgboost. `seed` is where the seeds of the segments come from. Others than those
            of the rounds that are there are told in a warning, and count for further rounds.
        dtrain: training data.
        num_boost_round: rounds in all, over all sessions. A larger one goes on.
        every: rounds per segment, fixed by the first call; later only how many rounds are
            between two checkpoints at least, rounded up to whole segments.
        exact: False seeds no segments: with sampling, an interrupted training is then not the
            same as an uninterrupted one.
        evals: as in xgboost; their values are the metrics of checkpoints, as "data-metric".
        obj: as in xgboost.
        maximize: as in xgboost.
        early_stopping_rounds: as in xgboost; a larger one goes on.
        evals_result: filled with the values of all rounds of all sessions.
        verbose_eval: as in xgboost.
        custom_metric: as in xgboost.
        callbacks: as in xgboost; they see one training and not its segments.

    Returns:
        The booster, as read back from its checkpoint.

    Raises:
        BadRequest: the run holds something else, or a number is below 1.
        RunBusy: another live process trains the run.
        Stopped: somebody asked for it; the segment at hand is done again.
    """
    rounds_of.check_counts(num_boost_round=num_boost_round, every=every)
    state = rounds_of.restored(run, "xgboost") or {
        "rounds": 0,
        "segment": every,
        "history": {},
        "tuned": {},
    }
    settled = rounds_of.settle_params(run, state, params)
    # Objectives and callbacks may draw from the generators of the process.
    randomness.restore(run._position()[1].streams)
    history: Log = state["history"]
    tuned: dict[str, Any] = state["tuned"]
    segment = state["segment"]
    done: int = state["rounds"]
    own, stopping = early_stopping(
        callbacks or (), early_stopping_rounds, maximize, state.get("stopping")
    )
    if verbose_eval and evals:
        own.append(xgboost.callback.EvaluationMonitor(period=int(verbose_eval)))
    for callback, saved in zip(own, state.get("callbacks", ()), strict=False):
        if saved is not None:
            callback.load_state_dict(saved)
    raw = None if done == 0 else bytes(state["booster"].save_raw("ubj"))
    is_first = True

    def watch(rounds: int) -> None:
        run.note_progress(_PART, rounds, num_boost_round)
        run.check_stop()

    is_left = num_boost_round > state.get("cut_of", 0)  # a callback may have stopped it before
    with run._watching():
        while (
            is_left and done < num_boost_round and not (stopping is not None and stopping.is_over)
        ):
            if is_first:
                run._alone("xgboost")
                run._begin(None)
                if cuts_stay(params):
                    cut_again(_segment_params(params, {}, 0, exact), dtrain, obj, done)
            length = min(segment - done % segment, num_boost_round - done)
            seeded = _segment_params(params, tuned, done, exact)
            shifted = [Shifted(one, done, history, is_first) for one in own]
            inner = None if stopping is None else stopping.segment()
            booster = xgboost.train(
                seeded,
                dtrain,
                length,
                evals=evals,
                obj=obj,
                verbose_eval=False,
                xgb_model=None if raw is None else bytearray(raw),
                callbacks=[
                    Tuned(tuned), Recorder(history), *shifted, *([inner] if inner else []),
                    Watch(watch, done),
                ],
                custom_metric=custom_metric,
            )  # fmt: skip
            if stopping is not None and inner is not None:
                stopping.take(inner)
            before, done, is_first = done, booster.num_boosted_rounds(), False
            raw = bytes(booster.save_raw("ubj"))
            rounds_of.log(run, history, before, done)
            was_cut = done - before < length  # a callback has stopped it
            by_metric = stopping is not None and stopping.is_over
            over = was_cut or done >= num_boost_round or by_metric
            if over or done // every > before // every:
                run.save(
                    {
                        "booster": booster,
                        "rounds": done,
                        "segment": segment,
                        "params": settled,
                        "history": history,
                        "tuned": tuned,
                        "stopping": None if stopping is None else stopping.state,
                        "callbacks": [_state_of(one) for one in own],
                        **({"cut_of": num_boost_round} if was_cut and not by_metric else {}),
                    },
                    done,
                    metrics=rounds_of.last(history),
                )
            run.note_progress(_PART, done, done if over else num_boost_round)
            if was_cut:
                break
            run.check_stop()
    run._part_done = True
    if evals_result is not None:
        evals_result.update(history)
    result = xgboost.Booster(dict(params), model_file=bytearray(raw or b""))
    for one in [] if is_first else own:
        result = one.after_training(result)
    return result if stopping is None else stopping.finish(result)


class Callback(xgboost.callback.TrainingCallback):
    """Saves boosters for those who call `xgboost.train` themselves.

        booster = xgboost.train(
            params, data, total - casckpt.xgboost.rounds(run), xgb_model=casckpt.xgboost.model(run),
            callbacks=[casckpt.xgboost.Callback(run, every=100)],
        )

    What it cannot promise: that resumed training equals uninterrupted one. With sampling, column
    sampling or dart, xgboost's generator begins anew; early stopping counts from the resume on;
    callbacks count rounds from 0 again. `casckpt.xgboost.train` does.

    Args:
        run: where to save; the step of a checkpoint is its rounds.
        every: rounds between two checkpoints.
    """

    def __init__(self, run: Run, *, every: int = 100) -> None:
        super().__init__()
        self._run = run
        self._every = every
        self._history: Log = (rounds_of.restored(run, "xgboost") or {"history": {}})["history"]
        self._recorder = Recorder(self._history)
        self._saved = 0

    def before_training(self, model: Any) -> Any:
        """Take the lock of the run."""
        self._run._begin(None)
        self._saved = model.num_boosted_rounds()
        return model

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        """Save when it is time; after a request to stop save and leave."""
        try:
            self._recorder.after_iteration(model, epoch, evals_log)
            rounds = model.num_boosted_rounds()
            if rounds % self._every == 0 or self._run.stopping:
                self._save(model, rounds)
            self._run.note_progress(_PART, rounds, None)
            self._run.check_stop()
        except BaseException:
            self._run._unwatch()  # the training is left
            raise
        return False

    def after_training(self, model: Any) -> Any:
        """Save the last round."""
        try:
            self._save(model, model.num_boosted_rounds())
            self._run._part_done = True
        finally:
            self._run._unwatch()
        return model

    def _save(self, model: Any, rounds: int) -> None:
        if rounds > self._saved:
            state = {
                "booster": model,
                "rounds": rounds,
                "segment": self._every,
                "history": self._history,
                "tuned": {},
            }
            self._run.save(state, rounds, metrics=rounds_of.last(self._history))
            self._saved = rounds


def model(run: Run) -> xgboost.Booster | None:
    """Return the booster that a run goes on from, for `xgb_model=`; None at the beginning."""
    state = rounds_of.restored(run, "xgboost")
    # With its parameters, xgboost would not seed its generator anew.
    return None if state is None else without_config(state["booster"])


def rounds(run: Run) -> int:
    """Return how many rounds a run has."""
    state = rounds_of.restored(run, "xgboost")
    return 0 if state is None else int(state["rounds"])


def _segment_params(
    params: Mapping[str, Any], tuned: Mapping[str, Any], done: int, exact: bool
) -> dict[str, Any]:
    """Return the parameters of the segment that begins after `done` rounds."""
    # Under either of its names, or xgboost would have to choose.
    hidden = {OTHER_NAME.get(name) for name in tuned}
    result = {**{name: value for name, value in params.items() if name not in hidden}, **tuned}
    if exact:
        seed = result.pop("random_state", None)
        result["seed"] = seed_at(int(result.get("seed") or seed or 0), done)
    return result


def _state_of(callback: Any) -> Any:
    has_both = callable(getattr(callback, "state_dict", None)) and callable(
        getattr(callback, "load_state_dict", None)
    )
    return callback.state_dict() if has_both else None
