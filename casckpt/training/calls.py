"""The calls of a Store that are about runs."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, cast

from casckpt.checkpoint.curation import Curation
from casckpt.checkpoint.records import Checkpoint, RunInfo

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.history import History
    from casckpt.checkpoint.plans import GcPlan
    from casckpt.training.guards import MismatchPolicy
    from casckpt.training.run import Run


class Runs(Curation):
    """The calls that train, and those that look at training. Thread safe."""

    _runs: weakref.WeakSet[Run] | None = None

    def run(
        self,
        name: str,
        *,
        config: Any = None,
        data: Any = None,
        resume: str | Checkpoint = "auto",
        on_mismatch: MismatchPolicy = "raise",
        grace_s: float | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> Run:
        """Open a run: the same command goes on where it was, whatever ended it.

        Says in one line where it goes on. Nothing is locked before work begins. Use it as `with`.

        Args:
            name: name of the run.
            config: its settings: a mapping, dataclass or Namespace. Save, keep and patience
                options are none.
            data: fingerprint of its data, or name to fingerprint.
            resume: "auto" goes on from the newest whole checkpoint of the current line; "must"
                does too, and fails if there is none; "never" begins a new empty line; a REF goes
                on there, on a new line unless it is the end of one.
            on_mismatch: what to do if config, data, environment or model differ from what the
                line recorded: "raise", "warn", "allow" or "restart" (a new empty line); or
                {pattern: action} over dotted names, `data`, `env` and `model`, first match; a name
                means what is below it too.
            grace_s: seconds between SIGTERM and the kill where the machine's owner tells them;
                a save that would not fit is not begun.
            rank: number of this process; None for what torch.distributed says.
            world_size: how many processes train the run together; None for those that
                torch.distributed has connected, 1 for this process alone. All of them make the
                same calls of the run; the first one writes.

        Raises:
            ConfigMismatch: something differs that must not; every field is listed.
            NotFound: resume is "must" and there is nothing, or a REF means nothing.
            Corrupt: a REF to a damaged checkpoint.
            RunBusy: another live process trains the run, and a line would have to be opened.
            BadRequest: a launcher has started several processes, and they are not connected.
            BadRef: it is no name of a run.
        """
        from casckpt.training import peers
        from casckpt.training.opening import open_run

        self._ready(write=True)
        run = open_run(
            cast("Store", self),
            name,
            config=config,
            data=data,
            resume=resume,
            on_mismatch=on_mismatch,
            grace_s=grace_s,
            peers=peers.connect(world_size, rank),
        )
        if self._runs is None:
            self._runs = weakref.WeakSet()
        self._runs.add(run)
        return run

    def runs(self, pattern: str = "*") -> list[RunInfo]:
        """Return the runs whose names match a glob, by name, with status and progress."""
        from casckpt.training.watching.status import infos

        self._ready()
        return infos(self._repository, self._catalog, pattern)

    def history(self, run: str) -> History:
        """Return the metrics of a run: metric to its (step, value) pairs.

        Those of its checkpoints, and what the run logged: rows of epochs and series on their own
        axes. NaN and infinities are in it as they were given.

        Raises:
            NotFound: there is no such run.
            BadRef: `run` names a checkpoint.
        """
        from casckpt.training.watching.status import history_of_run

        store, ref = cast("Store", self)._run_of(run)
        return history_of_run(store._repository, store._catalog, ref)

    def delete(self, ref_or_run: str | Checkpoint, *, stage: str | None = None) -> GcPlan:
        """Move a checkpoint, or all of a run, to the trash; or drop the results of one stage.

        A bare name of a run, `RUN~LINE` and a glob over runs mean all their checkpoints; anything
        else is a REF. `undelete` brings them back until a gc sweeps them, an hour at the earliest.
        With a run or a line the results of its stages go too, for good; the log says so. Shared
        stages and `cached` values stay.

        Args:
            ref_or_run: what to drop.
            stage: drop only the results of this stage of the run's current line, for good;
                its items are done again when it runs next. Checkpoints stay.

        Returns:
            What was dropped, and what that frees once it is swept.

        Raises:
            NotFound: there is nothing of that name.
            RunBusy: results of stages would go, and a live process works on the run.
            BadRequest: one of them is pinned, or the store is read-only. Nothing was moved.
        """
        from casckpt.training import deleting

        self._ready(write=True)
        store = cast("Store", self)
        if stage is not None:
            return deleting.drop_stage(store, ref_or_run, stage)
        return deleting.drop(store, ref_or_run, lambda: super(Runs, self).delete(ref_or_run))

    def close(self) -> None:
        """End the runs that are open, wait for saves, and let go; see `StoreHandle.close`."""
        try:
            for run in list(self._runs or ()):
                run.close()
        finally:
            super().close()
