"""transformers: a callback that takes the Trainer's checkpoint folders into a run."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from casckpt.adapters import missing_extra
from casckpt.checkpoint.exchange.trainers import STATE_NAME, metrics_at
from casckpt.checkpoint.policies import KeepLast, Policy
from casckpt.errors import BadRequest
from casckpt.training.loops.foreign import ForeignLoop, restored_files
from casckpt.training.loops.keeping import EVERY, LATEST, STOP

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as exc:
    raise missing_extra("transformers") from exc

if TYPE_CHECKING:
    from casckpt.training.run import Run


def resume_dir(run: Run) -> str | None:
    """Return the folder that a run goes on from, for `trainer.train(resume_from_checkpoint=)`.

    It is a copy that vanishes with the process. None at the beginning of the run.

    Raises:
        BadRequest: the run holds something else than a training of transformers.
        Corrupt: it is damaged.
    """
    folder = restored_files(run)
    if folder is None:
        return None
    if not (folder / STATE_NAME).is_file():
        raise BadRequest(
            f"{run.name} holds no training of transformers",
            "the run was used for something else",
            "give each part a run of its own: run.child('transformers')",
        )
    return str(folder)


class Callback(TrainerCallback):  # type: ignore[misc]
    """Takes every checkpoint that a Trainer saves into a run.

        with store.run("kobart") as run:
            trainer = Trainer(model, args, callbacks=[casckpt.transformers.Callback(run)], ...)
            trainer.train(resume_from_checkpoint=casckpt.transformers.resume_dir(run))

    The Trainer decides when (`save_strategy`, `save_steps`); its last step and a request to stop
    are saved besides. The step of a checkpoint is the Trainer's, its metrics are what was logged
    and evaluated at that step. The Trainer's own folder is removed once the checkpoint is
    durable, unless `load_best_model_at_end` needs it.

    Args:
        run: where to save.
        monitor: the metric that decides what is best; None for the Trainer's
            `metric_for_best_model`.
        mode: "min" or "max", with monitor.
        keep: which checkpoints to keep; None for the last `save_total_limit` of them, or all. The
            best and the last stay anyway.

    Raises:
        BadRequest: options that make no sense.
    """

    def __init__(
        self,
        run: Run,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        keep: Policy | None = None,
    ) -> None:
        super().__init__()
        self._run = run
        self._monitor, self._mode, self._keep = monitor, mode, keep
        self._loop: ForeignLoop | None = None
        self._folders: dict[int, Path] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Lock the run, and stand where it stands.

        Raises:
            BadRequest: the Trainer was not told to go on from where the run is; or there is more
                than one process.
            RunBusy: another live process trains the run.
        """
        if args.world_size > 1:
            raise BadRequest(
                f"a training of transformers over {args.world_size} processes",
                "a run belongs to one process",
                "save the Trainer's folders with store.save_files in the first of them",
            )
        monitor, mode = self._monitor, self._mode
        if monitor is None and args.metric_for_best_model:
            name = args.metric_for_best_model
            monitor = name if name.startswith("eval_") else f"eval_{name}"
            mode = "max" if args.greater_is_better else "min"
        keep = self._keep
        if keep is None and args.save_total_limit:
            keep = KeepLast(args.save_total_limit)
        self._folders.clear()
        self._loop = loop = ForeignLoop(
            self._run, unit="step", total=state.max_steps, monitor=monitor, mode=mode, keep=keep,
            save_every=None,
        )  # fmt: skip
        if loop.done != state.global_step:
            raise BadRequest(
                f"{self._run.name} is at step {loop.done}, and the trainer at {state.global_step}",
                "it was not given the folder of that checkpoint",
                "trainer.train(resume_from_checkpoint=casckpt.transformers.resume_dir(run))",
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Have the last step saved, and the one at which somebody asks to stop."""
        loop = self._loop
        if loop is None:
            return None
        if loop.request is not None:
            control.should_save = control.should_training_stop = True
        if state.global_step >= state.max_steps:
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the folder that the Trainer has written; in the background."""
        loop = self._loop
        if loop is None or state.global_step <= loop.done:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        loop.done = state.global_step
        is_asked = loop.request is not None
        loop.is_over = state.global_step >= state.max_steps or (
            control.should_training_stop and not is_asked
        )
        row = metrics_at(state.log_history, state.global_step)
        loop.log(row, loop.done)
        loop.note()
        found = loop.reasons(row, time.monotonic())
        reasons = tuple(reason for reason in found if reason != LATEST)
        if STOP not in reasons:
            reasons = (EVERY, *reasons)
        loop.save(folder, 0, reasons, row)
        if not args.load_best_model_at_end:
            self._folders[loop.done] = folder
        self._remove_saved()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the last save, and leave if somebody has asked to stop."""
        loop = self._loop
        if loop is None:
            return
        loop.saver.settle()
        self._remove_saved()
        self._loop = None
        loop.leave_if_asked()
        loop.end()

    def _remove_saved(self) -> None:
        """Remove the Trainer's folders up to the last checkpoint that is durable."""
        assert self._loop is not None
        last = self._loop.saver.last
        for step in [step for step in self._folders if last is not None and step <= last.step]:
            shutil.rmtree(self._folders.pop(step), ignore_errors=True)
