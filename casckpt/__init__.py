"""casckpt: the memory of a training machine.

    import casckpt

    casckpt.save("ckpts::bpm/nn", state, step=60, metrics={"val_loss": 1.31})
    state = casckpt.restore("ckpts::bpm/nn@best:val_loss:min")

    with casckpt.open("ckpts") as store:
        store.save("bpm/nn", state)
        store.gc(store.plan_gc(casckpt.KeepLast(3)))

Names load at their first use: importing casckpt imports neither numpy nor any framework.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from casckpt import startup as startup  # takes note of the folder, which a script may change

if TYPE_CHECKING:
    from casckpt import errors as errors
    from casckpt.api import Options as Options
    from casckpt.api import Store as Store
    from casckpt.api import fingerprint as fingerprint
    from casckpt.api import open as open
    from casckpt.api import restore as restore
    from casckpt.api import save as save
    from casckpt.checkpoint.leaves import Pickled as Pickled
    from casckpt.checkpoint.pending import PendingSave as PendingSave
    from casckpt.checkpoint.plans import GcPlan as GcPlan
    from casckpt.checkpoint.policies import KeepBest as KeepBest
    from casckpt.checkpoint.policies import KeepEvery as KeepEvery
    from casckpt.checkpoint.policies import KeepLast as KeepLast
    from casckpt.checkpoint.policies import KeepNewerThan as KeepNewerThan
    from casckpt.checkpoint.policies import Policy as Policy
    from casckpt.checkpoint.records import Checkpoint as Checkpoint
    from casckpt.checkpoint.records import RunInfo as RunInfo
    from casckpt.errors import CasckptError as CasckptError
    from casckpt.errors import Stopped as Stopped
    from casckpt.training.folds import Fold as Fold
    from casckpt.training.loops.every import Every as Every
    from casckpt.training.programs.arguments import add_arguments as add_arguments
    from casckpt.training.programs.arguments import resume_choice as resume_choice
    from casckpt.training.results import Result as Result
    from casckpt.training.run import Run as Run
    from casckpt.training.stages.stage import Stage as Stage
    from casckpt.training.state import State as State
    from casckpt.training.watching.progress import Progress as Progress

# A literal: asking the installed package for it costs more than the whole import.
__version__: Final = "0.1.0"

_HOMES: Final = {
    "CasckptError": "errors",
    "Checkpoint": "checkpoint.records",
    "Every": "training.loops.every",
    "Fold": "training.folds",
    "GcPlan": "checkpoint.plans",
    "KeepBest": "checkpoint.policies",
    "KeepEvery": "checkpoint.policies",
    "KeepLast": "checkpoint.policies",
    "KeepNewerThan": "checkpoint.policies",
    "Options": "api",
    "PendingSave": "checkpoint.pending",
    "Pickled": "checkpoint.leaves",
    "Policy": "checkpoint.policies",
    "Progress": "training.watching.progress",
    "Result": "training.results",
    "Run": "training.run",
    "RunInfo": "checkpoint.records",
    "Stage": "training.stages.stage",
    "State": "training.state",
    "Stopped": "errors",
    "Store": "api",
    "add_arguments": "training.programs.arguments",
    "fingerprint": "api",
    "open": "api",
    "restore": "api",
    "resume_choice": "training.programs.arguments",
    "save": "api",
}
_MODULES: Final = frozenset({"errors"})
_FRAMEWORKS: Final = {
    "accelerate": "accelerate",
    "dcp": "torch",
    "fsspec": "fsspec",
    "ignite": "ignite",
    "keras": "keras",
    "lightgbm": "lightgbm",
    "lightning": "lightning",
    "optuna": "optuna",
    "sklearn": "sklearn",
    "torch": "torch",
    "transformers": "transformers",
    "xgboost": "xgboost",
}
"""Adapter to its package. Each needs its extra, so none is among what a star import loads."""

__all__ = sorted([*_HOMES, *_MODULES])


if "CASCKPT_SUPERVISOR" in os.environ:
    # Before anything can fail: a wrong option of the script is one that no restart mends.
    from casckpt.supervised import report_at_exit

    report_at_exit()


def __getattr__(name: str) -> Any:
    """Load a public name at its first use."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"casckpt.{name}")
    if name in _FRAMEWORKS:
        try:
            return import_module(f"casckpt.{name}")
        except Exception as exc:
            raise _missing(name, exc) from exc
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'casckpt' has no attribute {name!r}")
    value = getattr(import_module(f"casckpt.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not; of frameworks those that are installed."""
    found = {name for name, package in _FRAMEWORKS.items() if _is_installed(package)}
    return sorted({*globals(), *__all__, *found})


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False  # something of that name is half imported


def _missing(name: str, error: Exception) -> Exception:
    """Return the MissingExtra of an adapter that cannot be imported, an AttributeError as well.

    `hasattr`, `help` and `inspect` take an AttributeError for the answer no, and nothing else.
    """
    from casckpt.errors import MissingExtra

    package = _FRAMEWORKS[name]
    if isinstance(error, MissingExtra) and not _is_installed(package):
        lines = (error.what, error.why, error.hint)
    else:
        # An adapter takes whatever is not found for its framework, and that may be below it.
        cause = error.__cause__ if isinstance(error, MissingExtra) and error.__cause__ else error
        reason = f"{type(cause).__name__}: {cause}".partition("\n")[0]
        lines = (
            f"casckpt.{name} needs {package}, which cannot be imported",
            f"it is installed, but its import failed: {reason}",
            f"see what `python -c 'import {package}'` says; "
            f"pip install 'casckpt[{package}]' brings what it needs",
        )

    def reduced(_: Exception) -> tuple[Any, ...]:
        return MissingExtra, lines

    both = type(
        MissingExtra.__name__,
        (MissingExtra, AttributeError),
        {"__module__": MissingExtra.__module__, "__reduce__": reduced},
    )
    found: Exception = both(*lines)
    return found
