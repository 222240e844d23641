"""Saves of a run's loop: what goes with the state, in what order, and what is done about errors."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.pending import PendingSave
from casckpt.checkpoint.placement import Placement
from casckpt.checkpoint.policies import Policy
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import NoSpace
from casckpt.logs import logger
from casckpt.training import extras, randomness
from casckpt.training.fitting import Outline
from casckpt.training.loops import keeping
from casckpt.training.loops.every import Since
from casckpt.training.loops.monitor import Monitor
from casckpt.training.peers import Peers
from casckpt.training.resume import Extra
from casckpt.training.state import generators_in, tree_of

if TYPE_CHECKING:
    from casckpt.training.run import Run

_FULL_SHARE: Final = 0.7
"""A save is begun only if it fits this share of what is left of a grace period."""

_USUAL: Final = ""
"""The store's own level, among levels."""

_FAST: Final = "fast"


_NOT_KEPT: Final = (
    "%s: the position of a loader cannot be saved (%s); nothing is saved inside an epoch, a stop"
    " waits for its end, and steps() would go on with a new pass"
)


def captured_by_all(
    peers: Peers,
    state: Any,
    middle: Mapping[str, Any] | None,
    between: Mapping[int, Any] | None = None,
) -> list[dict[str, Any]] | None:
    """Return what each process has of its own, by rank; None in those that do not lead.

    Args:
        peers: the processes; each of them makes this call.
        state: the state that is saved, for the generators in it.
        middle: position inside the epoch.
        between: what loaders carry into the next epoch.
    """
    mine = {
        "streams": randomness.capture(),
        "middle": None if middle is None else dict(middle),
        # Those of the first process are in the state that it saves.
        "held": {} if peers.leads else generators_in(state),
        "between": dict(between or {}),
    }
    return peers.gather(mine)


class LoopSaver:
    """Saves the state of one loop, at most one save in flight.

    Attributes:
        since: what has happened since the last save that counts as `every`.
        last: the last checkpoint that is durable.
    """

    def __init__(
        self,
        run: Run,
        state: Any,
        monitor: Monitor,
        keep: Policy | None,
        outline: Outline | None = None,
    ) -> None:
        """Save `state` for `run`; `outline` says of what kind a restart makes it."""
        self._outline = outline
        self._run = run
        self._state = state
        self._monitor = monitor
        self._keep = keep
        self._pending: PendingSave | None = None
        self._has_said = False
        self.since = Since(saved_at_s=time.monotonic())
        self.last: Checkpoint | None = None
        self._parent_id = run._parent_id
        # What saves took until they were durable, by level: which level is the faster one, and
        # by how much, depends on the disk and the processor, so nothing is assumed.
        self._took_s = dict(run._extra.took_s)
        if run.resumed is not None:
            self._took_s[run._extra.level] = run.resumed.durable_s
        self._level = _USUAL

    def save(
        self,
        step: int,
        batch: int,
        reasons: tuple[str, ...],
        *,
        row: Mapping[str, float],
        loop: Mapping[str, Any],
        middle: Mapping[str, Any] | None = None,
        between: Mapping[int, Any] | None = None,
        metrics: bool = True,
        missing: tuple[str, ...] = (),
        wait: bool = False,
        level: str | None = None,
    ) -> None:
        """Save the state as it is now.

        Args:
            step: where in the line.
            batch: where inside the step.
            reasons: why.
            row: metrics of the epoch so far.
            loop: counters of the loop.
            middle: position inside the epoch.
            between: what loaders carry into the next epoch.
            metrics: whether the row is the checkpoint's metrics.
            missing: what a resume will not find.
            wait: return when it is durable.
            level: how hard to compress; None for the store's level, or for "fast" once where
                the store's would not fit the grace period and nobody knows whether that would.

        Raises:
            CasckptError: what this save, or the one before, failed with. A full disk is logged
                instead unless `wait`: training goes on, and the next save may find room.
        """
        self.settle(tolerant=True)
        run = self._run
        captured = captured_by_all(run._peers, self._state, middle, between)
        if captured is None:
            return  # the first process writes
        if self._outline is not None:
            self._outline.check(tree_of(self._state))
        streams = captured[0]["streams"]
        if keeping.EVERY in reasons:
            loop = {**loop, "steps": 0}  # who goes on from here counts from here
        if level is None and self._must_try_fast():
            level = _FAST
        self._level = level or _USUAL
        log = run._session.log
        count = log.close_piece()
        extra = Extra(dict(loop), streams, captured[0]["middle"], count, dict(row),
                      run._session.elapsed_s, captured[1:],
                      between=captured[0]["between"], level=self._level,
                      took_s=dict(self._took_s))  # fmt: skip

        def after(checkpoint: Checkpoint) -> None:
            run._session.tracker.note_save()
            keeping.tidy(run.store, checkpoint, self._monitor, self._keep)

        placement = Placement(
            line=run.line,
            batch=batch,
            reasons=reasons,
            parent=self._parent_id,
            beside=extra.encode(),
            captured=(*randomness.names(streams), *(("position of the loader",) if middle else ())),
            missing=missing,
            before_commit=log.write_closed,
            after_commit=after,
        )
        try:
            saved = run.store._save_placed(
                run.name,
                tree_of(self._state),
                step,
                placement,
                metrics=row if metrics else None,
                level=level,
                wait=wait,
            )
        except NoSpace as exc:
            if wait:
                raise
            self._alarm(exc)
            return
        if isinstance(saved, PendingSave):
            self._pending = saved
        else:
            self._note(saved)
        if keeping.EVERY in reasons:
            self.since.saved(time.monotonic())

    def keeps(self, middle: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint can keep a position inside an epoch; says once if not.

        The state of a loader is whatever the loader says, which must end no training. Each
        process of the run makes this call, and all are told the same.
        """
        peers = self._run._peers
        why = extras.why_not(middle, extras.POSITION_BYTES // peers.size)
        is_kept = not peers.most([bool(why)])[0]
        if not is_kept and not self._has_said:
            self._has_said = True
            logger.warning(_NOT_KEPT, self._run.name, why or "that of another process is too large")
        return is_kept

    def settle(self, *, tolerant: bool = False) -> None:
        """Wait for the save in flight.

        Raises:
            CasckptError: what it failed with; a full disk is only logged if `tolerant`.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            self._note(pending.result())
        except NoSpace as exc:
            if not tolerant:
                raise
            self._alarm(exc)

    def wait(self) -> None:
        """Wait for the save in flight, and leave its outcome to `settle`."""
        pending = self._pending
        if pending is not None:
            pending._await()

    def level_for(self, left_s: float | None) -> str | None:
        """Return how to save in what is left of a grace period; "none" if it does not fit.

        Args:
            left_s: seconds until the process is killed, None if nobody knows.
        """
        if left_s is None:
            return None
        if self._pending is not None and self._pending.done():
            self.settle(tolerant=True)
        limit_s = left_s * _FULL_SHARE
        usual_s = self._took_s.get(_USUAL, 0.0)
        if usual_s <= limit_s:
            return None
        return _FAST if self._took_s.get(_FAST, usual_s) <= limit_s else "none"

    def _must_try_fast(self) -> bool:
        """Return whether a stop would have to know what a save at level "fast" takes."""
        grace_s = self._run.grace_s
        if grace_s is None or _FAST in self._took_s:
            return False
        return self._took_s.get(_USUAL, 0.0) > grace_s * _FULL_SHARE

    def _note(self, checkpoint: Checkpoint) -> None:
        self.last = checkpoint
        if not keeping.ROLLING.issuperset(checkpoint.reasons):
            self._parent_id = self._run._parent_id = checkpoint.id
        self.since.measured(checkpoint.stall_s)
        self._took_s[self._level] = checkpoint.durable_s
        self._run._saved = checkpoint

    def _alarm(self, error: NoSpace) -> None:
        last = "nothing is saved yet" if self.last is None else f"the last save is {self.last.ref}"
        self._run._session.tracker.note_failure(f"{error.what}: {error.why}")
        self._run._session.stir()
        logger.error("%s IS NOT BEING SAVED: %s; %s", self._run.name, error.what, last)
