"""Files and old piles of files as checkpoints of runs; steps, metrics and tags by what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint import exchange
from casckpt.checkpoint.exchange import foreign, piles
from casckpt.checkpoint.exchange.trainers import TrainerFolder, is_trainer_folder
from casckpt.checkpoint.filetrees import Files
from casckpt.errors import BadRequest, CasckptError, FilesLeftOut, StepExists
from casckpt.ids import check_run_name
from casckpt.logs import logger

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.exchange import Tensors
    from casckpt.checkpoint.exchange.piles import Piece
    from casckpt.checkpoint.records import Checkpoint

_STEP_KEYS: Final = ("global_step", "step", "iteration", "num_trees", "epoch", "current_epoch")
"""Where old checkpoints say how far they are, in the order in which they are believed."""

_HEAD_BYTES: Final = 64
_XGBOOST_JSON: Final = {"learner", "version"}


@dataclass(frozen=True)
class Found:
    """What is in a file.

    Attributes:
        state: the state tree to save.
        step: where it stands by its own account, None if it does not say.
        metrics: numbers that it has about itself.
    """

    state: Any
    step: int | None
    metrics: dict[str, float]


class Importer:
    """Takes files into a store.

    Args:
        store: open for writing.
        tensors: makes the leaves of tensor files; None for numpy arrays.
    """

    def __init__(self, store: Store, tensors: Tensors | None) -> None:
        self._store = store
        self._tensors = tensors
        self._left_out: dict[Path, CasckptError] = {}

    def files(self, run: str, paths: Sequence[Path], step: int | None) -> list[Checkpoint]:
        """Import files one by one, and folders as piles; see `Store.import_files`."""
        made = self._made(run, paths, step)
        left_out = list(self._left_out.items())
        if not made and len(left_out) == 1:
            raise left_out[0][1]
        if left_out:
            count = f"{len(left_out)} files were" if len(left_out) > 1 else "a file was"
            raise FilesLeftOut(
                f"{count} left out of the import into {run}",
                "\n".join(_reason(path, exc) for path, exc in left_out),
                checkpoints=made,
                left_out=left_out,
            )
        return made

    def _made(self, run: str, paths: Sequence[Path], step: int | None) -> list[Checkpoint]:
        if not paths:
            raise BadRequest("no files to import", "import_files takes a path or more")
        if len(paths) == 1 and _is_pile(paths[0]):
            if step is not None:
                raise BadRequest(
                    "a step for a folder of many files",
                    "its steps are in the names of the files",
                    "leave the step out, or name the files one by one",
                )
            return self._pile(run, paths[0])
        check_run_name(run)
        made: list[Checkpoint] = []
        for path, at in self._with_steps(paths, step):
            with self._noting(path, BadRequest):
                for name, found in self._found_in(path, run, None):
                    where = found.step if at is None and name != run else at
                    made.append(self._save(name, found, where))
        return made

    def _pile(self, run: str, folder: Path) -> list[Checkpoint]:
        """Import a folder that training scripts have filled over time.

        Raises:
            BadRequest: nothing in it can be imported.
        """
        check_run_name(run)
        made = []
        for name, pieces in piles.by_run(folder, exchange.is_known).items():
            made += self._group(f"{run}/{name}" if name else run, pieces)
        for path, exc in list(self._left_out.items()):
            if not getattr(exc, "is_known", True):  # no checkpoint at all
                logger.info("left out: %s (%s)", path, exc.why)
                del self._left_out[path]
        if not made and not self._left_out:
            raise BadRequest(
                f"cannot import {folder}", "no file in it has a format that casckpt knows"
            )
        return made

    def _group(self, run: str, pieces: Sequence[Piece]) -> list[Checkpoint]:
        """Import the files of one thing: numbered ones in order, then those with a role."""
        numbered: dict[int, Piece] = {}
        for one in pieces:
            if not one.role and one.step is not None:
                numbered.setdefault(one.step, one)
        others = [one for one in pieces if one not in numbered.values()]
        every = piles.spacing(sorted(numbered))
        placed = list(numbered.items())
        late = []
        for one in others:
            at = one.step if one.step is not None else self._own_step(one.path)
            if at is None or at in numbered or any(at == other for other, _ in placed):
                late.append((at, one))
            else:
                placed.append((at, one))
        made: list[Checkpoint] = []
        for at, one in sorted(placed, key=lambda pair: pair[0]):
            with self._noting(one.path, BadRequest):
                for name, found in self._found_in(one.path, run, every):
                    made.append(self._save(name, found, at, _tags(one)))
        for at, one in late:
            with self._noting(one.path, BadRequest):
                for name, found in self._found_in(one.path, run, every):
                    made.append(self._save_beside(name, found, at, one, made))
        return made

    def _save_beside(
        self, run: str, found: Found, at: int | None, piece: Piece, made: Sequence[Checkpoint]
    ) -> Checkpoint:
        """Save what has no step of its own: as a tag of its equal, else in a run below."""
        steps = [one.step for one in made if one.run == run] if at is None else [at]
        for step in reversed(steps):
            try:
                return self._save(run, found, step, _tags(piece))
            except StepExists:
                continue
        name = run if not steps and not piece.role else f"{run}/{piece.role or 'other'}"
        newest = self._store.latest(name)
        return self._save(name, found, 0 if newest is None else newest.step)

    def _save(
        self, run: str, found: Found, step: int | None, tags: tuple[str, ...] = ()
    ) -> Checkpoint:
        return self._store.save(run, found.state, step, metrics=found.metrics or None, tags=tags)

    def _found_in(self, path: Path, run: str, every: int | None) -> list[tuple[str, Found]]:
        """Return (run, what is to be saved there) of a file; nothing if it cannot be read."""
        found: list[tuple[str, Found]] = []
        with self._noting(path, CasckptError):
            found = list(self._read(path, run, every))
        return found

    @contextmanager
    def _noting(self, path: Path, kind: type[CasckptError]) -> Iterator[None]:
        """Leave a file out because of an error of its own; the store's own errors go through."""
        try:
            yield
        except kind as exc:
            self._left_out[path] = exc

    def _own_step(self, path: Path) -> int | None:
        found = self._found_in(path, "x", None)
        return found[0][1].step if len(found) == 1 else None

    def _with_steps(self, paths: Sequence[Path], step: int | None) -> list[tuple[Path, int | None]]:
        """Return the files with the step of each, in the order in which they are saved."""
        if step is not None:
            return [(path, step + at) for at, path in enumerate(paths)]
        by_name = [None if path.is_dir() else piles.step_of(path.stem) for path in paths]
        for steps in (by_name, None):
            known = steps or [self._own_step(path) for path in paths]
            if None not in known and len(set(known)) == len(paths):
                return sorted(zip(paths, known, strict=True), key=lambda pair: pair[1] or 0)
        return [(path, None) for path in paths]

    def _read(self, path: Path, run: str, every: int | None) -> Iterator[tuple[str, Found]]:
        """Yield (run, what is to be saved there) of a file: several for a file of studies."""
        if is_trainer_folder(path):
            yield run, _trainer(path)
            return
        value = exchange.read_file(path, tensors=self._tensors)
        if _is_xgboost(value) and find_spec("xgboost") is not None:
            value = foreign.load("xgboost", path.read_bytes(), str(path))
        if isinstance(value, foreign.Several):
            for name, one in value.items():
                yield from self._found(f"{run}/{piles.clean(name)}", one, every)
        else:
            yield from self._found(run, value, every)

    def _found(self, run: str, value: Any, every: int | None) -> Iterator[tuple[str, Found]]:
        continued = foreign.run_state(value, every)
        if continued is not None:
            yield run, Found(continued[0], continued[1], {})
        else:
            yield run, Found(value, _step_in(value), _metrics_in(value))


def _reason(path: Path, error: CasckptError) -> str:
    what = error.what if str(path) in error.what else f"{path}: {error.what}"
    return f"{what} ({error.why})" if error.why else what


def _is_pile(path: Path) -> bool:
    return path.is_dir() and not is_trainer_folder(path) and not (path / "tree.json").is_file()


def _trainer(path: Path) -> Found:
    """Return a Trainer's folder as files, for it is a Trainer that goes on from them.

    Raises:
        PickleRefused: what going on unpickles would run code.
    """
    folder = TrainerFolder.of(path)
    for one in folder.pickles():
        exchange.read_file(one)
    return Found(Files(path), folder.step, folder.metrics)


def _tags(piece: Piece) -> tuple[str, ...]:
    return (f"imported-{piece.role}",) if piece.role else ()


def _is_xgboost(value: Any) -> bool:
    if type(value) is bytes:
        return b"learner" in value[:_HEAD_BYTES]
    return type(value) is dict and set(value) == _XGBOOST_JSON and type(value["learner"]) is dict


def _step_in(value: Any) -> int | None:
    if not isinstance(value, dict):
        return None
    for key in _STEP_KEYS:
        found = value.get(key)
        if type(found) is int and found >= 0:
            return found
    return None


def _metrics_in(value: Any) -> dict[str, float]:
    """Return the numbers that a checkpoint has about itself: floats at its top, and `metrics`."""
    if not isinstance(value, dict):
        return {}
    inner = value.get("metrics")
    pairs = [(name, one) for name, one in value.items() if type(one) is float]
    if isinstance(inner, dict):
        pairs += [(name, one) for name, one in inner.items() if type(one) in (int, float)]
    return {
        name: float(one)
        for name, one in pairs
        if isinstance(name, str) and name and name.isprintable() and not math.isinf(one)
    }
