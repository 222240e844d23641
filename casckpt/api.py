"""The public Store and the one-call functions: where the floors below are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from casckpt.checkpoint.compacting import CompactResult
from casckpt.checkpoint.curation import Curation
from casckpt.checkpoint.exchange import foreign
from casckpt.checkpoint.file_saves import FileSaves
from casckpt.checkpoint.handle import OpenMode, Options
from casckpt.checkpoint.leaves import register_lazy
from casckpt.checkpoint.places import at_or_inside, default_store, folder_of_ref, is_store
from casckpt.checkpoint.plans import GcPlan, GcResult
from casckpt.checkpoint.policies import (
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepNewerThan,
    Policy,
)
from casckpt.checkpoint.questions import Questions
from casckpt.checkpoint.records import Checkpoint, RunInfo
from casckpt.checkpoint.recovery import RepairResult
from casckpt.checkpoint.refs import parse_ref, split_store
from casckpt.errors import BadRef
from casckpt.training import peers, randomness
from casckpt.training.calls import Runs

if TYPE_CHECKING:
    from casckpt.checkpoint.exchange import Tensors
    from casckpt.checkpoint.manifest import Entry

__all__ = [
    "Checkpoint",
    "CompactResult",
    "GcPlan",
    "GcResult",
    "KeepBest",
    "KeepEvery",
    "KeepLast",
    "KeepNewerThan",
    "Options",
    "Policy",
    "RepairResult",
    "RunInfo",
    "Store",
    "fingerprint",
    "open",
    "repair_store",
    "restore",
    "save",
]

# Floors 3 and 4 meet tensors and must not know torch: this is where they are introduced.
register_lazy("torch", "casckpt.adapters.torch")
register_lazy("xgboost", "casckpt.adapters.xgboost_parts")
register_lazy("lightgbm", "casckpt.adapters.lightgbm_parts")
register_lazy("optuna", "casckpt.adapters.optuna_storage")
register_lazy("sklearn", "casckpt.adapters.sklearn_objects")
for _root in ("xgboost", "lightgbm", "optuna", "sklearn"):
    foreign.register_lazy(_root, f"casckpt.adapters.{_root}_files")
randomness.register_lazy("torch", "casckpt.adapters.torch_random")
peers.register_lazy("torch", "casckpt.adapters.torch_peers")


class Store(Runs, FileSaves, Questions, Curation):
    """A store of checkpoints: a folder, opened.

    Made by `casckpt.open`. Thread safe; many processes may use one store at once. Opening it
    again in one process shares everything underneath, and the last close lets go. Pickled, as
    for a worker that is spawned, it is opened there again.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        """Return how another process opens the store; a closed one raises BadRequest."""
        self._ready()
        return type(self), (self.path, self.mode, self._options)

    def entries(self, ref: str | Checkpoint) -> tuple[Entry, ...]:
        """Return what a checkpoint holds: path, kind, dtype, shape and length of each leaf.

        Raises:
            NotFound: there is no such checkpoint.
            Corrupt: its manifest is damaged.
        """
        store, checkpoint = self._find(ref)
        return store._catalog.manifest(checkpoint).entries

    def export(
        self, ref: str | Checkpoint, dest: str | Path, *, format: str | None = None
    ) -> list[Path]:
        """Write a checkpoint for other programs; every byte is verified.

        Args:
            ref: the checkpoint.
            dest: the file, whole or untouched. With format "tree" a new folder.
            format: "safetensors", "torch", "npz", "ubj", "json" (one file), or "tree" (a folder
                of state.safetensors and tree.json, which comes back exactly); None to go by the
                suffix of `dest`.

        Returns:
            The files that were written.

        Raises:
            NotFound: there is no such checkpoint.
            BadRequest: the format cannot hold this state.
            MissingExtra: the format needs a package that is not installed.
            Corrupt: the checkpoint is damaged.
        """
        from casckpt.checkpoint import exchange

        store, checkpoint = self._find(ref)
        path = Path(dest)
        about = store._catalog.manifest(checkpoint)
        chosen = format or exchange.SUFFIXES.get(path.suffix.lower())
        tensors = _tensors(required=chosen == "torch")
        state = store.restore(checkpoint, as_numpy=tensors is None)
        if format == "tree":
            exchange.write_tree(state, path, about=about)
            return sorted(child for child in path.iterdir() if child.is_file())
        exchange.write_file(state, path, format=format, tensors=tensors, about=about)
        return [path]

    def import_files(
        self, run: str, *paths: str | Path, step: int | None = None
    ) -> list[Checkpoint]:
        """Save files of others as checkpoints of a run; nothing in a file is ever run.

        Read are safetensors, torch, pickle, joblib, npz, npy, JSON, UBJSON, models of LightGBM,
        studies of Optuna (pickle, SQLite, journal), and the checkpoint folders of Hugging Face's
        Trainer. Pickles go through a machine that makes tensors, plain values, boosters,
        estimators of scikit-learn and studies, and refuses everything else. A booster or study
        becomes a state that the adapter's `train` or `optimize` goes on from, and a Trainer's
        folder files that `casckpt.transformers.resume_dir` gives back. Floats at the top of a
        state, and its `metrics`, are the checkpoint's metrics.

        Args:
            run: name of the run.
            paths: files, folders `checkpoint-500` of a Trainer, and folders that `export` made
                with format "tree"; or one folder of an old pile: `model_epoch_5.pth`,
                `model_best.pth` and so on become one run; what a best or latest one equals is
                tagged `imported-best`. A pile of several things becomes runs below `run`. Files
                of no known format are left out.
            step: of the first file, the next get the following ones. None takes the numbers in
                the names, else what the files say themselves, if all do and no two the same;
                else the run's next steps.

        Returns:
            The checkpoints, by step.

        Raises:
            FilesLeftOut: some of many files could not be imported, each for one of the reasons
                below; the others were.
            BadRequest: a file is of no known format.
            PickleRefused: a file would run code.
            StepExists: a step holds another state, or is smaller than the run's last.
            Corrupt: a file contradicts itself.
            OperationFailed: a file cannot be read.
            MissingExtra: it was written by a framework that is not installed.
        """
        from casckpt.training.importing import Importer

        self._ready(write=True)
        return Importer(self, _tensors()).files(run, [Path(path) for path in paths], step)

    def repair(
        self,
        *,
        rebuild_index: bool = False,
        accept: bool = False,
        source: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> RepairResult:
        """Repair what can be repaired; nothing is ever deleted.

        Without `rebuild_index` and `accept`, every byte is checked. What is damaged or missing is
        put back from another copy: in this store, in what was set aside before, in `source`. The
        packs with damage give up what is whole and move to the store's `quarantine`. What no copy
        has stays lost, and comes back when the same bytes are saved again. Others may go on using
        the store.

        A store whose index is lost does not open; then `repair_store(path)` does the same.

        Args:
            rebuild_index: make a new index from the packs alone. Until it is accepted, gc frees
                nothing.
            accept: what a rebuild found is what is wanted; gc works again.
            source: folder of another store to take copies from.
            progress: called with (bytes done, bytes in all).

        Raises:
            StoreBusy: a collection is under way; or, to rebuild, somebody has the store open.
            Corrupt: the index itself is damaged, and `rebuild_index` was not asked for.
            NoStore: `source` is none.
            NoSpace: there is no room for the copies.
        """
        self._ready(write=True)
        self.wait()
        # Only a rebuild must be alone.
        if rebuild_index:
            self._repository.close()
        try:
            return repair_store(
                self.path,
                rebuild_index=rebuild_index,
                accept=accept,
                source=source,
                progress=progress,
            )
        finally:
            if rebuild_index:
                self._open()


def open(path: str | Path, *, mode: OpenMode = "a", options: Options | None = None) -> Store:
    """Open the store in a folder; also for `with`.

    Args:
        path: the folder. With mode "a" it is made if it is missing or empty.
        mode: "a" to read and write, "r" to only read.
        options: level, memory and workers.

    Returns:
        The store. Its close waits for saves in the background.

    Raises:
        NoStore: there is none (mode "r"), or the folder holds something else.
        FileSystemRefused: on a network file system.
        PermissionRefused: the operating system denies access.
        NewerFormat: a newer casckpt made it.
        Corrupt: its index is missing, empty or damaged.
    """
    return Store(path, mode=mode, options=options)


def save(
    run: str,
    state: Any,
    step: int | None = None,
    *,
    metrics: Mapping[str, Any] | None = None,
    tags: str | Sequence[str] = (),
    replace: bool = False,
    level: str | None = None,
    parent: str | Checkpoint | None = None,
) -> Checkpoint:
    """Save a state tree in one call, into a store that is made if it is missing.

    `run` is `[STORE::]RUN`. Without STORE it is CASCKPT_STORE, else the nearest `.casckpt` upward,
    else `./.casckpt`. All else is as in `Store.save`.

    Raises:
        BadRef: `run` names a checkpoint.
        CasckptError: as `open` and `Store.save` do.
    """
    ref = parse_ref(run)
    if ref.id_prefix or ref.selector is not None or ref.line is not None:
        raise BadRef(
            f"cannot save to {run}", "a save names a run; its step is a parameter", "save(RUN, ...)"
        )
    path = default_store() if ref.store is None else at_or_inside(Path(ref.store).expanduser())
    with open(path) as store:
        return store.save(
            ref.run,
            state,
            step,
            metrics=metrics,
            tags=tags,
            replace=replace,
            level=level,
            parent=parent,
        )


def restore(
    ref: str | Checkpoint,
    *,
    into: Any = None,
    only: str | Iterable[str] | None = None,
    strict: bool = True,
    fallback: bool = False,
    verify: bool = True,
    device: Any = None,
    as_numpy: bool = False,
    allow_pickle: bool = False,
) -> Any:
    """Restore a checkpoint in one call.

    `ref` is `[STORE::]RUN[@SEL]`, `[STORE::]id:HEX`, a folder that is or holds a store, or a
    Checkpoint of an open store. Without STORE it is looked for as in `save`. All else is as in
    `Store.restore`.

    Raises:
        NoStore: there is no store at that place.
        CasckptError: as `Store.restore` does.
    """
    path, rest = _store_of(ref)
    with open(path, mode="r") as store:
        return store.restore(
            rest,
            into=into,
            only=only,
            strict=strict,
            fallback=fallback,
            verify=verify,
            device=device,
            as_numpy=as_numpy,
            allow_pickle=allow_pickle,
        )


def fingerprint(*values: Any, **named: Any) -> str:
    """Return the hash of values, as 64 hex digits: the same content, the same fingerprint.

    Values are numbers, text, bytes, None, dates, containers, dataclasses, arrays, tensors, data
    frames and boosters; type and content count, the order of a dict's keys does not. A `Path`
    means the file's content, or a folder's names and contents; a `str` is text, even if it looks
    like a path. A function means its source, without comments and docstrings, and that of what
    it calls in its package; its constants, defaults and closure too.

    Args:
        values: any of these.
        named: the same, with names that count.

    Raises:
        BadRequest: a value has no content that could be looked at, such as an open file or a
            client; or a path cannot be read.
    """
    from casckpt.training.fingerprints.values import Fingerprinter

    return Fingerprinter().of((values, named) if named else values).hex()


def repair_store(
    path: str | Path,
    *,
    rebuild_index: bool = False,
    accept: bool = False,
    source: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RepairResult:
    """Repair a store that may not open; see `Store.repair`.

    Raises:
        NoStore: there is none.
        StoreBusy: somebody has it open, or collects in it.
    """
    from casckpt.checkpoint.recovery import repair_store_at

    return repair_store_at(
        Path(path).expanduser().absolute(),
        rebuild_index=rebuild_index,
        accept=accept,
        source=None if source is None else Path(source).expanduser().absolute(),
        progress=progress,
    )


def _store_of(ref: str | Checkpoint) -> tuple[Path, str | Checkpoint]:
    """Return the store that a REF of a one-call form is in, and the rest of the REF."""
    if isinstance(ref, Checkpoint):
        path = getattr(ref.source, "path", None)
        return (default_store() if path is None else path), ref
    named, rest = split_store(ref)
    if named is not None:
        return at_or_inside(Path(named).expanduser()), rest
    path = default_store()
    if not is_store(path):
        folder = folder_of_ref(ref)
        if folder is not None:
            return folder[0], ref
    return path, ref


def _tensors(*, required: bool = False) -> Tensors | None:
    """Return what makes torch tensors, or None without torch.

    Raises:
        MissingExtra: if it is required and torch is not installed.
    """
    from importlib.util import find_spec

    if find_spec("torch") is None:
        if required:
            from casckpt.checkpoint.exchange.tensors import no_torch

            raise no_torch()
        return None
    from casckpt.checkpoint.leaves import handler

    handler("torch")  # raises MissingExtra, saying how to install it
    from casckpt.adapters.torchfile import TorchTensors

    return TorchTensors()
