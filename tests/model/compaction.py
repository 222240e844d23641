"""GC 3 and repair: moving a record, or storing it on another base, while others save and read."""

from __future__ import annotations

from collections.abc import Iterator

from .rules import Model
from .state import LIVE, NOBODY, Copy, Index, PackFile, World, new_pack


def compact_steps(
    model: Model, world: World, marked: frozenset[str], made: tuple[Copy, ...]
) -> Iterator[tuple[str, World, Copy]]:
    """GC 3: every copy that compaction may make now, in an own and new pack, synced."""
    index = Index(model, world)
    for name in sorted(index.rows):
        chain = index.chain(name)
        if chain is None or name not in marked or any(copy.name == name for copy in made):
            continue
        old_pack, old_base = index.rows[name]
        bases = [old_base]
        if old_base:
            bases.append("")
        elif model.is_chunk(name):
            bases += [b for b in model.bounds.bases if _may_be_base(model, index, b, name, marked)]
        for base in bases:
            grown, number = new_pack(world, PackFile(NOBODY, ((name, base),), 1))
            label = f"copies {name} to pack {number}" + (f" on base {base}" if base else "")
            yield label, grown, Copy(name, old_pack, old_base, number, base)


def _may_be_base(model: Model, index: Index, base: str, name: str, marked: frozenset[str]) -> bool:
    """GC 3: a new base is marked in this run, usable, and does not stand on ``name``."""
    chain = index.chain(base)
    if chain is None or name in chain:
        return False
    return base in marked or not model.rules.base_marked


def repoint_steps(model: Model, world: World, copy: Copy) -> tuple[str, World]:
    """GC 3: the transaction that repoints one row, or leaves it."""
    name, new_base = copy.name, copy.new_base
    rules, index = model.rules, Index(model, world)
    left = f"leaves {name} where it is"
    if rules.repoint_compares and index.rows.get(name) != (copy.old_pack, copy.old_base):
        return left, world
    if rules.repoint_checks_pack and index.packs[copy.new_pack] < LIVE:
        return left, world
    if new_base and rules.repoint_checks_chain:
        chain = index.chain(new_base)
        if chain is None or name in chain:
            return left, world
    index.rows[name] = (copy.new_pack, new_base)
    if rules.repoint_sets_live:
        index.packs[copy.new_pack] = LIVE
        if new_base:
            index.take(new_base)
    return f"repoints {name}", index.into(world)


def repair_steps(model: Model, world: World) -> Iterator[tuple[str, World]]:
    """Repair: a row names another good copy of its record; once.

    As a collector it takes gc_run, so that whoever was collecting is fenced off. gc.lock would keep
    it out of a run altogether; here the lock is taken for lost, which leaves the fence alone.
    """
    if not model.bounds.repair or "repair" in world.past:
        return
    index = Index(model, world)
    for name, (pack, base) in sorted(index.rows.items()):
        for number, file in enumerate(world.files):
            if number == pack or file is None or world.packs[number] < LIVE:
                continue
            if (name, base) not in file.records:
                continue
            moved = Index(model, world)
            moved.rows[name] = (number, base)
            moved.packs[number] = LIVE
            repaired = moved.into(world)._replace(past=world.past | {"repair"})
            if model.rules.repair_is_collector:
                repaired = repaired._replace(gc_run=-2)
            yield f"repair repoints {name} from pack {pack} to {number}", repaired
