"""Keras 3 on torch: a callback that resumes `fit` to the bit, at the end of any epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from casckpt.adapters import missing_extra
from casckpt.checkpoint.policies import Policy
from casckpt.errors import BadRequest
from casckpt.training import randomness
from casckpt.training.loops.epochs import AtEnd, EpochLoop, LoopOptions
from casckpt.training.loops.every import Every
from casckpt.training.loops.foreign import fit_begins, fit_ended, leaving_fit
from casckpt.training.loops.monitor import Monitor

try:
    import keras
except ModuleNotFoundError as exc:
    raise missing_extra("keras") from exc

if TYPE_CHECKING:
    from casckpt.training.run import Run


class Callback(keras.callbacks.Callback):  # type: ignore[misc]
    """Saves a training of Keras into a run; killed at any moment, it goes on to the same bits.

        with store.run("nn") as run:
            model.fit(x, y, epochs=20, callbacks=[casckpt.keras.Callback(run)])

    After each epoch it saves the model's variables, those of its seed generators and metrics, the
    optimizer's, and the generators of the process; when `fit` begins, all of them go back, and
    the epochs that are done are skipped. Keras's BackupAndRestore keeps no generators: with
    dropout or shuffled data it goes on to other weights.

    Args:
        run: where to save.
        state: further parts that are saved with the model, such as other callbacks' counts; as
            in `Run.epochs`.
        save_every: as in `Run.epochs`.
        monitor: as in `Run.epochs`; of Keras's logs.
        mode: as in `Run.epochs`.
        patience: as in `Run.epochs`. Keras's own EarlyStopping forgets its count, not that it has
            ended the training if it stands before this callback.
        keep: as in `Run.epochs`.
        at_end: as in `Run.epochs`.

    Raises:
        BadRequest: options that make no sense.
    """

    def __init__(
        self,
        run: Run,
        *,
        state: Any = None,
        save_every: int | Every | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
        keep: Policy | None = None,
        at_end: AtEnd = "last",
    ) -> None:
        super().__init__()
        self._run, self._parts = run, state
        self._every = Every.of(save_every, "epoch")
        self._monitor = Monitor.of(monitor, mode, patience)
        self._keep, self._at_end = keep, at_end
        self._loop: _FitLoop | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        """Lock the run, restore the model, and skip the epochs that are done.

        Raises:
            BadRequest: Keras is not on torch.
            ConfigMismatch: it is another model than the one saved.
            RunBusy: another live process trains the run.
        """
        backend = keras.backend.backend()
        if backend != "torch":
            raise BadRequest(
                f"Keras on {backend}",
                "the generators of that backend are not captured",
                "set KERAS_BACKEND=torch before keras is imported",
            )
        model = self.model
        # `fit` has built the model by now, but its optimizer only with the first batch.
        model.optimizer.build(model.trainable_variables)
        options = LoopOptions(
            self.params["epochs"], self._every, self._monitor, self._keep, self._at_end
        )
        state = {"model": _Model(model)}
        if self._parts is not None:
            state["more"] = self._parts
        fit_begins(self._run)
        with leaving_fit(self._run):
            self._loop = loop = _FitLoop(self._run, state, options)
        model._initial_epoch = loop.done
        if loop.is_over:
            model._initial_epoch = options.total
            model.stop_training = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Put the generators back."""
        if self._loop is not None:
            # `fit` has read it by now, and a later one that we are not with begins at its own.
            self.model._initial_epoch = None
            self._loop.enter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save the epoch; leave on a request to stop."""
        loop = self._loop
        if loop is None:
            return
        with leaving_fit(self._run):
            self._run.log({name: float(value) for name, value in (logs or {}).items()})
            loop.is_ended = bool(self.model.stop_training)
            if loop.end_body() or loop.is_over:
                self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Wait for the last save, and declare the part of the run done."""
        loop, self._loop = self._loop, None
        if loop is not None:
            self.model._initial_epoch = None
            with leaving_fit(self._run):
                loop.leave()
            fit_ended(self._run)


class _FitLoop(EpochLoop):
    """The loop of a run, driven by `fit`.

    Attributes:
        is_ended: whether another callback, such as EarlyStopping, has ended the training.
    """

    def __init__(self, run: Run, state: Any, options: LoopOptions) -> None:
        self.is_ended = False
        super().__init__(run, state, options, save_latest=True)
        saved = self.extra.loop
        # With more epochs to go it is asked again.
        if saved.get("ended") and saved["total"] == options.total:
            self.is_ended = True
            randomness.restore(self.streams)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.is_ended or super().is_over

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the loop."""
        return {**super().counters(), "ended": self.is_ended}


class _Model:
    """A model's variables as a plain tree."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = self._model.get_state_tree(value_format="numpy_array")
        # They begin anew with each epoch, and are not there before the first batch.
        found.pop("metrics_variables", None)
        return found

    def named_parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield what the structure of the model is compared by."""
        for variable in self._model.variables:
            yield variable.path.replace("/", "."), variable

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._model.set_state_tree(dict(state))
