"""What readers of boosters share: fitted models around one, a first try elsewhere, its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from casckpt.checkpoint.exchange.foreign import try_in_child
from casckpt.checkpoint.exchange.refusals import damaged
from casckpt.checkpoint.exchange.symbols import Node, Resolve

_Booster = TypeVar("_Booster")


class ModelNode(Node):
    """A model of a framework's interface for scikit-learn: its booster and plain parameters."""

    def __init__(self) -> None:
        self._state: dict[Any, Any] = {}

    def build(self, state: Any) -> None:
        """Take the attributes."""
        if type(state) is not dict:
            raise ValueError("the state of a model is no dict")
        self._state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return {"booster", "params"}."""
        if not isinstance(self._state.get("_Booster"), Node):
            raise ValueError("a model that was never fitted")
        params = {
            name: resolve(value)
            for name, value in self._state.items()
            if isinstance(name, str) and not name.startswith("_")
            if isinstance(value, int | float | str | bool | dict | list | tuple)
        }
        return {"booster": resolve(self._state["_Booster"]), "params": params}


def load_tried(
    module: str,
    data: bytes,
    path: str,
    make: Callable[[bytes], _Booster],
    error: type[Exception],
) -> _Booster:
    """Return the booster that `make` reads, once a child has survived reading it.

    Args:
        module: of the framework's reader; has `trial(data)`.
        data: what is to be read.
        path: for messages.
        make: reads it.
        error: what the framework raises for what it cannot read.

    Raises:
        Corrupt: the framework cannot read it.
    """
    try_in_child(module, data, path)
    try:
        return make(data)
    except (ValueError, TypeError, error) as exc:
        raise damaged(path, f"its framework refuses it: {str(exc)[:200]!a}") from exc


def parts_of(value: Any, kind: type) -> dict[str, Any] | None:
    """Return {"booster"} and perhaps "params" of an imported value; None if it is something else.

    Args:
        value: a booster, or the dict that a `ModelNode` becomes.
        kind: the framework's class of boosters.
    """
    found = value if type(value) is dict else {"booster": value}
    is_one = isinstance(found.get("booster"), kind) and set(found) <= {"booster", "params"}
    return found if is_one else None
