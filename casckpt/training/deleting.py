"""Deleting a run takes along what its stages have done, which no checkpoint holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from casckpt.checkpoint.curation import parse_glob
from casckpt.checkpoint.plans import GcPlan
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import ALL_LINES, names_glob, parse_ref, selects_run
from casckpt.errors import BadRequest, NotFound, RunBusy
from casckpt.ids import check_run_name
from casckpt.logs import logger
from casckpt.training import runlock
from casckpt.training.lines import read_records
from casckpt.training.stages.rows import clear_stage, clear_stages, count_stage, result_rows

if TYPE_CHECKING:
    from casckpt.api import Store

_NOTHING: Final = GcPlan(keep=(), drop=(), reasons={}, freed_bytes=0)


def drop_stage(store: Store, run: str | Checkpoint, stage: str) -> GcPlan:
    """Drop one stage of a run's current line; see `Store.delete`."""
    if not isinstance(run, str):
        raise BadRequest(f"the stage {stage!r} of a checkpoint", "stages belong to runs")
    check_run_name(run)
    count = count_stage(store, run, stage)
    if count is None:
        raise no_stage(run, stage)
    check_idle(store, run)
    clear_stage(store, run, stage)
    logger.info("%s: %d results of the stage %s are dropped", run, count, stage)
    return _NOTHING


def no_stage(run: str, stage: str) -> NotFound:
    """Return the error for a stage of which nothing is on the current line of a run."""
    return NotFound(
        f"run {run!r} has no stage {stage!r} on its current line",
        "no item of it is done or failed there",
        f"see `casckpt status {run}`; a shared stage goes with `casckpt cache rm {stage}`",
        run=run,
    )


def drop(store: Store, target: str | Checkpoint, delete: Callable[[], GcPlan]) -> GcPlan:
    """Drop what a REF, a run or a glob names, with the results of the stages of runs."""
    stages = _stages(store, target)
    for run in stages:
        check_idle(store, run)
    try:
        plan = delete()
    except NotFound:
        if not stages:
            raise
        plan = _NOTHING  # a run of stages alone
    for run, line in stages.items():
        count = clear_stages(store, run, line)
        logger.info("%s: %d results of its stages are dropped with it, for good", run, count)
    return plan


def count_results(store: Store, target: str) -> int:
    """Return how many results of stages `Store.delete` of a run, line or glob would drop."""
    records = read_records(store._repository)
    return sum(
        sum(1 for _ in result_rows(store._repository, run, line))
        for run, number in _stages(store, target).items()
        for line in ([number] if number is not None else records[run].lines)
    )


def _stages(store: Store, target: str | Checkpoint) -> dict[str, int | None]:
    """Return the runs that lose stages, and which line of each; None for all of them."""
    if not isinstance(target, str):
        return {}
    if names_glob(target):
        pattern, line = parse_glob(target)
        names = [info.name for info in store.runs(pattern)]
    else:
        ref = parse_ref(target)
        if not selects_run(ref) or ref.store is not None:
            return {}
        names, line = [ref.run], ALL_LINES if ref.line is None else ref.line
    number = None if line == ALL_LINES else line
    records = read_records(store._repository)
    return {
        name: number
        for name in names
        if name in records
        and any(
            next(result_rows(store._repository, name, line), None) is not None
            for line in ([number] if number is not None else records[name].lines)
        )
    }


def check_idle(store: Store, run: str) -> None:
    """Raise RunBusy if a process works on a run: results of its stages may not go under it."""
    if runlock.is_held(store.path, run):
        raise RunBusy(
            f"{run} is at work",
            "results of its stages cannot be dropped under it",
            f"stop it first: `casckpt stop {run} --wait`",
            run=run,
        )
