"""Where a run goes on: from `resume=` and what is in the store to a line and a checkpoint.

Looking comes first and changes nothing but what is damaged; `Decision` says what to do, and
`carry_out` does it to the run's row.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.lines import visible
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import selects_run
from casckpt.errors import BadRequest, CasckptError, Corrupt, Deleted, NotFound
from casckpt.logs import logger
from casckpt.supervised import supervised_start
from casckpt.training import extras
from casckpt.training.lines import Branch, RunRecord, edit_record, read_record

if TYPE_CHECKING:
    from casckpt.api import Store

AUTO, MUST, NEVER = "auto", "must", "never"
CHOICES: Final = frozenset({AUTO, MUST, NEVER})

_KEY: Final = "resume"


BeforeWrite = Callable[[], None]
"""Called before anything is changed; raises RunBusy if another process trains the run."""


@dataclass(frozen=True)
class Extra:
    """What a checkpoint of a run holds beside the state; all of it optional.

    FORMAT: the names of the attributes are what is written (docs/format.md, section 15). Whoever
    renames one forgets it in all older checkpoints, and resumes are inexact without a word.

    Attributes:
        loop: counters of the loop that saved it.
        streams: generators of the process.
        middle: position inside the epoch.
        log: how many pieces of the log came before it.
        row: metrics of the epoch so far.
        elapsed_s: work until then, all sessions.
        peers: of a run of several processes, what `of_rank` gives the second, the third ...
        held: of a process that does not lead, the generators in its state.
        between: what the loaders of an epoch carry into the next one, by their passes.
        level: how hard it was compressed; "" is the store's level.
        took_s: seconds that the saves before took until they were durable, by level.
    """

    loop: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, Any] = field(default_factory=dict)
    middle: dict[str, Any] | None = None
    log: int = 0
    row: dict[str, float] = field(default_factory=dict)
    elapsed_s: float = 0.0
    peers: list[dict[str, Any]] = field(default_factory=list)
    held: dict[str, Any] = field(default_factory=dict)
    between: dict[int, Any] = field(default_factory=dict)
    level: str = ""
    took_s: dict[str, float] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return what a checkpoint keeps beside the state."""
        return json.dumps(extras.pack(dict(self.__dict__)), separators=(",", ":")).encode()

    def of_rank(self, rank: int, size: int) -> Extra:
        """Return what is meant for one of the processes that go on.

        If it was saved by another number of them, no position inside an epoch fits, and those
        that were not there before have no generators to put back.
        """
        own = self
        if rank:
            known = self.peers[rank - 1] if rank <= len(self.peers) else {"streams": {}}
            own = replace(self, **known)
        return own if len(self.peers) + 1 == size else replace(own, middle=None, row={}, between={})


@dataclass(frozen=True)
class Decision:
    """Where a run goes on.

    Attributes:
        line: number of the line; None opens the next one.
        checkpoint: what to restore; None starts from nothing.
        branch: where a new line begins.
        loud: whether the message is a warning.
        note: said beside the message, such as what was damaged.
        continued: id of the checkpoint that a REF named and that this line goes on from.
        named: the REF that decided it, as it was typed.
    """

    line: int | None
    checkpoint: Checkpoint | None = None
    branch: Branch | None = None
    loud: bool = False
    note: str = ""
    continued: str = ""
    named: str = ""


def read_extra(store: Store, checkpoint: Checkpoint) -> Extra:
    """Return what a checkpoint holds beside the state; nothing for a plain save."""
    packed = store._beside(checkpoint)
    if packed is None:
        # FORMAT: older stores kept it in the manifest.
        config = store._catalog.manifest(checkpoint).config
        if not isinstance(config, dict) or _KEY not in config:
            return Extra()
        found = extras.unpack(config[_KEY])
    else:
        found = extras.unpack_text(packed)
    known = {name: found[name] for name in Extra.__dataclass_fields__ if name in found}
    return Extra(**known)


def decide(
    store: Store,
    run: str,
    record: RunRecord,
    choice: str | Checkpoint,
    *,
    under: int | None,
    before_write: BeforeWrite,
) -> Decision:
    """Return where a run goes on; sets damaged checkpoints aside.

    Args:
        store: the store.
        run: name of the run.
        record: its row.
        choice: "auto", "must", "never" or a REF.
        under: line of the parent run, for a child.
        before_write: called before damaged checkpoints are moved.

    Raises:
        NotFound: "must" and there is nothing, or a REF that means nothing.
        Corrupt: a REF to a damaged checkpoint.
        BadRequest: `choice` is none of these.
    """
    if choice == NEVER:
        begun = record.opened_alone(supervised_start())
        if begun is not None:
            # `casckpt run` has started the same command again: it began anew the first time.
            return newest_whole(store, run, begun.number, before_write)
        return Decision(None if _is_used(store, run, record) else record.current)
    if isinstance(choice, str) and choice in CHOICES:
        line = _line_under(record, under)
        is_new = under is not None and not record.lines and not store._catalog.has_run(run)
        if line is None or is_new:
            return _inherit(store, run, record, under, choice, before_write)
        return newest_whole(store, run, line, before_write, required=choice == MUST)
    if not isinstance(choice, str | Checkpoint) or not choice:
        raise BadRequest(f"resume={choice!r:.60}", "it is auto, must, never or a REF")
    if isinstance(choice, Checkpoint):
        return _from_ref(store, run, record, choice, before_write)
    found = _begun_by(store, run, record, choice, before_write)
    found = found or _from_ref(store, run, record, choice, before_write)
    return replace(found, named=choice)


def carry_out(store: Store, run: str, decision: Decision, under: int | None) -> RunRecord:
    """Make the run's row say where it goes on; return it."""
    used = _unused_line(store, run)

    def change(record: RunRecord) -> None:
        if decision.line is None:
            line = record.open_line(branch=decision.branch, under=under, used=used)
            line.named = decision.named
            return
        record.current = decision.line
        line = record.line(decision.line)
        line.named = decision.named or line.named
        line.under = under if line.under is None else line.under
        if decision.continued and decision.continued not in line.continued:
            line.continued.append(decision.continued)
        if decision.branch is not None:
            line.branch = decision.branch

    return edit_record(store._repository, run, change)


def branch_at(store: Store, checkpoint: Checkpoint, other: Store | None = None) -> Branch:
    """Return the branch point that a checkpoint makes."""
    home = other or store
    return Branch(
        ref=checkpoint.ref,
        id=checkpoint.id,
        run=checkpoint.run,
        line=checkpoint.line,
        step=checkpoint.step,
        batch=checkpoint.batch,
        store="" if home is store else str(home.path),
        log=read_extra(home, checkpoint).log,
    )


def branch_checkpoint(store: Store, branch: Branch) -> tuple[Store, Checkpoint] | None:
    """Return the checkpoint that a line began at and its store; None if it is gone."""
    try:
        home, found = store._find(
            f"{branch.store}::id:{branch.id}" if branch.store else f"id:{branch.id}"
        )
    except NotFound:
        return None
    return home, found


def _line_under(record: RunRecord, under: int | None) -> int | None:
    """Return the line that goes on; None if a child has none under its parent's line yet."""
    if under is None or not record.lines:
        return record.current
    mine = [line.number for line in record.lines.values() if line.under == under]
    if not mine:
        return None
    return record.current if record.current in mine else max(mine)


def _inherit(
    store: Store,
    run: str,
    record: RunRecord,
    under: int | None,
    choice: str,
    before_write: BeforeWrite,
) -> Decision:
    """Begin a child's line under a new line of its parent: with what the parent inherited."""
    parent, _, _ = run.rpartition("/")
    above = read_record(store._repository, parent)
    number: int | None = under
    seen: set[int] = set()
    while number is not None and number not in seen:
        seen.add(number)
        line = above.lines.get(number)
        if line is None or line.branch is None:
            break
        if line.branch.store or line.branch.run != parent:
            found = _from_elsewhere(store, line.branch, run.rpartition("/")[2])
            if found is None:
                break
            return found
        number = line.branch.line
        mine = [one.number for one in record.lines.values() if one.under == number]
        if mine:
            found = newest_whole(store, run, max(mine), before_write, required=choice == MUST)
            if found.checkpoint is None:
                break
            return Decision(None, found.checkpoint, branch_at(store, found.checkpoint))
    if choice == MUST:
        raise NotFound(
            f"{run} has nothing to go on from",
            "it is a new line of its parent",
            "resume='auto' begins it afresh",
        )
    return Decision(None)


def _from_elsewhere(store: Store, branch: Branch, child: str) -> Decision | None:
    """Begin a child with what the child of another run, perhaps in another store, has done."""
    try:
        home = store._other(Path(branch.store), write=False) if branch.store else store
    except CasckptError as exc:
        logger.warning("%s of %s is out of reach: %s", child, branch.ref, exc.what)
        return None
    origin = f"{branch.run}/{child}"
    lines = read_record(home._repository, origin).lines.values()
    mine = [one.number for one in lines if one.under == branch.line]
    if not mine:
        return None
    checkpoint = newest_whole(home, origin, max(mine), lambda: None).checkpoint
    if checkpoint is None:
        return None
    return Decision(None, checkpoint, branch_at(store, checkpoint, home))


def newest_whole(
    store: Store, run: str, line: int, before_write: BeforeWrite, *, required: bool = False
) -> Decision:
    """Return what a line goes on from: the newest whole checkpoint, damaged ones set aside.

    Raises:
        NotFound: `required`, and there is nothing.
        Corrupt: `required`, and nothing is whole.
    """
    candidates = store._catalog.inherited(run, line)
    damaged: list[Checkpoint] = []
    for checkpoint in reversed(candidates):
        if store._is_whole(checkpoint):
            then = f"going on from {checkpoint.ref}"
            note = _set_aside(store, damaged, line, then, before_write)
            branch = None
            if damaged and checkpoint.line != line:
                branch = branch_at(store, checkpoint)
            return Decision(line, checkpoint, branch, loud=bool(damaged), note=note)
        damaged.append(checkpoint)
    if required and not damaged:
        raise NotFound(
            f"{run} has nothing to go on from",
            "resume='must' asks for a checkpoint, and its line has none",
            "leave resume out to start from nothing",
            run=run,
        )
    if not damaged:
        return Decision(line, _began_at(store, run, line))
    if required:
        raise Corrupt(
            f"no checkpoint of {run} is whole", f"{len(damaged)} are damaged: {_refs(damaged)}"
        )
    note = f"no checkpoint of line {line} is whole ({_refs(damaged)}); starting from nothing"
    return Decision(None, loud=True, note=note)


def _began_at(store: Store, run: str, line: int) -> Checkpoint | None:
    """Return where a line without checkpoints of its own began, if that is still there."""
    known = read_record(store._repository, run).lines.get(line)
    if known is None or known.branch is None or not known.branch.id:
        return None
    found = branch_checkpoint(store, known.branch)
    if found is None:
        logger.warning("%s began at %s, which is gone", run, known.branch.ref)
        return None
    return found[1]


def _begun_by(
    store: Store, run: str, record: RunRecord, ref: str, before_write: BeforeWrite
) -> Decision | None:
    """Go on with the current line if the same REF began it and it is not done.

    The REF may mean another checkpoint by now: the best has changed, or the other run has moved on.
    """
    current = record.lines.get(record.current)
    if current is None or current.named != ref or current.status == "finished":
        return None
    found = newest_whole(store, run, record.current, before_write)
    brought = current.branch is not None and not current.branch.id
    return found if found.checkpoint is not None or (brought and found.line is not None) else None


def _from_ref(
    store: Store,
    run: str,
    record: RunRecord,
    choice: str | Checkpoint,
    before_write: BeforeWrite,
) -> Decision:
    try:
        home, checkpoint = store._find(choice)
    except NotFound:
        found = _from_line(store, run, record, choice)
        if found is None:
            raise
        return found
    here = home is store
    if not home._is_whole(checkpoint):
        # Restoring says what is damaged and where a whole one is; a REF is never replaced.
        home.restore(checkpoint, as_numpy=True)
    current = record.lines.get(record.current)
    began = current is not None and (
        (current.branch is not None and current.branch.id == checkpoint.id)
        or checkpoint.id in current.continued
    )
    if began:
        found = newest_whole(store, run, record.current, before_write)
        return found if found.checkpoint is not None else Decision(record.current, checkpoint)
    if here and checkpoint.run == run:
        own = visible(store._catalog.matching(run), checkpoint.line)
        if own and own[-1] == checkpoint:
            return Decision(checkpoint.line, checkpoint, continued=checkpoint.id)
    branch = branch_at(store, checkpoint, home)
    fresh = not _is_used(store, run, record)
    return Decision(record.current if fresh else None, checkpoint, branch)


def _from_line(
    store: Store, run: str, record: RunRecord, choice: str | Checkpoint
) -> Decision | None:
    """Go on from a run that has stages, folds or trials and no checkpoint of its own."""
    if not isinstance(choice, str):
        return None
    home, ref = store._locate(choice)
    if not selects_run(ref):
        return None
    there = read_record(home._repository, ref.run)
    number = there.current if ref.line is None or ref.line < 0 else ref.line
    if number not in there.lines:
        return None
    if home is store and ref.run == run:
        return newest_whole(store, run, number, lambda: None)
    place = "" if home is store else str(home.path)
    branch = Branch(f"{ref.run}~{number}", "", ref.run, number, 0, store=place)
    current = record.lines.get(record.current)
    if current is not None and current.branch == branch:
        return newest_whole(store, run, record.current, lambda: None)
    note = f"with the stages, folds and trials of {branch.ref}"
    fresh = not _is_used(store, run, record)
    return Decision(record.current if fresh else None, None, branch, note=note)


def _set_aside(
    store: Store,
    damaged: Sequence[Checkpoint],
    line: int,
    then: str,
    before_write: BeforeWrite,
) -> str:
    """Move damaged checkpoints of a line to the trash, so that saves can take their places."""
    if not damaged:
        return ""
    own = [(one.run, one.seq) for one in damaged if one.line == line]
    if own and store.mode != "r":
        before_write()
        try:
            store._repository.trash(own)
        except (NotFound, Deleted):
            logger.debug("a damaged checkpoint was gone already")
    return f"damaged and set aside: {_refs(damaged)}; {then}"


def _refs(checkpoints: Sequence[Checkpoint]) -> str:
    return ", ".join(one.ref for one in checkpoints)


def _is_used(store: Store, run: str, record: RunRecord) -> bool:
    """Return whether a run has anything: checkpoints, or sessions that were begun."""
    return bool(store._catalog.has_run(run)) or any(
        line.started or line.branch for line in record.lines.values()
    )


def _unused_line(store: Store, run: str) -> int:
    """Return the first number above every line that has a checkpoint, the trash included."""
    rows = store._repository.checkpoint_rows(run, states=("live", "trash", "tombstone"))
    return max((row.line + 1 for row in rows), default=0)
