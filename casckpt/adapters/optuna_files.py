"""Studies of Optuna in files of others: pickles, SQLite databases, journals.

Only what a study has done is taken: its trials and attributes. Samplers and pruners are read past.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from casckpt.adapters import missing_extra
from casckpt.adapters.optuna_storage import study_lines, study_of
from casckpt.checkpoint.exchange.foreign import Several
from casckpt.checkpoint.exchange.refusals import damaged, unreadable
from casckpt.checkpoint.exchange.streams import IgnoredNode
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol
from casckpt.errors import CasckptError

try:
    import optuna
except ModuleNotFoundError as exc:
    raise missing_extra("optuna") from exc

from optuna.distributions import DISTRIBUTION_CLASSES
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

SQLITE_HEAD: Final = b"SQLite format 3\0"
_DISTRIBUTIONS: Final = {cls.__name__: cls for cls in DISTRIBUTION_CLASSES}
_FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class PartsNode(Node):
    """An object of Optuna, as the dict of its attributes."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise ValueError("the state of an object of Optuna is no dict")
        self.state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return the attributes."""
        return {name: resolve(value) for name, value in self.state.items()}


class DistributionNode(PartsNode):
    """A distribution: its JSON, as Optuna writes it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def finish(self, resolve: Resolve) -> str:
        """Return the distribution in Optuna's JSON."""
        state = {name.lstrip("_"): resolve(value) for name, value in self.state.items()}
        text = json.dumps({"name": self._name, "attributes": state})
        return str(optuna.distributions.distribution_to_json(_distribution(text)))


class NumberNode(Node):
    """An enumeration's value, by its number."""

    def __init__(self, number: Any) -> None:
        if type(number) is not int:
            raise ValueError("an enumeration without a number")
        self._number = number

    def finish(self, resolve: Resolve) -> int:
        """Return the number."""
        del resolve
        return self._number


class StudyNode(PartsNode):
    """A study whose trials are in the pickle itself."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def finish(self, resolve: Resolve) -> optuna.Study:
        """Return the study, in memory."""
        storage = self.state.get("_storage")
        if not isinstance(storage, PartsNode):
            raise unreadable(
                self._path,
                "its trials are not in this file but in the database or journal that it used",
                "import that file instead",
            )
        infos = {key: resolve(info) for key, info in storage.state["_studies"].items()}
        about = infos[resolve(self.state["_study_id"])]
        return _study(about, self._path)


def symbol(module: str, name: str, path: str) -> Symbol | None:
    """Return what a name of Optuna in a pickle means; samplers and pruners are read past."""
    full = f"{module}.{name}"
    if name == "Study" and module.startswith("optuna.study"):
        return Symbol(full, lambda args: StudyNode(path))
    if name in ("InMemoryStorage", "_StudyInfo", "FrozenTrial"):
        return Symbol(full, lambda args: PartsNode())
    if name in ("TrialState", "StudyDirection"):
        return Symbol(full, lambda args: NumberNode(args[0]))
    if module == "optuna.distributions" and name in _DISTRIBUTIONS:
        return Symbol(full, lambda args: DistributionNode(name))
    return Symbol(full, lambda args: IgnoredNode(full))


def load(data: bytes, path: str) -> Any:
    """Return the study in a SQLite database or a journal, or several.

    The file at hand is neither locked nor changed.

    Raises:
        Corrupt: Optuna cannot read it.
        BadRequest: it holds no study.
    """
    with tempfile.TemporaryDirectory(prefix="casckpt-") as folder:
        copy = Path(folder) / "copy"
        try:
            if data.startswith(SQLITE_HEAD):
                # From the path: what is in a write-ahead log beside the file belongs to it.
                with (
                    closing(sqlite3.connect(f"file:{Path(path).absolute()}?mode=ro", uri=True)) as
                    old, closing(sqlite3.connect(copy)) as new,
                ):  # fmt: skip
                    old.execute("PRAGMA trusted_schema=OFF")
                    old.backup(new)
                storage: Any = RDBStorage(f"sqlite:///{copy}")
            else:
                copy.write_bytes(data)
                storage = JournalStorage(JournalFileBackend(str(copy)))
            names = optuna.get_all_study_names(storage)
            studies = {name: _memory(name, storage, path) for name in names}
            if isinstance(storage, RDBStorage):
                storage.engine.dispose()
        except CasckptError:
            raise
        except Exception as exc:  # of Optuna, SQLAlchemy and sqlite3, whatever the bytes provoke
            why = str(exc).strip().splitlines()[:1]
            raise damaged(path, f"Optuna cannot read it: {why!a:.200}") from exc
    if not studies:
        raise unreadable(path, "it holds no study", "name the file that Optuna wrote to")
    return next(iter(studies.values())) if len(studies) == 1 else Several(studies)


def run_state(value: Any, every: int | None) -> tuple[Any, int] | None:
    """Return what `casckpt.optuna.optimize` goes on from, and the number of finished trials."""
    if not isinstance(value, optuna.Study):
        return None
    return {"study": value}, len(value.get_trials(deepcopy=False, states=_FINISHED))


def _memory(name: str, storage: Any, path: str) -> optuna.Study:
    study = optuna.load_study(study_name=name, storage=storage, sampler=_Nothing())
    return study_of(study_lines(study))


class _Nothing(optuna.samplers.RandomSampler):
    """Stands where a sampler has to, so that none of the study's own is made."""


def _study(about: Mapping[str, Any], path: str) -> optuna.Study:
    directions = [optuna.study.StudyDirection(one).name for one in about["directions"]]
    head = {
        "name": about["name"],
        "directions": directions,
        "metric_names": None,
        "user_attrs": about["user_attrs"],
    }
    try:
        trials = [_facts(trial) for trial in about["trials"]]
        return study_of(json.dumps(line).encode() for line in (head, *trials))
    except (TypeError, ValueError, KeyError) as exc:
        raise damaged(path, f"a study that Optuna refuses: {str(exc)[:200]!a}") from exc


def _facts(trial: Mapping[str, Any]) -> dict[str, Any]:
    params = {}
    for name, text in trial["_distributions"].items():
        internal = _distribution(text).to_internal_repr(trial["_params"][name])
        params[name] = [internal, text]
    return {
        "number": trial["_number"],
        "state": TrialState(trial["state"]).name,
        "values": trial["_values"],
        "start": _moment(trial["_datetime_start"]),
        "complete": _moment(trial["datetime_complete"]),
        "params": params,
        "user_attrs": trial["_user_attrs"],
        "system_attrs": trial["_system_attrs"],
        "reports": sorted(trial["intermediate_values"].items()),
    }


def _distribution(text: str) -> Any:
    return optuna.distributions.json_to_distribution(text)


def _moment(text: str | None) -> str | None:
    return None if text is None else datetime.fromisoformat(text).isoformat()
