"""One open store: what every call on it shares. The calls themselves are in the modules beside.

`Saves`, `Restores`, `Questions` and `Curation` each add the calls of one kind to this class, and
the public Store is all of them together.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from casckpt.checkpoint.bases import Bases
from casckpt.checkpoint.pending import BackgroundSaves
from casckpt.checkpoint.places import at_or_inside, folder_of_ref, is_store
from casckpt.checkpoint.queries import Catalog
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.refs import Ref, parse_ref, split_store
from casckpt.errors import (
    Ambiguous,
    BadRef,
    BadRequest,
    NoStore,
    NotFound,
    OperationFailed,
)
from casckpt.logs import use_stderr

if TYPE_CHECKING:
    from casckpt.store import Repository

OpenMode = Literal["r", "a"]

MiB: Final = 1024 * 1024

_MAKING_WAIT_S: Final = 10.0
"""How long to wait while another process makes the store; it takes a few fsyncs, well below 1 s."""


@dataclass(frozen=True)
class Options:
    """How a store works.

    Attributes:
        level: how hard new bytes are compressed. "fast" writes them as they are. "balanced" codes
            them, and against the checkpoint before. "small" does the same in 13 to 24 % more time
            (bench/results/save.json) for 0 to 1.5 % less (others.json, size.json), and leaves
            boosters and studies larger; it is what `compact` uses.
        memory_bytes: memory a save or a restore may take above the state itself.
        workers: threads that hash and compress; None for one per core.
        max_delta_depth: how many older chunks a chunk may be a difference to, one over the
            other. Each makes a restore slower and the store smaller; 0 stores chunks whole.
    """

    level: str = "balanced"
    memory_bytes: int = 256 * MiB
    workers: int | None = None
    max_delta_depth: int = 3


class StoreHandle:
    """An open store.

    Thread safe. Opening a store again in the same process shares everything underneath; the last
    close lets go of it. In a forked child it opens itself again at the next call.
    """

    def __init__(
        self, path: str | Path, mode: OpenMode = "a", options: Options | None = None
    ) -> None:
        """Open a store.

        Args:
            path: the folder of the store. With mode "a" it is made if it is missing or empty.
            mode: "a" to read and write, "r" to only read; then nothing is written but a
                reader slot.
            options: how the store works.

        Raises:
            NoStore: if there is none (mode "r"), or the folder holds something else.
            FileSystemRefused: on a network file system.
            PermissionRefused: if the operating system denies access.
            NewerFormat: if a newer casckpt made it.
            Corrupt: if its index is missing, empty or damaged.
        """
        if mode not in ("r", "a"):
            raise BadRequest(f"bad mode {mode!r}", "a store is opened with 'r' or 'a'")
        if not isinstance(path, str | os.PathLike):
            raise BadRequest(
                f"a store is named by a path, not by {path!r}",
                f"it is {type(path).__name__}",
                "pass the folder as text or Path; CASCKPT_STORE is for casckpt.save and the CLI",
            )
        if "://" in os.fspath(path):
            raise BadRequest(
                f"{os.fspath(path)} is a URL",
                "a store is a folder on a disk of this machine",
                "pass a path; `casckpt export` writes what another machine can import",
            )
        if not isinstance(options, Options | None):
            raise BadRequest(
                f"bad options {options!r}",
                f"they are {type(options).__name__}",
                "pass casckpt.Options(level='fast')",
            )
        use_stderr()
        self.path = Path(path).expanduser().absolute()
        self.mode: OpenMode = mode
        self._options = Options() if options is None else options
        self._background = BackgroundSaves()
        self._others: dict[tuple[Path, OpenMode], Self] = {}
        # What this handle committed last on each line; emptied when it removes anything.
        self._last: dict[tuple[str, int], Checkpoint] = {}
        self._bases = Bases()
        self._closed = False
        self._open()

    def _open(self) -> None:
        from casckpt.store import Repository, StoreOptions

        if self.mode == "a" and not _is_made(self.path):
            _make(self.path)
        self._repository: Repository = Repository.open(
            self.path,
            mode=self.mode,
            options=StoreOptions(
                level=self._options.level,
                memory_bytes=self._options.memory_bytes,
                workers=self._options.workers,
                max_delta_depth=self._options.max_delta_depth,
            ),
        )
        self._catalog = Catalog(self._repository)

    def wait(self) -> None:
        """Wait until every background save is durable.

        Raises:
            CasckptError: what one of them failed with, if nobody has been told.
        """
        self._background.wait()

    def close(self) -> None:
        """Wait for background saves and let go of the store; closing again does nothing.

        Raises:
            CasckptError: what a background save failed with, if nobody has been told. The store
                is closed all the same.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self._background.wait()
        finally:
            for other in self._others.values():
                other.close()
            self._repository.close()

    def __enter__(self) -> Self:
        """Return the store."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store; an error of the body is not hidden by one of a background save."""
        if error is None:
            self.close()
            return
        self._background.log_errors()
        self.close()

    def __repr__(self) -> str:
        """Return the path and the mode."""
        state = "closed" if self._closed else f"mode {self.mode!r}"
        return f"<casckpt.Store {self.path}, {state}>"

    def _ready(self, *, write: bool = False) -> None:
        """Raise unless the store is open, and writable if it has to be."""
        if self._closed:
            raise BadRequest(
                f"the store {self.path} is closed",
                "close() was called, or its `with` has ended",
                "open it again: casckpt.open(path)",
            )
        if write and self.mode == "r":
            raise BadRequest(
                f"the store {self.path} is open for reading only",
                "it was opened with mode='r'",
                "open it with mode='a'",
            )

    def _find(self, ref: str | Checkpoint, *, write: bool = False) -> tuple[Self, Checkpoint]:
        """Return the checkpoint that a REF means, and the store it is in.

        Args:
            ref: a REF, or a Checkpoint, which is looked up again as it is now.
            write: the checkpoint is going to be changed.

        Raises:
            NotFound, Ambiguous, BadRef, Deleted: if it does not mean one checkpoint.
            CasckptError: what a background save of its run failed with, if it is not there.
        """
        self._ready(write=write)
        if isinstance(ref, Checkpoint):
            return self._find_again(ref)
        store, parsed = self._locate(ref, write=write)
        try:
            return store, store._catalog.resolve(parsed)
        except NotFound:
            store._background.tell(parsed.run)
            raise

    def _find_again(self, checkpoint: Checkpoint) -> tuple[Self, Checkpoint]:
        for store in (self, *list(self._others.values())):
            if checkpoint.source is store._catalog:
                return store, store._catalog.one(checkpoint.run, checkpoint.seq)
        return self, self._catalog.resolve(Ref(f"id:{checkpoint.id}", id_prefix=checkpoint.id))

    def _locate(self, text: str, *, write: bool = False) -> tuple[Self, Ref]:
        """Return the store that a REF is in, and the REF parsed.

        A folder with a store can be named like a run. What is changed is never found that way: a
        REF that misses its run would change another store.
        """
        path, rest = split_store(text)
        if path is not None:
            return self._other(Path(path), write=write), parse_ref(rest)
        try:
            ref = parse_ref(text)
        except BadRef:
            found = self._in_folder(text, write)
            if found is not None:
                return found
            if os.path.isfile(os.path.expanduser(text)):  # noqa: PTH111, PTH113 (any text at all)
                raise BadRef(
                    f"{text} is a file",
                    "a REF names a checkpoint in a store",
                    f"`casckpt import {text} --run RUN` makes it one",
                ) from None
            raise
        if ref.id_prefix or write or self._catalog.has_run(ref.run):
            return self, ref
        try:
            return self._in_folder(text, write) or (self, ref)
        except NotFound:  # a store without runs, which means nothing
            return self, ref

    def _in_folder(self, text: str, write: bool) -> tuple[Self, Ref] | None:
        """Return what a REF that is a folder with a store means, or None if it is none."""
        folder = folder_of_ref(text)
        if folder is None:
            return None
        store_path, name, selector = folder
        store = self._other(store_path, write=write)
        return store, parse_ref(store._run_of_folder(name, text) + selector)

    def _other(self, path: Path, *, write: bool = False) -> Self:
        """Return the store at a path, this one if it is the same; never makes one."""
        path = at_or_inside(path.expanduser()).resolve()
        if path == self.path.resolve():
            return self
        if not is_store(path):
            raise NoStore(
                f"no store at {path}", "what is before :: names a store", "check that path"
            )
        key: tuple[Path, OpenMode] = (path, "a" if write else "r")
        if key not in self._others:
            self._others[key] = type(self)(path, mode=key[1], options=self._options)
        return self._others[key]

    def _run_of_folder(self, name: str, text: str) -> str:
        """Return the run that a folder with this store means: its own name, else the only one."""
        # Runs without checkpoints too: those that have stages, folds or trials.
        rows = self._repository.run_rows("")
        runs = sorted({info.name for info in self._catalog.runs()} | {run for run, _ in rows})
        if name in runs:
            return name
        nested = {run for run in runs if any(run.startswith(f"{other}/") for other in runs)}
        top = [run for run in runs if run not in nested]
        if len(top) == 1:
            return top[0]
        if not top:
            raise NotFound(
                f"{text}: the store in this folder has no runs",
                "a folder with a store stands for the run in it",
                "name the run and the store: STORE::RUN",
                ref=text,
            )
        raise Ambiguous(
            f"{text}: the store in this folder has {len(top)} runs",
            f"none is called {name}; there are {', '.join(top[:5])}",
            f"write {self.path}::{top[0]}",
            ref=text,
        )


def _is_made(path: Path) -> bool:
    """Tell whether there is a store; where we may not look there is none to be made."""
    try:
        return (path / "format.json").exists()
    except PermissionError:
        return True


def _make(path: Path) -> None:
    """Make a store in a folder that is missing or empty; wait for another that does."""
    from casckpt.store import Repository

    deadline_s = time.monotonic() + _MAKING_WAIT_S
    while True:
        try:
            Repository.init(path)
            return
        except OperationFailed:
            # Another process made it, or is making it, at the same moment.
            if (path / "format.json").exists():
                return
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)
