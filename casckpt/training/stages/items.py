"""The items of a stage: in what order, under which key, and what each is."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from casckpt import native
from casckpt.errors import BadRequest
from casckpt.training.fingerprints.values import Fingerprinter

if TYPE_CHECKING:
    from casckpt.training.fingerprints.files import FileHashes


@dataclass(slots=True)
class Unit:
    """One piece of work: an item, and all those equal to it.

    Attributes:
        key: as the user has it.
        name: the key as text.
        identity: hash of everything that makes its result what it is.
        index: place of the (first) item.
    """

    key: Any
    name: str
    identity: bytes
    index: int


class Items:
    """Items in their order. Nothing is loaded before it is asked for.

    Args:
        items: a mapping of key to item, a sequence, or any iterable, which is read once.
        key: gives an item's key.
        where: what errors call the stage.
    """

    def __init__(self, items: Any, key: Callable[[Any], Any] | None, where: str) -> None:
        self._key = key
        self._where = where
        self._keys: list[Any] | None = None
        self._items: Any = items
        if isinstance(items, str | bytes | PurePath):
            raise BadRequest(
                f"the items of {where} are a single {type(items).__name__}",
                "a stage works through many",
                "pass a list",
            )
        if isinstance(items, Mapping):
            self._keys = list(items)
        elif hasattr(items, "iloc"):
            self._items = _of_frame(items, where)
        elif not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            self._items = list(_iterable(items, where))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        """Return the item at a place."""
        return self._items[index if self._keys is None else self._keys[index]]

    def units(
        self, files: FileHashes, stage: str, uses: Any, version: str
    ) -> tuple[list[Unit], list[int]]:
        """Return the units in order of their first item, and the unit of each item.

        Args:
            files: hashes of paths.
            stage: name of the stage.
            uses: what else results depend on.
            version: the user's number for it.

        Raises:
            BadRequest: an item has no fingerprint, or two different ones have the same key.
        """
        prints = Fingerprinter(files)
        base = prints.of((stage, version), "the version") + prints.of(uses, "uses")
        units: list[Unit] = []
        places: list[int] = []
        of_name: dict[str, int] = {}
        for index in range(len(self)):
            item = self[index]
            content = prints.of(item, f"item {index} of {self._where}")
            key = self._key_of(index, item, content)
            name = key_text(key)
            if name is None:
                name = prints.of(key, f"the key of item {index} of {self._where}").hex()
            text = name.encode("utf-8", "surrogatepass")
            identity = native.blake3(base + content + text)
            known = of_name.setdefault(name, len(units))
            if known == len(units):
                units.append(Unit(key, name, identity, index))
            elif units[known].identity != identity:
                raise BadRequest(
                    f"two items of {self._where} have the key {name!r:.80}",
                    f"items {units[known].index} and {index} differ",
                    "pass key=, a function from an item to a key of its own",
                )
            places.append(known)
        return units, places

    def _key_of(self, index: int, item: Any, content: bytes) -> Any:
        if self._keys is not None and self._key is None:
            return self._keys[index]
        if self._key is not None:
            key = self._key(item)
            if key_text(key) is None:
                raise BadRequest(
                    f"key={key!r:.80} of item {index} of {self._where}",
                    "a key is a str, an int or a path",
                )
            return key
        return item if key_text(item) is not None else content.hex()


def key_text(key: Any) -> str | None:
    """Return a key as text; None for what has none of its own."""
    if type(key) is str:
        return key
    if type(key) is int:
        return str(key)
    if isinstance(key, str):
        return str(key)
    if isinstance(key, PurePath):
        return os.fspath(key)
    if isinstance(key, numbers.Integral) and not isinstance(key, bool):
        return str(int(key))
    return None


def _iterable(items: Any, where: str) -> Iterable[Any]:
    if not isinstance(items, Iterable):
        raise BadRequest(
            f"the items of {where} are a {type(items).__name__}",
            "they are a mapping, a sequence or an iterable",
        )
    return items


def _of_frame(items: Any, where: str) -> Sequence[Any]:
    """Return the values of a series; a frame does not say what its items are."""
    if hasattr(items, "columns"):
        raise BadRequest(
            f"the items of {where} are a data frame",
            "iterating over one gives its columns",
            "pass frame['column'], or frame.to_dict('records')",
        )
    return items.tolist()  # type: ignore[no-any-return]
