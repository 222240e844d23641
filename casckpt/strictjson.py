"""What strict JSON has no place for, spelled: not-a-number and the infinities are texts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

FLOAT_OF_TEXT: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def spelled(value: float) -> float | str:
    """Return a float itself if it is finite, else the text that stands for it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def plain(value: Any) -> Any:
    """Return a value as strict JSON holds it, all that is in it too; tuples and sets are lists."""
    if isinstance(value, float):
        return spelled(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value
