"""Saving: from a state tree to a committed checkpoint, at once or in the background."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.handle import StoreHandle
from casckpt.checkpoint.payloads import RowFacts, edit_payload, encode_payload, make_ref
from casckpt.checkpoint.pending import PendingSave
from casckpt.checkpoint.records import Checkpoint, check_metrics
from casckpt.errors import BadRequest, StepExists
from casckpt.ids import check_run_name, check_step, check_tag
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Manifest
    from casckpt.checkpoint.placement import Placement
    from casckpt.checkpoint.staging import StagingPool
    from casckpt.checkpoint.tree import FlatState

LEVELS: Final = ("fast", "balanced", "small")

_AMEND_ABOVE_S: Final = 0.05
"""A save at least this long has its measured time written after its commit: the extra
transaction of about 1 ms is then lost in it. For shorter ones the row keeps the time up to the
commit."""

_ATTEMPTS: Final = 5
"""A save meets a sweep at most once per gc, so a second attempt nearly always passes."""


@dataclass(frozen=True)
class _Request:
    """What a save was asked for, checked."""

    run: str
    step: int | None
    metrics: dict[str, float]
    tags: tuple[str, ...]
    replace: bool
    level: str | None
    started_s: float
    created: datetime
    placement: Placement | None = None

    @property
    def batch(self) -> int:
        """Position inside the step."""
        return 0 if self.placement is None else self.placement.batch


@dataclass(frozen=True)
class _Place:
    """Where a checkpoint goes, as the run was when it was looked at.

    Attributes:
        line: number of the line.
        step: the step.
        head: seq of the line's last commit, which must still be it at the commit.
        parent: the checkpoint before this place, if there is one.
        existing: the checkpoint at this place, if there is one.
    """

    line: int
    step: int
    head: int | None
    parent: Checkpoint | None
    existing: Checkpoint | None


class Saves(StoreHandle):
    """The calls that save."""

    _staging: StagingPool | None = None

    def save(
        self,
        run: str,
        state: Any,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
    ) -> Checkpoint:
        """Save a state tree; when this returns, the checkpoint is durable.

        A kill at any moment leaves the checkpoint wholly there or wholly absent. Waits for a
        background save of the same run first.

        Args:
            run: name of the run; made if it is new.
            state: any nesting of dict, list, tuple, namedtuple and dataclass with tensors,
                arrays, numbers, strings, bytes, None, paths and objects with `state_dict()`.
            step: where in the run, from 0; None for the last step + 1.
            metrics: name to anything that takes float(); NaN is kept, and never best.
            tags: names for this checkpoint; policies never drop a tagged one.
            replace: move the checkpoint at this step to the trash, if its content is another.
            level: "fast", "balanced" or "small"; None for the store's.

        Returns:
            The new checkpoint; or the one that was there, if it holds the same state at the
            same step: then new metrics and tags are added to it.

        Raises:
            StepExists: the step holds another state, or is smaller than the last one.
            BadLeaf: a value in the state cannot be stored; the message names its path.
            BadRequest: a metric is no number, a tag is taken, or the store is read-only.
            RunMoved: another process saved to the run meanwhile; nothing was committed.
            NoSpace: the disk is full; nothing that was committed is lost.
        """
        request = self._request(run, step, metrics, tags, replace, level)
        return self._save_now(request, state)

    def save_async(
        self,
        run: str,
        state: Any,
        step: int | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
    ) -> PendingSave:
        """Save a state tree in the background; returns after one copy of its bytes.

        The state may change as soon as this returns. One save per run is in flight; a second
        waits for it. The interpreter waits for all of them before it exits. An error is raised
        once: by the next call on the run, by `result()`, `wait()` or `close()`; failing these it
        is logged at exit.

        Args:
            run: as in `save`, like all others.
            state: see `save`.
            step: see `save`.
            metrics: see `save`.
            tags: see `save`.
            replace: see `save`.
            level: see `save`.

        Raises:
            StepExists: the step is smaller than the last one.
            BadLeaf: a value in the state cannot be stored.
            BadRequest: a metric is no number, or the store is read-only.
            MemoryError: there is no room for a copy of the state.
            CasckptError: what the save before failed with, if nobody has been told.
        """
        return self._save_later(self._request(run, step, metrics, tags, replace, level), state)

    def _save_placed(
        self,
        run: str,
        state: Any,
        step: int,
        placement: Placement,
        *,
        metrics: Mapping[str, Any] | None = None,
        tags: str | Sequence[str] = (),
        replace: bool = False,
        level: str | None = None,
        wait: bool = True,
    ) -> Checkpoint | PendingSave:
        """Save at a place that the training floor chose; see `save` and `save_async`."""
        request = self._request(run, step, metrics, tags, replace, level, placement)
        return self._save_now(request, state) if wait else self._save_later(request, state)

    def _save_now(self, request: _Request, state: Any) -> Checkpoint:
        with self._background.turn(request.run):
            from casckpt.checkpoint.tree import flatten

            return self._commit(request, self._place(request), flatten(state))

    def _save_later(self, request: _Request, state: Any) -> PendingSave:
        with self._background.turn(request.run):
            from casckpt.checkpoint.tree import flatten

            place = self._place(request)
            staged = self._staging_pool().stage(flatten(state))
            stall_s = time.perf_counter() - request.started_s

            def work() -> Checkpoint:
                try:
                    return self._commit(request, place, staged.state, stall_s)
                finally:
                    staged.release()

            return self._background.start(request.run, work)

    def _request(
        self,
        run: str,
        step: int | None,
        metrics: Mapping[str, Any] | None,
        tags: str | Sequence[str],
        replace: bool,
        level: str | None,
        placement: Placement | None = None,
    ) -> _Request:
        started_s = time.perf_counter()
        self._ready(write=True)
        if level is not None and level not in LEVELS:
            raise BadRequest(f"bad level {level!r}", f"levels are {', '.join(LEVELS)}")
        return _Request(
            run=check_run_name(run),
            step=None if step is None else check_step(step),
            metrics=check_metrics(metrics),
            tags=tuple(check_tag(tag) for tag in ([tags] if isinstance(tags, str) else tags)),
            replace=replace,
            level=level,
            started_s=started_s,
            created=datetime.now(UTC),
            placement=placement,
        )

    def _place(self, request: _Request) -> _Place:
        """Return where the save goes; refuse what cannot be before any byte is written."""
        # ORDER: the head first. Rows seen afterwards can only be newer, and then the commit
        # fails with RunMoved; the other way round it could pass unseen.
        placement = request.placement
        line = self._catalog.newest_line(request.run) if placement is None else placement.line
        head = self._repository.head(request.run, line)
        last, existing, before = self._catalog.around(
            request.run, line, request.step, request.batch
        )
        step = request.step
        if step is None:
            step = 0 if last is None else last.step + 1
        elif last is not None and existing is None and (step, request.batch) <= last.position:
            raise StepExists(
                f"{request.run} is at step {last.step}; step {step} is not larger",
                "steps grow within a run",
                f"save step {last.step + 1} or above, or under another run name",
                run=request.run,
                step=step,
            )
        self._catalog.check_tags_free(request.run, request.tags, existing)
        return _Place(line, step, head, before, existing)

    def _commit(
        self,
        request: _Request,
        place: _Place,
        flat: FlatState,
        stall_s: float | None = None,
    ) -> Checkpoint:
        """Store the state and commit it, anew if a collector got in between."""
        from casckpt.store import SaveAgain

        for attempt in range(_ATTEMPTS):
            try:
                checkpoint = self._commit_once(request, place, flat, stall_s)
                break
            except SaveAgain as exc:
                if attempt == _ATTEMPTS - 1:
                    raise
                logger.debug("saving %s again: %s", request.run, exc.why)
        if request.placement is not None and request.placement.after_commit is not None:
            request.placement.after_commit(checkpoint)
        return checkpoint

    def _commit_once(
        self,
        request: _Request,
        place: _Place,
        flat: FlatState,
        stall_s: float | None,
    ) -> Checkpoint:
        from casckpt.checkpoint import manifest as manifests
        from casckpt.checkpoint.encode import plan_blobs
        from casckpt.store import CommitRequest

        if request.placement is not None and request.placement.before_commit is not None:
            # ORDER: what a resume reads beside the state is durable before the checkpoint is
            request.placement.before_commit()
        plan = plan_blobs(flat)
        with self._repository.saver(level=request.level) as saver:
            refs, entries = plan.entries(saver.put_blobs(plan.sources()))
            made = self._manifest(request, place, flat, entries)
            if place.existing is not None:
                before, refs_before = self._catalog.manifest_and_refs(place.existing)
                if manifests.same_content(made, refs, before, refs_before):
                    return self._add_to(place.existing, request)
                self._check_replace(request, place.existing)
            manifest_id = saver.put_manifest(refs, manifests.encode(made)).id
            until_commit_s = time.perf_counter() - request.started_s
            facts = RowFacts(
                created_us=_microseconds(request.created),
                metrics=request.metrics,
                tags=request.tags,
                reasons=made.reasons,
                parent=made.parent,
                logical_bytes=made.logical_bytes,
                new_bytes=saver.new_bytes,
                stored_bytes=saver.stored_bytes,
                stall_s=until_commit_s if stall_s is None else stall_s,
                durable_s=until_commit_s,
            )
            seq = saver.commit(
                CommitRequest(
                    run=request.run,
                    line=place.line,
                    step=place.step,
                    batch=request.batch,
                    manifest_id=manifest_id,
                    payload=encode_payload(facts),
                    expect_head=place.head,
                    replace_seq=None if place.existing is None else place.existing.seq,
                )
            )
        return self._committed(request, place, seq, manifest_id, facts, stalled=stall_s is None)

    def _manifest(
        self, request: _Request, place: _Place, flat: FlatState, entries: tuple[Any, ...]
    ) -> Manifest:
        from casckpt.checkpoint.environment import environment_facts
        from casckpt.checkpoint.manifest import Manifest
        from casckpt.checkpoint.placement import Placement

        placement = request.placement or Placement(place.line)
        return Manifest(
            run=request.run,
            line=place.line,
            step=place.step,
            batch=request.batch,
            created=request.created.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            tree=flat.tree,
            entries=entries,
            parent=placement.parent if place.parent is None else place.parent.id,
            reasons=placement.reasons,
            config=placement.config,
            environment=environment_facts(),
            metrics=request.metrics,
            captured=placement.captured,
            missing=placement.missing,
        )

    def _committed(
        self,
        request: _Request,
        place: _Place,
        seq: int,
        manifest_id: bytes,
        facts: RowFacts,
        *,
        stalled: bool,
    ) -> Checkpoint:
        """Return the new checkpoint, with the time that it really took."""
        durable_s = time.perf_counter() - request.started_s
        if durable_s > _AMEND_ABOVE_S:
            stall_s = durable_s if stalled else None
            self._repository.edit_checkpoint(
                request.run,
                seq,
                lambda payload: edit_payload(payload, durable_s=durable_s, stall_s=stall_s),
            )
        return Checkpoint(
            ref=make_ref(request.run, place.line, place.step, request.batch),
            id=manifest_id.hex(),
            run=request.run,
            line=place.line,
            step=place.step,
            batch=request.batch,
            created=request.created,
            metrics=dict(facts.metrics),
            tags=tuple(sorted(set(facts.tags))),
            pinned=False,
            reasons=tuple(facts.reasons),
            parent=facts.parent,
            logical_bytes=facts.logical_bytes,
            new_bytes=facts.new_bytes,
            stored_bytes=facts.stored_bytes,
            stall_s=durable_s if stalled else facts.stall_s,
            durable_s=durable_s,
            seq=seq,
            source=self._catalog,
        )

    def _add_to(self, existing: Checkpoint, request: _Request) -> Checkpoint:
        """Add metrics and tags to a checkpoint that holds the same state already."""
        if request.metrics or set(request.tags) - set(existing.tags):
            self._repository.edit_checkpoint(
                existing.run,
                existing.seq,
                lambda payload: edit_payload(
                    payload, metrics=request.metrics, add_tags=request.tags
                ),
            )
        return self._catalog.one(existing.run, existing.seq)

    def _check_replace(self, request: _Request, existing: Checkpoint) -> None:
        """Raise unless a checkpoint with another content may be replaced."""
        facts = {"run": request.run, "step": existing.step}
        if not request.replace:
            raise StepExists(
                f"{existing.ref} is there already, with another content",
                f"it was saved at {existing.created:%Y-%m-%d %H:%M:%S} UTC",
                f"save step {existing.step + 1} or above, or pass replace=True",
                **facts,
            )
        current = self._catalog.one(existing.run, existing.seq)
        if current.pinned or current.tags:
            held = "pinned" if current.pinned else f"tagged {current.tags[0]}"
            raise StepExists(
                f"{existing.ref} cannot be replaced",
                f"it is {held}",
                "take the tag or the pin away first, or save a larger step",
                **facts,
            )

    def _staging_pool(self) -> StagingPool:
        if self._staging is None:
            from casckpt.checkpoint.staging import StagingPool

            self._staging = StagingPool()
        return self._staging

    def close(self) -> None:
        """Wait for background saves and let go of the store; see `StoreHandle.close`."""
        try:
            super().close()
        finally:
            if self._staging is not None:
                self._staging.close()


def _microseconds(time: datetime) -> int:
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds
