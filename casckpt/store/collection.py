"""Collection: free what nothing reaches, beside savers and readers (docs/protocol.md, GC)."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from casckpt.errors import CasckptError, Corrupt, NoSpace
from casckpt.store import (
    compaction,
    creation,
    expiry,
    files,
    layout,
    marking,
    rows,
    sessions,
    snapshots,
)
from casckpt.store.collectors import begin_run, check_run, gc_lock, open_packs
from casckpt.store.marking import Mark
from casckpt.store.packs import pack_path
from casckpt.store.sharing import SharedStore
from casckpt.store.transactions import Transaction

_log = logging.getLogger("casckpt")


@dataclass(frozen=True, slots=True)
class SpacePlan:
    """What a gc would free now: bytes freed, bytes dead but not worth a rewrite, bytes needed."""

    freed_bytes: int
    dead_bytes: int
    live_bytes: int


@dataclass(frozen=True, slots=True)
class GcReport:
    """What a gc did.

    `expired` checkpoints left the trash for good; `waiting_packs` are condemned and go with the
    next gc, since a save that began before is still under way.
    """

    freed_bytes: int
    dead_bytes: int
    live_bytes: int
    dropped_packs: int
    waiting_packs: int
    expired: int


def plan(shared: SharedStore, drop: Collection[tuple[str, int]]) -> SpacePlan:
    """Return what `collect(now=True)` would free if the checkpoints `drop` were gone.

    Checkpoints in the trash count as gone too: `now` empties it.
    """
    with shared.environment.read() as tx:
        trashed = {
            (found.run, found.seq)
            for key, value in tx.scan("checkpoints")
            if (found := rows.decode_checkpoint(key, value)).state == "trash"
        }
    mark = marking.mark(shared, without=set(drop) | trashed)
    with shared.environment.read() as tx:
        registered = {rows.read_u64(k): rows.PackRow.decode(v) for k, v in tx.scan("packs")}
    busy = open_packs(shared, registered, but=shared)
    # A new snapshot needs none of the facts there are.
    is_due = snapshots.facts_outweigh(shared)
    held = {} if is_due else compaction.held_bytes(shared, registered, mark)
    freed = dead = 0
    for number, row in registered.items():
        needed = mark.live_bytes.get(number, 0) + held.get(number, 0)
        if number in busy or not compaction.is_worn(row.size, needed):
            dead += max(row.size - needed, 0)
        elif needed == 0:
            freed += files.allocated_bytes(pack_path(shared.path, row.uuid))
        else:
            freed += row.size - needed
    return SpacePlan(freed, dead, mark.total_bytes)


class Recode(Protocol):
    """What stores reached chunks anew within a collection (protocol, GC 3)."""

    def __call__(self, run: bytes, mark: Mark) -> bool:
        """Work for the collector `run` on what `mark` reaches; return whether more is left.

        It leaves off when what it replaced should be freed first, and is called again after that.
        """
        ...


def collect(
    shared: SharedStore,
    *,
    now: Collection[str] | None = expiry.NOBODY,
    force: bool = False,
    recode: Recode | None = None,
) -> GcReport:
    """Free what nothing reaches; safe beside any number of savers and readers, and at any kill.

    Args:
        shared: the open store.
        now: runs whose checkpoints leave the trash although their grace is not over; None for all.
        force: go on although most of the store is dead and no removal explains it.
        recode: stores chunks anew first; collections follow one another until it is done.

    Raises:
        StoreBusy: another collector is at work.
        Corrupt: something that a checkpoint needs cannot be read; nothing was freed.
        NewerFormat: the store has a feature that collecting must know, and this version does not.
    """
    shared.require_collect_features("collect")
    with gc_lock(shared):
        if creation.is_nearly_full(shared.path):
            creation.free_ballast(shared.path, collecting=True)
        try:
            while True:
                collector = _Collector(shared, now, force, recode)
                report = collector.run()
                if not collector.unfinished:
                    return report
        finally:
            creation.make_ballast(shared.path)


class _Collector:
    """One collection; its methods are the protocol's steps."""

    def __init__(
        self, shared: SharedStore, now: Collection[str] | None, force: bool, recode: Recode | None
    ) -> None:
        self._shared = shared
        self._now = now
        self._force = force
        self._recode = recode
        self.unfinished = False
        self._run = b""
        self._removed = 0
        self._expired = 0
        self._moved_bytes = 0
        self._dead_sessions: frozenset[bytes] = frozenset()
        self._held: dict[int, int] = {}
        self._copied: dict[int, int] = {}

    def run(self) -> GcReport:
        self._run = begin_run(self._shared)
        with self._shared.environment.read() as tx:
            rebuilt = bool(tx.number("rebuilt"))
        if rebuilt:
            # A lost tail shows no gap: until a person has looked, nothing may go.
            _log.warning("the index was rebuilt: nothing is freed until `casckpt repair --accept`")
            mark = self._mark()
        else:
            self._expired = expiry.expire(self._shared, self._run, now=self._now)
            mark = self._mark()
            self._check_plausible(mark)
            if self._recode is not None:
                self._note_marked(mark)
                self.unfinished = self._recode(self._run, mark)
                # What was only a base is needed no more, and the new records are in new packs.
                mark = self._mark()
            self._snapshot_if_due()
            self._compact(mark)
            self._condemn(mark)
        self._sweep()
        freed, dropped = self._purge()
        self._forget_tombstones()
        self._reap_sessions()
        self._finish()
        return self._report(mark, freed, dropped)

    # ---- 2

    def _mark(self) -> Mark:
        with self._shared.environment.read() as tx:
            self._removed = tx.number("removed_roots")
        return marking.mark(self._shared)

    def _note_marked(self, mark: Mark) -> None:
        """Let what is stored anew be counted from what is needed now, not at the last gc."""

        def note(tx: Transaction) -> None:
            check_run(tx, self._run)
            tx.set_number("marked_bytes", mark.total_bytes)

        self._shared.writer.run(note, facts=False)

    def _check_plausible(self, mark: Mark) -> None:
        with self._shared.environment.read() as tx:
            before, removed = tx.number("marked_bytes"), tx.number("removed_roots")
        if mark.total_bytes * 2 < before and not removed and not self._force:
            raise Corrupt(
                "refused to free more than half of the store",
                f"{mark.total_bytes} bytes are needed, {before} were at the last gc, "
                "and no checkpoint was removed since",
                "run `casckpt verify`; `gc --force` if it is right",
            )

    # ---- 3

    def _registered(self) -> dict[int, rows.PackRow]:
        with self._shared.environment.read() as tx:
            return {rows.read_u64(k): rows.PackRow.decode(v) for k, v in tx.scan("packs")}

    def _compact(self, mark: Mark) -> None:
        registered = self._registered()
        busy = open_packs(self._shared, registered)
        candidates = {
            number: row
            for number, row in registered.items()
            if row.state == rows.LIVE and number not in busy and number in mark.known
        }
        dead_share = compaction.DEAD_SHARE
        if self._recode is not None:
            dead_share = compaction.THOROUGH_DEAD_SHARE
        self._held = compaction.held_bytes(self._shared, candidates, mark, dead_share)
        small = compaction.small(self._shared.path)
        chosen = compaction.choose(candidates, mark, self._held, dead_share, small)
        chosen = compaction.fitting(chosen, mark, compaction.room(self._shared.path))
        # Without room what has moved has moved, and what is dead goes all the same.
        patient = contextlib.suppress(NoSpace) if self._recode is None else contextlib.nullcontext()
        with patient:
            if chosen:
                self._moved_bytes = compaction.compact(self._shared, self._run, mark, chosen)

    # ---- 4 and 5

    def _condemn(self, mark: Mark) -> None:
        registered = self._registered()
        busy = open_packs(self._shared, registered)
        without_objects = {
            number: row
            for number, row in registered.items()
            if row.state == rows.LIVE
            and number in mark.known
            and number not in busy
            and mark.live_bytes.get(number, 0) <= 0
        }
        with self._shared.environment.read() as tx:
            snapshot = snapshots.snapshot_packs(tx)
        dead = compaction.superfluous(without_objects, self._held, snapshot)
        self._keep_facts(dead)
        for attempt in range(3):
            with self._shared.environment.read() as tx:
                seq, now_roots = tx.number("root_seq"), None
                if seq != mark.root_seq:
                    now_roots = list(marking.roots(tx))
            if now_roots is not None:
                before = len(mark.reached)
                marking.extend(self._shared, mark, now_roots)
                mark.root_seq = seq
                if len(mark.reached) != before:
                    dead &= self._still_dead(mark, dead)
            done = self._shared.writer.run(
                partial(self._condemn_all, mark=mark, dead=dead, last=attempt == 2), facts=False
            )
            if done:
                return

    def _still_dead(self, mark: Mark, dead: set[int]) -> set[int]:
        live = marking.live_bytes(self._shared, mark.reached)
        return {number for number in dead if live.get(number, 0) == 0}

    def _condemn_all(self, tx: Transaction, mark: Mark, dead: set[int], last: bool) -> bool:
        check_run(tx, self._run)
        if tx.number("root_seq") != mark.root_seq:
            if not last:
                return False
            # The one exception to "only LMDB calls": saves come faster than marks.
            kept = marking.reach_within(self._shared, tx, mark)
            dead = {number for number in dead if number not in kept}
        floor = tx.number("snapshot_seq")
        keep = snapshots.snapshot_packs(tx)
        epoch = tx.number("gc_epoch") + 1
        condemned = 0
        for number in sorted(dead):
            row = tx.pack(number)
            if row is None or row.state != rows.LIVE or number in keep:
                continue
            if row.highest_fact > max(floor, self._copied.get(number, 0)):
                continue
            changed = replace(row, state=rows.CONDEMNED, epoch=epoch)
            tx.put("packs", rows.pack_key(number), changed.encode())
            condemned += 1
        if condemned:
            tx.set_number("gc_epoch", epoch)
        tx.set_number("marked_bytes", mark.total_bytes)
        # What was removed since the mark began is needed by it, and missing in the next one.
        tx.set_number("removed_roots", max(tx.number("removed_roots") - self._removed, 0))
        return True

    def _snapshot_if_due(self) -> None:
        """Write a snapshot before anything is weighed: what older facts take is dead after it."""
        self._dead_sessions = frozenset(
            info.uuid for info in sessions.list_sessions(self._shared.path) if not info.alive
        )
        # A session that died may have committed without leaving the fact of it.
        if self._dead_sessions or snapshots.facts_outweigh(self._shared):
            snapshots.write_snapshot(self._shared)

    def _keep_facts(self, dead: set[int]) -> None:
        """Make sure that no fact is in a pack that goes: copies, or a new snapshot."""
        registered = self._registered()
        with self._shared.environment.read() as tx:
            floor, keep = tx.number("snapshot_seq"), snapshots.snapshot_packs(tx)
        holding = {number for number in dead if registered[number].highest_fact > floor}
        if dead & keep:
            snapshots.write_snapshot(self._shared)
        elif holding:
            try:
                snapshots.copy_facts(self._shared, holding)
            except (Corrupt, FileNotFoundError):
                # Damaged, or registered and never made: the index still knows all they said.
                snapshots.write_snapshot(self._shared)
                return
            self._copied = {number: registered[number].highest_fact for number in holding}

    # ---- 6 and 7

    def _sweep(self) -> None:
        floor: float = math.inf
        for info in sessions.list_sessions(self._shared.path):
            age_s = (time.time_ns() - info.heartbeat_ns) / 1e9
            if info.alive and age_s < layout.HEARTBEAT_STALE_S:
                floor = min(floor, info.epoch)

        def drop(tx: Transaction) -> None:
            check_run(tx, self._run)
            for key, value in list(tx.scan("packs")):
                row = rows.PackRow.decode(value)
                if row.state == rows.CONDEMNED and row.epoch <= floor:
                    tx.put("packs", key, replace(row, state=rows.DROPPED).encode())

        self._shared.writer.run(drop, facts=False)

    # ---- 8

    def _purge(self) -> tuple[int, int]:
        dropped = {n: row for n, row in self._registered().items() if row.state == rows.DROPPED}
        if not dropped:
            return 0, 0
        for batch in marking.scan_objects(self._shared):
            ids = [identity for identity, row in batch if row.pack in dropped]
            for start in range(0, len(ids), layout.TRANSACTION_MAX_ROWS):
                part = ids[start : start + layout.TRANSACTION_MAX_ROWS]
                began = time.monotonic()
                self._shared.writer.run(
                    partial(self._forget, ids=part, dropped=dropped),
                    row_count=len(part),
                    facts=False,
                )
                # Whoever waits for the index gets as long as we held it.
                time.sleep(min(time.monotonic() - began, 0.2))
        freed = 0
        folders = set()
        for row in dropped.values():
            path = pack_path(self._shared.path, row.uuid)
            freed += files.allocated_bytes(path)
            # ORDER: the dropped row is durable before the file goes, the file before the row
            files.unlink(path, missing_ok=True)
            folders.add(path.parent)
        self._shared.packs.let_go()
        for folder in folders:
            if folder.is_dir():
                files.sync_folder(folder)

        def delete(tx: Transaction) -> None:
            check_run(tx, self._run)
            for number in dropped:
                tx.delete("packs", rows.pack_key(number))

        self._shared.writer.run(delete, facts=False)
        return freed, len(dropped)

    def _forget(self, tx: Transaction, ids: list[bytes], dropped: Collection[int]) -> None:
        check_run(tx, self._run)
        for identity in ids:
            row = tx.object(identity)
            if row is not None and row.pack in dropped:
                tx.delete("objects", identity)

    def _forget_tombstones(self) -> None:
        """Delete the rows of removed checkpoints whose manifest is gone from the packs."""
        with self._shared.environment.read() as tx:
            gone = [
                (key, value)
                for key, value in tx.scan("checkpoints")
                if (row := rows.Row.decode(value)).state == "tombstone"
                and tx.object(row.roots[0]) is None
            ]

        def delete(tx: Transaction, batch: list[tuple[bytes, bytes]]) -> None:
            check_run(tx, self._run)
            for key, value in batch:
                if tx.get("checkpoints", key) == value:
                    row = rows.decode_checkpoint(key, value)
                    step = rows.step_key(row.run, row.line, row.step, row.batch)
                    if tx.get("steps", step) == rows.u64(row.seq):
                        tx.delete("steps", step)
                    tx.delete("checkpoints", key)

        for start in range(0, len(gone), layout.ONE_TRANSACTION_ROWS):
            batch = gone[start : start + layout.ONE_TRANSACTION_ROWS]
            self._shared.writer.run(partial(delete, batch=batch), row_count=2 * len(batch))

    def _reap_sessions(self) -> None:
        """Remove the files of sessions that are over; their packs stay what their rows say."""
        for info in sessions.list_sessions(self._shared.path):
            # One that died after the snapshot may have left a commit that is in no fact.
            if not info.alive and info.uuid in self._dead_sessions:
                with contextlib.suppress(CasckptError):
                    files.unlink(info.path, missing_ok=True)

    def _finish(self) -> None:
        """Leave the numbers from which the next automatic collection is decided."""
        with self._shared.environment.read() as tx:
            trashed = [
                row.trashed_at_ns
                for _, value in tx.scan("checkpoints")
                if (row := rows.Row.decode(value)).state == "trash"
            ]

        def note(tx: Transaction) -> None:
            check_run(tx, self._run)
            now_ns = time.time_ns()
            tx.set_number("gc_at", now_ns)
            tx.set_number("trash_since", min(*trashed, now_ns) if trashed else 0)

        self._shared.writer.run(note, facts=False)
        self._shared.own.release_reserved()

    def _report(self, mark: Mark, freed: int, dropped: int) -> GcReport:
        dead = waiting = 0
        for number, row in self._registered().items():
            waiting += row.state == rows.CONDEMNED
            if number in mark.known:
                dead += max(row.size - mark.live_bytes.get(number, 0), 0)
        # What was copied out of the dropped packs is still on disk.
        freed = max(freed - self._moved_bytes, 0)
        return GcReport(freed, dead, mark.total_bytes, dropped, waiting, self._expired)
