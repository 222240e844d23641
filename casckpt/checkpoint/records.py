"""What a checkpoint is to those who ask for one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from casckpt.errors import BadRequest

if TYPE_CHECKING:
    from casckpt.checkpoint.manifest import Manifest


class CheckpointSource(Protocol):
    """Where a Checkpoint looks up what its row does not hold."""

    def manifest(self, checkpoint: Checkpoint) -> Manifest:
        """Return the checkpoint's manifest."""
        ...

    def unique_bytes(self, checkpoint: Checkpoint) -> int:
        """Return the stored bytes that only this checkpoint holds."""
        ...


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """One committed checkpoint.

    Two are equal if they are the same commit, whatever has been tagged or measured since.

    Attributes:
        ref: the REF that names it: `RUN@STEP`, `RUN~LINE@STEP+BATCH`.
        id: hex id of its manifest.
        run: name of its run.
        line: number of its line, from 0.
        step: what orders checkpoints in a line, from 0.
        batch: position inside the step; 0 at its boundary.
        created: when the save began, UTC.
        metrics: name to value; NaN and infinities as they were given.
        tags: names a user gave it, sorted.
        pinned: kept for ever.
        reasons: why it was saved (`every`, `best`, `latest`, ...); empty for a plain save.
        parent: hex id of the checkpoint that it continued from, or None.
        logical_bytes: what a restore writes.
        new_bytes: logical bytes of chunks that this save had to write.
        stored_bytes: what those took on disk.
        stall_s: seconds that the caller waited.
        durable_s: seconds from the call until the checkpoint was durable.
        seq: number of its commit in the store.
        trashed_at: when it was moved to the trash, or None.
    """

    ref: str
    id: str
    run: str
    line: int
    step: int
    batch: int
    created: datetime
    metrics: Mapping[str, float]
    tags: tuple[str, ...]
    pinned: bool
    reasons: tuple[str, ...]
    parent: str | None
    logical_bytes: int
    new_bytes: int
    stored_bytes: int
    stall_s: float
    durable_s: float
    seq: int
    trashed_at: datetime | None = None
    source: CheckpointSource | None = field(default=None, repr=False)

    @property
    def position(self) -> tuple[int, int]:
        """Step and batch: what orders checkpoints in a line."""
        return (self.step, self.batch)

    @property
    def captured(self) -> tuple[str, ...]:
        """What else was captured with the state, such as generators; read from the manifest."""
        return self._source().manifest(self).captured

    @property
    def missing(self) -> tuple[str, ...]:
        """What could not be captured; read from the manifest."""
        return self._source().manifest(self).missing

    @property
    def environment(self) -> Mapping[str, str]:
        """Versions, platform and device at the save; read from the manifest."""
        return self._source().manifest(self).environment

    @property
    def unique_bytes(self) -> int:
        """Stored bytes that only this checkpoint holds.

        Computed on each access from the manifests of all checkpoints, trash included.
        """
        return self._source().unique_bytes(self)

    def _source(self) -> CheckpointSource:
        if self.source is None:
            raise BadRequest(
                f"{self.ref} belongs to no open store",
                "it was copied, or sent from another process",
                "take it from the store again: store.get(checkpoint)",
            )
        return self.source

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same commit."""
        if not isinstance(other, Checkpoint):
            return NotImplemented
        return (self.id, self.run, self.seq) == (other.id, other.run, other.seq)

    def __hash__(self) -> int:
        """Return a hash that fits equality."""
        return hash((self.id, self.run, self.seq))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the store behind: a handle does not travel between processes, facts do."""
        return {**self.__dict__, "source": None}


@dataclass(frozen=True)
class RunInfo:
    """What is known of one run without reading any manifest.

    Attributes:
        name: name of the run.
        line: the line opened last.
        lines: how many lines there are.
        checkpoint_count: live checkpoints on all lines.
        last: the newest checkpoint of the newest line, None if there is none yet.
        metrics: metrics of `last`.
        created: when the oldest live checkpoint was saved.
        updated: when the newest one was.
        logical_bytes: sum over live checkpoints of what a restore writes.
        new_bytes: sum of logical bytes of chunks that these saves had to write.
        stored_bytes: sum of what those took.
        status: running, finished, stopped, failed or lost; empty for plain saves.
        reason: why it stopped, or what it failed with.
        best: the best checkpoint by the metric that the run declared.
        progress: how far its parts are: loops and stages.
        config: the settings that the line recorded last, by dotted name.
        elapsed_s: work so far, all sessions of the line.
        expected: glob over children to how many the run said there will be.
    """

    name: str
    line: int
    lines: int
    checkpoint_count: int
    last: Checkpoint | None
    metrics: Mapping[str, float]
    created: datetime | None = None
    updated: datetime | None = None
    logical_bytes: int = 0
    new_bytes: int = 0
    stored_bytes: int = 0
    status: str = ""
    reason: str = ""
    best: Checkpoint | None = None
    progress: tuple[Any, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    elapsed_s: float = 0.0
    expected: Mapping[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """What the run's saves took on disk."""
        return self.stored_bytes


def trash_order(checkpoint: Checkpoint) -> tuple[int, int, datetime, int]:
    """Return what orders checkpoints of the trash: by place, and at one place by when they came."""
    assert checkpoint.trashed_at is not None
    return (*checkpoint.position, checkpoint.trashed_at, checkpoint.seq)


def check_metrics(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return metrics as plain floats, in the order given.

    Args:
        metrics: name to anything that takes `float()`: numbers, numpy scalars, 0-d tensors.

    Raises:
        BadRequest: naming the metric, if a name is no text or a value is no number.
    """
    if metrics is not None and not isinstance(metrics, Mapping):
        raise BadRequest(
            f"metrics are no mapping, but {type(metrics).__name__}",
            "each is a number with a name",
            "pass metrics={'val_loss': 1.31}",
        )
    checked: dict[str, float] = {}
    for name, value in (metrics or {}).items():
        if not isinstance(name, str) or not name or "\0" in name or not _is_unicode(name):
            raise BadRequest(
                f"bad metric name {name!r}",
                "names of metrics are non-empty Unicode strings without zero bytes",
                "pass metrics={'val_loss': 1.31}",
            )
        try:
            if isinstance(value, str | bytes):
                raise TypeError(f"it is {type(value).__name__}")
            checked[name] = float(value)
        except (TypeError, ValueError, OverflowError, RuntimeError) as exc:
            raise BadRequest(
                f"metric {name!r} is no number: {value!r:.60}",
                f"float() refused it: {exc}",
                "pass a number, or a tensor or array with one element",
                metric=name,
            ) from exc
    return checked


def _is_unicode(name: str) -> bool:
    """Return whether a text can be written: surrogates alone cannot."""
    return name.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in name)
