"""GC 0 to 8: a collector's run. Compaction (GC 3) is in ``compaction.py``.

With more than one collector in the bounds, gc.lock was lost: nothing but the fence keeps them
apart. A collector that dies leaves everything as it is; the next run finishes its work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .compaction import compact_steps, repoint_steps
from .rules import Model
from .saver import OUT
from .state import (
    ABSENT,
    DROPPED,
    LIVE,
    NOBODY,
    Collector,
    Index,
    PackFile,
    Record,
    World,
    new_pack,
    with_checkpoints,
    with_file,
)

Steps = Iterator[tuple[str, World]]
NO_FLOOR = 1 << 30
# Steps that are transactions; an unlink is not, and nothing can fence it.
FENCED = (
    *("expire", "mark", "compact", "repoint", "mark again", "facts"),
    *("condemn", "sweep", "purge", "forget"),
)


def collector_steps(model: Model, world: World) -> Steps:
    """All next steps of all collectors, and their deaths."""
    for who, run in enumerate(world.collectors):
        if run.phase == "idle":
            if run.runs < model.bounds.cycles:
                started = run._replace(phase="expire")
                yield f"GC 0 gc {who} starts", _with(world._replace(gc_run=who), who, started)
            continue
        if model.rules.fence and run.phase in FENCED and world.gc_run != who:
            yield f"GC 0 gc {who} is fenced off", _idle(world, who)
            continue
        yield from _PHASES[run.phase](model, world, who)
        if model.bounds.kills:
            yield f"gc {who} dies", _idle(world, who)


def _with(world: World, who: int, run: Collector) -> World:
    """Replace one collector."""
    runs = world.collectors
    return world._replace(collectors=(*runs[:who], run, *runs[who + 1 :]))


def _idle(world: World, who: int) -> World:
    """Give the world in which this run is over."""
    return _with(world, who, Collector(runs=world.collectors[who].runs + 1))


def _expire(model: Model, world: World, who: int) -> Steps:
    """GC 1: trash past grace becomes tombstones; time is not modelled, so grace may be over."""
    run = world.collectors[who]
    trash = tuple(name for name, state in world.checkpoints if state == "trash")
    next_run = run._replace(phase="mark")
    yield f"GC 1 gc {who} expires nothing", _with(world, who, next_run)
    if not trash:
        return
    if model.rules.expire_before_mark:
        gone = with_checkpoints(world, dict.fromkeys(trash, "tombstone"))
        yield f"GC 1 gc {who} expires {' '.join(trash)}", _with(gone, who, next_run)
    else:
        doomed = _with(world, who, next_run._replace(doomed=trash))
        yield f"GC 1 gc {who} will expire {' '.join(trash)}", doomed


def _closure(model: Model, index: Index, roots: frozenset[str]) -> frozenset[str]:
    """Everything that the roots need, bases included."""
    found: set[str] = set()
    for root in roots:
        if model.rules.manifests_are_objects:
            found.add(root)
        for name in model.below(root):
            found.update(index.chain(name) or (name,))
    return frozenset(found)


def _roots(world: World) -> frozenset[str]:
    """Checkpoints that are not removed for good."""
    return frozenset(name for name, state in world.checkpoints if state != "tombstone")


def _mark(model: Model, world: World, who: int) -> Steps:
    """GC 2: what the roots need, and the packs that hold it now."""
    run, index = world.collectors[who], Index(model, world)
    roots = _roots(world) - frozenset(run.doomed)
    marked = _closure(model, index, roots)
    places = frozenset(index.rows[name][0] for name in marked if name in index.rows)
    again = run.phase == "mark again"
    edges = tuple(sorted((name, base) for name, (_, base) in index.rows.items() if base))
    next_run = run._replace(
        phase="compact" if model.bounds.copies and not again else "facts",
        roots=roots | frozenset(run.doomed),
        marked=marked,
        marked_packs=places,
        known_packs=len(world.packs),
        edges=edges if model.bounds.links[1] and not again else (),
    )
    yield f"GC 2 gc {who} marks{' again' if again else ''}", _with(world, who, next_run)


def _compact(model: Model, world: World, who: int) -> Steps:
    """GC 3, begun: copy a record, or go on."""
    run = world.collectors[who]
    after = run._replace(phase="repoint")
    if not run.copies:
        after = run._replace(phase=_after_moves(model), edges=())
    yield f"GC 3 gc {who} copies no more", _with(world, who, after)
    for label, copied, copy in compact_steps(model, world, run.marked, run.copies):
        copies = (*run.copies, copy)
        phase = "compact" if len(copies) < model.bounds.copies else "repoint"
        yield f"GC 3 gc {who} {label}", _with(copied, who, run._replace(phase=phase, copies=copies))


def _repoint(model: Model, world: World, who: int) -> Steps:
    """GC 3, ended: the row names the copy."""
    run = world.collectors[who]
    copy, rest = run.copies[0], run.copies[1:]
    label, moved = repoint_steps(model, world, copy, run.edges)
    edges = dict(run.edges)
    if model.bounds.links[1] and moved is not world:
        edges.pop(copy.name, None)
        edges |= {copy.name: copy.new_base} if copy.new_base else {}
    next_run = run._replace(
        phase="repoint" if rest else _after_moves(model),
        copies=rest,
        edges=tuple(sorted(edges.items())) if rest else (),
    )
    yield f"GC 3 gc {who} {label}", _with(moved, who, next_run)


def _after_moves(model: Model) -> str:
    """What follows GC 3: `compact` marks again, so that what it left without use goes."""
    return "mark again" if model.bounds.remarks and model.rules.marks_again else "facts"


def _facts(model: Model, world: World, who: int) -> Steps:
    """GC 4: tombstones, and facts of packs about to go, into a pack of this run's own."""
    run = world.collectors[who]
    next_run = run._replace(phase="condemn")
    surviving = _surviving_facts(model, world, run)
    records: tuple[Record, ...] = ()
    if model.rules.tombstone_facts:
        records = tuple(
            (f"-{name}", "")
            for name, state in world.checkpoints
            if state == "tombstone" and f"-{name}" not in surviving
        )
    if not records:
        yield f"GC 4 gc {who} has no facts to save", _with(world, who, next_run)
        return
    # A run's own packs are newer than its mark, so one pack per purpose changes nothing.
    grown, _ = new_pack(world, PackFile(NOBODY, records, len(records)))
    names = " ".join(name for name, _ in records)
    yield f"GC 4 gc {who} writes {names} to a new pack", _with(grown, who, next_run)


def _surviving_facts(model: Model, world: World, run: Collector) -> set[str]:
    """Removals recorded in packs that this run will not condemn."""
    going = _unmarked(model, world, run) if model.rules.facts_survive else ()
    return {
        name
        for number, file in enumerate(world.files)
        if file is not None and world.packs[number] == LIVE and number not in going
        for name, _ in file.records
        if name.startswith("-")
    }


def _unmarked(model: Model, world: World, run: Collector) -> list[int]:
    """Packs that the mark leaves to condemn, by everything but the facts in them."""
    last = run.known_packs if model.rules.known_at_mark else len(world.packs)
    found = []
    for number in range(last):
        file = world.files[number]
        if world.packs[number] != LIVE or number in run.marked_packs:
            continue
        if file is not None and file.owner != NOBODY and model.rules.skip_open_packs:
            continue
        # A pack of nothing but facts stands for the newest whole snapshot, which is kept.
        if file is not None and file.records and all(n[0] == "-" for n, _ in file.records):
            continue
        found.append(number)
    return found


def _condemn(model: Model, world: World, who: int) -> Steps:
    """GC 5: extend the mark by newer roots, or condemn what it leaves, in one transaction."""
    run, rules = world.collectors[who], model.rules
    newer = _roots(world) - run.roots
    if newer and rules.extend_mark:
        index = Index(model, world)
        added = _closure(model, index, newer)
        places = frozenset(index.rows[name][0] for name in added if name in index.rows)
        extended = run._replace(
            roots=run.roots | newer,
            marked=run.marked | added,
            marked_packs=run.marked_packs | places,
        )
        yield f"GC 5 gc {who} extends the mark", _with(world, who, extended)
        return
    packs, going = list(world.packs), _unmarked(model, world, run)
    if rules.facts_survive:
        kept = _surviving_facts(model, world, run)
        going = [number for number in going if _facts_in(world, number) <= kept]
    for number in going:
        packs[number] = world.epoch + 1
    condemned = with_checkpoints(world, dict.fromkeys(run.doomed, "tombstone"))._replace(
        packs=tuple(packs), epoch=world.epoch + bool(going)
    )
    next_run = Collector("floor" if rules.floor else "sweep", run.runs, floor=NO_FLOOR)
    names = ", ".join(map(str, going)) or "nothing"
    yield f"GC 5 gc {who} condemns {names}", _with(condemned, who, next_run)


def _facts_in(world: World, number: int) -> set[str]:
    """Removals recorded in one pack."""
    file = world.files[number]
    return {name for name, _ in file.records if name[0] == "-"} if file is not None else set()


def _floor(model: Model, world: World, who: int) -> Steps:
    """GC 6: the oldest lease among sessions whose lock is held."""
    leases = [s.lease for s in world.savers if s.phase not in OUT and s.locked]
    run = world.collectors[who]._replace(phase="sweep", floor=min(leases, default=NO_FLOOR))
    yield f"GC 6 gc {who} reads the floor", _with(world, who, run)


def _sweep(model: Model, world: World, who: int) -> Steps:
    """GC 7: condemned at or below the floor becomes dropped, durably, before any unlink."""
    run = world.collectors[who]
    going = tuple(n for n, state in enumerate(world.packs) if 0 < state <= run.floor)
    names = ", ".join(map(str, going)) or "nothing"
    if not model.rules.drop_before_unlink:
        next_run = Collector("unlink", run.runs, files=going)
        yield f"GC 7 gc {who} will sweep {names}", _with(world, who, next_run)
        return
    packs = tuple(DROPPED if n in going else state for n, state in enumerate(world.packs))
    swept = _with(world._replace(packs=packs), who, Collector("purge", run.runs))
    if DROPPED not in packs:
        swept = _after_unlinks(model, world, who)
    yield f"GC 7 gc {who} drops {names}", swept


def _purge(model: Model, world: World, who: int) -> Steps:
    """GC 8: remove rows that point at dropped packs, all at once or in batches."""
    run = world.collectors[who]
    going = run.files or tuple(n for n, state in enumerate(world.packs) if state == DROPPED)
    pointing = [row for row in world.rows if row[1] in going]
    batch = pointing[:1] if model.bounds.batch else pointing
    rows = tuple(row for row in world.rows if row not in batch)
    phase = "purge" if len(batch) < len(pointing) else "unlink"
    next_run = run._replace(phase=phase, files=going)
    yield f"GC 8 gc {who} purges rows", _with(world._replace(rows=rows), who, next_run)


def _unlink(model: Model, world: World, who: int) -> Steps:
    """GC 8: unlink the files, at once or one by one in any order."""
    run = world.collectors[who]
    left = tuple(number for number in run.files if world.files[number] is not None)
    together = (left,) if not model.bounds.unlink_each else tuple((number,) for number in left)
    for numbers in together if left else ((),):
        unlinked = world
        for number in numbers:
            unlinked = with_file(unlinked, number, None)
        done = len(numbers) == len(left)
        next_run = run._replace(phase="forget") if done else run
        names = ", ".join(map(str, numbers)) or "nothing"
        yield f"GC 8 gc {who} unlinks {names}", _with(unlinked, who, next_run)


def _forget(model: Model, world: World, who: int) -> Steps:
    """GC 8: delete the pack rows of what was unlinked."""
    files = world.collectors[who].files
    packs = tuple(ABSENT if n in files else state for n, state in enumerate(world.packs))
    gone = world._replace(packs=packs)
    yield f"GC 8 gc {who} deletes the pack rows", _after_unlinks(model, gone, who)


def _after_unlinks(model: Model, world: World, who: int) -> World:
    """Give the end of the run; without row_before_file, orphans are reaped first."""
    if model.rules.row_before_file:
        return _idle(world, who)
    return _with(world, who, Collector("reap", world.collectors[who].runs))


def _reap(model: Model, world: World, who: int) -> Steps:
    """Only without row_before_file: files without a row, and without a live owner, go."""
    orphans = tuple(
        number
        for number, file in enumerate(world.files)
        if file is not None and world.packs[number] == ABSENT and file.owner == NOBODY
    )
    if not orphans:
        yield f"GC gc {who} finds no orphans", _idle(world, who)
        return
    packs = tuple(DROPPED if n in orphans else state for n, state in enumerate(world.packs))
    run = Collector("reap unlink", world.collectors[who].runs, files=orphans)
    yield f"GC gc {who} drops orphans", _with(world._replace(packs=packs), who, run)


def _reap_unlink(model: Model, world: World, who: int) -> Steps:
    """Only without row_before_file: unlink the orphans, delete their rows."""
    files = world.collectors[who].files
    for number in files:
        world = with_file(world, number, None)
    packs = tuple(ABSENT if n in files else state for n, state in enumerate(world.packs))
    yield f"GC gc {who} unlinks orphans", _idle(world._replace(packs=packs), who)


_PHASES: dict[str, Callable[[Model, World, int], Steps]] = {
    "expire": _expire,
    "mark": _mark,
    "mark again": _mark,
    "compact": _compact,
    "repoint": _repoint,
    "facts": _facts,
    "condemn": _condemn,
    "floor": _floor,
    "sweep": _sweep,
    "purge": _purge,
    "unlink": _unlink,
    "forget": _forget,
    "reap": _reap,
    "reap unlink": _reap_unlink,
}
