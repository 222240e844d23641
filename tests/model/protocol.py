"""The protocol as one machine: every actor's next steps, and the invariants of every state.

The parts follow the specification's steps: ``saver.py`` SAVE 1-7 and PACK, ``collector.py``
GC 0-8, ``compaction.py`` GC 3 and repair, ``user.py`` TRASH and READ, ``rebuild.py`` REBUILD.
"""

from __future__ import annotations

from collections.abc import Iterator

from .collector import collector_steps
from .compaction import repair_steps
from .explore import Result, explore
from .rebuild import rebuild_steps, rebuild_violation
from .rules import Model
from .saver import saver_steps
from .state import Index, World, initial_world
from .user import power_steps, reader_steps, trash_steps

LATE_MISS = "late miss"


def successors(model: Model, world: World) -> Iterator[tuple[str, World]]:
    """Every state that one step of one actor reaches."""
    yield from trash_steps(model, world)
    yield from saver_steps(model, world)
    yield from collector_steps(model, world)
    yield from reader_steps(model, world)
    yield from repair_steps(model, world)
    yield from power_steps(model, world)
    yield from rebuild_steps(model, world)


def violation(model: Model, world: World) -> str | None:
    """Say which promise this state breaks, or None.

    The promises: what is not removed can be read, whole and from a file that exists; a save that
    returned is there; an undelete that returned holds; a restore never calls a live checkpoint
    corrupt; a rebuild gives back what was not removed.
    """
    states = dict(world.checkpoints)
    broken = _unreadable(model, world)
    if broken is not None:
        return broken
    for who, saver in enumerate(world.savers):
        if saver.phase == "acked" and f"s{who}" not in states:
            return f"acknowledged: the save of s{who} returned, and it is nowhere"
    for name in model.bounds.removable:
        if f"undelete {name}" in world.past and states[name] == "tombstone":
            return f"undelete: {name} was restored, then removed"
    if world.reader.phase == "corrupt":
        return f"reader: {model.bounds.reader} is live and was called corrupt"
    return rebuild_violation(model, world) if model.bounds.rebuild_check else None


def _unreadable(model: Model, world: World) -> str | None:
    """Follow every live and trashed checkpoint to bytes in files."""
    index = Index(model, world)
    for root, state in world.checkpoints:
        if state == "tombstone":
            continue
        for name in (root, *model.below(root)):
            chain = index.chain(name)
            if chain is None:
                return f"hole: {root} ({state}) needs {name}, whose row or base is gone"
            if 0 < sum(model.bounds.links) < len(chain):
                return f"deep: {root} ({state}) needs {len(chain)} links for {name}"
            for link in chain:
                pack, base = index.rows[link]
                file = world.files[pack]
                if file is None or (link, base) not in file.records:
                    return f"bytes: {root} ({state}) needs {link}, which is not in pack {pack}"
    return None


def run_model(
    model: Model, *, limit_states: int | None = None, limit_s: float | None = None
) -> Result[World]:
    """Explore one model from a fresh store."""
    return explore(
        initial_world(model),
        lambda world: successors(model, world),
        lambda world: violation(model, world),
        limit_states=limit_states,
        limit_s=limit_s,
        mark=LATE_MISS,
    )
