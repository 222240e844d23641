"""Runs whose loop is a framework's: it writes files of its own, and they are the state.

The framework decides what an epoch is and how to go on; here are the saves, with the reasons, the
generators, the metrics and the stops of a run's own loops.
"""

from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from casckpt.checkpoint.filetrees import Files
from casckpt.checkpoint.policies import Policy
from casckpt.checkpoint.records import Checkpoint
from casckpt.training.loops import position
from casckpt.training.loops.epochs import LoopOptions
from casckpt.training.loops.every import Every
from casckpt.training.loops.keeping import BEST, EVERY, FINAL, LATEST, STOP
from casckpt.training.loops.monitor import Monitor
from casckpt.training.loops.saving import LoopSaver
from casckpt.training.resume import Extra
from casckpt.training.stops import StopRequest
from casckpt.training.watching import forecast

if TYPE_CHECKING:
    from casckpt.training.run import Run

_fits: Final[set[Run]] = set()
"""Runs whose `fit` has begun and not ended. Of an exception some frameworks tell no callback."""


class ForeignLoop:
    """What stands for a framework's loop in a run.

    Attributes:
        done: units that are done, all sessions.
        extra: what the checkpoint that the run goes on from holds beside the files.
        is_over: whether the framework has nothing left to do.
        saver: saves the files.
    """

    def __init__(
        self,
        run: Run,
        *,
        unit: Literal["epoch", "step"],
        total: int,
        monitor: str | None,
        mode: str | None,
        keep: Policy | None,
        save_every: int | Every | None,
    ) -> None:
        """Lock the run, and stand where it stands.

        Raises:
            RunBusy: another live process trains it.
            BadRequest: options that make no sense.
        """
        every = Every.of(save_every, unit)
        self._options = LoopOptions(total, every, Monitor.of(monitor, mode), keep, "last")
        self._run = run
        self._unit = unit
        run._alone("this adapter")
        run._begin(None)
        self.checkpoint, self.extra = run._position()
        self.done = 0 if self.checkpoint is None else self.checkpoint.step
        self._options.monitor.load(self.extra.loop.get("monitor", {}))
        self.is_over = False
        self._state = _State()
        self.saver = LoopSaver(run, self._state, self._options.monitor, keep)
        self.saver.since.steps = self.extra.loop.get("steps", 0)
        run._loop = self  # type: ignore[assignment]
        forecast.declare(run, self._options)
        self.note()

    @property
    def request(self) -> StopRequest | None:
        """Who asks the run to stop, if anybody does."""
        return self._run._session.watch.look()

    def note(self) -> None:
        """Note the progress."""
        total = self._options.total or None
        self._run.note_progress(f"{self._unit}s", self.done, total)

    def counters(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the loop."""
        return {
            "unit": self._unit,
            "total": self._options.total,
            "done": self.done,
            "steps": self.saver.since.steps,
            "over": self.is_over,
            "monitor": self._options.monitor.saved(),
        }

    def log(self, row: Mapping[str, float], at: int) -> None:
        """Log the row of a unit."""
        self._run._row, self._run._row_at = {}, at
        self._run.log(row)

    def reasons(self, row: Mapping[str, float], seconds: float) -> tuple[str, ...]:
        """Return why the unit that has just been done is saved, `latest` for want of another.

        Args:
            row: its metrics.
            seconds: now, on the monotonic clock.
        """
        every = self._options.every
        found = []
        if every is not None and self._is_due(every, seconds):
            found.append(EVERY)
        if self._options.monitor.update(row, self.done):
            found.append(BEST)
        if self.is_over:
            found.append(FINAL)
        elif self.request is not None:
            found.append(STOP)
        return tuple(found) or (LATEST,)

    def _is_due(self, every: Every, seconds: float) -> bool:
        if every.steps is not None and self._unit == "step":
            return self.done % every.steps == 0
        return self.saver.since.is_due(every, seconds, epoch=self.done)

    def save(
        self,
        path: Path,
        batch: int,
        reasons: tuple[str, ...],
        row: Mapping[str, float],
        *,
        middle: Mapping[str, Any] | None = None,
        between: Mapping[int, Any] | None = None,
        missing: tuple[str, ...] = (),
    ) -> None:
        """Save the file or folder that the framework has written; it may be removed afterwards.

        Args:
            path: what it wrote.
            batch: batches into the next unit; 0 between two.
            reasons: why.
            row: metrics; of no account inside a unit.
            middle: position inside the unit.
            between: what loaders carry into the next unit.
            missing: what a resume will not find.

        Raises:
            CasckptError: what this save, or the one before, failed with. A full disk is only
                logged unless the loop ends here.
        """
        wait = self.is_over or STOP in reasons
        if middle is not None and not self.saver.keeps(middle):
            middle, missing = None, position.missing_of("none")
        self._state.files = Files(path)
        self.saver.save(
            self.done,
            batch,
            reasons,
            row=row,
            metrics=not batch,
            loop=self.counters(),
            middle=middle,
            between=between,
            missing=missing,
            wait=wait,
        )

    def note_step(self) -> bool:
        """Count an optimizer step inside an epoch; return whether a save by steps is due."""
        every, since = self._options.every, self.saver.since
        since.steps += 1
        return every is not None and every.steps is not None and since.is_due(every, 0.0)

    def leave_if_asked(self) -> None:
        """Leave on a request to stop; what was saved is durable.

        Raises:
            Stopped: on SIGTERM, Ctrl+C and `casckpt stop`. Not KeyboardInterrupt: frameworks
                take that for a wish to end training well.
        """
        request = self.request
        if request is not None:
            kind = "term" if request.kind == "interrupt" else request.kind
            self._run._leave(StopRequest(kind, request.reason, request.at_s), is_over=self.is_over)

    def end(self) -> None:
        """Take note that the framework's loop came to its end; its saves are durable."""
        self.saver.settle()
        self._run._row = None
        self._run._part_ended()


def fit_begins(run: Run) -> None:
    """Take note that a framework's `fit` begins; let go of the signals for those that were left."""
    for left in _fits:
        left._unwatch()
    _fits.clear()
    _fits.add(run)


def fit_ended(run: Run) -> None:
    """Take note that it has come to its end."""
    _fits.discard(run)


@contextlib.contextmanager
def leaving_fit(run: Run) -> Iterator[None]:
    """Take note that the body, which a framework calls, leaves its `fit` by an exception."""
    try:
        yield
    except BaseException:
        _fits.discard(run)
        run._loop_left(False)
        raise


def restored_files(run: Run) -> Path | None:
    """Return a folder with the files that a run goes on from, None at its beginning.

    It is a temporary one, and vanishes with the process.

    Raises:
        BadRequest: the run holds something else than files.
        Corrupt: they are damaged.
    """
    checkpoint, _ = run._position()
    if checkpoint is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="casckpt-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run.store.restore_files(checkpoint, folder / checkpoint_name(checkpoint), into_folder=True)
    return folder / checkpoint_name(checkpoint)


def checkpoint_name(checkpoint: Checkpoint) -> str:
    """Return what frameworks call the folder of a checkpoint; some read the step off it."""
    return f"checkpoint-{checkpoint.step}"


def was_over(extra: Extra) -> bool:
    """Return whether the loop that a run goes on from had come to its end."""
    return bool(extra.loop.get("over"))


class _State:
    """What a loop's saver saves: the files of the moment."""

    files: Files

    def casckpt_flatten(self, path: str, walker: Any) -> Any:
        return self.files.casckpt_flatten(path, walker)

    def load_state_dict(self, state: Any) -> None:
        """Nothing is restored through it: the framework reads its own files."""
