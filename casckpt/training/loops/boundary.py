"""What loaders carry from one epoch into the next: generators of their own, or a state.

At the end of an epoch it goes into the checkpoint, by the place of each pass in the epoch, and back
before that pass of the next epoch. A loader that is made or seeded anew in each epoch carries
nothing: its pass does not begin where the one before ended, which is seen from the second epoch on.
After the first one a loader gets back what its place had if it stands as that one stood before
anything was drawn from it, as a loader does that was made again by the same program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from casckpt import native
from casckpt.errors import BadLeaf
from casckpt.logs import logger
from casckpt.training import extras
from casckpt.training.loops import position

KEPT_BYTES: Final = 256 * 1024
"""Largest state of a loader that is kept. Generators take 5 KiB; what a checkpoint has beside its
state is limited (`extras.LIMIT_BYTES`), and a list of a dataset's order must end no training."""


@dataclass
class _Seen:
    """The loader of one place: how its first pass found it, and whether later ones went on."""

    loader: Any
    first: str
    goes_on: bool | None
    end: str = ""


class Boundary:
    """The loaders of an epoch's passes, in order, between epochs."""

    def __init__(self, saved: Mapping[int, Any]) -> None:
        """Wait for the loaders of a checkpoint.

        Args:
            saved: what `capture` returned; empty for none.
        """
        self._waiting = dict(saved)
        self._seen: dict[int, _Seen] = {}
        self._returned: dict[int, Any] = {}
        self._has_said = False

    def begin(self, place: int, loader: Any, *, inside: bool = False) -> Callable[[], None] | None:
        """Put a loader back before its pass begins.

        Args:
            place: number of the pass in its epoch.
            loader: what is passed over.
            inside: the pass goes on from a position, which holds more than is kept here.

        Returns:
            What undoes it, if a state was put back: the state of a loader at its end may give an
            empty pass, after which the loader begins as the program made it.
        """
        as_made = _held(loader, set())
        held = _digest(as_made)
        saved = self._waiting.pop(place, None)
        self._returned.pop(place, None)
        if saved is not None:
            goes_on = saved["goes_on"]
            self._seen[place] = _Seen(loader, saved["first"], goes_on)
            if not inside and (goes_on or (goes_on is None and held and held == saved["first"])):
                self._returned[place] = saved["held"]
                _put_back(loader, saved["held"])
                if "state" in saved["held"]:
                    return lambda: _put_back(loader, as_made)
            return None
        seen = self._seen.setdefault(place, _Seen(loader, held, None))
        if seen.end and not inside:
            seen.goes_on = held == seen.end and seen.goes_on is not False
        seen.loader = loader
        return None

    def again(self, place: int) -> None:
        """Begin the same pass once more: nothing was taken from it yet but what `iter` draws."""
        if place in self._returned:
            _put_back(self._seen[place].loader, self._returned[place])

    def capture(self) -> dict[int, Any]:
        """Return what the next epoch's loaders need, as a tree that a checkpoint can hold."""
        found = dict(self._waiting)
        taken: set[int] = set()
        for place, seen in sorted(self._seen.items()):
            held = _held(seen.loader, taken)
            seen.end = _digest(held)
            if held and not seen.end:
                self._say_left_out()
            elif held:
                kept = {} if seen.goes_on is False else held
                found[place] = {"first": seen.first, "goes_on": seen.goes_on, "held": kept}
        return found

    def _say_left_out(self) -> None:
        if not self._has_said:
            self._has_said = True
            logger.warning(
                "a loader's state_dict() is not kept between epochs: it is above %d KiB, or holds "
                "what no checkpoint can; after a resume the loader begins as the program makes it",
                KEPT_BYTES // 1024,
            )


def _held(loader: Any, taken: set[int]) -> dict[str, Any]:
    """Return what a loader holds; objects in `taken` are another's, and its own are added."""
    if position.kind_of(loader) == "own" and not hasattr(loader, "batch_sampler"):
        if id(loader) in taken:
            return {}
        taken.add(id(loader))
        try:
            return {"state": loader.state_dict()}
        except Exception:  # between passes a loader need not be able to say
            return {}
    # A loader of torch's kind, at its end, may have a state that gives an empty pass next.
    generators = position.generators_of(loader, taken)
    return {"generators": generators} if generators else {}


def _put_back(loader: Any, held: Mapping[str, Any]) -> None:
    if "state" in held:
        loader.load_state_dict(held["state"])
    position.restore_generators(loader, held.get("generators", {}))


def _digest(held: Mapping[str, Any]) -> str:
    """Return a hash of what a loader holds; empty if that cannot be kept."""
    try:
        text = json.dumps(extras.pack(held), sort_keys=True)
    except BadLeaf:
        return ""
    if len(text) > KEPT_BYTES:
        return ""
    return native.blake3(text.encode()).hex()[:16]
