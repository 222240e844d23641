"""`casckpt rm` and `undelete`: into the trash and out of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.cli.prompts import agreed
from casckpt.errors import NotFound

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.records import Checkpoint

RUNS_NAMED = 3
"""Runs that the way back names after a pattern; the others are in `ls --trash`."""


@command(
    "rm",
    examples=(
        "casckpt rm bpm/nn@40                    one checkpoint",
        "casckpt rm bpm/nn --yes                 all of a run",
        "casckpt rm bpm --stage features         what a stage has done, no checkpoint",
    ),
)
@click.argument("ref", metavar="REF|RUN", shell_complete=completers.refs)
@click.option("--stage", metavar="S", help="Drop only the results of this stage of RUN.")
@click.option("-n", "--dry-run", is_flag=True, help="Show what would go, change nothing.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def rm(output: Output, ref: str, stage: str | None, dry_run: bool, yes: bool) -> None:
    """Move a checkpoint, or all checkpoints of a run, to the trash.

    `undelete` brings them back for at least an hour; `gc` frees their bytes after that, `gc --now`
    at once. A whole run is asked about first; the results of its stages go with it, for good. With
    --stage the results of one stage of RUN's current line are dropped, for good, and its items done
    again when it runs next; checkpoints stay.
    """
    (target,) = stores.split(output.settings, ref)
    if stage is not None:
        _drop_stage(output, target, stage, dry_run, yes)
        return
    with stores.opened(output.settings, "r" if dry_run else "a") as store:
        chosen = _chosen(store, target)
        results = _stage_results(store, target)
        if not chosen and not results:
            raise NotFound(
                f"no run matches {target!r}",
                "it has no checkpoints, and its stages have no results",
                "`casckpt tree` shows the runs",
            )
        if not output.json and not output.quiet:
            output.lines(
                f"{checkpoint.ref}  {formatting.size(checkpoint.logical_bytes)}"
                for checkpoint in chosen
            )
            if results:
                output.line(f"{target}  {formatting.count(results, 'result')} of stages, for good")
        if not dry_run:
            question = f"Move {formatting.count(len(chosen), 'checkpoint')} to the trash"
            if results:
                question += f", and drop {formatting.count(results, 'result')} of stages for good"
            if (len(chosen) > 1 or results) and not agreed(
                output, f"{question}?", yes=yes, command="rm"
            ):
                output.note("Nothing was changed.")
                return
            # Beside a training it may be less than was shown: rolling saves come and go.
            chosen = list(store.delete(target).drop)
    if output.json:
        output.document(
            "rm",
            drop=[views.record(checkpoint) for checkpoint in chosen],
            results=results,
            dry_run=dry_run,
        )
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in chosen)
    elif dry_run:
        output.note("Dry run: nothing was changed.")
    elif not chosen:
        output.note("Dropped. The items are done again when the stages run; `casckpt gc` frees.")
    else:
        output.note(
            f"Moved to the trash. {_way_back(target, chosen)}, for at least an hour; "
            "`casckpt gc --now` frees the bytes at once."
        )


def _chosen(store: Store, target: str) -> list[Checkpoint]:
    """Return the checkpoints that `store.delete` of a target would move."""
    from casckpt.checkpoint.curation import of_glob
    from casckpt.checkpoint.refs import names_glob

    if "@" in target or target.startswith("id:"):
        return [stores.checkpoint_of(store, target)]
    if names_glob(target):
        return of_glob(store._catalog, target)
    # The bare name of a run means all its lines here, as in store.delete.
    return store.checkpoints(target if "~" in target else f"{target}~*")


def _way_back(target: str, chosen: Sequence[Checkpoint]) -> str:
    """Return the command that brings back what was moved, in words."""
    if len(chosen) == 1:
        return f"`casckpt undelete {chosen[0].ref}` brings it back"
    _, tilde, line = target.partition("~")
    runs = sorted({checkpoint.run for checkpoint in chosen})
    # Of what may stand in a REF, a shell takes only the star for something else.
    words = [f"'{run}~*'" if line == "*" else f"{run}{tilde}{line}" for run in runs[:RUNS_NAMED]]
    more = " ..." if len(runs) > RUNS_NAMED else ""
    return f"`casckpt undelete {' '.join(words)}{more}` brings all of it back"


def _stage_results(store: Store, target: str) -> int:
    """Return how many results of stages go with a run."""
    from casckpt.training.deleting import count_results

    return count_results(store, target)


def _drop_stage(output: Output, run: str, stage: str, dry_run: bool, yes: bool) -> None:
    """Drop the results of a stage from the current line of a run."""
    from casckpt.ids import check_run_name
    from casckpt.training.deleting import check_idle, no_stage
    from casckpt.training.stages.rows import clear_stage, count_stage

    check_run_name(run)
    with stores.opened(output.settings, "r" if dry_run else "a") as store:
        number = count_stage(store, run, stage)
        if number is None:
            raise no_stage(run, stage)
        what = formatting.count(number, "result")
        if not output.json and not output.quiet:
            output.line(f"{run}  stage {stage}: {what}")
        if not dry_run:
            check_idle(store, run)
            if not agreed(output, f"Drop {what} for good?", yes=yes, command="rm"):
                output.note("Nothing was changed.")
                return
            check_idle(store, run)  # it may have begun since the question
            clear_stage(store, run, stage)
    if output.json:
        output.document("rm", run=run, stage=stage, results=number, dry_run=dry_run)
    elif output.quiet:
        output.line(stage)
    elif dry_run:
        output.note("Dry run: nothing was changed.")
    else:
        output.note("Dropped. The items are done again when the stage runs; `casckpt gc` frees.")


@command(
    "undelete",
    examples=(
        "casckpt ls --trash                      what there is to bring back",
        "casckpt undelete bpm/nn@40              one checkpoint",
        "casckpt undelete bpm/nn                 all that is in the trash of a run",
    ),
)
@click.argument("refs", nargs=-1, required=True, metavar="REF|RUN...")
def undelete(output: Output, refs: tuple[str, ...]) -> None:
    """Bring checkpoints back from the trash: one by its REF, or all of a run by its name.

    Of several that were at one place of a run, one after the other, the last comes back. If one of
    the names is of nothing in the trash, nothing comes back.
    """
    targets = dict.fromkeys(stores.split(output.settings, *refs))
    back: list[Checkpoint] = []
    with stores.opened(output.settings, "a") as store:
        for target in targets:
            _check_in_trash(store, target)
        try:
            for target in targets:
                back += store._undelete(target)
        finally:
            # What came back before another was refused is back.
            if back:
                _report_back(output, back)


def _check_in_trash(store: Store, target: str) -> None:
    """Raise NotFound unless a REF, a run or a line means something in the trash."""
    from casckpt.checkpoint.refs import ALL_LINES, parse_ref, selects_run

    ref = parse_ref(target)
    if selects_run(ref):
        line = ALL_LINES if ref.line is None else ref.line
        store._catalog.of_line(ref.run, line, trash=True)
    else:
        store._catalog.resolve_trash(ref)


def _report_back(output: Output, back: Sequence[Checkpoint]) -> None:
    """Say what came back."""
    if output.json:
        output.document("undelete", checkpoints=[views.record(checkpoint) for checkpoint in back])
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in back)
    else:
        output.lines(f"{checkpoint.ref}  is back" for checkpoint in back)
