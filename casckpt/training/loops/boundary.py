"""What loaders carry from one epoch into the next: generators of their own, or a state.

At the end of an epoch it goes into the checkpoint, by the place of each pass in the epoch, and back
before that pass of the next epoch. A place may have several loaders by turns; each is known again
by how it stood before anything was drawn from it, as a loader does that was made again by the same
program. A loader that is made or seeded anew in each epoch carries nothing: it begins alike, or not
where its last pass ended, which is seen from the second epoch on.
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from casckpt import native
from casckpt.errors import BadLeaf
from casckpt.logs import logger
from casckpt.training import extras
from casckpt.training.loops import position

KEPT_BYTES: Final = 256 * 1024
"""Largest state of a loader that is kept. Generators take 5 KiB; what a checkpoint has beside its
state is limited (`extras.LIMIT_BYTES`), and a list of a dataset's order must end no training."""

_BY_TURNS: Final = 3
"""Loaders that are kept of one place, the last ones used: a curriculum has so many."""

_LEFT_OUT: Final = (
    "a loader's state_dict() is not kept between epochs: it is above %d KiB, or holds what no "
    "checkpoint can; after a resume the loader begins as the program makes it"
)
_BROKEN_OFF: Final = (
    "a loader with state_dict() was left at batch %d of %d: after a resume between epochs it goes "
    "on with that pass, as its state says, also if it begins a new one otherwise"
)


@dataclass
class _Seen:
    """A loader of one place: how its first pass found it, and whether later ones went on.

    Attributes:
        first: hash of what it held then.
        goes_on: whether a pass began where the one before had ended; None until there were two.
        loader: returns it, or None if it is gone.
        end: hash of what it held at the end of its last epoch; empty if nothing is to be kept.
        held: that itself.
        generators: numbers (`id`) of the generators in it.
    """

    first: str
    goes_on: bool | None = None
    loader: Callable[[], Any] = lambda: None
    end: str = ""
    held: dict[str, Any] = field(default_factory=dict)
    generators: frozenset[int] = frozenset()


class Boundary:
    """The loaders of an epoch's passes, in order, between epochs."""

    def __init__(self, saved: Mapping[int, Any]) -> None:
        """Wait for the loaders of a checkpoint.

        Args:
            saved: what `capture` returned; empty for none.
        """
        self._waiting = {
            place: [_Seen(one["first"], one["goes_on"], held=one["held"]) for one in kept]
            for place, kept in saved.items()
        }
        self._seen: dict[int, list[_Seen]] = {}  # of each place, the last one used at the end
        self._loaders: dict[int, Any] = {}
        self._passes: dict[int, position.Pass] = {}
        self._returned: dict[int, Any] = {}
        self._said: set[str] = set()

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
        found = _digest(as_made)
        self._loaders[place] = loader
        self._passes.pop(place, None)
        self._returned.pop(place, None)
        seen = self._seen.setdefault(place, [])
        known = next((one for one in seen if one.loader() is loader), None)
        waiting = None if known is not None else self._take_waiting(place, found)
        if known is not None:
            if known.end and not inside:
                known.goes_on = found == known.end and known.goes_on is not False
        elif waiting is not None:
            known = waiting
        elif follows := next((one for one in seen if one.end and one.end == found), None):
            known = follows  # made anew around a generator that lives on
            known.goes_on = known.goes_on is not False
        elif alike := next((one for one in seen if one.first == found), None):
            known = alike
            known.goes_on = False
        else:
            known = _Seen(found)
        known.loader = _reference(loader)
        self._seen[place] = [*(one for one in seen if one is not known), known]
        if waiting is None or inside or not waiting.held:
            return None
        self._returned[place] = waiting.held
        _put_back(loader, waiting.held)
        return (lambda: _put_back(loader, as_made)) if "state" in waiting.held else None

    def begun(self, place: int, current: position.Pass) -> None:
        """Take note of a pass that was begun, to know at the end of the epoch where it was left."""
        self._passes[place] = current

    def again(self, place: int) -> None:
        """Begin the same pass once more: nothing was taken from it yet but what `iter` draws."""
        if place in self._returned:
            _put_back(self._loaders[place], self._returned[place])

    def capture(self) -> dict[int, Any]:
        """Return what the next epoch's loaders need, as a tree that a checkpoint can hold."""
        taken: set[int] = set()
        for place, loader in sorted(self._loaders.items()):
            self._look(place, loader, taken)
        found: dict[int, Any] = {}
        for place in sorted({*self._waiting, *self._seen}):
            kept = [
                *self._waiting.get(place, ()),
                *(one for one in self._seen.get(place, ()) if one.end),
            ]
            if kept:
                found[place] = [
                    {"first": one.first, "goes_on": one.goes_on, "held": one.held}
                    for one in kept[-_BY_TURNS:]
                ]
        return found

    def _take_waiting(self, place: int, found: str) -> _Seen | None:
        """Return what a checkpoint has of a loader that stands like this."""
        waiting = self._waiting.get(place, [])
        chosen = next((one for one in waiting if found and one.first == found), None)
        if chosen is None:
            # A state may say from the start what another start never says again, such as a seed.
            going = [one for one in waiting if one.goes_on and "state" in one.held]
            chosen = going[-1] if going else None
        if chosen is not None:
            waiting.remove(chosen)
        return chosen

    def _look(self, place: int, loader: Any, taken: set[int]) -> None:
        """See what the loader that a place has had last holds now."""
        before = frozenset(taken)
        held = _held(loader, taken)
        mine = self._seen[place][-1]
        mine.end = _digest(held) if held else ""
        mine.generators = frozenset(taken) - before
        if held and not mine.end:
            self._say(_LEFT_OUT, KEPT_BYTES // 1024)
        current = self._passes.get(place)
        if "state" in held and current is not None and (left := current.left_at) is not None:
            self._say(_BROKEN_OFF, *left)
        mine.held = {} if mine.goes_on is False else held
        for other in self._seen[place][:-1]:
            if other.generators & taken:
                other.end = ""  # the generator has gone on with this loader

    def _say(self, text: str, *facts: int) -> None:
        if text not in self._said:
            self._said.add(text)
            logger.warning(text, *facts)


def _reference(loader: Any) -> Callable[[], Any]:
    """Return what gives the loader as long as somebody else keeps it."""
    try:
        return weakref.ref(loader)
    except TypeError:  # a list has no generators to be known by
        return lambda: None


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
