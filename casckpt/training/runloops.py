"""The calls of a Run that train: loops over epochs, batches and steps, and how to stop them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from casckpt.checkpoint.policies import Policy
from casckpt.errors import BadRequest, OperationFailed
from casckpt.training.loops.epochs import AtEnd, EpochLoop, LoopOptions
from casckpt.training.loops.every import Every
from casckpt.training.loops.monitor import Monitor
from casckpt.training.loops.steps import StepLoop
from casckpt.training.runbase import RunBase
from casckpt.training.stops import KINDS, StopRequest

if TYPE_CHECKING:
    from casckpt.training.run import Run

_BATCHES_MAX: Final = 2**40
"""Units times this, and batches, make one number: 63 bits have room for 8 million units."""


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
            RunBusy: another live process trains the run, or another Run of this one.
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
        run = cast("Run", self)
        return self._enter(lambda: iter(EpochLoop(run, state, options, save_latest=save_latest)))

    def batches(
        self, loader: Any, *, accumulate: int = 1, save_every_s: float | None = 600
    ) -> Iterator[Any]:
        """Return the batches of this epoch that are left; inside the body of `epochs`.

        Between batches it looks for a request to stop, and saves in the middle of the epoch when
        it is time. Only the first call in an epoch does; a second one, over validation data,
        passes its batches on. Where it stands is saved too if it is under way then, as in a `zip`.

        Args:
            loader: a loader with `state_dict`, a sequence, a torch DataLoader, or any iterable;
                what cannot be put back is not saved inside an epoch.
            accumulate: batches per optimizer step: nothing is saved between them.
            save_every_s: seconds between saves inside an epoch; None for none but on a stop.

        Raises:
            BadRequest: outside an epoch.
        """
        if not isinstance(self._loop, EpochLoop) or self._row is None:
            raise BadRequest(
                "batches() outside an epoch",
                "a batch is counted within its epoch",
                "use it inside `for ... epochs()`",
            )
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
        run = cast("Run", self)
        return self._enter(
            lambda: iter(
                StepLoop(
                    run,
                    state,
                    options,
                    loader,
                    accumulate=accumulate,
                    save_latest_s=save_latest_s,
                )
            )
        )

    def stop(self, reason: str = "") -> None:
        """End the loop after the body at hand, and save; not an error outside a loop.

        It is over with that loop; outside one it ends the next. A stage that it ends leaves
        results out, so what comes after that is ended too, until this Run is closed.
        """
        self._session.watch.ask(reason or "run.stop()")

    def check_stop(self) -> None:
        """Leave if somebody has asked for it; called where a stage can be left.

        Raises:
            Stopped: on SIGTERM or `casckpt stop`.
            KeyboardInterrupt: on Ctrl+C.
        """
        request, _ = self._agree((0, "unit", 0), self._session.watch.look())
        if request is not None and request.kind != "call":
            self._leave(request)

    def _agree(
        self, place: tuple[int, str, int], request: StopRequest | None, *decided: bool
    ) -> tuple[StopRequest | None, tuple[bool, ...]]:
        """Return what all processes of the run do here; each of them makes this call.

        Args:
            place: units that are done, their name, and batches of the next one.
            request: to stop, as this process knows it; one that any of them knows counts.
            decided: what this process would do; the first one decides.

        Raises:
            OperationFailed: they are not at the same place.
        """
        peers = self._peers
        if peers.size == 1:
            return request, decided
        kind = 0 if request is None else KINDS.index(request.kind) + 1
        bits = sum(flag << at for at, flag in enumerate(decided)) if peers.leads else 0
        done, unit, batch = place
        here = done * _BATCHES_MAX + batch
        kind, high, low, bits = peers.most([kind, here, -here, bits])
        if high != -low:
            raise OperationFailed(
                f"the processes of {self.name} are not at the same batch",
                f"one has done {_shown(high, unit)}, another {_shown(-low, unit)}",
                "give each of them as many batches: DistributedSampler does",
            )
        if kind:
            mine = [] if request is None else [request.kind, request.reason, request.at_s]
            known = [one for one in peers.gather(mine) or [] if one]
            gravest = max(known, key=lambda one: KINDS.index(one[0]), default=None)
            request = StopRequest(*peers.share(gravest))
            self._session.watch.adopt(request)
        return request, tuple(bool(bits >> at & 1) for at in range(len(decided)))


def _shown(number: int, unit: str) -> str:
    done, batches = divmod(number, _BATCHES_MAX)
    return f"{done} {unit}s and {batches} batches"


def _check_accumulate(accumulate: int) -> None:
    if isinstance(accumulate, bool) or not isinstance(accumulate, int) or accumulate < 1:
        raise BadRequest(f"accumulate={accumulate!r}", "it is a number of batches from 1 on")
