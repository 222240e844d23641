"""The state of a store and of all who use it: tuples throughout, so that states hash and compare.

One ``World`` is one instant. What a real store keeps in LMDB is ``rows``, ``packs``,
``checkpoints``, ``epoch`` and ``gc_run``; ``files`` is the disk; the rest is memory of processes,
which a crash loses.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .rules import Model

# Pack states. A positive number e is condemned(e).
LIVE: Final = 0
DROPPED: Final = -1
ABSENT: Final = -2  # no row in `packs`: not yet, or deleted after the unlink

NOBODY: Final = -1  # owner of a sealed pack, or of one whose session is gone

Record = tuple[str, str]  # (id, base id or ""); facts are ("+m", "") and ("-m", "")


class PackFile(NamedTuple):
    """A file in ``packs/``; ``owner`` is the live, locked session that still appends to it."""

    owner: int
    records: tuple[Record, ...]
    synced: int  # records that survive a power loss


class Saver(NamedTuple):
    """A process in the middle of one save; ``phase`` names the step it takes next."""

    phase: str = "idle"
    lease: int = 0
    locked: bool = True
    store: tuple[Record, ...] = ()  # records to write, then to index
    pack: int = -1
    revive: tuple[str, ...] = ()
    checked_epoch: int = -1  # SAVE 6: epoch of the read transaction
    noted: tuple[int, ...] = ()  # SAVE 6: packs it relies on that were condemned


class Copy(NamedTuple):
    """A record that compaction copied, and the place that its row had then."""

    name: str
    old_pack: int
    old_base: str
    new_pack: int
    new_base: str


class Collector(NamedTuple):
    """A gc, compact or repair run; ``phase`` names the step it takes next."""

    phase: str = "idle"
    runs: int = 0
    roots: frozenset[str] = frozenset()  # checkpoints that the mark started from
    marked: frozenset[str] = frozenset()
    marked_packs: frozenset[int] = frozenset()
    known_packs: int = 0  # packs registered at the mark have smaller numbers
    doomed: tuple[str, ...] = ()  # only without expire_before_mark
    copies: tuple[Copy, ...] = ()  # made, not yet repointed
    floor: int = 0
    files: tuple[int, ...] = ()  # packs to unlink
    edges: tuple[Record, ...] = ()  # rows on bases at the mark; only where chains are bounded


class Reader(NamedTuple):
    """A restore of one checkpoint; it resolves a chain, then opens packs one by one."""

    phase: str = "idle"
    plan: tuple[tuple[str, int, str], ...] = ()
    opened: int = 0
    tries: int = 0


class World(NamedTuple):
    """Everything, at one instant."""

    rows: tuple[tuple[str, int, str], ...]  # objects: (id, pack, base), sorted
    packs: tuple[int, ...]  # state by pack number; numbers are never reused
    files: tuple[PackFile | None, ...]  # file by pack number
    checkpoints: tuple[tuple[str, str], ...]  # (manifest, live | trash | tombstone), sorted
    epoch: int
    gc_run: int
    savers: tuple[Saver, ...]
    collectors: tuple[Collector, ...]
    reader: Reader
    past: frozenset[str]  # bounded actions that happened: "rm M0", "undelete M0", ...


class Index:
    """A transaction's view of `objects` and `packs`; mutable copies, put back by ``into``."""

    __slots__ = ("model", "packs", "rows")

    def __init__(self, model: Model, world: World) -> None:
        """Copy the two tables of ``world``."""
        self.model = model
        self.rows = {row[0]: (row[1], row[2]) for row in world.rows}
        self.packs = list(world.packs)

    def into(self, world: World) -> World:
        """Commit: ``world`` with these tables."""
        rows = tuple(sorted((name, *place) for name, place in self.rows.items()))
        return world._replace(rows=rows, packs=tuple(self.packs))

    def copy(self) -> Index:
        """Give a second one, to be changed without the first."""
        other = object.__new__(Index)
        other.model, other.rows, other.packs = self.model, dict(self.rows), list(self.packs)
        return other

    def chain(self, object_id: str) -> tuple[str, ...] | None:
        """Give the ids from ``object_id`` down its bases; None at a hole or a cycle."""
        links: list[str] = []
        state_decides = self.model.rules.pack_state_decides
        while object_id:
            place = self.rows.get(object_id)
            if place is None or object_id in links:
                return None
            if state_decides and self.packs[place[0]] < LIVE:
                return None
            links.append(object_id)
            object_id = place[1]
        return tuple(links)

    def links(self, object_id: str) -> tuple[str, ...] | None:
        """Give the links that a hit stands on, by the rule in force; None is a miss."""
        if self.model.rules.whole_chain_usable:
            return self.chain(object_id)
        place = self.rows.get(object_id)
        if place is None or self.packs[place[0]] < LIVE:
            return None
        return (object_id,)

    def usable(self, object_id: str) -> bool:
        """Say whether look-ups may count this as a hit."""
        return self.links(object_id) is not None

    def cold_packs(self, object_id: str) -> tuple[int, ...]:
        """Packs of a usable id's links that are not live."""
        found = {self.rows[link][0] for link in self.links(object_id) or ()}
        return tuple(sorted(pack for pack in found if self.packs[pack] != LIVE))

    def take(self, object_id: str) -> bool:
        """Set every pack that a usable id stands on live; False, and nothing done, on a miss."""
        links = self.links(object_id)
        if links is None:
            return False
        for link in links:
            self.packs[self.rows[link][0]] = LIVE
        return True


def initial_world(model: Model) -> World:
    """Give a store with the checkpoints of the layout committed, and every actor idle."""
    bounds = model.bounds
    rows = sorted(
        (name, number, base)
        for number, records in enumerate(bounds.layout)
        for name, base in records
    )
    manifests = sorted(name for name, _, _ in rows if name.startswith("M"))
    return World(
        rows=tuple(rows),
        packs=(LIVE,) * len(bounds.layout),
        files=tuple(PackFile(NOBODY, records, len(records)) for records in bounds.layout),
        checkpoints=tuple((name, "live") for name in manifests),
        epoch=0,
        gc_run=NOBODY,
        savers=(Saver(),) * 2,
        collectors=(Collector(),) * bounds.collectors,
        reader=Reader(),
        past=frozenset(),
    )


def with_checkpoints(world: World, changes: dict[str, str]) -> World:
    """Set the states of some checkpoint rows."""
    return world._replace(checkpoints=tuple(sorted({**dict(world.checkpoints), **changes}.items())))


def new_pack(world: World, file: PackFile | None, state: int = LIVE) -> tuple[World, int]:
    """Register a pack, with its file if it is given; returns the world and the number."""
    number = len(world.packs)
    grown = world._replace(packs=(*world.packs, state), files=(*world.files, file))
    return grown, number


def with_file(world: World, number: int, file: PackFile | None) -> World:
    """Replace one file, or unlink it."""
    files = world.files
    return world._replace(files=(*files[:number], file, *files[number + 1 :]))


def disown(world: World, owner: int) -> World:
    """Nobody appends to this session's packs from now on."""
    files = tuple(
        file._replace(owner=NOBODY) if file is not None and file.owner == owner else file
        for file in world.files
    )
    return world._replace(files=files)
