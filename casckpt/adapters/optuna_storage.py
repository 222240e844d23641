"""Optuna's journal in rows of a store, and studies as leaves of a state."""

from __future__ import annotations

import json
import logging
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casckpt.adapters import missing_extra
from casckpt.checkpoint.opaque import OpaqueHandler
from casckpt.checkpoint.scalars import Node, malformed
from casckpt.store import Repository

try:
    import optuna
except ModuleNotFoundError as exc:
    raise missing_extra("optuna") from exc

from optuna.storages import JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import BaseJournalBackend

if TYPE_CHECKING:
    from casckpt.checkpoint.leaves import RestoreOptions, Walker
    from casckpt.training.run import Run

_TABLE: Final = "history"
_JOURNAL: Final = b"j"
_HEARTBEAT: Final = b"h"
_NUMBER: Final = struct.Struct(">Q")


class _TakenError(Exception):
    """Another writer has put the row first."""


class RowsBackend(BaseJournalBackend):
    """A journal of Optuna in rows: one row per call of `append_logs`, keyed by its first log.

    Safe for threads and processes. What was appended is durable when the call returns.

    Args:
        repository: of the store.
        scope: prefix of the keys.
    """

    def __init__(self, repository: Repository, scope: bytes) -> None:
        self._repository = repository
        self._prefix = scope + _JOURNAL
        self._starts: list[int] = []
        self._end = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return where the store is: another process opens it itself."""
        return {"path": str(self._repository.path), "prefix": self._prefix}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the store."""
        self._repository = Repository.open(Path(state["path"]))
        self._prefix, self._starts, self._end = state["prefix"], [], 0

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Yield the logs from a number on."""
        place = bisect_right(self._starts, log_number_from) - 1
        start = self._starts[place] if place >= 0 else 0
        if log_number_from >= self._end:
            start = self._end
        while True:
            logs = self._read(start)
            if logs is None:
                return
            yield from logs[max(0, log_number_from - start) :]
            start += len(logs)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append logs; those of one call stay together."""
        if not logs:
            return
        payload = json.dumps(logs, separators=(",", ":")).encode()

        def put(old: bytes | None) -> bytes:
            if old is not None:
                raise _TakenError
            return payload

        while True:
            while self._read(self._end) is not None:
                pass
            try:
                self._repository.edit_row(_TABLE, self._prefix + _NUMBER.pack(self._end), put)
                return
            except _TakenError:
                continue

    def _read(self, start: int) -> list[dict[str, Any]] | None:
        """Return the logs of the row that begins with a number, None if there is none yet."""
        if self._repository.is_closed and start >= self._end:
            return None  # a study can be looked at after its store is closed
        row = self._repository.row(_TABLE, self._prefix + _NUMBER.pack(start))
        if row is None:
            return None
        logs: list[dict[str, Any]] = json.loads(row.payload)
        if start >= self._end:
            self._starts.append(start)
            self._end = start + len(logs)
        return logs


class RowsStorage(JournalStorage, BaseHeartbeat):
    """Optuna's storage on a run of a store; for `optuna.create_study(storage=...)`.

    Args:
        run: the run; a study belongs to one of its lines.
        heartbeat_interval_s: seconds between the signs of life of trials that `Study.optimize`
            drives, so that other processes see who has died; None for none.
        stale_trial_callback: what to do with a trial whose process has died, such as
            `optuna.storages.RetryHeartbeatStaleTrialCallback()`.
    """

    def __init__(
        self,
        run: Run,
        *,
        heartbeat_interval_s: int | None = None,
        stale_trial_callback: Callable[[Any, Any], None] | None = None,
    ) -> None:
        self._interval_s = heartbeat_interval_s
        self._stale_callback = stale_trial_callback
        self._heartbeats = run.scope + _HEARTBEAT
        self._repository = run.repository
        self.casckpt_run: Run | None = run
        super().__init__(RowsBackend(run.repository, run.scope))

    def __getstate__(self) -> dict[Any, Any]:
        """Leave the run out: another process opens the store, not the run."""
        state = super().__getstate__()
        return {**state, "casckpt_run": None, "_repository": None}

    def __setstate__(self, state: dict[Any, Any]) -> None:
        """Open the store."""
        super().__setstate__(state)
        self._repository = state["_backend"]._repository

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that a trial is alive."""
        from casckpt.store.commits import RowWrite

        now = _NUMBER.pack(time.time_ns())
        key = self._heartbeats + _NUMBER.pack(trial_id)
        self._repository.write_rows([RowWrite(_TABLE, key, now)])

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        if self._interval_s is None:
            return []
        oldest = time.time_ns() - 2 * self._interval_s * 10**9
        running = self.get_all_trials(
            study_id, deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)
        )
        stale = []
        for trial in running:
            row = self._repository.row(_TABLE, self._heartbeats + _NUMBER.pack(trial._trial_id))
            if row is not None and _NUMBER.unpack(row.payload)[0] < oldest:
                stale.append(trial._trial_id)
        return stale

    def get_heartbeat_interval(self) -> int | None:
        """Return the seconds between two signs of life, None for none."""
        return self._interval_s

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Any, Any], None] | None:
        """Return what is called with a trial whose process has died."""
        return self._stale_callback


class OptunaHandler(OpaqueHandler):
    """Studies in state trees: one line of JSON per trial, so that a grown study shares its trials.

    A study comes back in memory, with the default sampler and pruner: those are no data.
    """

    library = "optuna"
    noun = "a study"

    def flatten(self, value: Any, path: str, walker: Walker) -> Node | None:
        """Return the node of a study; None for other values of the library."""
        if not isinstance(value, optuna.Study):
            return None
        text = b"\n".join(study_lines(value))
        return {"x": ["optuna", "study"], "a": None, "v": [walker.walk(text, path)]}

    def build(
        self, kind: str, attributes: Node, children: list[Any], options: RestoreOptions
    ) -> Any:
        """Return the study."""
        if kind != "study" or len(children) != 1 or not isinstance(children[0], bytes):
            raise malformed(f"a value of optuna of the unknown kind {kind[:40]!r}")
        try:
            return study_of(children[0].split(b"\n"))
        except (ValueError, KeyError, TypeError) as exc:
            raise malformed(f"a study that optuna refuses: {str(exc)[:200]}") from exc


HANDLER = OptunaHandler()


def study_lines(study: optuna.Study) -> list[bytes]:
    """Return a study as lines of JSON: what it is, then each trial."""
    about = {
        "name": study.study_name,
        "directions": [direction.name for direction in study.directions],
        "metric_names": study.metric_names,
        "user_attrs": study.user_attrs,
    }
    lines = [about, *(_trial_facts(trial) for trial in study.get_trials(deepcopy=False))]
    # Not sorted: a list of the values of `params` has them as they were suggested.
    return [json.dumps(line).encode() for line in lines]


def study_of(lines: Iterable[bytes]) -> optuna.Study:
    """Return the study of such lines, in memory.

    Raises:
        ValueError, KeyError, TypeError: the lines are of no study.
    """
    about, *trials = [json.loads(line) for line in lines]
    study = optuna.Study(about["name"], _memory(about["name"], about["directions"]))
    if about["metric_names"]:
        study.set_metric_names(about["metric_names"])
    for key, attr in about["user_attrs"].items():
        study.set_user_attr(key, attr)
    add_trials(study, (_trial(facts) for facts in trials))
    return study


def add_trials(study: optuna.Study, trials: Iterable[optuna.trial.FrozenTrial]) -> None:
    """Add trials to a study as they are, running ones too."""
    for trial in trials:
        study._storage.create_new_trial(study._study_id, template_trial=trial)


def _memory(name: str, directions: list[str]) -> optuna.storages.InMemoryStorage:
    storage = optuna.storages.InMemoryStorage()
    with _unannounced():
        storage.create_new_study([optuna.study.StudyDirection[one] for one in directions], name)
    return storage


@contextmanager
def _unannounced() -> Iterator[None]:
    """Keep this thread's storages in memory out of Optuna's log: nobody began a study."""
    thread = threading.get_ident()
    logger = logging.getLogger("optuna.storages._in_memory")

    def of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(of_others)
    try:
        yield
    finally:
        logger.removeFilter(of_others)


def _trial_facts(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
    return {
        "number": trial.number,
        "state": trial.state.name,
        "values": trial.values,
        "start": _text(trial.datetime_start),
        "complete": _text(trial.datetime_complete),
        "params": {
            name: [distribution.to_internal_repr(trial.params[name]), _json_of(distribution)]
            for name, distribution in trial.distributions.items()
        },
        "user_attrs": trial.user_attrs,
        "system_attrs": trial.system_attrs,
        "reports": sorted(trial.intermediate_values.items()),
    }


def _trial(facts: dict[str, Any]) -> optuna.trial.FrozenTrial:
    distributions = {
        name: optuna.distributions.json_to_distribution(text)
        for name, (_, text) in facts["params"].items()
    }
    return optuna.trial.FrozenTrial(
        number=facts["number"],
        state=optuna.trial.TrialState[facts["state"]],
        value=None,
        values=facts["values"],
        datetime_start=_time(facts["start"]),
        datetime_complete=_time(facts["complete"]),
        params={
            name: distributions[name].to_external_repr(internal)
            for name, (internal, _) in facts["params"].items()
        },
        distributions=distributions,
        user_attrs=facts["user_attrs"],
        system_attrs=facts["system_attrs"],
        intermediate_values=dict(facts["reports"]),
        trial_id=facts["number"],
    )


def _json_of(distribution: optuna.distributions.BaseDistribution) -> str:
    return optuna.distributions.distribution_to_json(distribution)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
