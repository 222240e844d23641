"""Every error casckpt raises, its exit code, and the way out.

    CasckptError                      70  a bug in casckpt, or a base class
    ├── BadRequest                     2  the call cannot be carried out as asked
    │   ├── BadRef                        a REF that does not parse
    │   ├── BadLeaf                       a value in a state tree that cannot be stored
    │   ├── TreeMismatch                  `into` does not fit what was saved
    │   ├── StepExists                    the step holds another state, or is smaller than the last
    │   ├── PickleRefused                 the bytes would run code when loaded
    │   ├── MissingExtra                  an optional package is not installed
    │   └── ConfigMismatch                a run is resumed with other settings than before
    ├── OperationFailed                3  the system refused: other operating-system errors
    ├── StageFailed                    3  items of a stage failed; the results of others are kept
    ├── FilesLeftOut                   3  files could not be imported; the others were
    ├── StoreUnavailable              10  the path cannot be used as a store
    │   ├── NoStore                       there is no store here
    │   ├── FileSystemRefused             a file system on which commits are not safe
    │   └── PermissionRefused             the operating system denies access
    ├── Busy                          11
    │   ├── StoreBusy                     another process holds what is needed
    │   ├── RunMoved                      another writer has saved to this run meanwhile
    │   └── RunBusy                       another live process trains this run
    ├── Missing                       12
    │   ├── NotFound                      no such run, checkpoint, tag or metric
    │   ├── Ambiguous                     a REF that names more than one checkpoint
    │   └── Deleted                       the checkpoint was removed while it was read
    ├── Corrupt                       13  bytes on disk are not what was written
    ├── NewerFormat                   14  the store needs a newer casckpt
    └── NoSpace                       16  the disk, or the quota, is full

    SystemExit
    └── Stopped                       75  training stopped by request; no error: run it again

Each class carries its exit code. A message has three parts: what failed, why, and what to do.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CasckptError(Exception):
    """Root of every error the library raises.

    Args:
        what: what failed, in one line, with names and numbers.
        why: the reason, in one line; may be empty.
        hint: what to do next, in one line; defaults to the class's own.
        details: typed facts for programs, set as attributes (`error.run`, `error.step`, ...).
    """

    exit_code: ClassVar[int] = 70
    default_hint: ClassVar[str] = "this is a bug in casckpt; report it with the output of --debug"

    def __init__(self, what: str, why: str = "", hint: str = "", **details: Any) -> None:
        self.what = what
        self.why = why
        self.hint = hint or self.default_hint
        self.details = details
        for name, value in details.items():
            setattr(self, name, value)
        super().__init__(what, why, self.hint)

    def __str__(self) -> str:
        """Return the three lines, empty ones left out."""
        return "\n".join(line for line in (self.what, self.why, self.hint) if line)

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the trip between processes with the details."""
        return (_rebuild, (type(self), self.what, self.why, self.hint, self.details))


def _rebuild(
    cls: type[CasckptError], what: str, why: str, hint: str, details: dict[str, Any]
) -> CasckptError:
    return cls(what, why, hint, **details)


class BadRequest(CasckptError):
    """The call cannot be carried out as asked; nothing was changed."""

    exit_code = 2
    default_hint = "see --help, or the docstring of the function"


class BadRef(BadRequest):
    """A REF does not follow `[STORE::]RUN[~LINE][@SEL]` or `id:HEX`."""

    default_hint = "write RUN, RUN@STEP, RUN@best:METRIC:min, RUN@TAG or id:HEX"


class BadLeaf(BadRequest):
    """A value in a state tree cannot be stored; the message names its path."""

    default_hint = "remove it from the state, or wrap it in casckpt.Pickled(...)"


class TreeMismatch(BadRequest):
    """`into` does not fit the checkpoint: missing, extra, shape or dtype. Nothing was touched."""

    default_hint = "pass strict=False to restore what both have, or leave `into` out"


class StepExists(BadRequest):
    """The step is there already with other content, or is smaller than the run's last."""

    default_hint = "save under a larger step, or pass replace=True for the same step"


class PickleRefused(BadRequest):
    """Loading would unpickle, which can run any code."""

    default_hint = "in Python allow_pickle=True reads it; only if you trust whoever wrote it"


class MissingExtra(BadRequest):
    """An optional package is needed and not installed."""

    default_hint = "install it with pip"


class ConfigMismatch(BadRequest):
    """A run is resumed with another config, data, environment or model; every field is listed.

    Attributes:
        differences: (field, old value, new value) of each.
    """

    default_hint = (
        "go on as before, or pass on_mismatch={FIELD: 'allow' | 'warn' | 'restart'}, "
        "or resume='never' for a new line"
    )


class OperationFailed(CasckptError):
    """The operating system refused an operation for a reason that has no class of its own."""

    exit_code = 3
    default_hint = "look at the reason above; what was committed before is untouched"


class StageFailed(CasckptError):
    """Items of a stage failed; what the others returned is kept."""

    exit_code = 3
    default_hint = "run the same command again: only the items that failed are tried"


class FilesLeftOut(CasckptError):
    """Files could not be imported; what is in the others is saved.

    Attributes:
        checkpoints: what was made of the others.
        left_out: (path, error) of each file.
    """

    exit_code = 3
    default_hint = "mend or remove them, and import again: what is there stays"


class StoreUnavailable(CasckptError):
    """The path cannot be used as a store."""

    exit_code = 10
    default_hint = "name another folder with --store or CASCKPT_STORE"


class NoStore(StoreUnavailable):
    """There is no store here, or the folder is something else."""

    default_hint = "run `casckpt init`, or name the store with --store or CASCKPT_STORE"


class FileSystemRefused(StoreUnavailable):
    """The file system does not promise what a commit needs (network file systems)."""

    default_hint = "put the store on a local disk, and copy it elsewhere from there"


class PermissionRefused(StoreUnavailable):
    """The operating system denies access to the store."""

    default_hint = (
        "check who owns it and what its mode allows; without leave to write, only read (mode 'r')"
    )


class Busy(CasckptError):
    """Somebody else holds what is needed; trying again later can succeed."""

    exit_code = 11
    default_hint = "wait for the other process, or stop it, and try again"


class StoreBusy(Busy):
    """Another process holds the store in a way that excludes this operation."""


class RunMoved(Busy):
    """Another writer has saved to this run since it was looked at; nothing was committed."""

    default_hint = "look at the run again with `casckpt ls RUN`, then save with a larger step"


class RunBusy(Busy):
    """Another live process trains this run.

    Attributes:
        run: name of the run.
        pid: the process.
        host: the machine it is on.
        since: when it began, RFC 3339.
    """

    default_hint = "wait for it, stop it with `casckpt stop RUN`, or use another name"


class Missing(CasckptError):
    """What was named is not in the store."""

    exit_code = 12
    default_hint = "`casckpt ls` shows what there is"


class NotFound(Missing):
    """No such run, checkpoint, tag or metric."""


class Ambiguous(Missing):
    """The name fits more than one checkpoint."""

    default_hint = "write more of the id, or name run and step"


class Deleted(Missing):
    """The checkpoint was removed, and its bytes are gone."""


class Corrupt(CasckptError):
    """Bytes on disk are not what was written; nothing damaged was returned as data."""

    exit_code = 13
    default_hint = "run `casckpt verify` to see what is whole, then `casckpt repair`"


class NewerFormat(CasckptError):
    """The store, or a record in it, needs a newer casckpt."""

    exit_code = 14
    default_hint = "upgrade casckpt: pip install -U casckpt"


class NoSpace(CasckptError):
    """The disk or the quota is full; nothing committed was lost.

    Attributes:
        left_bytes: what a save had written before it failed, garbage now.
    """

    exit_code = 16
    left_bytes: int = 0
    default_hint = "free space with `casckpt gc --now`, or by removing checkpoints first"


class Stopped(SystemExit):
    """Training stopped by request after its state was saved; the same command goes on there.

    It leaves the program with exit code 75 unless it is caught. Not a CasckptError: nothing
    failed.

    Args:
        run: name of the run.
        reason: what asked for the stop.
    """

    exit_code: ClassVar[int] = 75

    def __init__(self, run: str = "", reason: str = "") -> None:
        self.run = run
        self.reason = reason
        super().__init__(self.exit_code)

    def __str__(self) -> str:
        """Return what stopped, and why."""
        return f"{self.run} stopped: {self.reason}" if self.reason else f"{self.run} stopped"

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive the trip between processes."""
        return (type(self), (self.run, self.reason))
