"""The loop over epochs: yields what is left to do, saves when the body ends, and leaves on request.

`Loop` is what the loops over epochs and over steps share; `steps.py` has the other one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from casckpt.checkpoint.policies import Policy, check_policy
from casckpt.checkpoint.refs import rank
from casckpt.errors import BadRequest
from casckpt.logs import logger
from casckpt.training import fitting, guards, randomness
from casckpt.training.loops import position
from casckpt.training.loops.boundary import Boundary
from casckpt.training.loops.every import Every
from casckpt.training.loops.keeping import BEST, EVERY, FINAL, LATEST, STOP
from casckpt.training.loops.monitor import Monitor
from casckpt.training.loops.saving import LoopSaver
from casckpt.training.peers import name_of
from casckpt.training.resume import Extra
from casckpt.training.state import generators_in, restore_generators, tree_of
from casckpt.training.watching import forecast

if TYPE_CHECKING:
    from casckpt.training.run import Run
    from casckpt.training.stops import StopRequest

AtEnd = Literal["last", "best"]


@dataclass(frozen=True)
class LoopOptions:
    """What a loop was asked, checked.

    Attributes:
        total: units in all.
        every: distance between saves that are kept.
        monitor: what is best.
        keep: chooses among every and best.
        at_end: which state the loop leaves behind.
    """

    total: int
    every: Every | None
    monitor: Monitor
    keep: Policy | None
    at_end: AtEnd

    def __post_init__(self) -> None:
        """Refuse what cannot be."""
        if isinstance(self.total, bool) or not isinstance(self.total, int) or self.total < 0:
            raise BadRequest(f"total={self.total!r}", "it is a whole number from 0 on")
        if self.at_end not in ("last", "best"):
            raise BadRequest(f"at_end={self.at_end!r}", "it is 'last' or 'best'")
        if self.at_end == "best" and not self.monitor.metric:
            raise BadRequest(
                "at_end='best' of what?", "the loop has no metric", "pass monitor= and mode="
            )
        check_policy(self.keep)


class Loop:
    """What loops share: where they stand, and how their state is saved.

    Attributes:
        done: units that are done, all sessions.
        saver: saves the state.
    """

    unit = "epoch"

    def __init__(self, run: Run, state: Any, options: LoopOptions) -> None:
        """Restore the state, and stand where the run stands."""
        outline = fitting.Outline(run.name, tree_of(state))
        self._run = run
        self._state = state
        self._options = options
        if isinstance(run._loop, Loop) and run._loop.is_over:
            fitting.say_other(run, run._loop._state, state)
        checkpoint, extra = run._begin_together(state)
        self.done = 0
        self.extra = extra
        if checkpoint is not None:
            self.done = checkpoint.step
            given = guards.hyperparameters(state) if run._is_changed else {}
            fitting.fill(run, checkpoint, tree_of(state))
            if given:
                guards.say_saved_wins(run.name, given, guards.hyperparameters(state))
            restore_generators(state, extra.held)
            options.monitor.load(extra.loop.get("monitor", {}))
            self._say_total(extra)
        self.saver = LoopSaver(run, state, options.monitor, options.keep, outline)
        self.saver.since.steps = extra.loop.get("steps", 0)
        run._loop, run._left = self, None
        run._declare(options.monitor)
        forecast.declare(run, options)
        self.streams = dict(extra.streams)
        self.row: dict[str, float] = dict(extra.row) if self.middle else {}
        run._row = self.row
        if checkpoint is not None and self.is_over:
            # No unit will put the generators back, and what follows the loop may draw from them.
            randomness.restore(self.streams)
        if not self.is_over and run._peers.leads:
            forecast.before_training(run, tree_of(state), options, self.done)
        self.note()

    def _say_total(self, extra: Extra) -> None:
        """Say that there are more units than before: the line at the opening could not know it."""
        total, before = self._options.total, extra.loop.get("total", self._options.total)
        if total != before and self._run._peers.leads:
            where = "all are done" if self.is_over else f"going on at {self.unit} {self.done + 1}"
            logger.info(
                "%s: %d %ss in all, before %d; %s", self._run.name, total, self.unit, before, where
            )

    @property
    def middle(self) -> dict[str, Any] | None:
        """Position inside the unit that the loop goes on from."""
        return self.extra.middle

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.done >= self._options.total or self._options.monitor.is_exhausted

    def agree(
        self, batch: int, request: StopRequest | None, *decided: bool
    ) -> tuple[StopRequest | None, tuple[bool, ...]]:
        """Return what all processes of the run do after `batch` batches of this unit."""
        return self._run._agree((self.done, self.unit, batch), request, *decided)

    def note(self) -> None:
        """Note the progress."""
        self._run.note_progress(f"{self.unit}s", self.done, self._options.total)

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the loop."""
        return {
            "unit": self.unit,
            "total": self._options.total,
            "done": self.done,
            "steps": self.saver.since.steps,
            "monitor": self._options.monitor.saved(),
        }

    def reasons(self, is_due: bool, is_best: bool, request: StopRequest | None) -> list[str]:
        """Return why the unit that has just been done is saved; empty if it need not be."""
        found = [EVERY] if is_due else []
        if is_best:
            found.append(BEST)
        if self.is_over:
            found.append(FINAL)
        elif request is not None:
            found.append(STOP)
        return found

    def leave(self) -> None:
        """End the loop after its last unit: wait for the saves, and take the best if asked."""
        self.saver.settle()
        if self._options.at_end == "best":
            self._take_best()
        self._run._peers.most([0])
        self._run._row = None
        self._run._part_ended()

    def stop_level(self, request: StopRequest) -> str | None:
        """Return how to save on a stop; "none" if there is no time."""
        grace_s = self._run.grace_s
        if grace_s is None or request.kind != "term":
            return None
        level = self.saver.level_for(grace_s - (time.monotonic() - request.at_s))
        return cast("str | None", self._run._peers.share(level))

    def _take_best(self) -> None:
        monitor, run = self._options.monitor, self._run

        def lead() -> str:
            members = run.store._catalog.inherited(run.name, run.line)
            ranked = rank(members, monitor.metric, monitor.mode)
            return name_of(run.store, ranked[0][1]) if ranked else ""

        named = run._peers.lead(lead)
        if not named:
            logger.warning("%s: no checkpoint has a finite %s", run.name, monitor.metric)
            return
        if run._peers.leads:
            taken = run._left = run.store.get(named)
            value = taken.metrics[monitor.metric]
            if value != monitor.best:
                logger.warning(
                    "%s: %s is gone; the state left is %s, %s %.6g",
                    *(run.name, monitor, taken.ref, monitor.metric, value),
                )
        run.store.restore(named, into=tree_of(self._state))


class EpochLoop(Loop):
    """The loop over epochs."""

    def __init__(self, run: Run, state: Any, options: LoopOptions, *, save_latest: bool) -> None:
        """See `Run.epochs`."""
        super().__init__(run, state, options)
        self._save_latest = save_latest
        self._has_said = self._has_carried_on = False
        self._boundary = Boundary(self.extra.between)
        self._passes = 0
        self._beside: dict[int, position.Pass] = {}
        self._waiting: dict[int, dict[str, Any]] = {}
        self._inside_at_s = 0.0
        self._began: dict[str, Any] = {}
        self._held_inside: dict[str, Any] = {}
        self.missing: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[int]:
        """Yield the epochs that are left."""
        ended = False
        try:
            while not self.is_over:
                self.enter()
                yield self.done + 1
                if self.end_body():
                    break
            ended = True
        finally:
            self._run._loop_left(ended)
        self.leave()

    def batches(self, loader: Any, accumulate: int, save_every_s: float | None) -> Iterator[Any]:
        """Yield the batches of this epoch that are left; see `Run.batches`."""
        current = self.begin_pass(loader)
        place, epoch = self._passes - 1, self.done
        is_first = place == 0
        if not is_first:
            self._beside[place] = current
        try:
            for batch in current:
                yield batch
                current.count += 1
                is_carried = self.done != epoch
                if is_carried:
                    self._say_carried_on()
                if current.count % accumulate == 0:
                    # Not after the last one: a body that went on there would see no batch, and
                    # what follows its batches may use the last one's loss. The epoch ends at once.
                    can_save = is_first and not current.is_at_end and not is_carried
                    self.end_batch(current, save_every_s, can_save=can_save, counts=is_first)
        finally:
            if self._beside.get(place) is current:
                del self._beside[place]

    def begin_pass(self, loader: Any) -> position.Pass:
        """Begin to pass over a loader; where its position is, if that is in the epoch at hand."""
        is_first = self._passes == 0
        if not is_first and self._waiting:
            return self._begin_beside(loader)
        self._passes += 1
        middle = self.middle if is_first else None
        if middle is not None:
            self._waiting = dict(middle.get("beside", {}))
        self.extra = Extra(log=self.extra.log)
        undo = self._boundary.begin(self._passes - 1, loader, inside=middle is not None)
        current = position.Pass(loader, middle["pass"] if middle else None, undo)
        self._boundary.begun(self._passes - 1, current)
        if middle is not None:
            # Here and not before: making the iterator draws from the generators itself.
            randomness.restore(self.streams)
            restore_generators(self._state, self._held_inside)
            self.streams = {}
        if current.is_anew:
            current.kind = "none"  # what is saved inside this epoch has larger numbers already
        if is_first:
            self.missing = position.missing_of(current.kind)
            self._inside_at_s = time.monotonic()
        return current

    def _begin_beside(self, loader: Any) -> position.Pass:
        """Go on with a pass that was under way beside the first one, as those of a `zip` are."""
        place = min(self._waiting)
        saved = self._waiting.pop(place)
        self._passes = place + 1
        self._boundary.begin(place, loader, inside=True)
        # Unlike before the first pass, the generators stand where they stood before this batch.
        streams, held = randomness.capture(), generators_in(self._state)
        current = position.Pass(loader, saved)
        self._boundary.begun(place, current)
        randomness.restore(streams)
        restore_generators(self._state, held)
        return current

    def _say_carried_on(self) -> None:
        """Say once that a pass goes on in the next epoch: no checkpoint knows where it stands."""
        self.missing = position.missing_of("none")
        if not self._has_carried_on:
            self._has_carried_on = True
            logger.warning(
                "%s: a pass over a loader goes on in epoch %d, and no checkpoint keeps where: after"
                " a resume it begins anew; begin it within the epoch, or use steps()",
                *(self._run.name, self.done + 1),
            )

    def end_batch(
        self,
        current: position.Pass,
        save_every_s: float | None,
        *,
        can_save: bool = True,
        counts: bool = True,
    ) -> None:
        """Save inside the epoch if it is time, and leave on a request to stop.

        Args:
            current: the pass over the loader whose batch has just been used.
            save_every_s: see `Run.batches`.
            can_save: whether a resume can come back to this place: it is in the first pass of the
                epoch, and not its end.
            counts: whether the batch counts as a step: in later passes it may be a validation.
        """
        since, every = self.saver.since, self._options.every
        since.steps += counts
        request = self._run._session.watch.look()
        if not can_save or current.kind == "none":
            return
        now_s = time.monotonic()
        due = every is not None and every.epochs is None and since.is_due(every, now_s)
        is_late = save_every_s is not None and now_s - self._inside_at_s >= save_every_s
        request, (due, is_late) = self.agree(current.count, request, due, is_late)
        if request is not None and request.kind != "call":
            if not self._save_inside(current, (STOP,), request):
                return  # nothing is lost at the end of the epoch
            self._run._leave(request)
        if due or is_late:
            self._inside_at_s = now_s
            self._save_inside(current, (EVERY,) if due else (LATEST,), None)

    def enter(self) -> None:
        """Stand at the beginning of the next epoch, as the uninterrupted run does."""
        run = self._run
        self._passes = 0
        self._beside, self._waiting = {}, {}
        self.missing = ()
        if self.middle is not None:
            randomness.restore(self.middle["began"])
            self._held_inside = generators_in(self._state)
            restore_generators(self._state, self.middle.get("held", {}))
        elif self.streams:
            randomness.restore(self.streams)
            self.streams = {}
        if self.middle is None:
            self.row = {}
        run._row, run._row_at = self.row, self.done + 1
        self._began = {"began": randomness.capture(), "held": generators_in(self._state)}

    def _save_inside(
        self, current: position.Pass, reasons: tuple[str, ...], request: StopRequest | None
    ) -> bool:
        """Save inside the epoch; return False if a checkpoint cannot keep where the loader stands.

        If there is no time before the process is killed, nothing is saved.
        """
        level = None if request is None else self.stop_level(request)
        if level == "none":
            return True
        beside = {place: one.position(given=True) for place, one in self._beside.items()}
        middle = {**self._began, "pass": current.position(), "beside": beside}
        if None in beside.values() or not self.saver.keeps(middle):
            current.kind = "none"
            self.missing = position.missing_of(current.kind)
            return False
        self.saver.save(
            self.done,
            current.count,
            reasons,
            row=self.row,
            metrics=False,
            loop=self.counters(),
            middle=middle,
            between=self._boundary.capture(),
            wait=request is not None,
            level=level,
        )
        return True

    def _say_unlogged(self) -> None:
        """Say once that what is to decide has not been logged: a name may be wrong."""
        monitor = self._options.monitor
        if self._has_said or not monitor.metric or monitor.is_fed or not self._run._peers.leads:
            return
        self._has_said = True
        logger.warning(
            "%s: no %s was logged by epoch %d, so nothing is best yet; logged: %s",
            self._run.name,
            monitor.metric,
            self.done,
            ", ".join(self.row) or "nothing",
        )

    def end_body(self) -> bool:
        """Fix the row, save what is due, and return whether the loop ends here."""
        options, run, saver = self._options, self._run, self.saver
        # An epoch whose body did not come to its batches again is done all the same.
        self.extra, self.streams = Extra(log=self.extra.log), {}
        self.done += 1
        saver.since.epochs += 1
        is_best = options.monitor.update(self.row, self.done)
        self._say_unlogged()
        is_due = options.every is not None and saver.since.is_due(
            options.every, time.monotonic(), epoch=self.done
        )
        request, (is_best, is_due) = self.agree(0, run._session.watch.look(), is_best, is_due)
        options.monitor.load(run._peers.share(options.monitor.saved()))
        reasons = self.reasons(is_due, is_best, request)
        if self._save_latest and not reasons:
            reasons.append(LATEST)
        self.note()
        between = self._boundary.capture()
        level = None if request is None else self.stop_level(request)
        if reasons and level != "none":
            saver.save(
                self.done,
                0,
                tuple(reasons),
                row=self.row,
                loop=self.counters(),
                between=between,
                missing=self.missing,
                wait=self.is_over or request is not None,
                level=level,
            )
        if request is not None:
            run._leave(request, is_over=self.is_over)
        return request is not None
