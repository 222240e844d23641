"""A run: what a training script holds. It decides nothing itself; the modules beside it do."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

from casckpt.checkpoint.placement import Placement
from casckpt.checkpoint.policies import Policy, check_policy
from casckpt.checkpoint.records import Checkpoint, RunInfo, check_metrics
from casckpt.checkpoint.refs import Ref, parse_selector, rank, select
from casckpt.errors import BadRequest, Stopped
from casckpt.logs import logger
from casckpt.training import randomness, series
from casckpt.training.lines import edit_record
from casckpt.training.loops import byhand, keeping
from casckpt.training.loops.saving import captured_by_all
from casckpt.training.resume import Extra
from casckpt.training.runbase import open_runs
from casckpt.training.runloops import RunLoops
from casckpt.training.watching import status
from casckpt.training.work import RunWork

if TYPE_CHECKING:
    from pathlib import Path

    from casckpt.training.guards import MismatchPolicy


class Run(RunLoops, RunWork):
    """One experiment in a store, across all the sessions that work on it.

    Made by `Store.run`; use it with `with`. Leaving the block without an exception finishes the
    run; Stopped, Ctrl+C and `break` out of its loop stop it; other exceptions fail it.

    Attributes:
        name: name of the run.
        store: the store it is in.
        line: number of its line.
        resumed: the checkpoint it goes on from, or None.
        grace_s: seconds between SIGTERM and the kill, if the machine's owner has told.
    """

    _left: Checkpoint | None = None
    """What the loop has left behind, if it is not the last checkpoint."""

    # ---- log and state

    def log(
        self, values: Mapping[str, Any] | None = None, *, step: int | None = None, **metrics: Any
    ) -> None:
        """Log metrics: the row of this epoch, or a point of series with an axis of its own.

        Visible to others within a second and durable within five, or with the next checkpoint.
        A resume drops what was logged after the checkpoint it goes on from.

        Args:
            values: name to anything that takes float(); for names that are no identifiers.
            step: place on the series' own axis; None for the row of this epoch, which the
                checkpoint's metrics, `monitor` and `keep` read. After the loop: the last row
                and checkpoint, and the best one if the loop has left that behind.
            metrics: more of them by keyword.

        Raises:
            BadRequest: a value is no number.
        """
        numbers = series.numbers(values, metrics)
        session = self._session
        if not session.is_begun:
            self._begin(None, watch=False)
        if step is not None:
            session.log.add_points(step, numbers)
        else:
            if self._row is not None:
                self._row.update(numbers)
            elif self._part_done and self._peers.leads:
                for one in {self._left, self._last()} - {None}:
                    self.store.attach_metrics(cast("Checkpoint", one), numbers)
            session.log.add_row(self._row_at, numbers)
        session.stir()

    def save(
        self,
        state: Any,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
        name: str | None = None,
    ) -> Checkpoint:
        """Save a state on this line, durable on return; generators are captured with it.

        A loop saves its own state and goes on from that alone. So in a run with a loop, and with
        a name, the state goes to a run below: NAME/saves, or NAME/`name`. There a unit that is
        done again after a kill takes the place of what it saved before.

        If several processes train the run, each of them makes this call. A program whose loop is
        its own leaves here, once the state is durable, if it was asked to stop within the run's
        `with`.

        Args:
            state: see `Store.save`, like all others.
            step: None for the line's last + 1; in a run below for the unit at hand.
            metrics: see `Store.save`.
            tags: see `Store.save`.
            replace: see `Store.save`.
            level: see `Store.save`.
            name: of a run below.

        Raises:
            RunBusy: another live process trains the run.
            StepExists, BadLeaf, BadRequest, NoSpace: see `Store.save`.
            Stopped, KeyboardInterrupt: it was asked to stop, and the state is saved.
        """
        self._begin(None, watch=False)
        watch = self._session.watch
        if self._is_entered and not watch.is_on:
            watch.begin(by_hand=True)
        below = name or (byhand.DEFAULT_NAME if self._loop is not None else None)
        captured = captured_by_all(self._peers, state, None) if below is None else None
        made: list[Checkpoint] = []

        def lead() -> str:
            if below is None:
                one = self._save_captured(
                    captured or [], state, step, metrics, tags, replace, level
                )
            else:
                one = byhand.save(
                    self, below, state, step, metrics=metrics, tags=tags, replace=replace,
                    level=level,
                )  # fmt: skip
            made.append(one)
            return self._peers.name_of(self.store, one)

        named = self._peers.lead(lead)
        if watch.by_hand:
            self.check_stop()
        return made[0] if made else self.store.get(named)

    def _save_captured(
        self,
        captured: list[dict[str, Any]],
        state: Any,
        step: int | None,
        metrics: Mapping[str, Any] | None,
        tags: str | Sequence[str],
        replace: bool,
        level: str | None,
    ) -> Checkpoint:
        if step is None:
            newest = self._newest()
            step = 0 if newest is None else newest.step + 1
        streams = captured[0]["streams"]
        count = self._session.log.close_piece()
        self._session.log.write_closed()
        extra = Extra(
            streams=streams, log=count, elapsed_s=self._session.elapsed_s, peers=captured[1:]
        )
        placement = Placement(
            line=self.line,
            parent=self._parent_id,
            beside=extra.encode(),
            captured=randomness.names(streams),
        )
        saved = self.store._save_placed(
            self.name, state, step, placement, metrics=metrics, tags=tags, replace=replace,
            level=level,
        )  # fmt: skip
        assert isinstance(saved, Checkpoint)
        self._saved, self._parent_id = saved, saved.id
        self._row_at = saved.step  # as for who goes on from it
        self._session.tracker.note_save()
        self._session.stir()
        return saved

    def restore(
        self, at: str | int = "latest", *, into: Any = None, only: str | Sequence[str] | None = None
    ) -> Any:
        """Return a state of this line, with what it inherited.

        Args:
            at: latest, a step, STEP+BATCH, best (by the loop's monitor), best:METRIC:MODE, a tag.
            into: see `Store.restore`.
            only: see `Store.restore`.

        Raises:
            NotFound: there is no such checkpoint.
        """
        self._settle()
        members = self._members()
        if str(at) == "best":
            monitor = self._monitor()
            if monitor is not None and (ranked := rank(members, monitor.metric, monitor.mode)):
                return self._restore_from(ranked[0][1], into, only)
        text = f"{self.name}~{self.line}@{at}"
        if not members and self.resumed is not None:
            members = [self.resumed]
        ref = Ref(text, run=self.name, line=self.line, selector=parse_selector(str(at), text))
        return self._restore_from(select(ref, members), into, only)

    # ---- children

    def child(
        self,
        name: str,
        *,
        config: Any = None,
        data: Any = None,
        on_mismatch: MismatchPolicy | None = None,
    ) -> Run:
        """Open a run below this one, on this one's line; it resumes by itself.

        Args:
            name: its name below this one.
            config: its settings; not inherited.
            data: its data's fingerprint; not inherited.
            on_mismatch: what to do about differences; None for this run's actions.
        """
        from casckpt.training.opening import open_run

        self._session.note(self._facts)
        run = open_run(
            self.store,
            f"{self.name}/{name}",
            config=config,
            data=data,
            on_mismatch=self._policy if on_mismatch is None else on_mismatch,
            under=self.line,
            grace_s=self.grace_s,
            peers=self._peers,
        )
        run._session.watch.follow(self._session.watch)
        run._is_entered = self._is_entered
        self._children.append(run)
        return run

    def children(self, pattern: str = "*") -> list[RunInfo]:
        """Return the runs below this one, on its line, whose names match a glob."""
        found = status.infos(self.repository, self.store._catalog, f"{self.name}/{pattern}")
        return [one for one in found if status.is_under(self.repository, one, self.line)]

    def expect(self, pattern: str, count: int) -> None:
        """Say how many children of a pattern there will be, for progress and ETA."""
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise BadRequest(f"expect({pattern!r}, {count!r})", "it is a number from 0 on")
        self._session.note(self._facts)
        if self._peers.leads:
            edit_record(
                self.repository, self.name, lambda record: record.expected.update({pattern: count})
            )

    def note_progress(self, part: str, done: int, total: int | None) -> None:
        """Note how far a part of the run is; written within a second."""
        self._session.tracker.note(part, done, total)
        self._session.stir()

    def export(self, folder: str | Path) -> None:
        """Write results, histories and settings of the run and its children to a folder.

        Args:
            folder: made if it is missing: results.json, and a CSV of the history of each run.
        """
        from casckpt.training.export import export_run

        self._session.flush()
        if self._peers.leads:
            export_run(self.store, self.name, folder)

    # ---- the end

    def finish(
        self, *, metrics: Mapping[str, Any] | None = None, keep: Policy | None = None
    ) -> None:
        """Declare the run finished; its saves are durable when this returns.

        Args:
            metrics: final ones; added to the last checkpoint and the last row.
            keep: which checkpoints of the line to keep; the final and the best stay anyway.
        """
        check_policy(keep)
        self._begin(None)
        self._settle()
        if metrics:
            checked = check_metrics(metrics)
            newest = self._newest()
            if newest is not None and self._peers.leads:
                self.store.attach_metrics(newest, checked)
            self._session.log.add_row(self._row_at, checked)
        if keep is not None and self._peers.leads:
            keeping.keep_only(self.store, self.name, self.line, keep, self._monitor())
        if (loop := self._loop) is not None:
            # Of a fold nothing else notes it: its loop ends before its body. With it, a run whose
            # checkpoints were deleted is told from one that never had any.
            self._session.edit(lambda line: setattr(line, "loop", loop.counters()))
        self._finished, self._part_done = True, True
        self._end("finished")

    def close(self) -> None:
        """Write everything and let the run go; finished if its last part is done, else stopped.

        Raises:
            CasckptError: what a save in the background failed with.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._settle()
        finally:
            for child in self._children:
                child.close()
            done = self._part_done and not self._broken and not self._in_body
            self._end("finished" if done else "stopped", "" if done else "left before its end")

    def __enter__(self) -> Self:
        """Return the run."""
        self._is_entered = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the run as the class says."""
        if error is None:
            self._part_done = not self._broken and self._call_reason() is None
            self._finished |= self._part_done and self._session.is_used
            self.close()
            return
        if isinstance(error, Stopped | KeyboardInterrupt | GeneratorExit):
            self._abandon("stopped", str(error) or "Ctrl+C")
        else:
            self._abandon("failed", _reason(error))


def _reason(error: BaseException) -> str:
    """Return an error in a line; the rest of it is for whoever reads the traceback."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def _close_at_exit() -> None:
    """Say goodbye for runs that nobody closed: a death would leave them lost."""
    error = getattr(sys, "last_exc", None) or getattr(sys, "last_value", None)
    for run in list(open_runs):
        if run._closed or run._session._pid != os.getpid():
            continue
        if error is not None and not isinstance(error, SystemExit):
            run._abandon("failed", _reason(error))
        else:
            try:
                run.close()
            except Exception as exc:
                logger.error("%s was not closed well: %s", run.name, exc)


atexit.register(_close_at_exit)
