"""Lightning: a callback that saves the trainer's checkpoints, and resumes them to the bit."""

from __future__ import annotations

import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from casckpt.adapters import missing_extra
from casckpt.checkpoint.policies import Policy
from casckpt.errors import BadRequest
from casckpt.training.loops import position
from casckpt.training.loops.boundary import Boundary
from casckpt.training.loops.every import Every
from casckpt.training.loops.foreign import ForeignLoop, restored_files, was_over
from casckpt.training.loops.keeping import EVERY, LATEST, STOP
from casckpt.training.loops.positioned import PositionedLoader

try:
    from lightning.pytorch.callbacks import Checkpoint
except ModuleNotFoundError as exc:
    raise missing_extra("lightning") from exc

if TYPE_CHECKING:
    from casckpt.training.run import Run

_FILE: Final = "lightning.ckpt"

_given: Final[weakref.WeakKeyDictionary[Run, str]] = weakref.WeakKeyDictionary()
"""What `resume_path` returned for each run."""


def resume_path(run: Run) -> str | None:
    """Return the file that a run goes on from, for `trainer.fit(ckpt_path=)`; None at the start.

    It is a copy that vanishes with the process.

    Raises:
        BadRequest: the run holds something else than a Lightning training.
        Corrupt: it is damaged.
    """
    folder = restored_files(run)
    if folder is None:
        _given.pop(run, None)
        return None
    path = folder / _FILE
    if not path.is_file():
        raise BadRequest(
            f"{run.name} holds no training of Lightning",
            "the run was used for something else",
            "give each part a run of its own: run.child('lightning')",
        )
    _given[run] = str(path)
    return str(path)


class Callback(Checkpoint):  # type: ignore[misc]
    """Saves a Lightning training into a run; killed at any moment, it goes on to the same bits.

        with store.run("nn") as run:
            trainer = lightning.Trainer(max_epochs=20, callbacks=[casckpt.lightning.Callback(run)])
            trainer.fit(model, loader, ckpt_path=casckpt.lightning.resume_path(run))

    A checkpoint is what `trainer.save_checkpoint` writes, with the generators and the position of
    the training loader beside it. It is saved in the background after each epoch, and inside an
    epoch every `save_every_s` and on a request to stop, where the loader can be put back: a torch
    DataLoader over a dataset with `__getitem__`, or one with `state_dict`. The step of a
    checkpoint is the number of epochs that are done, and its metrics are what was logged in the
    last of them.

    Args:
        run: where to save.
        monitor: the metric that decides what is best, as the module logs it.
        mode: "min" or "max", with monitor.
        save_every: keep every so many epochs, or an Every; a save for no other reason than being
            the latest is replaced by the next.
        keep: which of the every and best ones to keep; None keeps each every and the best.
        save_every_s: seconds between saves inside an epoch; None for none but on a stop.

    Raises:
        BadRequest: options that make no sense.
    """

    best_model_path: str = ""
    """For Lightning, which asks every callback that saves; the best is `run.restore("best")`."""

    def __init__(
        self,
        run: Run,
        *,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        save_every: int | Every | None = None,
        keep: Policy | None = None,
        save_every_s: float | None = 600,
    ) -> None:
        super().__init__()
        self._run = run
        self._monitor, self._mode = monitor, mode
        self._save_every, self._keep = save_every, keep
        self._save_every_s = save_every_s
        self._loop: ForeignLoop | None = None
        self._loaders: list[PositionedLoader] = []
        self._boundary = Boundary({})
        self._saved_at_s = 0.0
        self._process: Callable[[Any], Any] | None = None
        self._seen: dict[str, Any] = {}

    # ---- what Lightning calls

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Lock the run, and stand where it stands.

        Raises:
            BadRequest: the trainer uses more than one process.
            RunBusy: another live process trains the run.
        """
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise BadRequest(
                f"a Lightning training over {trainer.world_size} processes",
                "the callback keeps the generators of one process",
                "use ModelCheckpoint(dirpath='casckpt://RUN') there",
            )
        total = trainer.max_epochs if (trainer.max_epochs or 0) > 0 else 0
        self._loop = ForeignLoop(
            self._run, unit="epoch", total=total, monitor=self._monitor, mode=self._mode,
            keep=self._keep, save_every=self._save_every,
        )  # fmt: skip
        self._saved_at_s = time.monotonic()
        self._watch_loaders(trainer)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """End at once if the training had come to its end, by early stopping too.

        Raises:
            BadRequest: the trainer was not told to go on from where the run is.
        """
        loop = self._loop
        if loop is None or loop.checkpoint is None:
            return
        if str(trainer.ckpt_path) != _given.get(self._run):
            raise BadRequest(
                f"{self._run.name} is at {loop.checkpoint.ref}, and the trainer is not",
                "it was not given the path of that checkpoint",
                "trainer.fit(..., ckpt_path=casckpt.lightning.resume_path(run))",
            )
        # Of other limits Lightning decides itself whether anything is left.
        if was_over(loop.extra) and loop.extra.loop.get("total") == loop.counters()["total"]:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save inside the epoch if it is time, or somebody asks to stop."""
        loop = self._loop
        if loop is None:
            return
        for loader in self._loaders:
            if loader.current is not None:
                loader.current.count += 1
        request = loop.request
        asked = request is not None and request.kind != "call"
        due = (
            self._save_every_s is not None
            and time.monotonic() - self._saved_at_s >= self._save_every_s
        )
        is_last = batch_idx + 1 >= trainer.num_training_batches
        is_between = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        by_steps = (is_between or is_last) and loop.note_step()
        if not (asked or due or by_steps) or is_last or not is_between:
            return
        where = self._position()
        if where is not None:
            reasons = (STOP,) if asked else (EVERY,) if by_steps else (LATEST,)
            self._save(trainer, batch_idx + 1, reasons, {}, middle={"pass": where})
            if asked:
                loop.leave_if_asked()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Save the epoch."""
        loop = self._loop
        if loop is None or trainer.current_epoch + 1 <= loop.done:
            return  # Lightning ends the epoch again that it had saved at its end
        loop.done = trainer.current_epoch + 1
        loop.is_over = _is_last(trainer, loop.done)
        if loop.request is not None and loop.request.kind == "call":
            trainer.should_stop = True
        row = self._logged(trainer)
        loop.log(row, loop.done)
        loop.note()
        reasons = loop.reasons(row, time.monotonic())
        self._save(trainer, 0, reasons, row, missing=self._missing())
        loop.leave_if_asked()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Wait for the last save."""
        if self._loop is not None:
            self._loop.saver.settle()

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Declare the part of the run done."""
        if self._loop is not None:
            self._loop.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Let go of the signals when the training is left."""
        if self._loop is None:
            return
        # Lightning has noted our handlers as the program's, and would put them back after us.
        trainer._signal_connector.teardown()
        self._run._loop_left(False)
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the trainer as it was."""
        if self._process is not None:
            del trainer.strategy.process_dataloader
            self._process = None
        self._loop, self._loaders, self._seen = None, [], {}

    # ---- saving

    def _logged(self, trainer: Any) -> dict[str, float]:
        """Return the metrics that were logged since the last epoch ended.

        The trainer keeps what it has once seen, so an epoch without a validation would claim the
        metrics of an earlier one. Whatever is logged again is another tensor.
        """
        before, self._seen = self._seen, dict(trainer.callback_metrics)
        return {
            name: float(value)
            for name, value in self._seen.items()
            if value is not before.get(name) and value.numel() == 1
        }

    def _save(
        self,
        trainer: Any,
        batch: int,
        reasons: tuple[str, ...],
        row: dict[str, float],
        **facts: Any,
    ) -> None:
        assert self._loop is not None
        with tempfile.TemporaryDirectory(prefix="casckpt-") as folder:
            path = Path(folder) / _FILE
            trainer.save_checkpoint(path, weights_only=False)
            self._loop.save(path, batch, reasons, row, between=self._boundary.capture(), **facts)
        self._saved_at_s = time.monotonic()

    def _position(self) -> dict[str, Any] | None:
        """Return where the loader stands; None if it cannot be put back there."""
        if len(self._loaders) != 1 or self._loaders[0].current is None:
            return None
        return self._loaders[0].current.position()

    def _missing(self) -> tuple[str, ...]:
        kinds = [one.current.kind for one in self._loaders if one.current is not None]
        return position.missing_of("replay" if kinds in (["own"], ["replay"]) else "none")

    def _watch_loaders(self, trainer: Any) -> None:
        """Have the loaders of the training stand for themselves, with a position."""
        assert self._loop is not None
        extra = self._loop.extra
        self._process = process = trainer.strategy.process_dataloader
        self._boundary = boundary = Boundary(extra.between)

        def process_dataloader(loader: Any) -> Any:
            loader = process(loader)
            if not trainer.training:
                return loader
            middle = extra.middle["pass"] if extra.middle is not None else None
            first = not self._loaders
            if not first and trainer.current_epoch > 0:
                self._loaders.clear()  # reload_dataloaders_every_n_epochs makes them anew
            found = PositionedLoader(
                loader,
                extra.streams if first else {},
                middle if first else None,
                boundary,
                len(self._loaders),
            )
            self._loaders.append(found)
            return found

        trainer.strategy.process_dataloader = process_dataloader


def _is_last(trainer: Any, epochs: int) -> bool:
    """Return whether a limit of the trainer ends the training here."""
    by_epochs = (trainer.max_epochs or -1) > 0 and epochs >= trainer.max_epochs
    by_steps = trainer.max_steps > 0 and trainer.global_step >= trainer.max_steps
    return bool(by_epochs or by_steps or trainer.should_stop)
