"""`casckpt export` and `import`: checkpoints from and to the formats of others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from casckpt.cli import checkpoints as views
from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output
from casckpt.cli.progress import waiting
from casckpt.errors import BadRequest, FilesLeftOut

if TYPE_CHECKING:
    from casckpt.checkpoint.records import Checkpoint

FORMATS = ("safetensors", "torch", "npz", "ubj", "json")


@command(
    "export",
    examples=(
        "casckpt export bpm/nn --format torch -o nn.pt",
        "casckpt export bpm/nn@best:val_loss:min --format safetensors -o nn.safetensors",
        "casckpt export nas --results results/   metrics and histories of a run and its parts",
    ),
)
@click.argument("ref", shell_complete=completers.refs)
@click.option(
    "--format", "format_", type=click.Choice(FORMATS), help="Default: by the suffix of -o."
)
@click.option(
    "-o",
    "--output",
    "destination",
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The file. Default: RUN-STEP and the suffix of the format, here.",
)
@click.option(
    "--results",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write results of a run and its children instead: results.json, histories/*.csv; "
    "those that are there are replaced.",
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def export(
    output: Output,
    ref: str,
    format_: str | None,
    destination: Path | None,
    results: Path | None,
    force: bool,
) -> None:
    """Write a checkpoint as one file that other programs read, or the results of a run."""
    (target,) = stores.split(output.settings, ref)
    if results is not None:
        if format_ is not None or destination is not None:
            raise BadRequest(
                "export: --results goes with neither --format nor -o",
                "it writes JSON and CSV files to its own folder",
                "leave them out",
            )
        _export_results(output, target, results)
        return
    if format_ is None and destination is None:
        raise BadRequest(
            "export: in which format?",
            "neither --format nor the name of a file says it",
            "pass --format, or a file name with -o",
        )
    with stores.opened(output.settings) as store:
        checkpoint = store.get(target)
        if store.holds_files(checkpoint):
            raise BadRequest(
                f"{checkpoint.ref} is no state to export",
                "it was saved as files",
                f"`casckpt restore {checkpoint.ref} -o DIR` writes them as they were",
            )
        path = destination or Path(_default_name(checkpoint, str(format_)))
        if path.is_file() and not force:
            raise BadRequest(
                f"there is a file {path} already",
                "export replaces none unasked",
                "name another with -o, or pass --force",
            )
        with waiting(output, "exporting"):
            written = store.export(checkpoint, path, format=format_)
    if output.json:
        output.document(
            "export",
            checkpoint=views.record(checkpoint),
            format=format_ or _format_of(path),
            files=[str(file) for file in written],
        )
    else:
        output.lines(
            str(file) if output.quiet else f"{file}  {formatting.size(file.stat().st_size)}"
            for file in written
        )


def _export_results(output: Output, run: str, folder: Path) -> None:
    """Write metrics, histories and settings of a run and its children to a folder."""
    from casckpt.training.export import export_run

    with stores.opened(output.settings) as store:
        written = export_run(store, run, folder)
    files = [folder / "results.json", *(folder / history for _, history in written)]
    if output.json:
        names = [name for name, _ in written]
        output.document("export", run=run, runs=names, files=[str(file) for file in files])
    else:
        output.lines(
            str(file) if output.quiet else f"{file}  {formatting.size(file.stat().st_size)}"
            for file in files
        )


def _format_of(path: Path) -> str:
    """Return the format that was written, which the suffix has named."""
    from casckpt.checkpoint.exchange import SUFFIXES

    return SUFFIXES[path.suffix.lower()]


def _default_name(checkpoint: Checkpoint, format_: str) -> str:
    """Return a file name that says what is in it."""
    suffix = {"torch": "pt"}.get(format_, format_)
    return f"{checkpoint.run.replace('/', '-')}-{checkpoint.step}.{suffix}"


@command(
    "import",
    examples=(
        "casckpt import best.pt --run bpm/nn --step 60",
        "casckpt import epoch_*.pt --run bpm/nn   steps from the numbers in the names",
        "casckpt import old/ --run bpm            a folder of model_epoch_5.pth and so on",
        "casckpt import study.db --run search     a study of Optuna, to go on with",
        "casckpt import out/ --run bart           the checkpoint-500 and so on of a Trainer",
    ),
)
@click.argument(
    "files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path)
)
@click.option(
    "--run",
    required=True,
    metavar="RUN",
    shell_complete=completers.runs,
    help="The run they go to.",
)
@click.option(
    "--step",
    type=click.IntRange(min=0),
    metavar="N",
    help="Step of the first file. Default: the numbers in the names, else what the files say.",
)
def import_(output: Output, files: tuple[Path, ...], run: str, step: int | None) -> None:
    """Take files in as checkpoints of a run: safetensors, torch, npz, npy, ubj, json, and more.

    Pickles go through an unpickler that builds tensors, plain values, boosters of xgboost and
    LightGBM, estimators of scikit-learn and studies of Optuna, and refuses everything else; no
    code of a file is run. A folder of an old pile becomes a run, or several below RUN.

    What cannot be imported is left out and named at the end, with exit code 3.
    """
    (name,) = stores.split(output.settings, run)
    with stores.opened(output.settings, "a") as store, waiting(output, "importing"):
        try:
            made, problem = store.import_files(name, *files, step=step), None
        except FilesLeftOut as exc:
            made, problem = exc.details["checkpoints"], exc
    # Several files of a pile can be one checkpoint: the best, the latest and the last epoch.
    made = list({checkpoint.ref: checkpoint for checkpoint in made}.values())
    if output.json:
        output.document("import", checkpoints=[views.record(checkpoint) for checkpoint in made])
    elif output.quiet:
        output.ids(checkpoint.id for checkpoint in made)
    else:
        output.lines(
            f"{checkpoint.ref}  {formatting.size(checkpoint.logical_bytes)} logical, "
            f"{formatting.size(checkpoint.new_bytes)} new"
            for checkpoint in made
        )
    if problem is not None:
        raise problem
