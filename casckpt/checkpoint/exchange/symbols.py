"""What the pickle machine works on: names with a meaning, values under construction, safe keys."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from casckpt.checkpoint.exchange.machine import Machine

MAPPINGS: Final = (dict, OrderedDict, defaultdict, Counter)
"""The classes of dict a pickle may make; assigning to their keys runs nothing of the file's."""

_KEY_DEPTH_MAX: Final = 16
_KEY_PARTS_MAX: Final = 256
_KEY_TYPES: Final = (str, int, float, bool, bytes, type(None))

Resolve = Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class Symbol:
    """What a name in a pickle stands for; `make` is what calling it does, if it may be called."""

    name: str
    make: Callable[[tuple[Any, ...]], Any] | None = None
    value: Any = None


class Node:
    """A value under construction: BUILD may complete it, `finish` turns it into a leaf."""

    logical_bytes: int = 0
    """What saving the finished value would read, apart from its parts."""

    def build(self, state: Any) -> None:
        """Take the state that BUILD brings.

        Raises:
            ValueError: if this value takes none.
        """
        del state
        raise ValueError(f"a {type(self).__name__} takes no state")

    def follow(self, machine: Machine) -> None:
        """Read what stands in the file behind BUILD; with most values nothing does."""

    def finish(self, resolve: Resolve) -> Any:
        """Return the finished value; `resolve` finishes the parts."""
        raise NotImplementedError


def hashable(key: Any) -> Any:
    """Return `key` if it may key a dict: plain scalars and small tuples of them.

    Hashing a deep tuple overflows the C stack, hashing a large one again and again takes hours,
    and integers beyond 64 bits can be made to collide, which takes hours too.

    Raises:
        ValueError: for anything else.
    """
    if type(key) is str:
        return key
    pending: list[tuple[Any, int]] = [(key, 0)]
    count = 0
    while pending:
        part, depth = pending.pop()
        count += 1
        kind = type(part)
        if kind is tuple and depth < _KEY_DEPTH_MAX and len(part) <= _KEY_PARTS_MAX:
            pending += [(item, depth + 1) for item in part]
        elif kind not in _KEY_TYPES or (kind is int and not -(1 << 64) < part < 1 << 64):
            raise ValueError(f"a {kind.__name__} used as a key")
        if count > _KEY_PARTS_MAX:
            raise ValueError(f"a key of more than {_KEY_PARTS_MAX} parts")
    return key
