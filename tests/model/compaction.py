"""GC 3 and repair: moving a record, or storing it on another base, while others save and read."""

from __future__ import annotations

from collections.abc import Iterator

from .rules import Model
from .state import LIVE, NOBODY, Copy, Index, PackFile, Record, World, new_pack


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
            bases += [
                b for b in model.bounds.bases if _may_be_base(model, index, b, name, marked, made)
            ]
        for base in bases:
            grown, number = new_pack(world, PackFile(NOBODY, ((name, base),), 1))
            label = f"copies {name} to pack {number}" + (f" on base {base}" if base else "")
            yield label, grown, Copy(name, old_pack, old_base, number, base)


def _may_be_base(
    model: Model,
    index: Index,
    base: str,
    name: str,
    marked: frozenset[str],
    made: tuple[Copy, ...],
) -> bool:
    """GC 3: a new base is marked in this run, usable, and does not stand on ``name``.

    A plan that turns chains round looks at what its own earlier moves will have made of them.
    """
    chains = [index.chain(base)]
    if model.bounds.turns:
        planned = index.copy()
        for copy in made:
            planned.rows[copy.name] = (copy.old_pack, copy.new_base)
        chains.append(planned.chain(base))
    if all(chain is None or name in chain for chain in chains):
        return False
    return base in marked or not model.rules.base_marked


def repoint_steps(
    model: Model, world: World, copy: Copy, edges: tuple[Record, ...]
) -> tuple[str, World]:
    """GC 3: the transaction that repoints one row, or leaves it.

    ``edges`` are the rows on bases as the run saw them when it marked, its moves since included.
    """
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
    if new_base and not _is_short(model, index, name, new_base, dict(edges)):
        return left, world
    index.rows[name] = (copy.new_pack, new_base)
    if rules.repoint_sets_live:
        index.packs[copy.new_pack] = LIVE
        if new_base:
            index.take(new_base)
    return f"repoints {name}", index.into(world)


def _is_short(model: Model, index: Index, name: str, base: str, edges: dict[str, str]) -> bool:
    """GC 3: the chains that stand on the moved row are no longer than compaction may make them.

    Its own is looked up in the transaction. Of what is built on it only the rows that the mark saw
    are known: a save may have added others since, each on a chain that was short then.
    """
    longest = model.bounds.links[1]
    if not longest:
        return True
    below = len(index.chain(base) or ()) + 1
    if below > longest and model.rules.repoint_bounds_chain:
        return False
    if not model.rules.repoint_bounds_above:
        return True
    above = (_links_to(edges, link, name) for link in edges)
    return all(count + below <= longest for count in above if count)


def _links_to(edges: dict[str, str], link: str, name: str) -> int:
    """Count the rows from ``link`` down to ``name``; 0 if it does not stand on it."""
    count = 0
    while link in edges and link != name and count <= len(edges):
        link, count = edges[link], count + 1
    return count if link == name else 0


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
