"""A contender: one way to keep checkpoints in a folder, and casckpt's own entry in the race.

A contender opens a folder, saves states durably (on return, every byte is fsynced) and loads them
back. One that cannot run here says why in `missing()`; the benchmarks then name it as missing
instead of leaving it out in silence.
"""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from bench.trees import assert_equal


class Contender:
    """One way to keep checkpoints in a folder."""

    name = "?"
    module: str | None = None
    program: str | None = None
    imports: tuple[str, ...] = ()  # loaded before a fresh process is timed

    def missing(self) -> str | None:
        """Return why this contender cannot run here, or None."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the Python package {self.module} is not installed"
        if self.program and shutil.which(self.program) is None:
            return f"the program {self.program} is not installed"
        return None

    def open(self, folder: Path) -> None:
        """Start with an empty folder, or go on with one that this class has written."""
        self.folder = folder

    @property
    def kept(self) -> Path:
        """The folder whose bytes are the price of keeping the checkpoints."""
        return self.folder

    def save(self, step: int, state: Any) -> None:
        """Put a state on the disk; durable on return."""
        raise NotImplementedError

    def load(self, step: int) -> Any:
        """Return the state of a step in fresh memory."""
        raise NotImplementedError

    def check(self, step: int, state: Any) -> None:
        """Load a step, and raise AssertionError unless it is what was saved, bit for bit."""
        assert_equal(state, self.load(step), self.name)

    def close(self) -> None:
        """Release what `open` took."""


class Casckpt(Contender):
    """The system under test: one store, one run, verified restores."""

    module = "casckpt.api"
    imports = ("casckpt.api", "casckpt.torch")

    def __init__(self, level: str = "balanced") -> None:
        """Choose the level of every save."""
        self.level = level
        self.name = f"casckpt {level}"

    def open(self, folder: Path) -> None:
        """Open or create the store."""
        import casckpt

        super().open(folder)
        self.store = casckpt.open(folder / "store")

    def save(self, step: int, state: Any) -> None:
        """Save one checkpoint; casckpt's saves are durable when they return."""
        self.store.save("bench", state, step, level=self.level)

    def load(self, step: int) -> Any:
        """Restore; every chunk's BLAKE3 is checked, which is casckpt's default."""
        return self.store.restore(f"bench@{step}")

    def close(self) -> None:
        """Close the store."""
        self.store.close()


def split_missing(contenders: list[Contender]) -> tuple[list[Contender], dict[str, str]]:
    """Separate contenders that can run from those that cannot, with the reason of each."""
    reasons = {c.name: reason for c in contenders if (reason := c.missing())}
    return [c for c in contenders if c.name not in reasons], reasons
