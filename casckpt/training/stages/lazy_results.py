"""The results of a stage, read when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

from casckpt.errors import NotFound
from casckpt.training import results

if TYPE_CHECKING:
    from casckpt.training.stages.items import Unit
    from casckpt.training.stages.rows import Shelf


class Results(Sequence[Any]):
    """Results in the order of the items: a sequence that reads each one anew.

    Made by `Stage.results` and `Stage.map`. None stands for an item that failed,
    or that was not worked on since `run.stop()` ended `map`.
    """

    def __init__(
        self,
        stage: str,
        units: Sequence[Unit],
        places: Sequence[int],
        shelves: Mapping[int, Shelf],
    ) -> None:
        """Name the units, the unit of each item, and where the results of units are."""
        self._stage = stage
        self._units = units
        self._places = places
        self._shelves = shelves

    def __len__(self) -> int:
        """Return how many items there are."""
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        """Return the result of the item at a place; a list of them for a slice.

        Raises:
            NotFound: the stage was cleared meanwhile.
            Corrupt: its bytes are damaged.
        """
        if isinstance(index, slice):
            return [self._read(number) for number in self._places[index]]
        return self._read(self._places[index])

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        """Return how it is pickled and copied: as a list of what it reads."""
        return list, (list(self),)

    def __iter__(self) -> Iterator[Any]:
        """Yield the results in the order of the items."""
        for number in self._places:
            yield self._read(number)

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Yield (key, result) in the order of the items."""
        for number in self._places:
            yield self._units[number].key, self._read(number)

    def __repr__(self) -> str:
        """Return the stage and the count."""
        return f"<{len(self)} results of stage {self._stage}>"

    def _read(self, number: int) -> Any:
        shelf = self._shelves.get(number)
        if shelf is None:
            return None
        unit = self._units[number]
        where = f"{unit.name:.80} of stage {self._stage}"
        row = shelf.repository.row(shelf.table, shelf.done_key(unit.identity))
        if row is None:
            raise NotFound(
                f"there is no result of {where} any more",
                "the stage was cleared",
                "run the stage again",
            )
        return results.read(shelf.repository, row, where)
