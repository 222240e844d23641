"""Old piles of checkpoint files: what the names of the files say.

model_epoch_5.pth  model_epoch_10.pth  model_latest.pth  model_best.pth      one run, "model"
xgb_100.json  xgb_200.json  nn_epoch20.pt  study.db                          three runs
checkpoint-500/  checkpoint-1000/  model.safetensors                         one run, of folders
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

from casckpt.checkpoint.exchange.trainers import TrainerFolder, is_trainer_folder
from casckpt.errors import CasckptError

ROLES: Final = ("best", "latest", "last", "final")
"""Words by which piles name what is not numbered."""

_DECIMAL = re.compile(r"\d+\.\d+(?:e[+-]?\d+)?", re.IGNORECASE)
_INTEGER = re.compile(r"\d+")
_UNITS: Final = ("step", "iter", "round", "tree", "epoch", "trial", "checkpoint", "ckpt")
"""Words beside the number that counts, the finer ones first: Lightning names epoch and step."""
_NEAR = [
    *(re.compile(rf"{unit}[a-z]*[-_=. ]*(\d+)", re.IGNORECASE) for unit in _UNITS),
    *(re.compile(rf"(\d+)[-_. ]*{unit}", re.IGNORECASE) for unit in _UNITS),
]
_ROLE = re.compile(rf"(?:^|[-_. ])({'|'.join(ROLES)})(?=$|[-_. ])", re.IGNORECASE)
_WEIGHTS: Final = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
"""How a Trainer names the weights of a model of one file."""

_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]+")
_COUNTED = re.compile(
    rf"[-_=. ]*(?:{'|'.join(_UNITS)})[a-z]*[-_=. ]*\d+|\d+[-_=. ]*(?:{'|'.join(_UNITS)})s?|\d+",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Piece:
    """One file of a pile, or one folder of a Trainer.

    Attributes:
        path: the file.
        step: the number in its name, None if there is none; of a folder, what it says itself.
        role: best, latest, last or final; empty for a numbered one.
    """

    path: Path
    step: int | None
    role: str

    @staticmethod
    def of(path: Path) -> Piece:
        """Return what a file's name says."""
        found = _ROLE.search(path.stem)
        return Piece(path, step_of(path.stem), found[1].lower() if found else "")


def step_of(stem: str) -> int | None:
    """Return the number in a name that counts steps: beside such a word, else the last one."""
    text = _DECIMAL.sub(" ", stem)
    for pattern in _NEAR:
        if found := pattern.findall(text):
            return int(found[-1])
    numbers = _INTEGER.findall(text)
    return int(numbers[-1]) if numbers else None


def by_run(folder: Path, is_known: Callable[[Path], bool]) -> dict[str, list[Piece]]:
    """Return the files below a folder by what they are checkpoints of.

    Keys are names of runs below the one imported to; a pile of one thing has the empty key.
    Hidden files, links and files of no known format are left out; and what is beside the folders
    of a Trainer, but for the weights that it wrote at the end.
    """
    found: dict[str, list[Piece]] = {}
    trainers = [path for path in sorted(folder.rglob("*")) if is_trainer_folder(path)]
    homes = {path.parent for path in trainers}
    for home in sorted(homes):
        name = "/".join(map(clean, home.relative_to(folder).parts))
        found[name] = _of_trainer(home, [path for path in trainers if path.parent == home])
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_symlink() or not path.is_file() or any(part[0] == "." for part in parts):
            continue
        if path.parent in homes or any(path.is_relative_to(one) for one in trainers):
            continue
        if not is_known(path):
            continue
        name = "/".join(filter(None, [*map(clean, parts[:-1]), _subject(path.stem)]))
        found.setdefault(name, []).append(Piece.of(path))
    named = [name for name in found if name]
    if "" in found and len(named) == 1:  # best.pth beside epoch_5.pth
        found[named[0]] += found.pop("")
    return {"": found.popitem()[1]} if len(found) == 1 else found


def _of_trainer(home: Path, paths: list[Path]) -> list[Piece]:
    """Return the checkpoint folders of one Trainer, and the weights that it left at the end."""
    folders, pieces = [], []
    for path in paths:
        try:
            folders.append(TrainerFolder.of(path))
        except CasckptError:
            pieces.append(Piece(path, step_of(path.name), ""))  # whoever reads it is told why
    folders.sort(key=lambda one: one.step)
    best = folders[-1].best if folders else ""
    pieces += [
        Piece(one.path, one.step, "best" if one.path.name == best else "") for one in folders
    ]
    final = [Piece(home / name, None, "final") for name in _WEIGHTS if (home / name).is_file()]
    return pieces + final[:1]


def spacing(steps: list[int]) -> int | None:
    """Return the distance between the numbers of a pile, None if it has fewer than two."""
    distances = [after - before for before, after in pairwise(steps)]
    return min(distances, default=None)


def _subject(stem: str) -> str:
    """Return a name without numbers and roles: what the file is a checkpoint of."""
    return clean(_COUNTED.sub("", _ROLE.sub("", _DECIMAL.sub("", stem))))


def clean(text: str) -> str:
    """Return a text as part of a run's name; it may be empty."""
    return re.sub(r"[-_.]{2,}", "_", _NOT_IN_NAMES.sub("_", text)).strip("-_.")
