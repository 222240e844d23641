"""`casckpt repair`: put back what has another copy, set aside damage, rebuild the index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.cli.progress import progress
from casckpt.cli.verify import FINDINGS, record_of, show

if TYPE_CHECKING:
    from casckpt.api import RepairResult


@command(
    "repair",
    examples=(
        "casckpt repair                          put back what has another copy in the store",
        "casckpt repair --from /backup/ckpts     or in another store",
        "casckpt repair --rebuild-index          a new index, from the packs alone",
        "casckpt repair --accept                 the result is right: gc may work again",
    ),
)
@click.option(
    "--from",
    "source",
    metavar="STORE",
    type=click.Path(),
    help="Another store to take copies from.",
)
@click.option("--rebuild-index", is_flag=True, help="Make a new index from the packs alone.")
@click.option("--accept", is_flag=True, help="Allow gc again after a rebuild was looked at.")
def repair(output: Output, source: str | None, rebuild_index: bool, accept: bool) -> int:
    """Repair what can be repaired; nothing is ever deleted.

    Every byte is checked. What is damaged or missing is put back from another copy; a pack with
    damage gives up what is whole and moves to the store's folder `quarantine`. What no copy has
    is listed, by checkpoint and tensor.

    --rebuild-index reads every pack and makes a new index beside the old one, and a format.json
    if that is lost. Until --accept, gc frees nothing, so that a mistake can still be undone.

    Exit code 0: all is whole. 1: something stays lost, or --rebuild-index met damage.
    """
    path = stores.locate(output.settings)
    from casckpt.api import repair_store

    with progress(output, "repairing") as report:
        done = repair_store(
            path, rebuild_index=rebuild_index, accept=accept, source=source, progress=report
        )
    if output.json:
        output.document("repair", **_record(done))
    elif output.quiet:
        output.lines(done.recovered)
        output.lines(done.verified.lost if done.verified else ())
    else:
        _show(output, done)
    is_whole = done.verified is None or done.verified.ok
    return 0 if is_whole and not done.found_damage else FINDINGS


def _record(done: RepairResult) -> dict[str, Any]:
    """Return what was done as JSON holds it."""
    return {
        "rebuilt": done.rebuilt,
        "accepted": done.accepted,
        "checkpoint_count": done.checkpoint_count,
        "recovered": list(done.recovered),
        "messages": list(done.messages),
        "found_damage": done.found_damage,
        "refilled_count": done.refilled_count,
        "quarantined": list(done.quarantined),
        "verified": None if done.verified is None else record_of(done.verified),
    }


def _show(output: Output, done: RepairResult) -> None:
    """Say what was done, and what is to be looked at."""
    checkpoints = formatting.count(done.checkpoint_count, "checkpoint")
    if done.rebuilt:
        output.line(f"a new index was made from the packs: {checkpoints}")
        output.lines(f"    recovered without its row: {ref}" for ref in done.recovered)
    output.lines(f"    {message}" for message in done.messages)
    if done.verified is not None:
        refilled = formatting.count(done.refilled_count, "object")
        output.line(f"{refilled} put back from other copies")
        output.lines(f"    set aside: quarantine/{name}" for name in done.quarantined)
        if done.quarantined:
            output.note("Nothing was deleted. What is in `quarantine` is yours to remove.")
        show(output, done.verified)
        if not done.verified.ok:
            output.note(
                "`casckpt repair --from STORE` takes what is lost from a store that has it; "
                "saving the same bytes again puts it back too."
            )
    if done.accepted:
        output.line(f"accepted: gc works again ({checkpoints})")
    elif done.rebuilt:
        output.note(
            "Look with `casckpt ls` and `casckpt verify`; gc frees nothing until "
            "`casckpt repair --accept`."
        )
