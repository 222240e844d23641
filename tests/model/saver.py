"""SAVE 1 to 7 and PACK: one saver, one save. Each function is the step that its name says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from .rules import Model
from .state import (
    ABSENT,
    DROPPED,
    LIVE,
    NOBODY,
    Index,
    PackFile,
    Record,
    Saver,
    World,
    disown,
    new_pack,
    with_checkpoints,
    with_file,
)

Steps = Iterator[tuple[str, World]]
OUT = ("idle", "dead", "acked")  # phases outside a save
ANEW = "!"  # instead of a base: whole, and in the place of a usable row that is known to be damaged


def saver_steps(model: Model, world: World) -> Steps:
    """All next steps of all savers, their deaths and the loss of their locks included."""
    for who in model.bounds.savers:
        saver = world.savers[who]
        if saver.phase in ("dead", "acked"):
            continue
        yield from _PHASES[saver.phase](model, world, who)
        if saver.phase in OUT:
            continue
        if model.bounds.kills:
            yield f"saver {who} dies", disown(_with(world, who, Saver("dead")), who)
        if model.bounds.lost_locks and saver.locked:
            unlocked = disown(_with(world, who, saver._replace(locked=False)), who)
            yield f"saver {who} loses its lock", unlocked


def _with(world: World, who: int, saver: Saver) -> World:
    """Replace one saver."""
    savers = world.savers
    return world._replace(savers=(*savers[:who], saver, *savers[who + 1 :]))


def _begin(model: Model, world: World, who: int) -> Steps:
    """SAVE 1: take the lease, gc_epoch as it is now."""
    begun = _with(world, who, Saver("look up", world.epoch))
    if model.bounds.one_process and not model.rules.own_lease:
        savers = tuple(
            saver if saver.phase in OUT else saver._replace(lease=world.epoch)
            for saver in begun.savers
        )
        begun = begun._replace(savers=savers)
    yield f"SAVE 1 saver {who} takes its lease", begun


def _look_up(model: Model, world: World, who: int) -> Steps:
    """SAVE 2 and 3: look every id up; choose a base for what is missing, or none."""
    index = Index(model, world)
    wanted = model.below(f"s{who}")
    implied: set[str] = set()
    if not model.rules.list_hit_alone:
        for name in wanted:
            if model.below(name) and index.usable(name):
                implied.update(model.below(name))
    missing = [name for name in wanted if name not in implied and not index.usable(name)]
    hits = [name for name in wanted if name not in implied and name not in missing]
    bases = [""]
    if any(model.is_chunk(name) for name in missing):
        bases += [b for b in model.bounds.bases if b not in wanted and _may_carry(index, b)]
    hurt = [""]
    if model.bounds.distrust:
        hurt += [name for name in hits if model.is_chunk(name)]
    for base, damaged in itertools.product(bases, hurt):
        store = [(name, base if model.is_chunk(name) else "") for name in missing]
        store += [(damaged, ANEW)] if damaged else []
        relied = [name for name in (*hits, base) if name and name != damaged]
        revive = tuple(name for name in relied if index.cold_packs(name))
        saver = world.savers[who]._replace(
            phase="revive" if revive else "pack",
            store=(*store, (f"s{who}", "")),
            revive=revive,
        )
        found = f"{' '.join(missing) or 'nothing'} missing{', base ' + base if base else ''}"
        found += f", {damaged} damaged" if damaged else ""
        yield f"SAVE 2 saver {who} looks up: {found}", _with(world, who, saver)


def _may_carry(index: Index, base: str) -> bool:
    """Say whether a save may store a delta on ``base``: usable, and its chain is short enough."""
    longest = index.model.bounds.links[0]
    return index.usable(base) and (not longest or len(index.chain(base) or ()) <= longest)


def _revive(model: Model, world: World, who: int) -> Steps:
    """SAVE 2: set the condemned packs of each hit live; what vanished meanwhile is a miss."""
    saver, index = world.savers[who], Index(model, world)
    store = dict(saver.store)
    for name in saver.revive:
        if not model.rules.revive_rechecks:
            # What the look-up saw is taken on trust: condemned packs revive, the rest is ignored.
            link = name
            while link in index.rows:
                pack, link = index.rows[link]
                index.packs[pack] = LIVE if index.packs[pack] > LIVE else index.packs[pack]
        elif not index.take(name):
            store = {stored: "" if base == name else base for stored, base in store.items()}
            if name in model.below(f"s{who}"):
                store = {name: "", **store}
    revived = saver._replace(phase="pack", store=tuple(store.items()), revive=())
    yield f"SAVE 2 saver {who} revives", _with(index.into(world), who, revived)


def _pack(model: Model, world: World, who: int) -> Steps:
    """PACK: the row in `packs` first, then the file, still empty."""
    saver = world.savers[who]
    own = saver.pack
    if own >= 0 and world.packs[own] >= LIVE:
        file = world.files[own]
        if file is not None and file.owner == who:
            yield from _append(model, world, who)
            return
    state = LIVE if model.rules.row_before_file else ABSENT
    owner = who if saver.locked else NOBODY
    grown, number = new_pack(world, PackFile(owner, (), 0), state)
    registered = _with(grown, who, saver._replace(phase="append", pack=number))
    if model.rules.row_before_file:
        yield f"PACK saver {who} registers pack {number}", registered
    else:
        yield from _append(model, registered, who)


def _append(model: Model, world: World, who: int) -> Steps:
    """SAVE 3 and 4: append chunks, lists, manifest; the pack may fill up and be sealed."""
    saver = world.savers[who]
    file = world.files[saver.pack] or PackFile(NOBODY, (), 0)
    records = file.records + tuple(
        (name, "" if base == ANEW else base) for name, base in saver.store
    )
    volatile = model.bounds.power_loss
    synced = file.synced if volatile else len(records)
    after = "sync" if volatile and model.rules.sync_before_index else "index"
    appended = _with(world, who, saver._replace(phase=after))
    label = f"SAVE 4 saver {who} appends to pack {saver.pack}"
    if not volatile:
        label += " and syncs"
    yield label, with_file(appended, saver.pack, PackFile(file.owner, records, synced))
    if model.bounds.seal and file.owner != NOBODY:
        sealed = PackFile(NOBODY, records, synced)
        yield f"{label}, full", with_file(appended, saver.pack, sealed)


def _sync(model: Model, world: World, who: int) -> Steps:
    """SAVE 4: fdatasync."""
    saver = world.savers[who]
    file = world.files[saver.pack]
    synced = _with(world, who, saver._replace(phase="index"))
    if file is not None:
        synced = with_file(synced, saver.pack, file._replace(synced=len(file.records)))
    yield f"SAVE 4 saver {who} syncs pack {saver.pack}", synced


def _index(model: Model, world: World, who: int) -> Steps:
    """SAVE 5: rows for what was stored, unless a usable row is there."""
    rules, saver, index = model.rules, world.savers[who], Index(model, world)
    own = saver.pack
    registering = index.packs[own] == ABSENT and not rules.row_before_file
    if index.packs[own] <= DROPPED and rules.own_pack_checked and not registering:
        store = tuple((name, base if base == ANEW else "") for name, base in saver.store)
        again = saver._replace(phase="pack", store=store, pack=-1)
        yield f"SAVE 5 saver {who}: its pack {own} was dropped", _with(world, who, again)
        return
    if rules.own_pack_set_live or registering:
        index.packs[own] = LIVE
    batch_count = 1 if model.bounds.batch else len(saver.store)
    refused: list[Record] = []
    for name, base in saver.store[:batch_count]:
        if base == ANEW:
            index.rows[name] = (own, "")
            # The run that goes on has seen the row elsewhere, and counts this pack as dead.
            world = world._replace(gc_run=-2) if rules.anew_fences else world
        elif name in index.rows and (index.usable(name) or not rules.replace_unusable):
            if rules.kept_rows_set_live:
                index.take(name)
        elif base and rules.base_checked_at_index and not _base_holds(index, name, base):
            refused.append((name, ""))
        else:
            index.rows[name] = (own, base)
    rest = saver.store[batch_count:]
    phase = "pack" if refused else "index" if rest else "check"
    indexed = saver._replace(phase=phase, store=(*refused, *rest))
    label = f"SAVE 5 saver {who} indexes {' '.join(n for n, _ in saver.store[:batch_count])}"
    yield label, _with(index.into(world), who, indexed)


def _base_holds(index: Index, name: str, base: str) -> bool:
    """Say whether a new row may stand on ``base``, which is then set live."""
    chain = index.chain(base)
    return chain is not None and name not in chain and index.take(base)


def _check(model: Model, world: World, who: int) -> Steps:
    """SAVE 6: commit at once if no gc condemned since the lease, else look at every chain."""
    saver = world.savers[who]
    if saver.lease == world.epoch or not model.rules.commit_check:
        yield f"SAVE 6 saver {who} commits", _committed(model, world, who)
        return
    index = Index(model, world)
    relied = model.below(f"s{who}")
    if model.rules.commit_checks_manifest:
        relied = (*relied, f"s{who}")
    holes = tuple(name for name in relied if not index.usable(name))
    if holes:
        again = saver._replace(phase="pack", store=tuple((name, "") for name in holes))
        yield f"SAVE 6 saver {who} late miss: {' '.join(holes)}", _with(world, who, again)
        return
    noted = tuple(sorted({pack for name in relied for pack in index.cold_packs(name)}))
    checked = saver._replace(phase="commit", checked_epoch=world.epoch, noted=noted)
    yield f"SAVE 6 saver {who} checks at epoch {world.epoch}", _with(world, who, checked)


def _commit(model: Model, world: World, who: int) -> Steps:
    """SAVE 6: the write transaction, if what the check saw still holds."""
    rules, saver = model.rules, world.savers[who]
    moved = rules.commit_epoch_again and saver.checked_epoch != world.epoch
    if moved or any(world.packs[pack] <= DROPPED for pack in saver.noted):
        back = saver._replace(phase="check", checked_epoch=-1, noted=())
        yield f"SAVE 6 saver {who} must check again", _with(world, who, back)
        return
    index = Index(model, world)
    if rules.commit_sets_live:
        for pack in saver.noted:
            index.packs[pack] = LIVE
    yield f"SAVE 6 saver {who} commits", _committed(model, index.into(world), who)


def _committed(model: Model, world: World, who: int) -> World:
    """Insert the root; the save has returned, or SAVE 7 is left."""
    changes = {f"s{who}": "live"}
    if who == 0:
        states = dict(world.checkpoints)
        changes |= {name: "tombstone" for name in model.bounds.rolling if states[name] == "live"}
    world = with_checkpoints(world, changes)
    if model.bounds.facts:
        saver = world.savers[who]
        # A fact that follows a rolling replacement records the removals too.
        removed = tuple((f"-{name}", "") for name in changes if name != f"s{who}")
        return _with(world, who, saver._replace(phase="fact", store=removed, noted=()))
    return disown(_with(world, who, Saver("acked")), who)


def _fact(model: Model, world: World, who: int) -> Steps:
    """SAVE 7: append the fact to the own pack if its row allows it, else to a new one."""
    saver = world.savers[who]
    records = ((f"+s{who}", ""), *saver.store)
    number = saver.pack
    file = world.files[number]
    if file is None or world.packs[number] < LIVE:
        file = PackFile(NOBODY, (), 0)
        world, number = new_pack(world, file)
    records = file.records + records
    world = with_file(world, number, PackFile(NOBODY, records, len(records)))
    yield f"SAVE 7 saver {who} appends its fact", disown(_with(world, who, Saver("acked")), who)


def _stale(model: Model, world: World, who: int) -> Steps:
    """Only without rebuild_exclusive: the save commits into an index that CURRENT left."""
    yield f"saver {who} commits into the old index", _with(world, who, Saver("acked"))


_PHASES: dict[str, Callable[[Model, World, int], Steps]] = {
    "idle": _begin,
    "look up": _look_up,
    "revive": _revive,
    "pack": _pack,
    "append": _append,
    "sync": _sync,
    "index": _index,
    "check": _check,
    "commit": _commit,
    "fact": _fact,
    "stale": _stale,
}
