"""An Optuna study that grows: its SQLite file and its journal file after every 20 trials."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import optuna

EVERY = 20
TOTAL_TRIALS = 200


def missing() -> str | None:
    """Return why this input cannot be made here, or None."""
    if importlib.util.find_spec("optuna") is None:
        return "the Python package optuna is not installed"
    return None


def states(cache: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (trials, state) while a study of ten parameters and intermediate values grows."""
    folder = cache / "study"
    if not (folder / f"trials-{TOTAL_TRIALS:04d}.journal").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            _optimize(Path(scratch), folder)
    for trials in range(EVERY, TOTAL_TRIALS + 1, EVERY):
        path = folder / f"trials-{trials:04d}.sqlite"
        yield (
            trials,
            {
                "sqlite": path.read_bytes(),
                "journal": path.with_suffix(".journal").read_bytes(),
                "trials": trials,
            },
        )


def _objective(trial: optuna.Trial) -> float:
    """Walk a bowl in ten dimensions and report five intermediate values, as training does."""
    distance = sum((trial.suggest_float(f"x{i}", -5, 5) - i / 3) ** 2 for i in range(10))
    for epoch in range(5):
        trial.report(distance / (epoch + 1), epoch)
    return distance


def _optimize(scratch: Path, folder: Path) -> None:
    import optuna
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database, journal = scratch / "study.db", scratch / "study.log"
    studies = [
        optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
        for storage in (
            f"sqlite:///{database}",
            optuna.storages.JournalStorage(JournalFileBackend(str(journal))),
        )
    ]
    for trials in range(EVERY, TOTAL_TRIALS + 1, EVERY):
        for study in studies:
            study.optimize(_objective, n_trials=EVERY)
        path = folder / f"trials-{trials:04d}.sqlite"
        path.write_bytes(database.read_bytes())
        path.with_suffix(".journal").write_bytes(journal.read_bytes())
