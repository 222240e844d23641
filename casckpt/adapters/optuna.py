"""Optuna: a study that goes on where it was, trial by trial and inside a trial.

A sampler's random state is not in Optuna's storage, so a study that is simply loaded repeats
itself or goes elsewhere. Here every trial has a sampler of its own, seeded by the study's seed and
the trial's number: what it draws depends on nothing but those and the trials before.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from casckpt.adapters import missing_extra
from casckpt.adapters.optuna_sampler import PerTrialSampler, SamplerOf
from casckpt.adapters.optuna_storage import HANDLER as HANDLER
from casckpt.adapters.optuna_storage import RowsStorage, add_trials
from casckpt.errors import BadRequest
from casckpt.logs import logger
from casckpt.training import randomness
from casckpt.training.loops.rounds import check_counts

try:
    import optuna
except ModuleNotFoundError as exc:
    raise missing_extra("optuna") from exc

from optuna.study import StudyDirection
from optuna.trial import TrialState

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from casckpt.training.run import Run

_ELAPSED: Final = "casckpt:elapsed_s"
_STOPPED: Final = "casckpt:stopped"
_READY: Final = "casckpt:ready"
_PART: Final = "trials"
_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


def optimize(
    run: Run,
    objective: Callable[[optuna.Trial], Any],
    n_total: int,
    *,
    sampler: SamplerOf | None = None,
    seed: int = 0,
    direction: str | None = None,
    directions: Sequence[str] | None = None,
    pruner: optuna.pruners.BasePruner | None = None,
    timeout_total_s: float | None = None,
    n_jobs: int = 1,
    catch: type[Exception] | tuple[type[Exception], ...] = (),
    callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]] = (),
) -> optuna.Study:
    """Run trials until there are `n_total`; the same call goes on after a kill.

    Every step of a trial is durable when Optuna's call returns. A trial whose process died goes
    on with the same number and the parameters it had; with `trial_run` also from its checkpoint.
    With one job, an interrupted study has the same trials as an uninterrupted one. The study is
    saved to the run after every trial, the number of finished ones being the step.

    Args:
        run: the run; each of its lines has a study of its own.
        objective: as for `Study.optimize`.
        n_total: trials in all: complete, pruned, failed and inherited ones. A larger one goes on.
        sampler: seed to sampler, called for every trial; None for TPE.
        seed: what the seeds of the trials come from.
        direction: "minimize" or "maximize".
        directions: of several objectives.
        pruner: as in Optuna.
        timeout_total_s: no trial begins after so many seconds of work in all sessions.
        n_jobs: threads. With more than one, trials see what happens to be finished.
        catch: exceptions that fail a trial and not the study.
        callbacks: called with the study and each finished trial.

    Returns:
        The study, on its storage.

    Raises:
        BadRequest: the stored study has other directions, or a number is below 1.
        RunBusy: another live process works on the run.
        Stopped: somebody asked for it; the trial at hand goes on the next time.
    """
    check_counts(n_total=n_total, n_jobs=n_jobs)
    if sampler is not None and not callable(sampler):
        raise BadRequest(
            f"sampler is a {type(sampler).__name__}",
            "each trial gets a sampler of its own, with a seed of its own",
            "pass a function: sampler=lambda seed: optuna.samplers.TPESampler(seed=seed)",
        )
    own = storage(run)
    per_trial = PerTrialSampler(sampler or _tpe, seed)
    wanted = [one.lower() for one in directions or [direction or "minimize"]]
    if not set(wanted) <= {"minimize", "maximize"}:
        raise BadRequest(f"direction {wanted}", "it is 'minimize' or 'maximize'")
    study = _study(run, own, wanted, per_trial, pruner)
    work = _Work(run, study, objective, n_total, timeout_total_s, _as_tuple(catch), callbacks)
    work.say()
    # An objective may draw from the generators of the process, as for the weights of a model.
    randomness.restore(run._position()[1].streams)
    if work.is_over:
        return study
    run._alone("optuna")
    with run._watching():
        run._begin(None)
        work.begin()
        if n_jobs == 1:
            work.loop()
        else:
            with ThreadPoolExecutor(n_jobs, thread_name_prefix="casckpt-trial") as pool:
                for future in [pool.submit(work.loop) for _ in range(n_jobs)]:
                    future.result()
    run._part_done = True
    return study


def trial_run(trial: optuna.Trial) -> Run:
    """Return the run of a trial, for `with`: it goes on from its own checkpoint.

    Its name is that of the study's run with "/trial-N".

    Raises:
        BadRequest: the study is not on the storage of a run.
    """
    run = getattr(trial.study._storage, "casckpt_run", None)
    if run is None:
        raise BadRequest(
            "this trial belongs to no run",
            "its study is not stored in a run of this process",
            "use casckpt.optuna.optimize, or storage=casckpt.optuna.storage(run)",
        )
    child: Run = run.child(f"trial-{trial.number}")
    return child


def storage(
    run: Run,
    *,
    heartbeat_interval_s: int | None = None,
    stale_trial_callback: Callable[[Any, Any], None] | None = None,
) -> RowsStorage:
    """Return Optuna's storage on a line of a run, for those who drive the study themselves.

    Args:
        run: the run.
        heartbeat_interval_s: see `RowsStorage`.
        stale_trial_callback: see `RowsStorage`.
    """
    return RowsStorage(
        run,
        heartbeat_interval_s=heartbeat_interval_s,
        stale_trial_callback=stale_trial_callback,
    )


class _Work:
    """The trials that are left, shared by the threads that do them."""

    def __init__(
        self,
        run: Run,
        study: optuna.Study,
        objective: Callable[[optuna.Trial], Any],
        n_total: int,
        timeout_total_s: float | None,
        catch: tuple[type[Exception], ...],
        callbacks: Sequence[Callable[[optuna.Study, FrozenTrial], None]],
    ) -> None:
        self._run = run
        self._study = study
        self._objective = objective
        self._n_total = n_total
        self._timeout_total_s = timeout_total_s
        self._catch = catch
        self._callbacks = callbacks
        self._lock = threading.Lock()
        self._failed = False
        self._open = 0
        self._began_s = time.monotonic()
        self._elapsed_before_s = float(self._attrs().get(_ELAPSED, 0.0))
        self._dead = [
            trial._trial_id
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        ]
        # More may be asked for than when `study.stop()` ended it.
        self._was_stopped = self._attrs().get(_STOPPED) == [self._finished(), n_total]

    @property
    def is_over(self) -> bool:
        """Whether there are enough trials, and the study is saved."""
        done = self._finished()
        checkpoint, _ = self._run._position()
        is_saved = checkpoint is not None and checkpoint.step >= done
        return (done >= self._n_total or self._was_stopped or self._is_late()) and is_saved

    def say(self) -> None:
        """Say what is done already, if anything is."""
        if not (trials := self._study.get_trials(deepcopy=False)):
            return
        parts = [f"{self._finished()} of {self._n_total} trials are done"]
        best = self._best()
        if best is not None:
            parts.append(f"best {best.value:.6g} in trial {best.number}")
        left = [str(trial.number) for trial in trials if trial._trial_id in self._dead]
        if left:
            parts.append(f"going on with trial {', '.join(left)}")
        logger.info("%s: %s", self._run.name, "; ".join(parts))

    def begin(self) -> None:
        """Save the trials that finished just before their process died."""
        self._note()

    def loop(self) -> None:
        """Do trials until there are enough, or `study.stop()` was called."""
        study = self._study
        # As in Study.optimize: samplers of grids and callbacks end a study by it.
        study._thread_local.in_optimize_loop = True
        try:
            while (trial := self._next()) is not None:
                try:
                    self._do(trial)
                finally:
                    with self._lock:
                        self._open -= 1
        except BaseException:
            self._failed = True
            raise
        finally:
            study._thread_local.in_optimize_loop = False
        self._note_stop()

    def _next(self) -> optuna.Trial | None:
        self._run.check_stop()
        with self._lock:
            is_stopped = self._was_stopped or self._study._stop_flag
            if self._failed or is_stopped or self._is_late():
                return None
            if self._dead:
                # Nobody else works on the run, so whoever was at it is dead.
                trial = optuna.Trial(self._study, self._dead.pop(0))
            elif self._finished() + self._open < self._n_total:
                trial = self._study.ask()
            else:
                return None
            self._open += 1
            return trial

    def _do(self, trial: optuna.Trial) -> None:
        error: Exception | None = None
        value: Any = None
        state: TrialState | None = None
        try:
            value = self._objective(trial)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except Exception as exc:
            error, state = exc, TrialState.FAIL
        # Stopped and Ctrl+C are no Exceptions: such a trial stays running, and goes on.
        told = self._study.tell(trial, value, state=state)
        self._note_stop()
        with self._lock:
            self._study._storage.set_study_system_attr(
                self._study._study_id, _ELAPSED, self._elapsed_s()
            )
            self._note()
        for callback in self._callbacks:
            callback(self._study, told)
            self._note_stop()
        if error is not None and not isinstance(error, self._catch):
            raise error

    def _note_stop(self) -> None:
        """Keep that `study.stop()` was called, at once: nobody calls it again after a kill."""
        study = self._study
        if not study._stop_flag:
            return
        with self._lock:
            counts = [self._finished(), self._n_total]
            if self._attrs().get(_STOPPED) != counts:
                study._storage.set_study_system_attr(study._study_id, _STOPPED, counts)

    def _note(self) -> None:
        """Save the study unless it is saved with as many trials."""
        done = self._finished()
        self._run.note_progress(_PART, done, self._n_total)
        checkpoint, _ = self._run._position()
        if done and (checkpoint is None or checkpoint.step < done):
            best = self._best()
            metrics = {} if best is None else {"best_value": best.value}
            self._run.save({"study": self._study}, done, metrics=metrics)

    def _best(self) -> FrozenTrial | None:
        """Return the best trial, if there is one, and one thing to be best at."""
        if len(self._study.directions) != 1:
            return None
        try:
            return self._study.best_trial
        except ValueError:
            return None  # none is complete, or none that is keeps to the sampler's constraints

    def _finished(self) -> int:
        return len(self._study.get_trials(deepcopy=False, states=_FINISHED))

    def _elapsed_s(self) -> float:
        return self._elapsed_before_s + time.monotonic() - self._began_s

    def _is_late(self) -> bool:
        return self._timeout_total_s is not None and self._elapsed_s() >= self._timeout_total_s

    def _attrs(self) -> dict[str, Any]:
        return dict(self._study._storage.get_study_system_attrs(self._study._study_id))


def _study(
    run: Run,
    own: RowsStorage,
    wanted: list[str],
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner | None,
) -> optuna.Study:
    """Return the study of the run's line, made if it is new, with what the line inherits."""
    study = optuna.create_study(
        storage=own,
        study_name=run.name,
        load_if_exists=True,
        directions=[StudyDirection[one.upper()] for one in wanted],
        sampler=sampler,
        pruner=pruner,
    )
    have = study
    if _READY not in own.get_study_system_attrs(study._study_id):
        have = _inherited(run) or study
    if (found := [one.name.lower() for one in have.directions]) != wanted:
        raise BadRequest(
            f"the study of {run.name} is to {', '.join(found)}",
            f"now it is asked to {', '.join(wanted)}",
            "use another run, or resume='never' for a new study",
        )
    if have is not study:
        # A kill in the middle leaves some of them; the rest comes the next time.
        there = len(study.get_trials(deepcopy=False))
        add_trials(study, have.get_trials(deepcopy=False)[there:])
        for key, value in have.user_attrs.items():
            study.set_user_attr(key, value)
    if _READY not in own.get_study_system_attrs(study._study_id):
        own.set_study_system_attr(study._study_id, _READY, True)
    return study


def _inherited(run: Run) -> optuna.Study | None:
    """Return the study of the checkpoint that the line began at."""
    checkpoint, _ = run._position()
    state = None if checkpoint is None else run.store.restore(checkpoint)
    study = state.get("study") if isinstance(state, dict) else None
    return study if isinstance(study, optuna.Study) else None


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed)


def _as_tuple(
    catch: type[Exception] | tuple[type[Exception], ...],
) -> tuple[type[Exception], ...]:
    return catch if isinstance(catch, tuple) else (catch,)
