"""A training loader that knows where it stands, and can stand there again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from casckpt.training import randomness
from casckpt.training.loops import position
from casckpt.training.loops.boundary import Boundary

_OWN: Final = frozenset(
    {"_loader", "_streams", "_saved", "_boundary", "_place", "_undo", "_is_begun", "current"}
)


class PositionedLoader:
    """Stands for a loader: the same batches and attributes, and a position that can be saved.

    Args:
        loader: the loader.
        streams: the generators of a checkpoint, put back at the right moment: before the first
            pass begins, or inside one after what was consumed has been skipped.
        saved: the position inside a pass; None for the beginning of one.
        boundary: what the loaders carry from one epoch into the next.
        place: number of the loader among those of an epoch.

    Attributes:
        current: the pass that was begun last.
    """

    def __init__(
        self,
        loader: Any,
        streams: Mapping[str, Any],
        saved: Mapping[str, Any] | None,
        boundary: Boundary,
        place: int,
    ) -> None:
        self._loader = loader
        self._streams = streams
        self._saved = saved
        self._boundary = boundary
        self._place = place
        self._undo: Callable[[], None] | None = None
        self._is_begun = False
        self.current: position.Pass | None = None

    def __iter__(self) -> Iterator[Any]:
        """Begin a pass."""
        # Making the iterator draws from the generators. Lightning makes more than one before it
        # takes a batch, so all of them begin with the same generators.
        if self._saved is None:
            randomness.restore(self._streams)
        if self._is_begun:
            self._boundary.again(self._place)
        else:
            inside = self._saved is not None
            self._undo = self._boundary.begin(self._place, self._loader, inside=inside)
        self._is_begun = True
        self.current = position.Pass(self._loader, self._saved, self._undo)
        self._boundary.begun(self._place, self.current)
        return self._batches(self.current)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._loader)

    def _batches(self, current: position.Pass) -> Iterator[Any]:
        if self._saved is not None:
            randomness.restore(self._streams)
        self._streams, self._saved, self._is_begun = {}, None, False
        yield from current

    def state_dict(self) -> dict[str, Any]:
        """Return nothing, for Lightning to see that it can be positioned; casckpt does that."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take nothing."""

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the loader."""
        if name in _OWN:
            raise AttributeError(name)  # while it is being copied
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the loader."""
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self._loader, name, value)
