"""ignite: a handler that resumes an Engine to the bit, inside an epoch too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from casckpt.adapters import missing_extra
from casckpt.checkpoint.policies import Policy
from casckpt.errors import BadRequest
from casckpt.training import randomness
from casckpt.training.loops import position
from casckpt.training.loops.epochs import AtEnd, EpochLoop, LoopOptions
from casckpt.training.loops.every import Every
from casckpt.training.loops.monitor import Monitor

try:
    from ignite.engine import Engine, Events
except ModuleNotFoundError as exc:
    raise missing_extra("ignite") from exc

if TYPE_CHECKING:
    from casckpt.training.run import Run


class Handler:
    """Saves an Engine's training into a run; killed at any moment, it goes on to the same bits.

        state = casckpt.torch.State(model=model, optimizer=optimizer)
        with store.run("nn") as run:
            casckpt.ignite.Handler(run, state).attach(trainer)
            trainer.run(loader, max_epochs=10)

    When the Engine starts, the state is restored, and the Engine stands where it stood: its
    epoch, its iteration, what `state_dict_user_keys` names, and the place in the loader. It saves
    after the other handlers of an epoch have run, and inside an epoch where the loader can be put
    back. The metrics of a checkpoint are the Engine's and those of `run.log`.

    Args:
        run: where to save.
        state: as in `Run.epochs`.
        save_every: as in `Run.epochs`.
        monitor: as in `Run.epochs`.
        mode: as in `Run.epochs`.
        patience: as in `Run.epochs`.
        keep: as in `Run.epochs`.
        at_end: as in `Run.epochs`.
        accumulate: iterations per optimizer step: nothing is saved between them.
        save_every_s: seconds between saves inside an epoch; None for none but on a stop.

    Raises:
        BadRequest: options that make no sense.
    """

    def __init__(
        self,
        run: Run,
        state: Any,
        *,
        save_every: int | Every | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        patience: int | None = None,
        keep: Policy | None = None,
        at_end: AtEnd = "last",
        accumulate: int = 1,
        save_every_s: float | None = 600,
    ) -> None:
        self._run, self._parts = run, state
        self._every = Every.of(save_every, "epoch")
        self._monitor = Monitor.of(monitor, mode, patience)
        self._keep, self._at_end = keep, at_end
        self._accumulate, self._save_every_s = accumulate, save_every_s
        self._loop: _EngineLoop | None = None
        self._loader: _Loader | None = None
        self._is_on = False

    def attach(self, engine: Engine) -> None:
        """Have the Engine call this handler; others may be attached before and after."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._fail)
        # First, since another one may raise the exception again.
        calls = engine._event_handlers[Events.EXCEPTION_RAISED]
        calls.insert(0, calls.pop())

    def _start(self, engine: Engine) -> None:
        """Lock the run, restore the state, and stand where the run stands."""
        if engine.state.max_epochs is None:
            raise BadRequest(
                "an Engine that counts iterations",
                "the handler saves by epochs",
                "pass max_epochs= to its run, with epoch_length= if the loader has no end",
            )
        options = LoopOptions(
            engine.state.max_epochs, self._every, self._monitor, self._keep, self._at_end
        )
        self._detach(engine)  # of a training that an exception has ended
        _check_length(engine)
        self._is_on = True
        self._loop = loop = _EngineLoop(self._run, self._parts, options, engine)
        batch = loop.stand(engine)
        engine.state.iteration = loop.done * (engine.state.epoch_length or 0) + batch
        engine.state.epoch = loop.done
        if engine.state.dataloader is not None:
            engine.state.dataloader = self._loader = _Loader(engine.state.dataloader, loop)
        # Here and not in `attach`: after all handlers that were added before the training.
        for event, call in self._calls():
            engine.add_event_handler(event, call)
        if loop.is_over:
            engine.terminate()
        else:
            loop.enter()

    def _end_batch(self, engine: Engine) -> None:
        current = self._loader.current if self._loader is not None else None
        if self._loop is None or current is None:
            return
        self._go_on()
        current.count += 1
        # After the last batch the epoch ends at once; an Engine that stood there would repeat it.
        is_last = current.count == engine.state.epoch_length
        if current.count % self._accumulate == 0 and not is_last:
            self._loop.end_batch(current, self._save_every_s)

    def _end_epoch(self, engine: Engine) -> None:
        loop = self._loop
        if loop is None:
            return
        self._go_on()
        self._run.log(_numbers(engine.state.metrics))
        loop.is_ended = bool(engine.should_terminate)
        if loop.end_body() or (loop.is_over and loop.done < engine.state.max_epochs):
            if not loop.is_ended:  # else it would undo a skip_completed
                engine.terminate()
        elif not loop.is_over:
            loop.enter()

    def _complete(self, engine: Engine) -> None:
        loop = self._loop
        self._detach(engine)
        if loop is not None:
            self._is_on = False
            loop.leave()

    def _terminate(self, engine: Engine) -> None:
        """Do what is done at the end, if the Engine was told to leave that out."""
        if engine.should_terminate == "skip_completed":
            self._complete(engine)

    def _fail(self, engine: Engine, error: BaseException) -> None:
        """Let go of the run; raise the exception unless there is another handler to take it.

        Nothing is detached: where one takes it inside an epoch, the Engine goes on with the next.
        """
        self._pause(engine)
        calls = [one[0] for one in engine._event_handlers[Events.EXCEPTION_RAISED]]
        if all(isinstance(getattr(call, "__self__", None), Handler) for call in calls):
            raise error

    def _pause(self, engine: Engine) -> None:
        """Take note that `Engine.run` may be left here: signals are the program's own again."""
        if self._is_on:
            self._is_on = False
            self._run._loop_left(False)

    def _go_on(self) -> None:
        """Take note that it was not left, or was entered again."""
        if not self._is_on:
            self._run._begin(None)
            self._is_on = True

    def _detach(self, engine: Engine) -> None:
        """Have the Engine be as before its start."""
        self._loop = self._loader = None
        for event, call in self._calls():
            if engine.has_event_handler(call, event):
                engine.remove_event_handler(call, event)
        while isinstance(engine.state.dataloader, _Loader):
            engine.state.dataloader = engine.state.dataloader.inner

    def _calls(self) -> list[tuple[Any, Any]]:
        return [
            (Events.ITERATION_COMPLETED, self._end_batch),
            (Events.EPOCH_COMPLETED, self._end_epoch),
            (Events.COMPLETED, self._complete),
            (Events.TERMINATE, self._terminate),
            (Events.INTERRUPT, self._pause),
        ]


class _EngineLoop(EpochLoop):
    """The loop of a run, driven by an Engine's events.

    Attributes:
        is_ended: whether another handler, such as ignite's EarlyStopping, has ended the training.
    """

    def __init__(self, run: Run, state: Any, options: LoopOptions, engine: Engine) -> None:
        self._engine = engine
        self.is_ended = False
        super().__init__(run, state, options, save_latest=True)
        saved = self.extra.loop
        # With more epochs to go it is asked again.
        if saved.get("engine", {}).get("ended") and saved["total"] == options.total:
            self.is_ended = True
            randomness.restore(self.streams)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        return self.is_ended or super().is_over

    def stand(self, engine: Engine) -> int:
        """Give the Engine its own values back; return the batches of this epoch that are done."""
        saved: Mapping[str, Any] = self.extra.loop.get("engine", {})
        for name, value in saved.get("user", {}).items():
            setattr(engine.state, name, value)
        if engine.state.epoch_length is None:
            engine.state.epoch_length = saved.get("epoch_length")
        return 0 if self.middle is None else int(self.middle["pass"]["count"])

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the loop, and of the Engine."""
        state = self._engine.state
        user = {name: getattr(state, name) for name in self._engine.state_dict_user_keys}
        own = {"epoch_length": state.epoch_length, "user": user, "ended": self.is_ended}
        return {**super().counters(), "engine": own}


class _Loader:
    """Stands for the loader of an Engine: the same batches, with a position.

    Attributes:
        inner: that loader.
        current: the pass at hand.
    """

    def __init__(self, loader: Any, loop: _EngineLoop) -> None:
        self.inner, self._loop = loader, loop
        self.current: position.Pass | None = None

    def __iter__(self) -> position.Pass:
        self.current = self._loop.begin_pass(self.inner)
        return self.current

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "_loop"):
            raise AttributeError(name)
        return getattr(self.inner, name)


def _check_length(engine: Engine) -> None:
    """Refuse epochs that are no whole pass: there is no place in a loader to save at their ends."""
    length = engine.state.epoch_length
    try:
        whole = len(engine.state.dataloader)
    except TypeError:
        return
    if length is not None and length != whole:
        raise BadRequest(
            f"epochs of {length} iterations over a loader of {whole} batches",
            "an epoch that ends inside a pass cannot be resumed exactly",
            "leave epoch_length out",
        )


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    for name, value in metrics.items():
        try:
            found[str(name)] = float(value)
        except (TypeError, ValueError, RuntimeError):
            continue  # a confusion matrix is a metric too
    return found
