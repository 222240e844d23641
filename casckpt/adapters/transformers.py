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
from casckpt.training.loops.foreign import (
    ForeignLoop,
    fit_begins,
    fit_ended,
    leaving_fit,
    restored_files,
)
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
        self._is_due = self._is_wanted = False
        self._evaluated_at = -1

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
        fit_begins(self._run)
        with leaving_fit(self._run):
            self._loop = loop = ForeignLoop(
                self._run, unit="step", total=state.max_steps, monitor=monitor, mode=mode,
                keep=keep, save_every=None,
            )  # fmt: skip
            if loop.done != state.global_step:
                raise BadRequest(
                    f"{self._run.name} is at step {loop.done},"
                    f" and the trainer at {state.global_step}",
                    "it was not given the folder of that checkpoint",
                    "trainer.train(resume_from_checkpoint=casckpt.transformers.resume_dir(run))",
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Have the last step saved, and the one at which somebody asks to stop."""
        loop = self._loop
        if loop is None:
            return None
        is_asked = loop.request is not None
        is_last = state.global_step >= state.max_steps
        is_due = control.should_save or is_asked or is_last
        # The end of the epoch follows at once, with its log and its evaluation: what is saved
        # before those has not their metrics, and goes on without what they drew.
        ends_epoch = is_last or float(state.epoch).is_integer()
        by_epochs = args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
        if is_due and ends_epoch and by_epochs and args.save_strategy == "best":
            # It saves nothing but the best where it evaluates, so that has to come before.
            control.should_evaluate = True
            control.should_log |= args.logging_strategy == "epoch"
            self._evaluated_at = state.global_step
        self._is_wanted = control.should_save or _saves_if_best(args, control)
        self._is_due = is_due and ends_epoch
        control.should_save = is_due and not ends_epoch
        control.should_training_stop |= is_asked
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        """Have the epoch saved if its last step was to be."""
        loop = self._loop
        if loop is None:
            return None
        is_saved = state.global_step <= loop.done
        if self._evaluated_at == state.global_step or (is_saved and loop.request is not None):
            control.should_evaluate = False  # it was done; or it is left inside the epoch
        if args.save_strategy == "best":
            self._is_wanted = _saves_if_best(args, control)
        else:
            self._is_wanted |= control.should_save
        control.should_save = (control.should_save or self._is_due) and not is_saved
        self._is_due = False
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
        control.should_training_stop |= is_asked
        row = metrics_at(state.log_history, state.global_step)
        with leaving_fit(self._run):
            loop.log(row, loop.done)
            loop.note()
            found = loop.reasons(row, time.monotonic())
            reasons = tuple(reason for reason in found if reason != LATEST)
            if self._is_wanted or STOP not in reasons:
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
        with leaving_fit(self._run):
            loop.saver.settle()
            self._remove_saved()
            self._loop = None
            loop.leave_if_asked()
            loop.end()
        fit_ended(self._run)

    def _remove_saved(self) -> None:
        """Remove the Trainer's folders up to the last checkpoint that is durable."""
        assert self._loop is not None
        last = self._loop.saver.last
        for step in [step for step in self._folders if last is not None and step <= last.step]:
            shutil.rmtree(self._folders.pop(step), ignore_errors=True)


def _saves_if_best(args: Any, control: Any) -> bool:
    return bool(args.save_strategy == "best" and control.should_evaluate)
