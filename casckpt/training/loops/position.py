"""Where a pass over a loader stands, and how to stand there again.

Three kinds of loader can be put back. One with `state_dict` and `load_state_dict` does it itself.
A sequence, and a torch DataLoader over a dataset with `__getitem__`, are replayed: the pass begins
anew with the generators as they were when it began, and what was consumed is skipped. Anything
else (a generator, an iterable dataset) cannot: then nothing is saved inside an epoch.

Source of the rule when generators go back (after `iter`, since `iter` itself draws): torch's
`_BaseDataLoaderIter` draws the base seed, `RandomSampler` the seed of its permutation. Workers that
stay (`persistent_workers=True`) are given a seed by the first pass of a process alone; it is drawn
from a copy of the generator, so that a first pass draws what later ones do.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from types import GeneratorType
from typing import Any, Final, Literal

from casckpt.logs import logger
from casckpt.training import randomness
from casckpt.training.state import STREAM, GeneratorPart, is_generator

Kind = Literal["own", "replay", "none"]

_KINDS: Final[dict[str, str]] = {
    "own": "one with state_dict()",
    "replay": "one whose batches are skipped",
    "none": "one that cannot be put back",
}

_DEPTH: Final = 4
"""Loader, batch sampler, sampler, and one that wraps it."""


class Pass:
    """One pass over a loader, from its start or from a saved position.

    Attributes:
        kind: how the loader can be put back.
        count: batches that were consumed, all sessions.
        is_anew: whether the position was of no use to the loader, and the pass began anew.
    """

    def __init__(
        self,
        loader: Any,
        saved: Mapping[str, Any] | None = None,
        undo: Callable[[], None] | None = None,
    ) -> None:
        """Begin a pass.

        Args:
            loader: what is iterated.
            saved: what `position` returned, to stand there; None for the start.
            undo: takes back what was done to the loader before; called if the pass is empty.
        """
        self._undo = undo
        self._loader = loader
        self.kind = kind_of(loader)
        self.count = 0
        self._begun: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}
        self._is_ahead = False
        self._fetched = 0
        self._is_over = self.is_anew = False
        if saved is not None and (why := _unlike(loader, saved)):
            logger.warning("a loader is not the one whose position was saved: %s", why)
            saved, self.is_anew = None, True
        # Older positions say nothing of it: their first pass drew the seed of workers that stay.
        self._is_aside = saved is None or bool(saved.get("seed_aside"))
        if saved is None:
            if self.kind == "replay":
                self._begun = generators_of(loader)
                self._streams = randomness.capture()
            self._iterator: Iterator[Any] = self._iter()
        else:
            self._return_to(saved)
        self._start = self.count
        self._is_ahead = self.kind == "replay" and _fetches_ahead(loader, self._iterator)

    def __iter__(self) -> Iterator[Any]:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Return the next batch; it counts as consumed when the next one is asked for."""
        if self._is_ahead:
            self._asked = randomness.capture()
        undo, self._undo = self._undo, None
        try:
            batch = self._take()
        except StopIteration:
            if undo is None:
                self._is_over = True
                raise
            undo()
            self._iterator = self._iter()
            batch = self._take()
        self._fetched += 1
        return batch

    @property
    def is_at_end(self) -> bool:
        """Whether no batch is left; False also where the loader does not say its length."""
        return self.kind != "none" and self.count == _length(self._loader)

    @property
    def left_at(self) -> tuple[int, int] | None:
        """Batches that were given and batches there are, if the pass was left before its end.

        None also where the loader does not say its length, as a stream that goes on for ever.
        """
        length = _length(self._loader)
        given = self._start + self._fetched
        return None if self._is_over or length is None or given >= length else (given, length)

    def position(self, *, given: bool = False) -> dict[str, Any] | None:
        """Return a plain tree that says where the pass stands, None if that cannot be said.

        Args:
            given: count the last batch as consumed, although the next one was not asked for.
        """
        if self.kind == "none":
            return None
        count = self._start + self._fetched if given else self.count
        position: dict[str, Any] = {"kind": self.kind, "count": count}
        position["seed_aside"] = self._is_aside
        position["length"] = _length(self._loader)
        if self.kind == "own":
            position["loader"] = self._loader.state_dict()
        else:
            position["begun"] = {"streams": self._streams, "held": self._begun}
            position["held"] = generators_of(self._loader)
            if self._is_ahead:
                position["asked"] = self._asked
        return position

    def _return_to(self, saved: Mapping[str, Any]) -> None:
        self.count = int(saved["count"])
        if saved["kind"] == "own":
            if is_finished(self._loader, saved):
                # A finished loader's state may replay the end, or give an empty next pass.
                self._iterator = iter(())
                return
            self._loader.load_state_dict(saved["loader"])
            self._iterator = self._iter()
            return
        begun = saved["begun"]
        self._begun, self._streams = begun["held"], begun["streams"]
        randomness.restore(self._streams)
        restore_generators(self._loader, self._begun)
        self._iterator = self._iter()
        if "asked" in saved and self.count:
            # The batch after this one was fetched in the same call, with generators that the
            # training had drawn from meanwhile.
            self._is_ahead = True
            self._skip(self.count - 1)
            self._asked = saved["asked"]
            randomness.restore(self._asked)
            self._take()
        else:
            self._skip(self.count)
        restore_generators(self._loader, saved["held"])

    def _iter(self) -> Iterator[Any]:
        with _seed_aside(self._loader, self._is_aside):
            return iter(self._loader)

    def _take(self) -> Any:
        if not self._is_ahead:
            return next(self._iterator)
        with _seed_aside(self._loader, self._is_aside):  # its iterator is made by the first one
            return next(self._iterator)

    def _skip(self, count: int) -> None:
        with _seed_aside(self._loader, self._is_aside):
            _skip(self._iterator, self._loader, count)


def _unlike(loader: Any, saved: Mapping[str, Any]) -> str:
    """Return why a position is of no use to a loader; empty if it may be."""
    kind, length = kind_of(loader), _length(loader)
    begins = "its pass begins anew"
    if kind != saved["kind"]:
        return f"it was put back as {_KINDS[saved['kind']]}, now it is {_KINDS[kind]}; {begins}"
    if kind == "replay" and length is not None and length != saved.get("length", length):
        return f"it had {saved['length']} batches, now {length}; {begins}"
    if kind == "replay" and length is not None and int(saved["count"]) > length:
        return f"{saved['count']} batches were consumed, and it has {length}; {begins}"
    return ""


def is_finished(loader: Any, saved: Mapping[str, Any]) -> bool:
    """Return whether a position is the end of a pass over a loader that has a state of its own."""
    length = _length(loader) if kind_of(loader) == "own" else None
    return saved["kind"] == "own" and length is not None and int(saved["count"]) >= length


def kind_of(loader: Any) -> Kind:
    """Return how a loader can be put back."""
    has_state = all(
        callable(getattr(loader, name, None)) for name in ("state_dict", "load_state_dict")
    )
    # accelerate's loaders always have the methods, and a state only if they were asked to.
    if has_state and getattr(loader, "use_stateful_dataloader", True):
        return "own"
    if hasattr(loader, "batch_sampler") and hasattr(loader, "dataset"):
        # A torch DataLoader. Over an iterable dataset its order is the dataset's own affair.
        is_map = hasattr(loader.dataset, "__getitem__") and not hasattr(loader.dataset, "__next__")
        return "replay" if is_map and not _is_iterable_dataset(loader.dataset) else "none"
    if isinstance(loader, Sequence | Mapping):
        return "replay"
    has_items = hasattr(loader, "__getitem__") and hasattr(loader, "__len__")
    return "replay" if has_items and not hasattr(loader, "__next__") else "none"


def missing_of(kind: Kind) -> tuple[str, ...]:
    """Return what a checkpoint lacks because of the loader's kind."""
    return ("position of the loader",) if kind == "none" else ()


def _is_iterable_dataset(dataset: Any) -> bool:
    return any(cls.__name__ == "IterableDataset" for cls in type(dataset).__mro__)


def _fetches_ahead(loader: Any, iterator: Any) -> bool:
    """Return whether a batch is fetched before the one before it is handed out.

    accelerate's loaders do that, in the process itself: a DataLoader whose iterator is a
    generator and not torch's own.
    """
    return hasattr(loader, "batch_sampler") and isinstance(iterator, GeneratorType)


@contextlib.contextmanager
def _seed_aside(loader: Any, is_wanted: bool) -> Iterator[None]:
    """Have torch take the seed of workers that stay from a copy of the loader's generator.

    Only the first pass of a process gives them one (`_BaseDataLoaderIter.__init__`). A process that
    goes on makes workers anew before what was a later pass of the one that was killed, and whatever
    that draws, nothing drew there. The seed itself is the one that torch would have drawn.
    """
    torch = sys.modules.get("torch")
    base = getattr(loader, "base_dataloader", loader)  # accelerate's stand for one of torch
    stay = getattr(base, "persistent_workers", False) and getattr(base, "num_workers", 0) > 0
    if not is_wanted or torch is None or not stay or getattr(base, "_iterator", base) is not None:
        yield
        return
    own = base.generator
    device = torch.empty(()).device if own is None else own.device
    copy = torch.Generator(device)
    if own is not None or device.type == "cpu":
        copy.set_state((own or torch.default_generator).get_state())
    else:
        copy.manual_seed(torch.initial_seed())
    base.generator = copy
    try:
        yield
    finally:
        base.generator = own


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _skip(iterator: Iterator[Any], loader: Any, count: int) -> None:
    """Consume `count` batches; without loading them where torch lets us."""
    indices = getattr(iterator, "_sampler_iter", None)
    if indices is not None and getattr(loader, "num_workers", None) == 0:
        # In the process itself nothing is fetched ahead: taking indices is all a batch costs.
        skipped = sum(1 for _ in islice(indices, count))
        if hasattr(iterator, "_num_yielded"):
            iterator._num_yielded += skipped
        return
    for _ in islice(iterator, count):
        pass


def _holders(loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, object) of the loader and the samplers inside it."""
    waiting = [("loader", loader)]
    seen: set[int] = set()
    for _ in range(_DEPTH):
        below: list[tuple[str, Any]] = []
        for path, one in waiting:
            if id(one) in seen:
                continue
            seen.add(id(one))
            yield path, one
            for name in ("batch_sampler", "sampler"):
                inner = getattr(one, name, None)
                if inner is not None:
                    below.append((f"{path}.{name}", inner))
        waiting = below


def generators_of(loader: Any, taken: set[int] | None = None) -> dict[str, Any]:
    """Return the states of the generators that a loader and its samplers hold as attributes.

    Args:
        loader: the loader.
        taken: numbers (`id`) of generators to leave out; those found are added.
    """
    found, before = {}, frozenset(taken or ())
    for path, generator in _generators(loader):
        if id(generator) in before:
            continue
        found[path] = _stream_of(generator)
        if taken is not None:
            taken.add(id(generator))
    return found


def restore_generators(loader: Any, states: Mapping[str, Any]) -> None:
    """Put back what `generators_of` returned; a generator that is not there is left out."""
    for path, generator in _generators(loader):
        if path in states:
            GeneratorPart(generator).load_state_dict({STREAM: states[path]})


def _generators(loader: Any) -> Iterator[tuple[str, Any]]:
    """Yield (path, generator) of the loader and its samplers.

    FORMAT: one called `generator`, as in torch, has the path of its holder: positions and the
    hashes of `boundary` know it by that, and others were not kept before.
    """
    holders = list(_holders(loader))
    seen = set()
    for path, one in holders:
        named = getattr(one, "generator", None)
        if is_generator(named) or (hasattr(named, "get_state") and hasattr(named, "set_state")):
            seen.add(id(named))
            yield path, named
    for path, one in holders:
        for name, part in sorted(getattr(one, "__dict__", {}).items()):
            if id(part) not in seen and is_generator(part):
                seen.add(id(part))
                yield f"{path}.{name}", part


def _stream_of(generator: Any) -> Any:
    return GeneratorPart(generator).state_dict()[STREAM]
