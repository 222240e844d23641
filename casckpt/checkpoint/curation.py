"""What people say about checkpoints after the fact: metrics, tags, pins, what may go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from casckpt.checkpoint.compacting import Compacting
from casckpt.checkpoint.guards import (
    Seen,
    check_unpinned,
    returnable,
    tags_free,
    unpinned,
    until_unchanged,
)
from casckpt.checkpoint.payloads import edit_payload
from casckpt.checkpoint.plans import GcPlan, GcResult, make_plan, plan_of, still_droppable
from casckpt.checkpoint.policies import Policy
from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint, check_metrics
from casckpt.checkpoint.refs import (
    ALL_LINES,
    Ref,
    check_pattern,
    is_glob,
    names_glob,
    parse_ref,
    selects_run,
)
from casckpt.errors import BadRef, BadRequest, Busy, CasckptError, NotFound, RunMoved
from casckpt.ids import check_tag
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.store import RowsView

_ATTEMPTS: Final = 10
"""Each attempt fails only if another process removed one of the same checkpoints during it."""


class Curation(Compacting):
    """The calls that mark, drop and free. Each is durable when it returns. Thread safe."""

    def attach_metrics(self, ref: str | Checkpoint, metrics: Mapping[str, Any]) -> Checkpoint:
        """Add metrics to a checkpoint, replacing those of the same names.

        Args:
            ref: the checkpoint.
            metrics: name to anything that takes float().

        Returns:
            The checkpoint as it is now.

        Raises:
            BadRequest: a value is no number, or the store is read-only.
            NotFound: there is no such checkpoint.
        """
        checked = check_metrics(metrics)
        store, checkpoint = self._find(ref, write=True)
        return store._edit(checkpoint, metrics=checked)

    def tag(self, ref: str | Checkpoint, *names: str) -> Checkpoint:
        """Give a checkpoint names; policies never drop a tagged one.

        Args:
            ref: the checkpoint.
            names: tags; not all digits and not `latest` or `best`.

        Returns:
            The checkpoint as it is now.

        Raises:
            BadRef: a name is no tag.
            BadRequest: another checkpoint of the run has the tag, or the store is read-only.
            NotFound: there is no such checkpoint.
        """
        tags = [check_tag(name) for name in names]
        store, checkpoint = self._find(ref, write=True)
        return store._edit(
            checkpoint, tags_free(tags, checkpoint.run, checkpoint.seq), add_tags=tags
        )

    def untag(self, ref: str | Checkpoint, *names: str) -> Checkpoint:
        """Take names away from a checkpoint; not an error if it does not have them.

        Returns:
            The checkpoint as it is now.

        Raises:
            NotFound: there is no such checkpoint.
            BadRequest: the store is read-only.
        """
        store, checkpoint = self._find(ref, write=True)
        return store._edit(checkpoint, drop_tags=names)

    def pin(self, ref: str | Checkpoint, on: bool = True) -> Checkpoint:
        """Keep a checkpoint for ever, or let policies decide about it again.

        Args:
            ref: the checkpoint.
            on: whether it is pinned from now on.

        Returns:
            The checkpoint as it is now.

        Raises:
            NotFound: there is no such checkpoint.
            BadRequest: the store is read-only.
        """
        store, checkpoint = self._find(ref, write=True)
        return store._edit(checkpoint, pinned=on)

    def delete(self, ref_or_run: str | Checkpoint) -> GcPlan:
        """Move a checkpoint, or all of a run, to the trash.

        A bare name of a run, `RUN~LINE` and a glob over runs mean all their checkpoints; anything
        else is a REF. `undelete` brings them back until a gc sweeps them, an hour at the earliest.

        Returns:
            What was dropped, and what that frees once it is swept.

        Raises:
            NotFound: there is nothing of that name.
            BadRequest: one of them is pinned, or the store is read-only. Nothing was moved.
            Busy: other processes keep removing the same ones.
        """
        wanted: set[tuple[str, int]] = set()
        for _ in range(_ATTEMPTS):
            store, found = self._named(ref_or_run)
            # Once looked at, only less: a training at work replaces its rolling save all the time.
            doomed = [ck for ck in found if (ck.run, ck.seq) in wanted] or found
            wanted = {(ck.run, ck.seq) for ck in doomed}
            check_unpinned(doomed)
            plan = plan_of(store._repository, doomed, "deleted")
            try:
                store._remove(doomed, unpinned(wanted))
            except NotFound:
                continue  # somebody else removed one of them since it was looked at
            return plan
        raise Busy(
            f"{ref_or_run} could not be deleted",
            "other processes keep removing the same checkpoints",
        )

    def undelete(self, ref: str | Checkpoint) -> Checkpoint:
        """Bring a checkpoint back from the trash; a bare name of a run brings all of it back.

        Of several that were at one place, one after the other, a run's name brings the last back.

        Returns:
            The checkpoint; of a run, the newest.

        Raises:
            NotFound: it is not in the trash any more.
            StepExists: another checkpoint has taken its place meanwhile.
            BadRequest: another has taken its tag, or the store is read-only. Nothing came back.
        """
        return self._undelete(ref)[-1]

    def plan_gc(
        self, keep: Policy | None = None, run: str = "*", *, max_bytes: int | None = None
    ) -> GcPlan:
        """Return what a policy would drop, with reasons and the bytes that really go.

        Changes nothing. Never dropped: the newest of each line, tagged and pinned checkpoints,
        and those that another line continued from.

        Args:
            keep: a policy such as `KeepLast(3) | KeepBest("val_loss", "min")`; None keeps all.
            run: a run or a glob over runs; policies count per line of each.
            max_bytes: drop the oldest besides until the store takes at most this on disk.

        Raises:
            BadRequest: `keep` is no policy.
            BadRef: `run` names a line, a checkpoint or another store.
            NotFound: there is no such run, or none of it has a metric that `keep` goes by.
        """
        self._ready()
        check_pattern(run)
        if not is_glob(run) and not self._catalog.has_run(run.partition("~")[0]):
            self._catalog.checkpoints(run)  # raises, with the nearest names
        return make_plan(self._repository, self._catalog, keep, run, max_bytes=max_bytes)

    def gc(self, plan: GcPlan | None = None, *, now: bool = False, force: bool = False) -> GcResult:
        """Carry a plan out, and free what nothing reaches.

        Never blocks a save, here or in another process. What in the plan was tagged, pinned or
        branched from since it was made is left alone.

        Args:
            plan: from `plan_gc`; None drops nothing.
            now: free at once what is dropped, and what else the runs of the plan, or all runs
                without a plan, have in the trash. Otherwise that stays there, from where `undelete`
                brings it back, for at least an hour.
            force: collect although far more would go than was removed since the last time.

        Raises:
            StoreBusy: another gc is at work.
            Corrupt: something that had to be read is damaged; nothing was freed.
            BadRequest: the store is read-only.
        """
        self._ready(write=True)
        if not isinstance(plan, GcPlan | None):
            raise BadRequest(
                f"gc carries out a plan, not {plan!r}",
                "what goes is decided, and can be looked at, before it does",
                "pass store.plan_gc(KeepLast(3))",
            )
        drop, skipped = self._drop(plan)
        if skipped:
            logger.warning(
                "left alone, because they changed since the plan was made: %s",
                ", ".join(checkpoint.ref for checkpoint in skipped),
            )
        ended: bool | set[str] = now
        if now and plan is not None and plan.run != "*":
            trash = self._catalog.matching(plan.run.removesuffix("~*"), trash=True)
            ended = {checkpoint.run for checkpoint in trash}
        report = self._repository.gc(now=ended, force=force)
        return GcResult(tuple(drop), tuple(skipped), report.freed_bytes, report.dead_bytes)

    def _named(self, ref_or_run: str | Checkpoint) -> tuple[Self, list[Checkpoint]]:
        """Return everything a REF, a run, a line or a glob names, and its store."""
        self._ready(write=True)
        if isinstance(ref_or_run, Checkpoint):
            store, checkpoint = self._find(ref_or_run, write=True)
            return store, [checkpoint]
        if names_glob(ref_or_run):
            found = of_glob(self._catalog, ref_or_run)
            if not found:
                raise self._catalog.no_run(ref_or_run)
            return self, found
        ref = parse_ref(ref_or_run)
        if not selects_run(ref):
            store, checkpoint = self._find(ref_or_run, write=True)
            return store, [checkpoint]
        store = self if ref.store is None else self._other(Path(ref.store), write=True)
        line = ALL_LINES if ref.line is None else ref.line
        return store, store._catalog.of_line(ref.run, line)

    def _undelete(self, ref: str | Checkpoint) -> list[Checkpoint]:
        """Bring back what a REF, a run or a line names in the trash; return it, the newest last."""
        self._ready(write=True)
        if isinstance(ref, Checkpoint):
            ref = f"id:{ref.id}"
        parsed = parse_ref(ref)
        store = self if parsed.store is None else self._other(Path(parsed.store), write=True)
        if selects_run(parsed):
            line = ALL_LINES if parsed.line is None else parsed.line
            returning = store._catalog.last_trashed(parsed.run, line)
        else:
            returning = [store._in_trash(parsed)]
        store._repository.untrash([(ck.run, ck.seq) for ck in returning], returnable(returning))
        back = {
            (checkpoint.run, checkpoint.seq): checkpoint
            for run in dict.fromkeys(checkpoint.run for checkpoint in returning)
            for checkpoint in store._catalog.of_line(run, ALL_LINES)
        }
        return [back.get((one.run, one.seq), one) for one in returning]

    def _in_trash(self, ref: Ref) -> Checkpoint:
        try:
            return self._catalog.resolve_trash(ref)
        except NotFound:
            try:
                live = self._catalog.resolve(ref)
            except CasckptError:
                live = None
            if live is None:
                raise
            raise NotFound(
                f"{live.ref} is not in the trash",
                "it is live",
                "`casckpt ls --trash` shows what can come back",
            ) from None

    def _drop(self, plan: GcPlan | None) -> tuple[list[Checkpoint], list[Checkpoint]]:
        """Move what a plan drops to the trash; return it, and what had to be left alone."""
        left = [] if plan is None else list(plan.drop)
        dropped: list[Checkpoint] = []
        skipped: list[Checkpoint] = []

        def attempt() -> None:
            nonlocal left
            seen = Seen(self._repository)
            drop, spared = still_droppable(self._catalog, left)
            moved: list[str] = []
            while drop:
                try:
                    self._remove(drop, seen.allows((ck.run, ck.seq) for ck in drop))
                    break
                except RunMoved as exc:
                    # Somebody works on these runs: the others need not wait for that.
                    moved += exc.details["runs"]
                    drop = [ck for ck in drop if ck.run not in moved]
            dropped.extend(drop)
            skipped.extend(ck for ck in spared if ck.run not in moved)
            left = [ck for ck in left if ck.run in moved]
            if left:
                raise RunMoved(f"run {moved[0]} has moved", run=moved[0])

        if left:
            try:
                until_unchanged(attempt, "the plan could not be carried out")
            except Busy:
                if not dropped:
                    raise
                skipped.extend(left)
        return dropped, skipped

    def _remove(self, checkpoints: Sequence[Checkpoint], guard: Callable[[RowsView], None]) -> None:
        self._last.clear()
        self._repository.trash([(ck.run, ck.seq) for ck in checkpoints], guard)

    def _edit(
        self,
        checkpoint: Checkpoint,
        guard: Callable[[RowsView], None] | None = None,
        **changes: Any,
    ) -> Checkpoint:
        change = partial(edit_payload, **changes)
        self._repository.edit_checkpoint(checkpoint.run, checkpoint.seq, change, guard)
        return self._catalog.one(checkpoint.run, checkpoint.seq)


def of_glob(catalog: Catalog, text: str) -> list[Checkpoint]:
    """Return the checkpoints of the runs that `GLOB`, `GLOB~LINE` or `GLOB~*` names, live ones.

    Raises:
        BadRef: if it is none of these.
    """
    pattern, line = parse_glob(text)
    found = catalog.matching(pattern)
    return found if line == ALL_LINES else [ck for ck in found if ck.line == line]


def parse_glob(text: str) -> tuple[str, int]:
    """Return (glob over runs, number of a line or ALL_LINES) of `GLOB`, `GLOB~LINE` or `GLOB~*`.

    Raises:
        BadRef: if it is none of these.
    """
    pattern, tilde, line = text.partition("~")
    if "@" not in text and (not tilde or line == "*"):
        return pattern, ALL_LINES
    if not (line.isascii() and line.isdigit()):
        raise BadRef(
            f"bad pattern {text!r}",
            "a pattern names runs, or a line of each, and no checkpoint",
            "write GLOB, GLOB~LINE or GLOB~*, or one REF without *, ? and [",
        )
    return pattern, int(line)
