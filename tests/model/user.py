"""TRASH, READ and power: what people, restores and the wall socket do to a store."""

from __future__ import annotations

from collections.abc import Iterator

from .rules import Model
from .saver import OUT
from .state import NOBODY, Collector, Index, Reader, Saver, World, with_checkpoints

Steps = Iterator[tuple[str, World]]
SETTLED = ("restored", "deleted", "corrupt")


def trash_steps(model: Model, world: World) -> Steps:
    """TRASH: rm and undelete, single transactions, each checkpoint once."""
    states = dict(world.checkpoints)
    for name in model.bounds.removable:
        state = states.get(name)
        if state == "live" and f"rm {name}" not in world.past:
            trashed = with_checkpoints(world, {name: "trash"})
            yield f"rm {name}", trashed._replace(past=world.past | {f"rm {name}"})
        if not model.bounds.undelete or f"undelete {name}" in world.past:
            continue
        forgiving = not model.rules.undelete_needs_trash
        if state == "trash" or (state == "tombstone" and forgiving):
            restored = with_checkpoints(world, {name: "live"})
            past = world.past | {f"undelete {name}"}
            yield f"undelete {name} returns ok", restored._replace(past=past)


def reader_steps(model: Model, world: World) -> Steps:
    """READ: resolve the chain in one transaction, then open pack after pack."""
    wanted, reader = model.bounds.reader, world.reader
    if not wanted or reader.phase in SETTLED:
        return
    index = Index(model, world)
    deleted = dict(world.checkpoints)[wanted] == "tombstone"

    def now(next_reader: Reader) -> World:
        return world._replace(reader=next_reader)

    if reader.phase == "idle":
        chain = index.chain(model.below(wanted)[0])
        if deleted:
            yield "READ finds no checkpoint", now(Reader("deleted"))
        elif chain is None:
            yield "READ finds a hole", now(Reader("corrupt"))
        else:
            plan = tuple((name, *index.rows[name]) for name in chain)
            yield "READ resolves", now(Reader("open", plan, tries=reader.tries + _counts(model)))
        return
    name, pack, base = reader.plan[reader.opened]
    file = world.files[pack]
    if file is not None and (name, base) in file.records:
        if reader.opened + 1 == len(reader.plan):
            yield f"READ reads {name}, all of it", now(Reader("restored"))
        else:
            yield f"READ reads {name}", now(reader._replace(opened=reader.opened + 1))
    elif deleted:
        yield f"READ misses {name}: removed", now(Reader("deleted"))
    elif not model.rules.reader_retries:
        yield f"READ misses {name}: gives up", now(Reader("corrupt"))
    elif _gives_up(model, reader):
        yield f"READ misses {name} for the last time", now(Reader("corrupt"))
    elif model.rules.reader_from_top:
        yield f"READ misses {name}: again from the top", now(Reader("idle", tries=reader.tries))
    else:
        chain = index.chain(name)
        if chain is None:
            yield f"READ misses {name} and its row", now(Reader("corrupt"))
        else:
            plan = tuple((link, *index.rows[link]) for link in chain)
            yield f"READ resolves {name} alone", now(Reader("open", plan))


def _counts(model: Model) -> int:
    """Tries are counted only where they are bounded; else states would differ for nothing."""
    return 0 if model.rules.corrupt_needs_same_place else 1


def _gives_up(model: Model, reader: Reader) -> bool:
    """Say whether a reader that counts its tries has had the last one."""
    return not model.rules.corrupt_needs_same_place and reader.tries >= model.bounds.reader_tries


def power_steps(model: Model, world: World) -> Steps:
    """Power loss: every process ends, bytes above the last fdatasync are gone; once."""
    if not model.bounds.power_loss or "power loss" in world.past:
        return
    savers = tuple(s if s.phase in OUT else Saver("dead") for s in world.savers)
    collectors = tuple(
        run if run.phase == "idle" else Collector(runs=run.runs + 1) for run in world.collectors
    )
    files = tuple(
        file and file._replace(owner=NOBODY, records=file.records[: file.synced])
        for file in world.files
    )
    dark = world._replace(
        savers=savers,
        collectors=collectors,
        files=files,
        reader=Reader(),
        past=world.past | {"power loss"},
    )
    yield "power loss", dark
