"""What must still hold inside the transaction that changes a run.

Between a look at the rows of a run and the transaction that goes by it, another process may tag,
pin, remove, save or branch. These say so there, where nobody can come in between.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from casckpt.checkpoint.payloads import decode_row, payload_tags
from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRequest, Busy, NotFound, RunMoved, StepExists

if TYPE_CHECKING:
    from casckpt.store import CheckpointRow, Repository, RunView

_Result = TypeVar("_Result")
_ATTEMPTS: Final = 10
"""Each attempt fails only if another process changed what it had looked at during it."""


class Seen:
    """The live checkpoints of runs, and what all runs have declared, as they were once seen.

    To be made before the look that a decision goes by: what changes between the two is noticed.
    """

    def __init__(self, repository: Repository, run: str | None = None) -> None:
        """See the checkpoints of one run, or of all of them."""
        self._records = dict(repository.run_rows())
        self._payloads: dict[str, dict[int, bytes]] = {}
        for row in repository.checkpoint_rows(run):
            self._payloads.setdefault(row.run, {})[row.seq] = row.payload

    def payload(self, run: str, seq: int) -> bytes | None:
        """Return the payload that a checkpoint had, None if there was none of that commit."""
        return self._payloads.get(run, {}).get(seq)

    def removed(self, places: Iterable[tuple[str, int]]) -> None:
        """Take note that the caller has removed checkpoints, given as (run, commit seq)."""
        for run, seq in places:
            self._payloads.get(run, {}).pop(seq, None)

    def allows(self, doomed: Iterable[tuple[str, int]]) -> Callable[[RunView], None]:
        """Return the guard of the removal of checkpoints, given as (run, commit seq).

        It raises RunMoved if one of these is not as it was seen, if any other of its run is gone,
        which these may then stand for, or if a run has declared what is best, or branched.
        """
        going = frozenset(doomed)

        def check(view: RunView) -> None:
            now = {row.seq: row.payload for row in view.checkpoints}
            for seq, payload in self._payloads.get(view.run, {}).items():
                is_as_seen = now.get(seq) == payload if (view.run, seq) in going else seq in now
                if not is_as_seen:
                    raise _moved(view.run)
            if view.records != self._records:
                raise _moved(view.run)

        return check


def _moved(run: str) -> RunMoved:
    return RunMoved(f"run {run} has moved", "somebody changed it since it was looked at", run=run)


def until_unchanged(attempt: Callable[[], _Result], what: str) -> _Result:
    """Return what an attempt returns, made anew as long as others change what it has looked at.

    Raises:
        Busy: they keep doing that; `what` could not be done.
    """
    for _ in range(_ATTEMPTS):
        try:
            return attempt()
        except (RunMoved, NotFound):
            continue
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


def unpinned(doomed: Collection[tuple[str, int]]) -> Callable[[RunView], None]:
    """Return the guard of a removal, of (run, commit seq), that a pin forbids by BadRequest."""

    def check(view: RunView) -> None:
        found = [row for row in view.checkpoints if (view.run, row.seq) in doomed]
        check_unpinned([decode_row(row) for row in found])

    return check


def check_tags_free(
    rows: Iterable[CheckpointRow], tags: Sequence[str], holder: int | None = None
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


def tags_free(tags: Sequence[str], holder: int | None) -> Callable[[RunView], None]:
    """Return the guard of giving tags to a checkpoint, the `holder`; see `check_tags_free`."""
    return lambda view: check_tags_free(view.checkpoints, tags, holder)


def replaceable(existing: Checkpoint) -> Callable[[RunView], None]:
    """Return the guard of a save in the place of a checkpoint: StepExists if it is marked."""

    def check(view: RunView) -> None:
        for row in view.checkpoints:
            if row.seq == existing.seq:
                check_unmarked(decode_row(row))

    return check


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


def returnable(returning: Sequence[Checkpoint]) -> Callable[[RunView], None]:
    """Return the guard of an undelete: places and tags must be free.

    It raises StepExists or BadRequest, as `Store.undelete` says.
    """

    def check(view: RunView) -> None:
        mine = [checkpoint for checkpoint in returning if checkpoint.run == view.run]
        places = {(row.line, row.step, row.batch): row for row in view.checkpoints}
        holders: dict[str, Checkpoint] = {}
        for one in mine:
            at = places.get((one.line, one.step, one.batch))
            if at is not None:
                raise _taken(one, decode_row(at))
            check_tags_free(view.checkpoints, one.tags)
            for tag in one.tags:
                other = holders.setdefault(tag, one)
                if other is not one:
                    raise _both_tagged(other, one, tag)

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
