"""How much there is, and how much of the disk it takes.

Four numbers, with one meaning in every command and call:

    logical   what restoring every live checkpoint would write
    unique    what only these checkpoints hold: bytes on disk that no other run shares
    stored    what is on disk: for the store all its files, for a run every object it reaches
    saved     1 - stored / logical
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint

if TYPE_CHECKING:
    from casckpt.checkpoint.codings import CodingStats
    from casckpt.store import Repository


@dataclass(frozen=True)
class RunStats:
    """Sizes of one run.

    Attributes:
        run: its name.
        checkpoint_count: live checkpoints.
        logical_bytes: what restoring all of them would write.
        unique_bytes: stored bytes that no checkpoint of another run reaches.
        stored_bytes: stored bytes of every object that they reach; what runs share counts in
            each, so runs do not add up to the store.
    """

    run: str
    checkpoint_count: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int

    @property
    def saved(self) -> float:
        """1 - stored / logical; 0 if there is nothing."""
        return saved(self.logical_bytes, self.stored_bytes)


@dataclass(frozen=True)
class Stats:
    """Sizes of a store and of its runs.

    Attributes:
        checkpoint_count: live checkpoints of the runs that were asked for.
        trash_count: checkpoints in the trash of the whole store; they still take space.
        logical_bytes: what restoring the live ones that were asked for would write.
        unique_bytes: stored bytes that no checkpoint of the store besides these reaches.
        stored_bytes: for all runs, what the store takes on disk (allocated blocks of every file
            but the ballast); for some, stored bytes of every object that they reach.
        runs: per run, by name.
        quarantine_bytes: what repair has set aside in the store's `quarantine`, part of what the
            store takes on disk; it is the user's to remove.
        codings: how the chunks of these checkpoints are stored, what takes most first; empty
            unless asked for.
    """

    checkpoint_count: int
    trash_count: int
    logical_bytes: int
    unique_bytes: int
    stored_bytes: int
    runs: tuple[RunStats, ...]
    quarantine_bytes: int = 0
    codings: tuple[CodingStats, ...] = ()

    @property
    def saved(self) -> float:
        """1 - stored / logical; 0 if there is nothing."""
        return saved(self.logical_bytes, self.stored_bytes)


def saved(logical_bytes: int, stored_bytes: int) -> float:
    """Return 1 - stored / logical; negative where bookkeeping outweighs what was saved."""
    return 1.0 - stored_bytes / logical_bytes if logical_bytes else 0.0


def stats_of(
    repository: Repository, catalog: Catalog, run: str = "*", *, codings: bool = False
) -> Stats:
    """Return the sizes of the runs that match, and of all of them together.

    Reads the references of every manifest; takes seconds per million chunks.

    Args:
        repository: the store.
        catalog: its rows.
        run: a run or a glob over runs.
        codings: also tell how the chunks are stored; reads a few bytes of each.
    """
    from casckpt.checkpoint.codings import coding_stats

    everything = catalog.matching()
    trash = catalog.matching(trash=True)
    chosen = everything if run == "*" else catalog.matching(run.removesuffix("~*"))
    groups: dict[str, list[Checkpoint]] = {}
    for checkpoint in chosen:
        groups.setdefault(checkpoint.run, []).append(checkpoint)
    inside = set(chosen)
    outside = [ck for ck in (*everything, *trash) if ck not in inside]
    outer = repository.closure(_ids(outside)) if outside else {}
    reached = {name: repository.closure(_ids(members)) for name, members in groups.items()}

    # An object is unique to a run if that run alone reaches it.
    owners: dict[bytes, int] = {}
    stored: dict[bytes, int] = {}
    for objects in reached.values():
        for id_, (_, stored_bytes) in objects.items():
            owners[id_] = owners.get(id_, 0) + 1
            stored[id_] = stored_bytes
    per_run = tuple(
        RunStats(
            run=name,
            checkpoint_count=len(members),
            logical_bytes=sum(ck.logical_bytes for ck in members),
            unique_bytes=sum(
                size
                for id_, (_, size) in reached[name].items()
                if owners[id_] == 1 and id_ not in outer
            ),
            stored_bytes=sum(size for _, size in reached[name].values()),
        )
        for name, members in sorted(groups.items())
    )
    whole = run == "*"
    sizes = repository.sizes()
    return Stats(
        checkpoint_count=len(chosen),
        trash_count=len(trash),
        logical_bytes=sum(ck.logical_bytes for ck in chosen),
        unique_bytes=sum(size for id_, size in stored.items() if id_ not in outer),
        stored_bytes=sizes.stored_bytes if whole else sum(stored.values()),
        runs=per_run,
        quarantine_bytes=sizes.quarantine_bytes,
        codings=coding_stats(repository, catalog, chosen) if codings else (),
    )


def _ids(checkpoints: Sequence[Checkpoint]) -> list[bytes]:
    return sorted({bytes.fromhex(ck.id) for ck in checkpoints})
