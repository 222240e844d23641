"""What must still hold inside the transaction that changes a run.

Between a look at the rows of a run and the transaction that goes by it, another process may tag,
pin, remove, save or branch. These say so there, where nobody can come in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from casckpt.checkpoint.lines import read_view
from casckpt.checkpoint.payloads import decode_row, payload_tags
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRequest, Busy, NotFound, RunMoved, StepExists

if TYPE_CHECKING:
    from casckpt.store import CheckpointRow, Repository, RowsView

_Result = TypeVar("_Result")
ATTEMPTS: Final = 10
"""Each attempt fails only if another process changed what it had looked at during it."""

PAUSE_S: Final = 0.01
"""Pause after the second attempt; each further one is longer by as much."""


class Seen:
    """The live checkpoints of runs, and what all runs have declared, as they were once seen.

    To be made before the look that a decision goes by: what changes between the two is noticed.
    """

    def __init__(self, repository: Repository, run: str | None = None) -> None:
        """See the checkpoints of one run, or of all of them."""
        self._records = dict(repository.run_rows())
        self._rows: dict[str, dict[int, CheckpointRow]] = {}
        for row in repository.checkpoint_rows(run):
            self._rows.setdefault(row.run, {})[row.seq] = row

    def payload(self, run: str, seq: int) -> bytes | None:
        """Return the payload that a checkpoint had, None if there was none of that commit."""
        row = self._rows.get(run, {}).get(seq)
        return None if row is None else row.payload

    def removed(self, places: Iterable[tuple[str, int]]) -> None:
        """Take note that the caller has removed checkpoints, given as (run, commit seq)."""
        for run, seq in places:
            self._rows.get(run, {}).pop(seq, None)

    def allows(self, doomed: Iterable[tuple[str, int]]) -> Callable[[RowsView], None]:
        """Return the guard of the removal of checkpoints, given as (run, commit seq).

        It raises RunMoved, with `runs`, for those of which one of these is not as it was seen, or
        any other is gone, which these may then stand for, or which have declared something else
        to be best; and where any run of the store has begun from one of these.
        """
        going = _by_run(doomed)

        def check(view: RowsView) -> None:
            new = {run: one for run, one in view.records.items() if one != self._records.get(run)}
            begun = {
                ref for run, record in new.items() for ref in read_view(run, record).begun_from
            }
            moved = [
                run
                for run, seqs in going.items()
                if run in new or not self._is_as_seen(view, run, seqs, begun)
            ]
            if moved:
                raise RunMoved(
                    f"run {moved[0]} has moved",
                    "somebody changed it since it was looked at",
                    run=moved[0],
                    runs=moved,
                )

        return check

    def _is_as_seen(
        self, view: RowsView, run: str, going: Collection[int], begun: Collection[str]
    ) -> bool:
        seen = self._rows.get(run, {})
        now = {row.seq: row for row in view.checkpoints(run)}
        if not seen.keys() <= now.keys():
            return False
        for seq in going:
            row = now.get(seq)
            if row is None or seq not in seen or row.payload != seen[seq].payload:
                return False
            if row.manifest_id.hex() in begun:
                return False
        return True


def _by_run(places: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    """Return commit seqs by run."""
    found: dict[str, set[int]] = {}
    for run, seq in places:
        found.setdefault(run, set()).add(seq)
    return found


def until_unchanged(attempt: Callable[[], _Result], what: str) -> _Result:
    """Return what an attempt returns, made anew as long as others change what it has looked at.

    Raises:
        Busy: they keep doing that; `what` could not be done.
    """
    for number in range(ATTEMPTS):
        try:
            return attempt()
        except (RunMoved, NotFound):
            time.sleep(PAUSE_S * number)
    raise Busy(what, "other processes keep changing the same checkpoints")


def check_unpinned(checkpoints: Sequence[Checkpoint]) -> None:
    """Raise BadRequest if one of these is pinned."""
    pinned = [checkpoint for checkpoint in checkpoints if checkpoint.pinned]
    if pinned:
        raise BadRequest(
            f"{pinned[0].ref} is pinned",
            f"{len(pinned)} of {len(checkpoints)} checkpoints are kept for ever",
            f"`casckpt unpin {pinned[0].ref}` first",
        )


def unpinned(doomed: Iterable[tuple[str, int]]) -> Callable[[RowsView], None]:
    """Return the guard of a removal, of (run, commit seq), that a pin forbids by BadRequest."""
    going = _by_run(doomed)

    def check(view: RowsView) -> None:
        for run, seqs in going.items():
            check_unpinned([decode_row(row) for row in view.checkpoints(run) if row.seq in seqs])

    return check


def unmarked(doomed: Iterable[tuple[str, int]]) -> Callable[[RowsView], None]:
    """Return the guard of a removal, of (run, commit seq), that a mark forbids by StepExists."""
    going = _by_run(doomed)

    def check(view: RowsView) -> None:
        for run, seqs in going.items():
            for row in view.checkpoints(run):
                if row.seq in seqs:
                    check_unmarked(decode_row(row))

    return check


def check_tags_free(
    rows: Iterable[CheckpointRow], tags: Collection[str], holder: int | None = None
) -> None:
    """Raise BadRequest if another than the `holder`, a commit seq, has one of the tags.

    Args:
        rows: the live ones of a run.
        tags: names to be given.
        holder: whose they may be already.
    """
    for row in rows if tags else ():
        taken = set(payload_tags(row.payload)).intersection(tags)
        if taken and row.seq != holder:
            tag, other = min(taken), decode_row(row)
            raise BadRequest(
                f"the tag {tag!r} is taken",
                f"it names {other.ref}, and a tag names one checkpoint of a run",
                f"`casckpt untag {other.ref} {tag}` first, or choose another name",
                tag=tag,
            )


def tags_free(tags: Collection[str], run: str, holder: int | None) -> Callable[[RowsView], None]:
    """Return the guard of giving tags to a checkpoint, the `holder`; see `check_tags_free`."""
    return lambda view: check_tags_free(view.checkpoints(run), tags, holder)


def check_unmarked(existing: Checkpoint) -> None:
    """Raise StepExists if a checkpoint that is to be replaced is tagged or pinned."""
    if existing.pinned or existing.tags:
        raise StepExists(
            f"{existing.ref} cannot be replaced",
            "it is pinned" if existing.pinned else f"it is tagged {existing.tags[0]}",
            "take the tag or the pin away first, or save a larger step",
            run=existing.run,
            step=existing.step,
        )


def returnable(returning: Sequence[Checkpoint]) -> Callable[[RowsView], None]:
    """Return the guard of an undelete: places and tags must be free.

    It raises StepExists or BadRequest, as `Store.undelete` says.
    """

    def check(view: RowsView) -> None:
        for run in dict.fromkeys(checkpoint.run for checkpoint in returning):
            mine = [checkpoint for checkpoint in returning if checkpoint.run == run]
            places = {(row.line, row.step, row.batch): row for row in view.checkpoints(run)}
            holders: dict[str, Checkpoint] = {}
            for one in mine:
                at = places.get((one.line, one.step, one.batch))
                if at is not None:
                    raise _taken(one, decode_row(at))
                for tag in one.tags:
                    other = holders.setdefault(tag, one)
                    if other is not one:
                        raise _both_tagged(other, one, tag)
            check_tags_free(view.checkpoints(run), holders.keys())

    return check


def _taken(checkpoint: Checkpoint, at: Checkpoint) -> StepExists:
    return StepExists(
        f"{checkpoint.ref} cannot come back",
        f"another checkpoint is at its place since {at.created:%Y-%m-%d %H:%M} UTC",
        f"delete that one first: `casckpt rm id:{at.id[:10]}`",
        run=checkpoint.run,
        step=checkpoint.step,
    )


def _both_tagged(one: Checkpoint, other: Checkpoint, tag: str) -> BadRequest:
    return BadRequest(
        f"{one.ref} and {other.ref} both have the tag {tag!r}",
        "a tag names one checkpoint of a run, so they cannot both come back",
        f"bring one of them back: `casckpt undelete {other.ref}`",
        tag=tag,
    )
