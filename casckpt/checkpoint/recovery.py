"""Repair in the words of checkpoints: refilling, rebuilding, and the facts that a rebuild lacks.

What a rebuilt index does not have, tags and metrics of a lost row, only manifests still hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from casckpt.checkpoint import manifest as manifests
from casckpt.checkpoint.payloads import RECOVERED, RowFacts, encode_payload
from casckpt.errors import BadRequest, CasckptError, NoStore
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.checkpoint.checks import VerifyResult
    from casckpt.checkpoint.manifest import Manifest
    from casckpt.store import CommitRequest, Repository
    from casckpt.store.rebuilding import RebuildReport
    from casckpt.store.repairing import RepairReport

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RepairResult:
    """What a repair did.

    Attributes:
        rebuilt: a new index was made from the packs.
        accepted: gc works again.
        checkpoint_count: live checkpoints now.
        recovered: REFs of those whose row was lost, and made anew from their manifest.
        messages: what else there is to know, such as gaps.
        refilled_count: damaged or missing objects that were put back from another copy.
        quarantined: names of damaged packs that were set aside, in the store's `quarantine`.
        verified: what is still damaged, and what is whole; None if nothing was looked at.
        found_damage: a rebuild met records that cannot be read, or commits without their fact.
    """

    rebuilt: bool
    accepted: bool
    checkpoint_count: int
    recovered: tuple[str, ...]
    messages: tuple[str, ...]
    refilled_count: int = 0
    quarantined: tuple[str, ...] = ()
    verified: VerifyResult | None = None
    found_damage: bool = False


def _way_out(place: Path) -> str:
    if any(place.glob("packs/*")):
        return f"if it is one all the same, run `casckpt repair --rebuild-index --store {place}`"
    return "check the path"


def repair_store_at(
    path: Path,
    *,
    rebuild_index: bool,
    accept: bool,
    source: Path | None,
    progress: Progress | None,
) -> RepairResult:
    """Repair the store at `path`; see `Store.repair`."""
    from casckpt.checkpoint.checks import result_of
    from casckpt.checkpoint.places import is_store
    from casckpt.checkpoint.queries import Catalog
    from casckpt.store import Repository

    # A rebuild finds out by itself: format.json may be what is lost.
    for place in (source,) if rebuild_index else (path, source):
        if place is not None and not is_store(place):
            raise NoStore(f"no store at {place}", "it has no format.json", _way_out(place))
    if source is not None and source.resolve() == path.resolve():
        raise BadRequest(
            "a store is no source for itself", f"{path} is what is repaired", "name another store"
        )
    messages: tuple[str, ...] = ()
    found_damage = False
    if rebuild_index:
        rebuilt = Repository.rebuild_index(path, progress, place_of)
        messages, found_damage = _messages(rebuilt), bool(rebuilt.unreadable or rebuilt.gaps)
    refilled_count = 0
    quarantined: tuple[str, ...] = ()
    verified: VerifyResult | None = None
    with Repository.open(path) as repository:
        recovered = fill_recovered(repository)
        if source is not None or not (rebuild_index or accept):
            report = _heal(repository, source, progress)
            refilled_count, quarantined = len(report.refilled), report.quarantined
            verified = result_of(Catalog(repository), "refs", report.verified)
            messages += tuple(
                f"{name} stays: a live session writes to it, repair it again later"
                for name in report.busy
            )
        if accept:
            repository.accept_rebuild()
        count = len(repository.checkpoint_rows())
    names = tuple(f"{run}@{step}" for run, step in recovered)
    return RepairResult(
        rebuild_index,
        accept,
        count,
        names,
        messages,
        refilled_count,
        quarantined,
        verified,
        found_damage,
    )


def _heal(repository: Repository, source: Path | None, progress: Progress | None) -> RepairReport:
    from casckpt.store import Repository

    if source is None:
        return repository.repair(None, progress)
    with Repository.open(source, mode="r") as other:
        return repository.repair(other, progress)


def _messages(report: RebuildReport) -> tuple[str, ...]:
    """Return what a rebuild reported, one line per fact."""
    return (
        *(("format.json was lost, and was made anew",) if report.described else ()),
        f"{report.index}: objects {report.objects}, packs {report.packs}",
        *(f"commits {first} to {last} have left no fact" for first, last in report.gaps),
        *(f"could not be read: {problem}" for problem in report.unreadable),
    )


def place_of(identity: bytes, body: bytes) -> CommitRequest | None:
    """Return where a manifest goes that no fact names: the run, line and step it was saved for.

    None for a result, which is no checkpoint: its row of progress is lost like any other row of
    the last second, and the item is done again. One that does not decode goes to `recovered/ID`.
    """
    from casckpt.store import CommitRequest
    from casckpt.store.layout import REFS_MAX
    from casckpt.store.rebuilding import recovered_request

    if manifests.is_result(body):
        return None
    try:
        manifest = manifests.decode(body, REFS_MAX)
    except CasckptError:
        return recovered_request(identity)
    return CommitRequest(
        run=manifest.run,
        line=manifest.line,
        step=manifest.step,
        batch=manifest.batch,
        manifest_id=identity,
        payload=b"",  # `fill_recovered` fills it, and says so
        expect_head=None,
    )


def fill_recovered(repository: Repository) -> list[tuple[str, int]]:
    """Give rows that were made from a manifest alone the facts that the manifest holds.

    Tags, pins and metrics that were attached later are lost with the row that held them. Can be
    interrupted and run again.

    Returns:
        Run and step of each row that was filled.
    """
    filled = []
    for row in repository.checkpoint_rows():
        if row.payload:
            continue
        try:
            refs, body = repository.read_manifest(row.manifest_id)
            manifest = manifests.decode(body, len(refs))
        except CasckptError as exc:
            logger.warning("%s at step %d cannot be read: %s", row.run, row.step, exc.what)
            continue
        payload = encode_payload(_facts(manifest))
        repository.edit_checkpoint(row.run, row.seq, partial(_unless_filled, payload))
        filled.append((row.run, row.step))
    return filled


def _unless_filled(new: bytes, old: bytes) -> bytes:
    return old or new


def _facts(manifest: Manifest) -> RowFacts:
    created = datetime.fromisoformat(manifest.created)
    return RowFacts(
        created_us=round(created.timestamp() * 1e6),
        metrics=manifest.metrics,
        tags=(),
        reasons=(*manifest.reasons, RECOVERED),
        parent=manifest.parent,
        logical_bytes=manifest.logical_bytes,
        # What the save wrote is not in the manifest; 0 says unknown, not free.
        new_bytes=0,
        stored_bytes=0,
        stall_s=0.0,
        durable_s=0.0,
    )
