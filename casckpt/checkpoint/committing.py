"""From a flattened state to a committed checkpoint: where it goes, its manifest, its row."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.bases import BESIDE, Base, layout_of_manifest, layout_of_plan
from casckpt.checkpoint.guards import check_unmarked, tags_free, unmarked
from casckpt.checkpoint.handle import StoreHandle
from casckpt.checkpoint.payloads import RowFacts, edit_payload, encode_payload, make_ref
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import Corrupt, Deleted, NewerFormat, NoSpace, StepExists
from casckpt.logs import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from casckpt.checkpoint.bases import Layout
    from casckpt.checkpoint.encode import BlobPlan
    from casckpt.checkpoint.manifest import Manifest
    from casckpt.checkpoint.placement import Placement
    from casckpt.checkpoint.scalars import Node
    from casckpt.checkpoint.tree import FlatState
    from casckpt.store import RowsView

_AMEND_ABOVE_S: Final = 0.05
"""A save at least this long has its measured time written after its commit: the extra
transaction of about 1 ms is then lost in it. For shorter ones the row keeps the time up to the
commit."""

_ATTEMPTS: Final = 5
"""A save meets a sweep at most once per gc, so a second attempt nearly always passes."""


@dataclass(frozen=True)
class SaveRequest:
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
    parent: Checkpoint | None = None

    @property
    def batch(self) -> int:
        """Position inside the step."""
        return 0 if self.placement is None else self.placement.batch


@dataclass(frozen=True)
class Place:
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


class Committing(StoreHandle):
    """What `save` and `save_async` share.

    A run may be long, so a save does not look at all its rows to find the last one: as long as
    the head of the line is the commit that this handle made, that one is the last. It may have
    been removed by another process meanwhile; then the next step is counted from it all the same.
    """

    def _place(self, request: SaveRequest) -> Place:
        """Return where the save goes; refuse what cannot be before any byte is written."""
        # ORDER: the head first. Rows seen afterwards can only be newer, and then the commit
        # fails with RunMoved; the other way round it could pass unseen.
        run = request.run
        line = self._line_of(request)
        head = self._repository.head(run, line)
        last = self._last.get((run, line))
        if last is not None and last.seq == head and _is_after(request, last):
            self._catalog.check_tags_free(run, request.tags, None)
            known_step = last.step + 1 if request.step is None else request.step
            return Place(line, known_step, head, last, None)
        last, existing, before = self._catalog.around(run, line, request.step, request.batch)
        step = request.step
        if step is None:
            step = 0 if last is None else last.step + 1
        elif last is not None and existing is None and not _is_after(request, last):
            raise StepExists(
                f"{run} is at step {last.step}; step {step} is not larger",
                "steps grow within a run",
                f"save step {last.step + 1} or above, or go on from an older one: "
                f"store.run({run!r}, resume=REF)",
                run=run,
                step=step,
            )
        self._catalog.check_tags_free(run, request.tags, existing)
        return Place(line, step, head, before, existing)

    def _line_of(self, request: SaveRequest) -> int:
        """Return the line that a save goes to: what the run chose, else the one opened last."""
        if request.placement is not None:
            return request.placement.line
        current = self._catalog.view(request.run).current
        if current is not None:
            return current
        lines = [line for run, line in list(self._last) if run == request.run]
        newest = max(lines, default=None)
        if newest is not None and self._repository.head(request.run, newest + 1) is None:
            return newest
        return self._catalog.newest_line(request.run)

    def _commit(
        self,
        request: SaveRequest,
        place: Place,
        flat: FlatState,
        stall_s: float | None = None,
    ) -> Checkpoint:
        """Store the state and commit it, anew if a collector got in between, or room was made."""
        from casckpt.store import SaveAgain

        attempts_left, was_made = _ATTEMPTS, False
        while True:
            attempts_left -= 1
            try:
                checkpoint = self._commit_once(request, place, flat, stall_s)
                break
            except NoSpace as exc:
                from casckpt.checkpoint import room

                made = room.make_room(self._repository, exc.left_bytes, was_made)
                if not made or not attempts_left:
                    needed = sum(leaf.length for leaf in flat.leaves)
                    raise room.full_disk(self._repository, request.run, needed, exc) from exc
                was_made = True
            except SaveAgain as exc:
                if not attempts_left:
                    raise
                logger.debug("saving %s again: %s", request.run, exc.why)
        if request.placement is not None and request.placement.after_commit is not None:
            request.placement.after_commit(checkpoint)
        return checkpoint

    def _commit_once(
        self,
        request: SaveRequest,
        place: Place,
        flat: FlatState,
        stall_s: float | None,
    ) -> Checkpoint:
        from casckpt.checkpoint import manifest as manifests
        from casckpt.checkpoint.encode import plan_blobs
        from casckpt.store import BlobSource, CommitRequest

        if request.placement is not None and request.placement.before_commit is not None:
            # ORDER: what a resume reads beside the state is durable before the checkpoint is
            request.placement.before_commit()
        plan = plan_blobs(flat)
        with self._repository.saver(level=request.level) as saver:
            layout = self._base_layout(request, place)
            sources = plan.sources(self._choose_bases(request, place, plan, layout))
            beside = b"" if request.placement is None else request.placement.beside
            if beside:
                source = BlobSource([beside], opaque=True, base=layout.get(BESIDE))
                sources = chain(sources, [source])
            infos = saver.put_blobs(sources)
            refs, entries = plan.entries(infos[:-1] if beside else infos)
            config = None
            if beside:
                refs = list(dict.fromkeys([*refs, infos[-1].id]))
                config = manifests.config_beside(refs.index(infos[-1].id), len(beside))
            made = self._manifest(request, place, flat, entries, config)
            if place.existing is not None:
                difference = self._difference(place.existing, made, refs)
                if not difference:
                    if saver.stored_bytes:
                        saver.put_back()
                    return self._add_to(place.existing, request)
                self._check_replace(request, place.existing, difference)
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
                    guard=_guard(request, place),
                )
            )
        self._bases.remember(
            request.run, place.line, manifest_id.hex(), layout_of_plan(plan, infos)
        )
        return self._committed(request, place, seq, manifest_id, facts, stalled=stall_s is None)

    def _difference(self, existing: Checkpoint, made: Manifest, refs: list[bytes]) -> str:
        """Say how a checkpoint differs from what would be saved; empty if it holds the same."""
        from casckpt.checkpoint import manifest as manifests

        try:
            before, refs_before = self._catalog.manifest_and_refs(existing)
        except (Corrupt, Deleted):
            return "and damaged"
        same = manifests.same_content(made, refs, before, refs_before)
        return "" if same else "with another content"

    def _base_layout(self, request: SaveRequest, place: Place) -> Layout:
        """Return the blobs that a save may be coded against: those of the parent."""
        parent = request.parent or place.parent
        depth = self._repository.options.max_delta_depth
        if parent is None or depth == 0 or self._level(request) == "fast":
            return {}
        layout = self._bases.remembered(parent.run, parent.line, parent.id)
        if layout is None:
            try:
                return layout_of_manifest(*self._catalog.manifest_and_refs(parent))
            except (Corrupt, Deleted, NewerFormat):
                # A damaged parent is no reason not to save; the checkpoint is stored whole.
                return {}
        return layout

    def _choose_bases(
        self, request: SaveRequest, place: Place, plan: BlobPlan, layout: Layout
    ) -> list[Base | None]:
        """Return what each blob may be coded against: the same leaves of the parent."""
        if not layout:
            return []
        if request.parent is not None:
            # Asked for: a chain begins here, so nothing is due to be stored whole.
            return [Base(layout[key]) if key in layout else None for key in plan.blob_keys()]
        period = self._repository.options.max_delta_depth + 1
        return self._bases.choose(
            request.run, place.line, plan.blob_keys(), plan.by_dictionary(), layout, period
        )

    def _level(self, request: SaveRequest) -> str:
        return request.level or self._repository.options.level

    def _manifest(
        self,
        request: SaveRequest,
        place: Place,
        flat: FlatState,
        entries: tuple[Any, ...],
        config: Node,
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
            parent=placement.parent or (None if place.parent is None else place.parent.id),
            reasons=placement.reasons,
            config=config,
            environment=environment_facts(),
            metrics=request.metrics,
            captured=placement.captured,
            missing=placement.missing,
        )

    def _committed(
        self,
        request: SaveRequest,
        place: Place,
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
        checkpoint = Checkpoint(
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
        if place.existing is None:
            self._last[request.run, place.line] = checkpoint
        else:
            self._last.pop((request.run, place.line), None)
        return checkpoint

    def _add_to(self, existing: Checkpoint, request: SaveRequest) -> Checkpoint:
        """Add metrics and tags to a checkpoint that holds the same state already."""
        if request.metrics or set(request.tags) - set(existing.tags):
            self._repository.edit_checkpoint(
                existing.run,
                existing.seq,
                partial(edit_payload, metrics=request.metrics, add_tags=request.tags),
                tags_free(request.tags, existing.run, existing.seq),
            )
        return self._catalog.one(existing.run, existing.seq)

    def _check_replace(self, request: SaveRequest, existing: Checkpoint, difference: str) -> None:
        """Raise unless a checkpoint that differs from what would be saved may be replaced."""
        if not request.replace:
            raise StepExists(
                f"{existing.ref} is there already, {difference}",
                f"it was saved at {existing.created:%Y-%m-%d %H:%M:%S} UTC",
                f"save step {existing.step + 1} or above, or pass replace=True",
                run=request.run,
                step=existing.step,
            )
        check_unmarked(self._catalog.one(existing.run, existing.seq))


def _guard(request: SaveRequest, place: Place) -> Callable[[RowsView], None] | None:
    """Return what a commit looks at inside its transaction: whether the save may still be."""
    existing = place.existing
    if existing is None:
        return tags_free(request.tags, request.run, None) if request.tags else None
    is_free = tags_free(request.tags, request.run, existing.seq)
    is_unmarked = unmarked([(existing.run, existing.seq)])

    def check(view: RowsView) -> None:
        is_free(view)
        is_unmarked(view)

    return check


def _is_after(request: SaveRequest, last: Checkpoint) -> bool:
    """Return whether a save goes behind the last checkpoint of its line."""
    return request.step is None or (request.step, request.batch) > last.position


def _microseconds(time: datetime) -> int:
    delta = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1_000_000 + delta.microseconds
