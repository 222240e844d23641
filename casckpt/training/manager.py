"""Managers by the names that hand-written checkpoint piles had: thin faces over a store.

New code needs none of them: `store.run` saves, resumes and cleans up by itself. They are for
scripts that call `save_checkpoint` and `load_checkpoint` themselves and shall go on to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from casckpt.api import Options, open
from casckpt.checkpoint.policies import KeepLast, KeepNewerThan, Policy
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRequest, Corrupt, NoStore, NotFound
from casckpt.training.watching.progress import Progress

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.history import History

__all__ = [
    "CheckpointManager",
    "KFoldCheckpointManager",
    "OptunaCheckpointManager",
    "TrainingResumer",
]

DEFAULT_RUN = "model"


class CheckpointManager:
    """Checkpoints of one or several algorithms in a folder; use it with `with`, or `close` it.

    Args:
        path: folder of the store, made if it is missing.
        algorithm: the run that is meant where a call names none.
        compression: "fast", "balanced" or "small".
    """

    def __init__(
        self, path: str | Path, algorithm: str = DEFAULT_RUN, *, compression: str = "balanced"
    ) -> None:
        self.store: Store = open(path, options=Options(level=compression))
        self.algorithm = algorithm
        self._level: str | None = None

    def save_checkpoint(
        self,
        state: Any,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        algorithm: str | None = None,
    ) -> Checkpoint:
        """Save a state, durable on return; see `Store.save`."""
        return self.store.save(
            algorithm or self.algorithm, state, step, metrics=metrics, level=self._level
        )

    def load_checkpoint(
        self, at: int | str | None = None, *, into: Any = None, algorithm: str | None = None
    ) -> Any:
        """Return a state; None when there is no whole one.

        Args:
            at: a step, `latest`, `best:METRIC:MODE`, a tag, or a REF with `@` or `id:`; None for
                the newest whole one: damaged ones are passed over, and the log says so.
            into: see `Store.restore`.
            algorithm: the run.
        """
        ref = self._ref(at, algorithm)
        try:
            return self.store.restore(ref, into=into, fallback=at is None)
        except (NotFound, Corrupt):
            return None

    def get_latest_checkpoint(self, algorithm: str | None = None) -> Checkpoint | None:
        """Return the newest checkpoint, or None."""
        return self.store.latest(algorithm or self.algorithm)

    def get_best_checkpoint(
        self,
        metric: str | None = None,
        mode: Literal["min", "max"] | None = None,
        algorithm: str | None = None,
    ) -> Checkpoint | None:
        """Return the best checkpoint, or None; metric and mode may be what a loop declared."""
        return self.store.best(algorithm or self.algorithm, metric, mode)

    def list_checkpoints(self, algorithm: str | None = None) -> list[Checkpoint]:
        """Return the checkpoints of an algorithm, oldest first."""
        return self.store.checkpoints(algorithm or self.algorithm)

    def get_history(self, algorithm: str | None = None) -> History:
        """Return metric to its (step, value) pairs; empty when there is nothing."""
        try:
            return self.store.history(algorithm or self.algorithm)
        except NotFound:
            return {}

    def cleanup_old_checkpoints(
        self,
        keep_last: int | None = None,
        *,
        keep_last_n: int | None = None,
        max_age_days: float | None = None,
        algorithm: str | None = None,
    ) -> int:
        """Drop old checkpoints, and return how many went; the newest of a line always stays.

        Args:
            keep_last: keep so many; with `max_age_days` those of them that are no older.
            keep_last_n: the same under another name.
            max_age_days: keep what is younger.
            algorithm: a run, or a glob over runs.

        Raises:
            BadRequest: nothing says what to keep.
        """
        count = keep_last if keep_last is not None else keep_last_n
        policy: Policy | None = None if count is None else KeepLast(count)
        if max_age_days is not None:
            young = KeepNewerThan(f"{max_age_days * 86400:.6f}s")
            policy = young if policy is None else policy & young
        if policy is None:
            raise BadRequest(
                "clean up what?", "nothing says what to keep", "pass keep_last= or max_age_days="
            )
        name = algorithm or self.algorithm
        if not self.store.checkpoints(name):
            return 0
        return len(self.store.gc(self.store.plan_gc(policy, name)).dropped)

    def get_progress(self, total: int, algorithm: str | None = None) -> dict[str, Any]:
        """Return {"completed", "total", "ratio"} of an algorithm whose steps count to `total`."""
        newest = self.get_latest_checkpoint(algorithm)
        return _numbers(0 if newest is None else newest.step, total)

    def format_progress_bar(self, total: int, width: int = 40, algorithm: str | None = None) -> str:
        """Return the progress as text of `width` characters."""
        return _bar(self.get_progress(total, algorithm), width)

    def get_checkpoint_size(self, algorithm: str | None = None) -> int:
        """Return the bytes that saves of an algorithm, or of all with "*", have written.

        What they take on the disk by now is less after a `compact`: `store.stats()` counts that.
        """
        name = algorithm or self.algorithm
        return sum(one.stored_bytes for one in self.store.checkpoints(name))

    def compress_checkpoint(self, level: str = "small") -> int:
        """Store what is there in less space, and return how many bytes of disk that freed.

        All restores to the same bits; see `Store.compact`. What is saved from now on is compressed
        at the same level.

        Args:
            level: "balanced" or "small"; "fast" is for what is saved from now on only.
        """
        if level not in ("fast", "balanced", "small"):
            raise BadRequest(f"bad level {level!r}", "levels are fast, balanced and small")
        self._level = level
        if level == "fast":
            return 0
        done = self.store.compact(level=level)
        return done.before_bytes - done.after_bytes

    def import_pile(self, folder: str | Path, algorithm: str | None = None) -> list[Checkpoint]:
        """Take an old pile of files along; see `Store.import_files`."""
        return self.store.import_files(algorithm or self.algorithm, folder)

    def close(self) -> None:
        """Wait for saves and let the store go."""
        self.store.close()

    def __enter__(self) -> Self:
        """Return the manager."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the store."""
        self.close()

    def _ref(self, at: int | str | None, algorithm: str | None) -> str:
        name = algorithm or self.algorithm
        if at is None:
            return name
        text = str(at)
        return text if "@" in text or text.startswith("id:") else f"{name}@{text}"


class OptunaCheckpointManager(CheckpointManager):
    """A study of Optuna, saved whole; the number of finished trials is the step.

    `casckpt.optuna.optimize` goes on from it.

    Args:
        path: folder of the store.
        name: the run.
    """

    def __init__(self, path: str | Path, name: str = "study") -> None:
        super().__init__(path, name)

    def save_study(self, study: Any) -> Checkpoint:
        """Save a study; the same once more is the same checkpoint."""
        done = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        return self.save_checkpoint({"study": study}, done)

    def load_study(self) -> Any:
        """Return the newest whole study; None when there is none."""
        state = self.load_checkpoint()
        return state["study"] if isinstance(state, dict) else None


class KFoldCheckpointManager(CheckpointManager):
    """The folds of a cross-validation: one run each, NAME/fold-1 and so on.

    Args:
        path: folder of the store.
        n_folds: how many there are.
        name: the run above.
    """

    def __init__(self, path: str | Path, n_folds: int, name: str = "kfold") -> None:
        super().__init__(path, name)
        self.n_folds = n_folds

    def save_fold(
        self, fold: int, state: Any, *, metrics: Mapping[str, Any] | None = None
    ) -> Checkpoint:
        """Save the result of a fold, from 1 on."""
        return self.save_checkpoint(state, 0, metrics=metrics, algorithm=self._fold(fold))

    def load_fold(self, fold: int) -> Any:
        """Return the result of a fold; None when it is not done."""
        return self.load_checkpoint(algorithm=self._fold(fold))

    def completed_folds(self) -> dict[int, Mapping[str, float]]:
        """Return fold to metrics of those that are done."""
        found = {fold: self.store.latest(self._fold(fold)) for fold in range(1, self.n_folds + 1)}
        return {fold: one.metrics for fold, one in found.items() if one is not None}

    def get_progress(
        self, total: int | None = None, algorithm: str | None = None
    ) -> dict[str, Any]:
        """Return {"completed", "total", "ratio"} over the folds."""
        del algorithm
        return _numbers(len(self.completed_folds()), total or self.n_folds)

    def _fold(self, fold: int) -> str:
        if not 1 <= fold <= self.n_folds:
            raise BadRequest(f"fold {fold} of {self.n_folds}", "they count from 1")
        return f"{self.algorithm}/fold-{fold}"


class TrainingResumer:
    """Says whether there is something to go on from.

    Args:
        manager: a manager, or the folder of a store; a folder without one has nothing.
    """

    def __init__(self, manager: CheckpointManager | str | Path) -> None:
        self._manager = manager

    def can_resume(self, algorithm: str | None = None) -> bool:
        """Return whether an algorithm has a whole checkpoint."""
        if isinstance(self._manager, CheckpointManager):
            return _has_whole(self._manager.store, algorithm or self._manager.algorithm)
        try:
            with open(self._manager, mode="r") as store:
                return _has_whole(store, algorithm or DEFAULT_RUN)
        except NoStore:
            return False


def _has_whole(store: Store, run: str) -> bool:
    return any(store._is_whole(one) for one in reversed(store.checkpoints(run)))


def _numbers(done: int, total: int) -> dict[str, Any]:
    return {"completed": done, "total": total, "ratio": Progress("", done, total).ratio}


def _bar(progress: Mapping[str, Any], width: int) -> str:
    return Progress("", progress["completed"], progress["total"]).bar(width)
