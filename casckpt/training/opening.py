"""Opening a run: look, compare, decide, say so in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.records import Checkpoint
from casckpt.errors import BadRequest, ConfigMismatch, NotFound
from casckpt.ids import check_run_name
from casckpt.logs import logger
from casckpt.training import guards, resume
from casckpt.training.guards import Facts, MismatchPolicy
from casckpt.training.lines import Line, RunRecord, edit_record, read_record
from casckpt.training.peers import ALONE, Peers, check_place, place_of
from casckpt.training.programs import commands
from casckpt.training.resume import CHOICES, Decision, Extra, decide
from casckpt.training.session import Follower, Session

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.training.run import Run


@dataclass(frozen=True)
class Opened:
    """What a Run begins with.

    Attributes:
        line: number of its line.
        checkpoint: what it goes on from.
        extra: what that holds beside the state.
        facts: settings to record when work begins.
        policy: what to do about differences.
        session: the work of this process.
        is_finished: whether the line was finished before.
        grace_s: seconds between SIGTERM and the kill.
        peers: the processes that train the run together.
        is_changed: whether its config is not what it was.
        came_from: the line that was the current one before; None if that has not changed.
    """

    line: int
    checkpoint: Checkpoint | None
    extra: Extra
    facts: Facts
    policy: MismatchPolicy
    session: Session
    is_finished: bool
    grace_s: float | None
    peers: Peers
    is_changed: bool = False
    came_from: int | None = None


def open_run(
    store: Store,
    name: str,
    *,
    config: Any = None,
    data: Any = None,
    resume: str | Checkpoint = "auto",
    on_mismatch: MismatchPolicy = "raise",
    under: int | None = None,
    grace_s: float | None = None,
    peers: Peers = ALONE,
) -> Run:
    """Open a run; see `Store.run`.

    Args:
        store: the store.
        name: name of the run.
        config: its settings.
        data: fingerprint of its data, or name to fingerprint.
        resume: auto, must, never or a REF.
        on_mismatch: an action, or pattern to action.
        under: line of the parent run, for a child.
        grace_s: seconds between SIGTERM and the kill.
        peers: the processes that train it together; each of them makes this call.
    """
    from casckpt.training.run import Run
    from casckpt.training.runbase import wait_for_left

    check_run_name(name)
    policy = guards.check_policy(on_mismatch)
    facts = guards.settings(config, data, peers.size)
    made: list[Opened] = []

    def lead() -> dict[str, Any]:
        wait_for_left(store, name)
        # Several processes read the same checkpoint: nobody else may replace it meanwhile.
        locks = peers.size > 1
        try:
            opened = _open(store, name, facts, policy, resume, under, grace_s, peers, locks=locks)
        except NotFound:
            if locks or not (isinstance(resume, str) and resume in CHOICES):
                raise
            # Replaced between two looks, by another process that trains the run, or trained it.
            opened = _open(store, name, facts, policy, resume, under, grace_s, peers, locks=True)
        made.append(opened)
        return {
            "place": place_of(store, name),
            "line": opened.line,
            "checkpoint": peers.name_of(store, opened.checkpoint),
            "finished": opened.is_finished,
        }

    told = peers.lead(lead)
    opened = made[0] if made else _follow(store, name, told, facts, policy, grace_s, peers)
    return Run(store, name, opened)


def _open(
    store: Store,
    name: str,
    facts: Facts,
    policy: MismatchPolicy,
    resume: str | Checkpoint,
    under: int | None,
    grace_s: float | None,
    peers: Peers,
    *,
    locks: bool,
) -> Opened:
    # The line is not known before the decision; the lock is of the run.
    early = Session(store._repository, name, 0, 0.0, peers)
    try:
        if locks and store.mode != "r":
            early.lock()
        record = read_record(store._repository, name)
        decision = decide(store, name, record, resume, under=under, before_write=early.lock)
        differences = guards.compare(_old_facts(store, name, decision), facts, policy)
        if guards.obey(name, differences):
            decision = Decision(None)
        opened = _carry_out(store, name, decision, facts, policy, under, grace_s, early, peers)
    except BaseException:
        early.end("")
        raise
    if under is None and store.mode != "r":
        # Not before: a command that was refused is none to go on with.
        commands.record(store.path, name)
    return replace(opened, is_changed=any(one.group == "config" for one in differences))


def _follow(
    store: Store,
    name: str,
    told: Mapping[str, Any],
    facts: Facts,
    policy: MismatchPolicy,
    grace_s: float | None,
    peers: Peers,
) -> Opened:
    """Return what a process begins with that does not lead."""
    check_place(place_of(store, name), told["place"])
    checkpoint, extra = found(store, told["checkpoint"])
    session = Follower(store._repository, name, told["line"], extra.elapsed_s, peers)
    return Opened(
        line=told["line"],
        checkpoint=checkpoint,
        extra=extra,
        facts=facts,
        policy=policy,
        session=session,
        is_finished=told["finished"],
        grace_s=_checked_grace(grace_s),
        peers=peers,
    )


def found(store: Store, named: str) -> tuple[Checkpoint | None, Extra]:
    """Return the checkpoint that `peers.name_of` named in the first process."""
    if not named:
        return None, Extra()
    home, checkpoint = store._find(named)
    return checkpoint, resume.read_extra(home, checkpoint)


def restarted(run: Run) -> Opened:
    """Return what a run begins with on a new empty line."""
    session = run._session
    record = read_record(run.repository, run.name)
    under = record.lines[run.line].under if run.line in record.lines else None
    return _carry_out(
        run.store, run.name, Decision(None), run._facts, run._policy, under, run.grace_s, session,
        run._peers,
    )  # fmt: skip


def moved(run: Run) -> tuple[Checkpoint | None, Extra]:
    """Return where a run goes on whose line another process has moved; says so."""
    decision = resume.newest_whole(run.store, run.name, run.line, run._session.lock)
    checkpoint = decision.checkpoint
    extra = Extra() if checkpoint is None else resume.read_extra(run.store, checkpoint)
    _report(run.store, run.name, run.line, bool(run.line), decision, extra)
    return checkpoint, extra


def obey(run: Run, differences: Sequence[guards.Difference]) -> bool:
    """Act on differences as `guards.obey` does; if it refuses, nothing stays changed.

    The line on which the run would have gone on is not the current one any more; a new one, on
    which nothing was done, is gone.
    """
    try:
        return guards.obey(run.name, differences)
    except ConfigMismatch:
        if run._came_from is not None and not run._session.is_begun:
            back = partial(_take_back, line=run.line, to=run._came_from)
            edit_record(run.repository, run.name, back)
        raise


def _take_back(record: RunRecord, line: int, to: int) -> None:
    if record.current != line or to not in record.lines:
        return
    record.current = to
    if line != to and not record.lines[line].started:
        del record.lines[line]


def recorded_facts(store: Store, name: str, line: int, checkpoint: Checkpoint | None) -> Facts:
    """Return the settings that a line recorded last; of one just begun, those it came from."""
    record = read_record(store._repository, name)
    found = record.lines.get(line)
    if found is not None and found.guarded:
        return found.guarded
    if checkpoint is None or checkpoint.source is not store._catalog:
        return {}
    home = record if checkpoint.run == name else read_record(store._repository, checkpoint.run)
    origin = home.lines.get(checkpoint.line)
    return origin.guarded if origin is not None else {}


def _old_facts(store: Store, name: str, decision: Decision) -> Facts:
    if decision.line is None and decision.checkpoint is None:
        return {}
    return recorded_facts(
        store, name, -1 if decision.line is None else decision.line, decision.checkpoint
    )


def _carry_out(
    store: Store,
    name: str,
    decision: Decision,
    facts: Facts,
    policy: MismatchPolicy,
    under: int | None,
    grace_s: float | None,
    early: Session,
    peers: Peers,
) -> Opened:
    record = read_record(store._repository, name)
    going_on = None if decision.line is None else record.lines.get(decision.line)
    changes = (
        decision.line is None
        or decision.branch is not None
        or decision.continued
        or decision.line != record.current
        or (under is not None and (going_on is None or going_on.under is None))
    )
    came_from = None
    if changes and store.mode != "r":
        early.lock()
        came_from = record.current if record.lines else None
        record = resume.carry_out(store, name, decision, under)
    line = record.current
    extra = Extra()
    if decision.checkpoint is not None:
        home = store._find(decision.checkpoint)[0]
        extra = resume.read_extra(home, decision.checkpoint)
    known = record.lines.get(line)
    elapsed_s = max(extra.elapsed_s, 0.0 if known is None else known.elapsed_s)
    session = Session(store._repository, name, line, elapsed_s, peers)
    # What was asked while it was being opened is not over.
    session.watch = early.watch
    if early._lock is not None:
        session._lock, early._lock = early._lock, None
    _report(store, name, line, len(record.lines) > 1, decision, extra)
    return Opened(
        line=line,
        checkpoint=decision.checkpoint,
        extra=extra,
        facts=facts,
        policy=policy,
        session=session,
        is_finished=known is not None and _is_finished(known, decision.checkpoint),
        grace_s=_checked_grace(grace_s),
        peers=peers,
        came_from=came_from,
    )


def _is_finished(line: Line, checkpoint: Checkpoint | None) -> bool:
    """Return whether a line is done: one whose checkpoints were deleted is not."""
    return line.status == "finished" and not (line.loop and checkpoint is None)


def _report(
    store: Store, name: str, line: int, many: bool, decision: Decision, extra: Extra
) -> None:
    """Say in one line where the run goes on; nothing for one that simply begins."""
    shown = f"{name}~{line}" if line or many else name
    checkpoint = decision.checkpoint
    if checkpoint is None:
        text = "starting from nothing, on a new line" if line and not decision.branch else ""
        parts = [decision.note, text] if decision.note else [text]
    else:
        here = store._repository.path
        home = getattr(checkpoint.source, "path", here)
        ref = checkpoint.ref if home == here else f"{home}::{checkpoint.ref}"
        parts = [*_where(checkpoint, ref, extra), decision.note]
    text = ", ".join(part for part in parts if part)
    if text:
        (logger.warning if decision.loud else logger.info)("%s: %s", shown, text)


def _where(checkpoint: Checkpoint, ref: str, extra: Extra) -> list[str]:
    loop = extra.loop
    unit, total = loop.get("unit"), loop.get("total", 0)
    if unit is None:
        parts = [f"going on from {ref}"]
    elif checkpoint.step >= total:
        parts = [f"{checkpoint.step} of {total} {unit}s are done, from {ref}"]
    else:
        after = f" after batch {checkpoint.batch}" if checkpoint.batch else ""
        parts = [f"going on at {unit} {checkpoint.step + 1} of {total}{after}, from {ref}"]
    monitor = loop.get("monitor", {})
    if monitor.get("best") is not None:
        parts.append(f"best {monitor['metric']} {monitor['best']:.6g} at {monitor['best_at']}")
    if extra.elapsed_s >= 60:
        parts.append(f"{_duration(extra.elapsed_s)} of work kept")
    return parts


def _duration(seconds: float) -> str:
    minutes = int(seconds // 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _checked_grace(grace_s: float | None) -> float | None:
    if grace_s is not None and (isinstance(grace_s, bool) or not grace_s > 0):
        raise BadRequest(f"grace_s={grace_s!r}", "it is a number of seconds above 0")
    return grace_s
