"""Saving: from a state tree to a committed checkpoint, at once or in the background."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.committing import Committing, SaveRequest
from casckpt.checkpoint.pending import PendingSave
from casckpt.checkpoint.records import Checkpoint, check_metrics
from casckpt.errors import BadRef, BadRequest
from casckpt.ids import check_run_name, check_step, check_tag

if TYPE_CHECKING:
    from casckpt.checkpoint.placement import Placement
    from casckpt.checkpoint.staging import StagingPool

LEVELS: Final = ("fast", "balanced", "small")


class Saves(Committing):
    """The calls that save."""

    _staging: StagingPool | None = None

    def save(
        self,
        run: str,
        state: Any,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
        parent: str | Checkpoint | None = None,
    ) -> Checkpoint:
        """Save a state tree; when this returns, the checkpoint is durable.

        A kill at any moment leaves the checkpoint wholly there or wholly absent. Waits for a
        background save of the same run first.

        Args:
            run: name of the run; made if it is new.
            state: any nesting of dict, list, tuple, namedtuple and dataclass with tensors,
                arrays, numbers, strings, bytes, None, paths and objects with `state_dict()`.
            step: where in the run, from 0; None for the last step + 1.
            metrics: name to anything that takes float(); NaN is kept, and never best.
            tags: names for this checkpoint; policies never drop a tagged one.
            replace: move the checkpoint at this step to the trash, if its content is another.
            level: "fast" (as it is), "balanced", or "small" (hardly smaller than balanced, see
                `Options`); None for the store's.
            parent: a REF of this store whose bytes the state resembles (a fine-tuned model's
                origin, another fold): it is stored as differences to that where it pays. None
                for the checkpoint before it in the run.

        Returns:
            The new checkpoint; or the one that was there, if it holds the same state at the
            same step: then new metrics and tags are added to it.

        Raises:
            StepExists: the step holds another state, or is smaller than the last one.
            BadLeaf: a value in the state cannot be stored; the message names its path.
            BadRequest: a metric is no number, a tag is taken, or the store is read-only.
            RunMoved: another process saved to the run meanwhile; nothing was committed.
            NoSpace: the disk is full; nothing that was committed is lost.
        """
        request = self._request(run, step, metrics, tags, replace, level, parent=parent)
        return self._save_now(request, state)

    def save_async(
        self,
        run: str,
        state: Any,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
        parent: str | Checkpoint | None = None,
    ) -> PendingSave:
        """Save a state tree in the background; returns after one copy of its bytes.

        The state may change as soon as this returns. One save per run is in flight; a second
        waits for it. The interpreter waits for all of them before it exits. An error is raised
        once: by the next call that saves to the run, restores or asks for a checkpoint of it
        (`get`, `latest`, `best`, `history`, `checkpoints`), by `result()`, `wait()` or `close()`;
        failing these it is logged at exit.

        Args:
            run: as in `save`, like all others.
            state: see `save`.
            step: see `save`.
            metrics: see `save`.
            tags: see `save`.
            replace: see `save`.
            level: see `save`.
            parent: see `save`.

        Raises:
            StepExists: the step is smaller than the last one.
            BadLeaf: a value in the state cannot be stored.
            BadRequest: a metric is no number, or the store is read-only.
            MemoryError: there is no room for a copy of the state.
            CasckptError: what the save before failed with, if nobody has been told.
        """
        request = self._request(run, step, metrics, tags, replace, level, parent=parent)
        return self._save_later(request, state)

    def _save_placed(
        self,
        run: str,
        state: Any,
        step: int,
        placement: Placement,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
        wait: bool = True,
    ) -> Checkpoint | PendingSave:
        """Save at a place that the training floor chose; see `save` and `save_async`."""
        request = self._request(run, step, metrics, tags, replace, level, placement)
        return self._save_now(request, state) if wait else self._save_later(request, state)

    def _save_now(self, request: SaveRequest, state: Any) -> Checkpoint:
        with self._background.turn(request.run):
            from casckpt.checkpoint.tree import flatten

            return self._commit(request, self._place(request), flatten(state))

    def _save_later(self, request: SaveRequest, state: Any) -> PendingSave:
        with self._background.turn(request.run):
            from casckpt.checkpoint.tree import flatten

            place = self._place(request)
            staged = self._staging_pool().stage(flatten(state))
            stall_s = time.perf_counter() - request.started_s

            def work() -> Checkpoint:
                try:
                    return self._commit(request, place, staged.state, stall_s)
                finally:
                    staged.release()

            return self._background.start(request.run, work)

    def _request(
        self,
        run: str,
        step: int | None,
        metrics: Mapping[str, Any] | None,
        tags: str | Sequence[str],
        replace: bool,
        level: str | None,
        placement: Placement | None = None,
        parent: str | Checkpoint | None = None,
    ) -> SaveRequest:
        started_s = time.perf_counter()
        self._ready(write=True)
        if level is not None and level not in LEVELS:
            raise BadRequest(f"bad level {level!r}", f"levels are {', '.join(LEVELS)}")
        return SaveRequest(
            run=check_run_name(run),
            step=None if step is None else check_step(step),
            metrics=check_metrics(metrics),
            tags=_checked(tags),
            replace=replace,
            level=level,
            started_s=started_s,
            created=datetime.now(UTC),
            placement=placement,
            parent=None if parent is None else self._base_checkpoint(parent),
        )

    def _base_checkpoint(self, parent: str | Checkpoint) -> Checkpoint:
        """Return the checkpoint that a save is to be coded against; it must be in this store."""
        store, checkpoint = self._find(parent)
        if store is not self:
            raise BadRequest(
                f"cannot save against {checkpoint.ref} of another store",
                "a difference is stored beside what it is a difference to",
                "leave `parent` out, or save into that store",
            )
        return checkpoint

    def _staging_pool(self) -> StagingPool:
        if self._staging is None:
            from casckpt.checkpoint.staging import StagingPool

            self._staging = StagingPool()
        return self._staging

    def close(self) -> None:
        """Wait for background saves and let go of the store; see `StoreHandle.close`."""
        try:
            super().close()
        finally:
            if self._staging is not None:
                self._staging.close()


def _checked(tags: str | Iterable[str]) -> tuple[str, ...]:
    """Return the tags of one or several, each checked."""
    if isinstance(tags, str):
        return (check_tag(tags),)
    if not isinstance(tags, Iterable):
        raise BadRef(
            f"bad tags {tags!r}", f"they are {type(tags).__name__}", "pass tags=['paper-v1']"
        )
    return tuple(map(check_tag, tags))
