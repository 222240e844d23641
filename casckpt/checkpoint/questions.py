"""The calls that ask and change nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from casckpt.checkpoint.handle import StoreHandle
from casckpt.checkpoint.queries import with_monitor
from casckpt.checkpoint.records import Checkpoint, RunInfo
from casckpt.checkpoint.refs import (
    Ref,
    Selector,
    check_mode,
    check_pattern,
    rank,
    selects_run,
    split_store,
)
from casckpt.errors import BadRef, BadRequest, NotFound
from casckpt.hostnotes import state_folder

if TYPE_CHECKING:
    from casckpt.checkpoint.checks import VerifyResult
    from casckpt.checkpoint.codings import Coding
    from casckpt.checkpoint.diffs import Diff
    from casckpt.checkpoint.history import History
    from casckpt.checkpoint.stats import Stats


class Questions(StoreHandle):
    """The calls that ask. Each sees what is committed at that moment. Thread safe.

    `get`, `latest`, `best`, `history` and `checkpoints` raise what a background save of the run has
    failed with, if nobody has been told: what they return would be older than the script believes.
    """

    def get(self, ref: str | Checkpoint) -> Checkpoint:
        """Return the checkpoint that a REF means.

        Raises:
            BadRef: it is no REF, or `best` lacks its metric or mode.
            NotFound: there is no such checkpoint.
            Ambiguous: it fits more than one.
        """
        store, checkpoint = self._find(ref)
        store._background.tell(checkpoint.run)
        return checkpoint

    def latest(self, run: str) -> Checkpoint | None:
        """Return the checkpoint at the largest step of a run, or None if it has none.

        Args:
            run: name of the run, with `~LINE` or `STORE::` if wanted.

        Raises:
            BadRef: `run` names a checkpoint.
        """
        store, ref = self._run_of(run)
        return store._catalog.newest(ref.run, ref.line)

    def best(
        self, run: str, metric: str | None = None, mode: Literal["min", "max"] | None = None
    ) -> Checkpoint | None:
        """Return the checkpoint with the best finite value of a metric, or None if none has one.

        Args:
            run: name of the run, with `~LINE` or `STORE::` if wanted.
            metric: which metric; NaN and infinities are never best. None for the one that the
                run's loop declared by `monitor`.
            mode: "min" or "max"; None if the loop declared it. It is never guessed.

        Raises:
            BadRef: the metric or the mode is missing, and the run has declared none; or `run`
                names a checkpoint.
        """
        store, ref = self._run_of(run)
        selector = Selector("best", metric=metric, mode=mode)
        view = store._catalog.view(ref.run)
        declared = with_monitor(replace(ref, selector=selector), view).selector or selector
        metric, mode = declared.metric, declared.mode
        if metric is None:
            raise BadRef(
                f"best of {run} by which metric?",
                "no loop of it has declared one by monitor=",
                'name it: best(run, "val_loss", "min")',
            )
        checked = check_mode(mode, metric)
        try:
            ranked = rank(store._catalog.of_line(ref.run, ref.line), metric, checked)
        except NotFound:
            return None
        return ranked[0][1] if ranked else None

    def checkpoints(self, run: str = "*", *, trash: bool = False) -> list[Checkpoint]:
        """Return checkpoints, by run and then oldest first.

        Args:
            run: a glob over names of runs (`*` crosses `/`), all lines of each; or one run: its
                newest line with what that inherited, `RUN~LINE` for one line, `RUN~*` for all.
                `STORE::` before either asks another store.
            trash: what `undelete` can bring back, in place of what is live.

        Returns:
            An empty list if nothing matches, also for a run that is not there.

        Raises:
            BadRef: `run` names a checkpoint.
            NoStore: there is no store where `STORE::` says.
        """
        self._ready()
        path, pattern = split_store(run)
        store = self if path is None else self._other(Path(path))
        store._background.tell_matching(pattern.partition("~")[0])
        try:
            return store._catalog.checkpoints(pattern, trash=trash)
        except NotFound:
            return []

    def runs(self, pattern: str = "*") -> list[RunInfo]:
        """Return the runs with live checkpoints whose names match a glob, by name."""
        self._ready()
        return self._catalog.runs(pattern)

    def history(self, run: str) -> History:
        """Return the metrics of a run's checkpoints: metric to its (step, value) pairs.

        NaN and infinities are in it as they were given.

        Args:
            run: name of the run, with `~LINE` or `STORE::` if wanted.

        Raises:
            NotFound: there is no such run.
            BadRef: `run` names a checkpoint.
        """
        from casckpt.checkpoint.history import history_of

        store, ref = self._run_of(run)
        return history_of(store._catalog.of_line(ref.run, ref.line))

    def diff(self, a: str | Checkpoint, b: str | Checkpoint) -> Diff:
        """Return what differs between two checkpoints of one store.

        Raises:
            NotFound: one of them is not there.
            BadRequest: they are in different stores.
            Corrupt: what had to be read is damaged.
        """
        from casckpt.checkpoint.diffs import diff_of

        store, first = self._find(a)
        other, second = self._find(b)
        if store is not other:
            raise BadRequest(
                "diff compares checkpoints of one store",
                f"{a} and {b} are in different ones",
                "export one as safetensors, import that into the store of the other, and compare",
            )
        return diff_of(store._repository, store._catalog, first, second)

    def codings(self, ref: str | Checkpoint) -> dict[str, Coding]:
        """Return how each leaf of a checkpoint is stored, by path.

        Reads no tensor. What is damaged or gone is called unknown. Of paths that read alike, as
        those of the keys 1 and "1", all but the first have a `'` at the end, or several.

        Raises:
            NotFound: there is no such checkpoint.
            Corrupt: its manifest is damaged.
        """
        from casckpt.checkpoint.codings import codings_of

        store, checkpoint = self._find(ref)
        manifest, refs = store._catalog.manifest_and_refs(checkpoint)
        return codings_of(store._repository, manifest.entries, refs)

    def stats(self, run: str = "*", *, codings: bool = False) -> Stats:
        """Return logical, unique, stored and saved bytes of the store, or of some runs.

        Args:
            run: a run or a glob over runs, all lines of each; after `STORE::` of another store.
            codings: also tell how their chunks are stored (`Stats.codings`); reads a few bytes of
                each chunk.

        Raises:
            BadRef: `run` names a line or a checkpoint.
        """
        from casckpt.checkpoint.stats import stats_of

        self._ready()
        path, pattern = split_store(run)
        store = self if path is None else self._other(Path(path))
        check_pattern(pattern)
        return stats_of(store._repository, store._catalog, pattern, codings=codings)

    def _run_of(self, run: str) -> tuple[Self, Ref]:
        """Return the store and the run, or line of it, that a text names.

        Raises:
            BadRef: it names a checkpoint.
            CasckptError: what a background save of it failed with, if nobody has been told.
        """
        self._ready()
        store, ref = self._locate(run)
        if not selects_run(ref):
            raise BadRef(
                f"{run} names a checkpoint",
                "newest, best and history are of a run, or a line of it",
                f"`casckpt show {run}`, or get({run!r}), is for one checkpoint",
            )
        store._background.tell(ref.run)
        return store, ref

    def verify(
        self,
        level: Literal["structure", "refs", "bytes"] = "bytes",
        *,
        sample: float = 1.0,
        max_rate: float | None = None,
        resume: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> VerifyResult:
        """Check the store and change nothing.

        Args:
            level: "structure" looks at files and the index, "refs" also that everything that is
                named is there, "bytes" reads and checks every record.
            sample: share of the records that level "bytes" reads, above 0, at most 1; chosen at
                random each time.
            max_rate: bytes that it reads a second, at most; None for no limit.
            resume: go on where the last verify at level "bytes" by this user was stopped. What
                was whole then is not read again.
            progress: called with (bytes done, bytes in all) of what has to be read.

        Returns:
            What is damaged, with the tensors and checkpoints that need it, and what is whole.

        Raises:
            BadRequest: no such level, or a sample or rate that cannot be.
        """
        from casckpt.checkpoint.checks import result_of
        from casckpt.store.effort import Effort, Journal

        self._ready()
        if level not in ("structure", "refs", "bytes"):
            raise BadRequest(f"bad level {level!r}", "levels are structure, refs and bytes")
        if level != "bytes" and (resume or sample != 1.0 or max_rate is not None):
            raise BadRequest(
                f"level {level!r} reads no records",
                "sample, max_rate and resume are for level 'bytes'",
                "leave them out, or verify at level 'bytes'",
            )
        uuid = self._repository.uuid
        # A sample says nothing of what it left out: it resumes no other, and cannot be resumed.
        journal = (
            Journal(state_folder("verify") / f"{uuid.hex()}.json", uuid, resume=resume)
            if level == "bytes" and sample == 1.0
            else None
        )
        effort = Effort(sample, max_rate, journal)
        report = self._repository.verify(level, progress, effort)
        return result_of(self._catalog, level, report)
