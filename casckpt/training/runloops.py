"""The calls of a Run that train: loops over epochs, batches and steps, and how to stop them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from casckpt.checkpoint.policies import Policy
from casckpt.errors import BadRequest
from casckpt.training.every import Every
from casckpt.training.loops import AtEnd, EpochLoop, LoopOptions
from casckpt.training.monitor import Monitor
from casckpt.training.runbase import RunBase
from casckpt.training.steps import StepLoop

if TYPE_CHECKING:
    from casckpt.training.run import Run


class RunLoops(RunBase):
    """The loops of a run."""

    def epochs(
        self,
        total: int,
        state: Any,
        *,
        save_every: int | Every | None = None,
        save_latest: bool = True,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        keep: Policy | None = None,
        at_end: AtEnd = "last",
    ) -> Iterator[int]:
        """Restore the state, and return the epochs that are left, from 1 to `total`.

        When the body of an epoch ends, what is due is saved in the background; the last save is
        waited for. A kill at any moment loses at most the work since the last save that was
        durable, and the same call goes on there. After the loop `state` holds the last epoch,
        also on a run that was finished before. `break` saves nothing of its epoch.

        Args:
            total: epochs in all, over all sessions; a larger one reopens a finished loop.
            state: a dict, a State, or an object with `state_dict` and `load_state_dict`; filled
                at the call.
            save_every: keep every so many epochs; or an Every.
            save_latest: save every epoch; a save without another reason is replaced by the next.
            monitor: the metric that decides what is best, as `log` names it.
            mode: "min" or "max", with monitor.
            patience: end after so many logged epochs without an improvement.
            min_delta: what counts as an improvement for patience.
            keep: which of the every and best ones to keep; None keeps each every and the best.
            at_end: "last", or "best" to leave the best state behind.

        Raises:
            TreeMismatch: the state does not fit what was saved; nothing was touched.
            ConfigMismatch: the structure of a model has changed.
            RunBusy: another live process trains the run.
            BadRequest: options that make no sense.
            Stopped: from the loop, after a request to stop; the state is saved.
        """
        options = LoopOptions(
            total,
            Every.of(save_every, "epoch"),
            Monitor.of(monitor, mode, patience, min_delta),
            keep,
            at_end,
        )
        return iter(EpochLoop(cast("Run", self), state, options, save_latest=save_latest))

    def batches(
        self, loader: Any, *, accumulate: int = 1, save_every_s: float | None = 600
    ) -> Iterator[Any]:
        """Return the batches of this epoch that are left; inside the body of `epochs`.

        Between batches it looks for a request to stop, and saves in the middle of the epoch when
        it is time. Only the first call in an epoch does; a second one, over validation data,
        passes its batches on.

        Args:
            loader: a loader with `state_dict`, a sequence, a torch DataLoader, or any iterable;
                what cannot be put back is not saved inside an epoch.
            accumulate: batches per optimizer step: nothing is saved between them.
            save_every_s: seconds between saves inside an epoch; None for none but on a stop.

        Raises:
            BadRequest: outside an epoch.
        """
        if not isinstance(self._loop, EpochLoop) or self._row is None:
            raise BadRequest("batches() outside an epoch", "", "use it inside `for ... epochs()`")
        _check_accumulate(accumulate)
        return self._loop.batches(loader, accumulate, save_every_s)

    def steps(
        self,
        total: int,
        state: Any,
        loader: Any,
        *,
        accumulate: int = 1,
        save_every: int | Every | None = None,
        save_latest_s: float | None = 600,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        keep: Policy | None = None,
        at_end: AtEnd = "last",
    ) -> Iterator[tuple[int, Any]]:
        """Restore the state, and return (step, batch) of the steps that are left.

        For training without epochs: the loader begins anew whenever it ends. A step has
        `accumulate` batches, each yielded with the same number.

        Args:
            total: steps in all, over all sessions.
            state: as in `epochs`.
            loader: as in `batches`; one that cannot be put back begins anew on resume, and
                `Checkpoint.missing` says so.
            accumulate: batches per step.
            save_every: keep every so many steps; or an Every.
            save_latest_s: seconds between saves that the next one replaces; None for none.
            monitor: as in `epochs`.
            mode: as in `epochs`.
            keep: as in `epochs`.
            at_end: as in `epochs`.

        Raises:
            TreeMismatch, ConfigMismatch, RunBusy, BadRequest, Stopped: as `epochs`.
        """
        _check_accumulate(accumulate)
        options = LoopOptions(
            total, Every.of(save_every, "step"), Monitor.of(monitor, mode), keep, at_end
        )
        loop = StepLoop(
            cast("Run", self),
            state,
            options,
            loader,
            accumulate=accumulate,
            save_latest_s=save_latest_s,
        )
        return iter(loop)

    def stop(self, reason: str = "") -> None:
        """End the loop after the body at hand, and save; not an error outside a loop."""
        self._session.watch.ask(reason or "run.stop()")

    def check_stop(self) -> None:
        """Leave if somebody has asked for it; called where a stage can be left.

        Raises:
            Stopped: on SIGTERM or `casckpt stop`.
            KeyboardInterrupt: on Ctrl+C.
        """
        request = self._session.watch.look()
        if request is not None and request.kind != "call":
            self._leave(request)


def _check_accumulate(accumulate: int) -> None:
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise BadRequest(f"accumulate={accumulate!r}", "it is a number of batches from 1 on")
