"""REBUILD: what the packs alone give back, as a check of every state and as a step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from .rules import Model
from .saver import OUT
from .state import (
    ABSENT,
    LIVE,
    NOBODY,
    Collector,
    PackFile,
    Reader,
    Saver,
    World,
    with_checkpoints,
)

Files = tuple[PackFile | None, ...]


def rebuilt_rows(model: Model, files: Files) -> dict[str, tuple[int, str]]:
    """REBUILD: index the records of all packs, bases first, so that no cycle can form.

    Without decode_order the last record of an id wins, and pack names are random, so that any
    order is possible; here the worst one, deltas last.
    """
    found = [
        (name, number, base)
        for number, file in enumerate(files)
        if file is not None
        for name, base in file.records
        if name[0] not in "+-"
    ]
    if not model.rules.decode_order:
        worst = sorted(found, key=lambda record: record[2] != "")
        return {name: (number, base) for name, number, base in worst}
    rows: dict[str, tuple[int, str]] = {}
    grew = True
    while grew:
        grew = False
        for name, number, base in found:
            if name not in rows and (not base or base in rows):
                rows[name] = (number, base)
                grew = True
    return rows


def facts_in(files: Files) -> frozenset[str]:
    """Commits (+) and removals (-) that the packs record."""
    return frozenset(
        name for file in files if file is not None for name, _ in file.records if name[0] in "+-"
    )


def _whole(model: Model, rows: dict[str, tuple[int, str]], manifest: str) -> bool:
    """Say whether a manifest and all it names decode."""
    for name in (manifest, *model.below(manifest)):
        seen = set()
        link = name
        while link:
            if link not in rows or link in seen:
                return False
            seen.add(link)
            link = rows[link][1]
    return True


@lru_cache(maxsize=1 << 18)
def rebuilt(model: Model, files: Files, had_fact: frozenset[str]) -> dict[str, bool]:
    """REBUILD: the checkpoints that come back, each with whether it is whole.

    ``had_fact`` are checkpoints whose commit is a fact without a record in this model.
    """
    rows, facts = rebuilt_rows(model, files), facts_in(files)
    back: dict[str, bool] = {}
    for manifest in sorted(name for name in rows if name[0] in "Ms"):
        if f"-{manifest}" in facts:
            continue
        whole = _whole(model, rows, manifest)
        committed = f"+{manifest}" in facts or manifest in had_fact
        allowed = whole or not model.rules.recovered_whole
        if committed or (model.rules.recovered and allowed):
            back[manifest] = whole
    return back


def had_facts(model: Model, world: World) -> frozenset[str]:
    """Checkpoints known as committed without a fact record: the first ones, or all of them.

    Where SAVE 7 is not a step of its own, a commit and its fact are one.
    """
    return frozenset(
        name for name, _ in world.checkpoints if name[0] == "M" or not model.bounds.facts
    )


def rebuild_violation(model: Model, world: World) -> str | None:
    """Check what a rebuild would give back, were the index lost at this instant."""
    files = tuple(
        file and (file if file.owner == NOBODY else file._replace(owner=NOBODY))
        for file in world.files
    )
    back = rebuilt(model, files, had_facts(model, world))
    for name, state in world.checkpoints:
        if state != "tombstone" and not back.get(name, False):
            return f"rebuild: {name} ({state}) does not come back"
    for name, whole in back.items():
        if not whole:
            return f"rebuild: {name}, which was not kept, comes back broken"
    return None


def rebuild_steps(model: Model, world: World) -> Iterator[tuple[str, World]]:
    """REBUILD as a step: the index is lost, then built anew; `repair --accept` follows.

    With the exclusive lock nobody is inside. Without it, savers go on in the old index, and a
    collector that was about to unlink still will.
    """
    count = sum(name.startswith("rebuild") for name in world.past)
    if count >= model.bounds.rebuilds:
        return
    inside = any(s.phase not in OUT for s in world.savers) or any(
        run.phase != "idle" for run in world.collectors
    )
    if inside and model.rules.rebuild_exclusive:
        return
    rows = rebuilt_rows(model, world.files)
    back = rebuilt(model, world.files, had_facts(model, world))
    before = dict(world.checkpoints)
    states = {name: before.get(name, "live") for name in back}
    states = {name: "live" if s == "tombstone" else s for name, s in states.items()}
    gone = {name: "tombstone" for name in before if name not in back}
    new = world._replace(
        rows=tuple(sorted((name, *place) for name, place in rows.items())),
        packs=tuple(ABSENT if file is None else LIVE for file in world.files),
        epoch=0,
        gc_run=NOBODY,
        savers=tuple(s if s.phase in OUT else Saver("stale") for s in world.savers),
        collectors=tuple(
            run if run.phase in ("idle", "unlink") else Collector(runs=run.runs + 1)
            for run in world.collectors
        ),
        reader=Reader(),
        past=world.past | {f"rebuild {count}"},
    )
    yield "REBUILD", with_checkpoints(new, {**states, **gone})
