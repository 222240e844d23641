"""What a rebuilt index lacks: facts about checkpoints that only their manifests still hold."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

from casckpt.checkpoint import manifest as manifests
from casckpt.checkpoint.payloads import RECOVERED, RowFacts, encode_payload
from casckpt.errors import CasckptError
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Manifest
    from casckpt.store import CommitRequest, Repository


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
