"""LightGBM: training that goes on exactly, also with bagging and early stopping.

As with xgboost, a sampled booster cannot simply be continued, so training is cut into segments,
each with seeds of its own; one that was cut off is done again from its beginning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from casckpt.adapters import missing_extra
from casckpt.adapters.lightgbm_data import lent
from casckpt.adapters.lightgbm_parts import HANDLER as HANDLER
from casckpt.adapters.lightgbm_parts import (
    Asked,
    End,
    Log,
    Stopping,
    Watch,
    boosts_by,
    early_stopping,
    final,
    over_all,
)
from casckpt.errors import BadRequest
from casckpt.training import randomness
from casckpt.training.loops import rounds as rounds_of

try:
    import lightgbm
except ModuleNotFoundError as exc:
    raise missing_extra("lightgbm") from exc

if TYPE_CHECKING:
    from casckpt.training.run import Run

_PART: Final = "rounds"
_SEEDS: Final = ("bagging_seed", "feature_fraction_seed", "extra_seed", "drop_seed")


def train(
    run: Run,
    params: Mapping[str, Any],
    train_set: lightgbm.Dataset,
    num_boost_round: int = 100,
    *,
    every: int = 100,
    valid_sets: Sequence[lightgbm.Dataset] = (),
    valid_names: Sequence[str] | None = None,
    feval: Callable[..., Any] | None = None,
    early_stopping_rounds: int | None = None,
    evals_result: dict[str, Any] | None = None,
    callbacks: Sequence[Callable[..., Any]] = (),
) -> lightgbm.Booster:
    """Train a booster, with a checkpoint every so many rounds; the same call goes on after a kill.

    A kill loses at most the rounds of one segment; a random forest is one segment. Interrupted and
    uninterrupted training give the same booster. Early stopping and the values of the validation
    sets go on as well. Called again when it is done, it returns the stored booster.

    Args:
        run: where to save; the step of a checkpoint is its rounds.
        params: of LightGBM; rounds and early stopping in them go before the arguments, as there.
            The seeds of the segments come from `seed`.
        train_set: training data. Its raw data is kept (`free_raw_data=False`), since every
            segment begins from the predictions of the one before; its `init_score` is in the end
            what it was before, as are those of `valid_sets`.
        num_boost_round: rounds in all, over all sessions. A larger one goes on.
        every: rounds per segment, fixed by the first call; later only how many rounds are
            between two checkpoints at least, rounded up to whole segments.
        valid_sets: as in LightGBM.
        valid_names: as in LightGBM.
        feval: as in LightGBM.
        early_stopping_rounds: rounds without an improvement; a larger one goes on.
        evals_result: filled with the values of all rounds of all sessions.
        callbacks: as in LightGBM; rounds count from the first, for `reset_parameter` too. Their own
            state is not kept. One that ends the training has ended it for later sessions too.

    Returns:
        The booster; after early stopping its best rounds only, as LightGBM leaves it.

    Raises:
        BadRequest: the run holds something else, or a number is below 1.
        RunBusy: another live process trains the run.
        Stopped: somebody asked for it; the segment at hand is done again.
    """
    # As in lightgbm.train, what params say goes before the arguments, under any of its names.
    asked = Asked.of(params)
    plain, num_boost_round = asked.params, asked.rounds or num_boost_round
    rounds_of.check_counts(num_boost_round=num_boost_round, every=every)
    state = rounds_of.restored(run, "lightgbm") or {
        "rounds": 0,
        "segment": every,
        "history": {},
        "stopping": None,
    }
    settled = rounds_of.settle_params(run, state, plain)
    history: Log = state["history"]
    # Objectives, metrics and callbacks may draw from the generators of the process.
    randomness.restore(run._position()[1].streams)
    segment, done = state["segment"], int(state["rounds"])
    own, stopping = early_stopping(
        [over_all(one, num_boost_round) for one in dict.fromkeys(callbacks)],
        asked.stopping_rounds or early_stopping_rounds,
        state["stopping"],
        first_metric_only=asked.first_metric_only,
        min_delta=asked.min_delta,
        is_dart=boosts_by(params, "dart"),
    )
    booster = state.get("booster")
    is_left = num_boost_round > state.get("cut_of", 0)  # a callback may have stopped it before
    cut = None if is_left else state.get("cut")
    if boosts_by(params, "rf", "random_forest"):
        # LightGBM cannot go on with a random forest: it is one segment, and done or not.
        if done and is_left and not _is_over(done, num_boost_round, stopping):
            raise BadRequest(
                "LightGBM cannot add trees to a random forest",
                f"the run has {done} of {num_boost_round}",
                "use a new run",
            )
        segment = num_boost_round
    for data in (train_set, *valid_sets):
        data.free_raw_data = False

    def watch(rounds: int) -> None:
        run.note_progress(_PART, rounds, num_boost_round)
        run.check_stop()

    with run._watching(), lent((train_set, *valid_sets)):
        while is_left and not _is_over(done, num_boost_round, stopping):
            run._alone("lightgbm")
            run._begin(None)
            length = min(segment - done % segment, num_boost_round - done)
            end = End()
            booster = lightgbm.train(
                {**plain, **_seeds(params, done)},
                train_set,
                length,
                valid_sets=list(valid_sets) or None,
                valid_names=list(valid_names) if valid_names else None,
                feval=feval,
                init_model=booster,
                keep_training_booster=True,
                callbacks=[*map(end.noted, own), *_internal(history, stopping, watch)],
            )
            text = booster.model_to_string(num_iteration=-1)
            booster = lightgbm.Booster(model_str=text)
            before, done = done, booster.current_iteration()
            by_metric = stopping is not None and stopping.is_over
            cut, was_cut = end.cut, end.cut is not None or done - before < length
            over = was_cut or _is_over(done, num_boost_round, stopping)
            rounds_of.log(run, history, before, done)
            if over or done // every > before // every:
                saved = {
                    "booster": booster,
                    "rounds": done,
                    "segment": segment,
                    "params": settled,
                    "history": history,
                    "stopping": None if stopping is None else stopping.state,
                }
                if was_cut and not by_metric:
                    saved |= {"cut_of": num_boost_round, "cut": cut}
                # A segment that found nothing to split is saved at the step of the one before it.
                run.save(saved, done, metrics=rounds_of.last(history), replace=done == before)
            run.note_progress(_PART, done, done if over else num_boost_round)
            if was_cut:
                break
            run.check_stop()
    run._part_done = True
    if evals_result is not None:
        evals_result.update(history)
    assert booster is not None
    return final(booster, cut or (None if stopping is None else stopping.cut), history)


def _is_over(done: int, total: int, stopping: Stopping | None) -> bool:
    return done >= total or (stopping is not None and stopping.is_over)


def _internal(
    history: Log, stopping: Stopping | None, watch: Callable[[int], None]
) -> list[Callable[..., Any]]:
    """Return our own callbacks of a segment."""
    record = Watch(history, watch)
    return [record] if stopping is None else [record, stopping]


class Callback:
    """Saves boosters for those who call `lightgbm.train` themselves.

        saves = casckpt.lightgbm.Callback(run, every=100)
        booster = lightgbm.train(
            params, data, total - casckpt.lightgbm.rounds(run),
            init_model=casckpt.lightgbm.model(run), callbacks=[saves],
        )
        saves.finish(booster)

    What it cannot promise: that resumed training equals uninterrupted one. With bagging, sampled
    features or dart, LightGBM's generators begin anew, and early stopping counts from the resume
    on. `casckpt.lightgbm.train` does.

    Args:
        run: where to save; the step of a checkpoint is its rounds.
        every: rounds between two checkpoints.

    Attributes:
        order: where LightGBM calls it: before its early stopping, which lets none come after.
    """

    def __init__(self, run: Run, *, every: int = 100) -> None:
        # Of the instance: LightGBM gives an order to every callback whose own dict has none.
        self.order = 25
        self._run, self._every = run, every
        state = rounds_of.restored(run, "lightgbm") or {"history": {}, "rounds": 0}
        self._history: Log = state["history"]
        self._saved = int(state["rounds"])

    def __call__(self, env: Any) -> None:
        """Save when it is time; after a request to stop save and leave.

        Raises:
            BadRequest: the call is one of `lightgbm.cv`.
        """
        try:
            self._look(env)
        except BaseException:
            self._run._unwatch()  # the training is left
            raise

    def finish(self, booster: lightgbm.Booster) -> None:
        """Save the last round, and declare the part of the run done."""
        self._run._begin(None)
        self._save(booster, booster.current_iteration())
        self._run._part_done = True
        self._run._unwatch()

    def _look(self, env: Any) -> None:
        if not isinstance(env.model, lightgbm.Booster):
            raise BadRequest("a Callback in lightgbm.cv", "it has a booster per fold", "use folds")
        self._run._begin(None)
        for data, metric, value, *_ in env.evaluation_result_list or ():
            self._history.setdefault(data, {}).setdefault(metric, []).append(value)
        rounds = env.model.current_iteration()
        if rounds % self._every == 0 or self._run.stopping:
            self._save(env.model, rounds)
        self._run.note_progress(_PART, rounds, None)
        self._run.check_stop()

    def _save(self, booster: lightgbm.Booster, rounds: int) -> None:
        if rounds <= self._saved:
            return
        # Early stopping leaves out the rounds after the best; all of them are gone on with.
        whole = lightgbm.Booster(model_str=booster.model_to_string(num_iteration=-1))
        state = {
            "booster": whole,
            "rounds": rounds,
            "segment": self._every,
            "history": self._history,
            "stopping": None,
        }
        rounds_of.log(self._run, self._history, self._saved, rounds)
        self._run.save(state, rounds, metrics=rounds_of.last(self._history))
        self._saved = rounds


def model(run: Run) -> lightgbm.Booster | None:
    """Return the booster that a run goes on from, for `init_model=`; None at the beginning."""
    state = rounds_of.restored(run, "lightgbm")
    return None if state is None else state["booster"]


def rounds(run: Run) -> int:
    """Return how many rounds a run has."""
    state = rounds_of.restored(run, "lightgbm")
    return 0 if state is None else int(state["rounds"])


def _seeds(params: Mapping[str, Any], done: int) -> dict[str, int]:
    """Return the seeds of the segment after `done` rounds; the first has LightGBM's own."""
    if done == 0:
        return {}
    found = {}
    base = next(
        (params[name] for name in ("seed", "random_state", "random_seed") if name in params), 0
    )
    for name in _SEEDS:
        text = f"casckpt segment {name} {params.get(name, base)} {done}"
        found[name] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") >> 1
    return found
