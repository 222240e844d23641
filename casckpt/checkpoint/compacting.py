"""Compact: old checkpoints in less space, as differences to newer ones, and what that has won."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.handle import StoreHandle
from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.checkpoint.records import Checkpoint
    from casckpt.native import PrefixSet

_LEVELS: Final = ("balanced", "small")
_SAMPLED_COLUMNS: Final = 48
"""Chunks at one place that a plan tries, each in all checkpoints: seconds, whatever the store."""


@dataclass(frozen=True)
class CompactedRun:
    """What compacting did to one run.

    Attributes:
        run: its name.
        checkpoint_count: its live checkpoints, on all lines.
        logical_bytes: what restoring all of them would write.
        before_bytes: what their records took; what runs share counts for each.
        after_bytes: what they take now; of a plan, what they are likely to take.
    """

    run: str
    checkpoint_count: int
    logical_bytes: int
    before_bytes: int
    after_bytes: int


@dataclass(frozen=True)
class CompactResult:
    """What compacting has won, or of a plan is likely to win.

    Attributes:
        level: how hard it looked: "balanced" or "small".
        planned: nothing was done; the bytes after are estimates from a sample.
        runs: the runs of the store, by name.
        before_bytes: what the store took on disk.
        after_bytes: what it takes now. Bytes that a save or a reader may still need go with the
            next gc.
        looked_count: chunks that were looked at.
        recoded_count: those that were stored anew.
        trash_bytes: of a plan, what runs need no more after it and the trash does: it goes with
            the trash, so it is not won yet.
    """

    level: str
    planned: bool
    runs: tuple[CompactedRun, ...]
    before_bytes: int
    after_bytes: int
    looked_count: int
    recoded_count: int
    trash_bytes: int = 0


class Compacting(StoreHandle):
    """The calls that store old checkpoints anew. Thread safe."""

    def compact(
        self, *, level: str = "small", progress: Callable[[int, int], None] | None = None
    ) -> CompactResult:
        """Store old checkpoints in less space; every one restores to the same bits as before.

        The newest checkpoint of a line is stored whole, which makes it the fastest to restore;
        older ones become differences to newer ones where that wins. Then nothing that is not
        needed any more is kept, as by a gc without a plan.

        Others may save, read and list meanwhile. It can be stopped at any moment, by Ctrl+C or a
        kill: what was done by then stays done, and another compact goes on from there. It needs
        room on the disk for what it rewrites, in portions of half of what is free.

        Args:
            level: "small" tries everything; "balanced" leaves alone what is stored whole.
            progress: called with (logical bytes looked at, logical bytes in all).

        Raises:
            BadRequest: there is no such level, or the store is read-only.
            StoreBusy: a gc, a repair or another compact is at work.
            Corrupt: something that a checkpoint needs is missing; nothing was freed.
            NoSpace: the disk is full.
        """
        from casckpt.checkpoint.lineages import lineages
        from casckpt.store import recoding

        _check(level)
        self._ready(write=True)
        before, sizes = self._run_bytes(), self._repository.sizes()
        done = recoding.compact(self._repository, lineages(self._catalog), level, progress)
        after = self._run_bytes()
        return CompactResult(
            level,
            False,
            tuple(
                CompactedRun(run, count, logical, stored, after.get(run, (0, 0, stored))[2])
                for run, (count, logical, stored) in sorted(before.items())
            ),
            sizes.stored_bytes,
            self._repository.sizes().stored_bytes,
            done.looked_count,
            done.recoded_count,
        )

    def plan_compact(self, *, level: str = "small") -> CompactResult:
        """Return what `compact` is likely to win, from a sample; changes nothing.

        Raises:
            BadRequest: there is no such level.
        """
        from casckpt.checkpoint.lineages import lineages
        from casckpt.store import recoding

        _check(level)
        self._ready()
        before, sizes = self._run_bytes(), self._repository.sizes()
        trash = self._repository.closure(_ids(self._catalog.matching(trash=True)))
        parts = {run: lineages(self._catalog, run) for run in sorted(before)}
        found, needed = recoding.estimate(self._repository, parts, level, _SAMPLED_COLUMNS)
        runs = []
        trash_bytes = 0
        for run, done in found.items():
            count, logical, stored = before[run]
            won = int((done.before_bytes - done.after_bytes) * done.share)
            runs.append(CompactedRun(run, count, logical, stored, stored - won))
            if trash and won > 0:
                trash_bytes += self._only_bases(run, needed, trash)
        won_bytes = sum(run.before_bytes - run.after_bytes for run in runs)
        after = sizes.stored_bytes - max(won_bytes - trash_bytes, 0)
        return CompactResult(
            level,
            True,
            tuple(runs),
            sizes.stored_bytes,
            after,
            sum(done.looked_count for done in found.values()),
            sum(done.recoded_count for done in found.values()),
            trash_bytes,
        )

    def _only_bases(self, run: str, needed: PrefixSet, among: Container[bytes]) -> int:
        """Return the stored bytes of chunks that a run stands on and no checkpoint has itself."""
        reached = self._repository.closure(_ids(self._catalog.matching(run)))
        return sum(
            stored
            for one, (logical, stored) in reached.items()
            if logical and one in among and one not in needed
        )

    def _run_bytes(self) -> dict[str, tuple[int, int, int]]:
        """Return of each run its checkpoints, their logical bytes, and those of their records."""
        runs: dict[str, list[tuple[bytes, int]]] = defaultdict(list)
        for checkpoint in self._catalog.matching():
            runs[checkpoint.run].append((bytes.fromhex(checkpoint.id), checkpoint.logical_bytes))
        return {
            run: (
                len(members),
                sum(logical for _, logical in members),
                sum(
                    stored
                    for _, stored in self._repository.closure([one for one, _ in members]).values()
                ),
            )
            for run, members in runs.items()
        }


def _ids(checkpoints: Sequence[Checkpoint]) -> list[bytes]:
    return [bytes.fromhex(checkpoint.id) for checkpoint in checkpoints]


def _check(level: str) -> None:
    if level not in _LEVELS:
        raise BadRequest(f"bad level {level!r}", "compact works at level balanced or small")
