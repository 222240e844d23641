"""Checkpoint folders of Hugging Face's Trainer: how they are told, and what they say of themselves.

    out/checkpoint-500/     trainer_state.json  model.safetensors  optimizer.pt  scheduler.pt
                            rng_state.pth  training_args.bin  ...
    out/                    what the model was at the end, beside them

Source: transformers/trainer.py (`_save_checkpoint`), trainer_callback.py (`TrainerState`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from casckpt.checkpoint.exchange.refusals import damaged
from casckpt.errors import OperationFailed

STATE_NAME: Final = "trainer_state.json"

_STATE_BYTES_MAX: Final = 256 << 20
_PICKLES: Final = (".pt", ".pth", ".bin")
_NEVER_LOADED: Final = "training_args.bin"
"""Whole objects of transformers. A Trainer writes it and does not read it."""


@dataclass(frozen=True)
class TrainerFolder:
    """What a checkpoint folder says of itself.

    Attributes:
        path: the folder.
        step: steps that are done.
        metrics: what was logged and evaluated at this step.
        best: name of the folder that was best so far; empty if none was.
    """

    path: Path
    step: int
    metrics: dict[str, float]
    best: str

    @staticmethod
    def of(path: Path) -> TrainerFolder:
        """Return what a folder says for which `is_trainer_folder` is true.

        Raises:
            Corrupt: its state is none.
            OperationFailed: it cannot be read.
        """
        file = path / STATE_NAME
        try:
            if file.stat().st_size > _STATE_BYTES_MAX:
                raise ValueError("it is far too long")
            state = json.loads(file.read_text("utf-8"))
            step, history = state["global_step"], state["log_history"]
            best = state.get("best_model_checkpoint")
            if type(step) is not int or step < 0:
                raise ValueError("its global_step is no number of steps")
            metrics = metrics_at(history, step)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise damaged(str(file), f"it is no state of a Trainer: {str(exc)[:100]!a}") from exc
        except OSError as exc:
            raise OperationFailed(
                f"cannot read {file}", exc.strerror or str(exc), "check the file and its disk"
            ) from exc
        name = best.replace("\\", "/").rpartition("/")[2] if isinstance(best, str) else ""
        return TrainerFolder(path, step, metrics, name)

    def pickles(self) -> list[Path]:
        """Return the files that going on from it unpickles."""
        return sorted(
            one
            for one in self.path.iterdir()
            if one.suffix in _PICKLES and one.name != _NEVER_LOADED and one.is_file()
        )


def is_trainer_folder(path: Path) -> bool:
    """Return whether a folder is a Trainer's checkpoint, not one that holds several of them."""
    return (path / STATE_NAME).is_file() and not any(
        (one / STATE_NAME).is_file() for one in path.glob("checkpoint-*")
    )


def metrics_at(history: Iterable[Mapping[str, Any]], step: int) -> dict[str, float]:
    """Return what a Trainer's history has of one step."""
    found: dict[str, float] = {}
    for entry in history:
        if entry.get("step") == step:
            found.update(
                {
                    name: float(value)
                    for name, value in entry.items()
                    if name not in ("step", "epoch") and isinstance(value, int | float)
                }
            )
    return found
