"""The loop over optimizer steps, for training without epochs: the loader begins anew as it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from casckpt.errors import BadRequest
from casckpt.training import randomness
from casckpt.training.loops import position
from casckpt.training.loops.epochs import Loop, LoopOptions
from casckpt.training.loops.keeping import LATEST, ROLLING

if TYPE_CHECKING:
    from casckpt.training.run import Run
    from casckpt.training.stops import StopRequest

_NOTE_S: Final = 0.5
"""How often progress is noted: a step can take a millisecond, and a person looks by the second."""


class StepLoop(Loop):
    """The loop over steps."""

    unit = "step"

    def __init__(
        self,
        run: Run,
        state: Any,
        options: LoopOptions,
        loader: Any,
        *,
        accumulate: int,
        save_latest_s: float | None,
    ) -> None:
        """See `Run.steps`."""
        if options.every is not None and options.every.epochs is not None:
            raise BadRequest(
                "steps() knows no epochs",
                f"it was given save_every={options.every!r:.60}",
                "pass save_every=Every(steps=...)",
            )
        super().__init__(run, state, options)
        self._loader = loader
        self._accumulate = accumulate
        self._save_latest_s = save_latest_s
        self._since_latest_s = self._noted_s = time.monotonic()
        # What a rolling save kept is still to go to one that stays.
        begun_at = run._position()[0]
        rolling = begun_at is not None and ROLLING.issuperset(begun_at.reasons)
        self._gathered: dict[str, float] = dict(self.extra.row) if rolling else {}
        self._pass: position.Pass | None = None

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        """Yield the steps that are left with their batches."""
        ended = False
        try:
            if not self.is_over:
                self._stand()
            while not self.is_over:
                self.row = {}
                self._run._row, self._run._row_at = self.row, self.done + 1
                for _ in range(self._accumulate):
                    batch = self._next()
                    yield self.done + 1, batch
                    assert self._pass is not None
                    self._pass.count += 1
                if self._end_step():
                    break
            ended = True
        finally:
            self._run._loop_left(ended)
        self.note()
        self.leave()

    def _stand(self) -> None:
        """Begin the pass where the last session was in it."""
        where = None if self.middle is None else self.middle["pass"]
        is_finished = where is not None and position.is_finished(self._loader, where)
        if where is not None and not is_finished:
            self._pass = position.Pass(self._loader, where)
        randomness.restore(self.streams)
        if where is not None and is_finished:
            # The next pass begins from the state at the end of this one. Some loaders give what
            # is left of this one first, which is nothing, and draw for that.
            self._loader.load_state_dict(where["loader"])
            self._pass = position.Pass(self._loader, undo=lambda: randomness.restore(self.streams))

    def _next(self) -> Any:
        for _ in range(2):
            if self._pass is None:
                self._pass = position.Pass(self._loader)
            try:
                return next(self._pass)
            except StopIteration:
                self._pass = None
        if self.done:
            raise BadRequest(
                f"the loader gives nothing after step {self.done}",
                "steps() goes through it again and again, and a generator gives its items once",
                "pass a DataLoader, or a list",
            )
        raise BadRequest("the loader is empty", "steps() needs a batch for every step")

    def _end_step(self) -> bool:
        """Save what is due after a step, and return whether the loop ends here."""
        options, run, since = self._options, self._run, self.saver.since
        self.done += 1
        since.steps += 1
        now_s = time.monotonic()
        if now_s - self._noted_s >= _NOTE_S:
            self._noted_s = now_s
            self.note()
        is_best = False
        if self.row:
            self._gathered.update(self.row)
            is_best = options.monitor.update(self.row, self.done)
        latest_s = self._save_latest_s
        is_late = latest_s is not None and now_s - self._since_latest_s >= latest_s
        request, (is_best, is_due, is_late) = self.agree(
            0, run._session.watch.look(), is_best, self._is_due(now_s), is_late
        )
        reasons = self.reasons(is_due, is_best, request)
        if not reasons and is_late:
            reasons.append(LATEST)
        if reasons:
            self._since_latest_s = now_s
            self._save(tuple(reasons), request)
        if request is not None:
            run._leave(request, is_over=self.is_over)
        return request is not None

    def _is_due(self, now_s: float) -> bool:
        every = self._options.every
        if every is None:
            return False
        if every.steps is not None:
            return self.done % every.steps == 0
        return self.saver.since.is_due(every, now_s)

    def _save(self, reasons: tuple[str, ...], request: StopRequest | None) -> None:
        level = None if request is None else self.stop_level(request)
        if level == "none":
            return
        assert self._pass is not None
        where = self._pass.position()
        middle = None if where is None else {"pass": where}
        if middle is not None and not self.saver.keeps(middle):
            self._pass.kind, middle = "none", None
        self.saver.save(
            self.done,
            0,
            reasons,
            row=self._gathered,
            loop=self.counters(),
            middle=middle,
            missing=position.missing_of(self._pass.kind),
            wait=self.is_over or request is not None,
            level=level,
        )
        if not ROLLING.issuperset(reasons):
            self._gathered = {}
