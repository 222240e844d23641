"""Sums that do not depend on the order in which their parts came."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

Number = int | float

_LIMIT: Final = 2.0**970
"""Above this, sums of a few doubles could overflow on the way; such values are added plainly."""


class ExactSum:
    """A sum of numbers, exact until it is read, so that every order gives the same.

    An interrupted stage adds its items in another order than one that was not; rounding after
    each addition would make the totals differ in the last bits.

    Source: Shewchuk, "Adaptive Precision Floating-Point Arithmetic" (1997), as in `math.fsum`.
    """

    def __init__(self) -> None:
        """Start at nothing."""
        self.count = 0
        self._whole = 0
        self._partials: list[float] = []
        self._special = 0.0
        self._is_float = False

    def add(self, number: Number) -> None:
        """Add one number."""
        self.count += 1
        if isinstance(number, int):
            self._whole += number
            return
        self._is_float = True
        if not abs(number) < _LIMIT:
            self._special += number
            return
        kept = 0
        for partial in self._partials:
            if abs(number) < abs(partial):
                number, partial = partial, number
            high = number + partial
            low = partial - (high - number)
            if low:
                self._partials[kept] = low
                kept += 1
            number = high
        self._partials[kept:] = [number]

    @property
    def value(self) -> Number:
        """The sum: an int if all parts were."""
        if not self._is_float:
            return self._whole
        return math.fsum([*self._partials, self._whole]) + self._special

    @property
    def mean(self) -> float:
        """The sum by the count of parts."""
        return self.value / self.count


class Sums:
    """Sums by name."""

    def __init__(self) -> None:
        """Start without any."""
        self._sums: dict[str, ExactSum] = {}

    def add(self, numbers: Mapping[str, Number]) -> None:
        """Add the numbers of one result."""
        for name, number in numbers.items():
            self._sums.setdefault(name, ExactSum()).add(number)

    def totals(self) -> dict[str, Number]:
        """Return the sums."""
        return {name: one.value for name, one in sorted(self._sums.items())}

    def means(self) -> dict[str, float]:
        """Return sums by how many results had the number."""
        return {name: one.mean for name, one in sorted(self._sums.items())}
