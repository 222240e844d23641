"""What people use today, beside the store: one file per checkpoint, flushed to the disk."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_XGBOOST = importlib.util.find_spec("xgboost") is not None

NAME = "torch.save" if HAS_TORCH else "pickle.dump"
READ_NAME = "torch.load" if HAS_TORCH else "pickle.load"


def file_of(folder: Path, run: str, step: int) -> Path:
    """Return where the file of a checkpoint is."""
    return folder / f"{run.replace('/', '-')}-{step:04d}.pt"


def write(path: Path, state: dict[str, Any]) -> None:
    """Write a state, durable on return, as `casckpt.save` is."""
    with path.open("wb") as file:
        if HAS_TORCH:
            import torch

            torch.save(state, file)
        else:
            import pickle

            pickle.dump(state, file, protocol=5)
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> dict[str, Any]:
    """Read a state that this program wrote."""
    if HAS_TORCH:
        import torch

        state: dict[str, Any] = torch.load(path, weights_only=True)
        return state
    import pickle

    with path.open("rb") as file:
        state = pickle.load(file)
    return state
