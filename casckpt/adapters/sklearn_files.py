"""Pickled estimators of scikit-learn, read by their arrays: no pickle is loaded."""

from __future__ import annotations

from typing import Any

from casckpt.adapters.sklearn_objects import is_called, make_object, own_class
from casckpt.checkpoint.exchange.symbols import Node, Resolve, Symbol
from casckpt.errors import CasckptError


class ObjectNode(Node):
    """An object of scikit-learn: its class, and the parts that it is made of."""

    def __init__(self, module: str, name: str, made: str, arguments: tuple[Any, ...]) -> None:
        self._about = {"class": [module, name], "made": made}
        self._arguments = arguments
        self._state: Any = None

    def build(self, state: Any) -> None:
        """Take the attributes."""
        self._state = state

    def finish(self, resolve: Resolve) -> Any:
        """Return the object."""
        arguments = tuple(resolve(part) for part in self._arguments)
        try:
            return make_object(self._about, arguments, resolve(self._state))
        except CasckptError:
            raise
        except Exception as exc:  # what its own __setstate__ makes of hostile attributes
            raise ValueError(f"scikit-learn refuses it: {str(exc)[:200]}") from exc


def symbol(module: str, name: str, path: str) -> Symbol | None:
    """Return what a name of scikit-learn in a pickle means: a class, never a function."""
    if name.startswith("__pyx_unpickle_"):
        return Symbol(f"{module}.{name}", _compiled)
    try:
        made = "call" if is_called(own_class(module, name)) else "new"
    except CasckptError:
        return None
    return Symbol(
        f"{module}.{name}", lambda args: ObjectNode(module, name, made, args), value=(module, name)
    )


def _compiled(args: tuple[Any, ...]) -> ObjectNode:
    """Return an object of a compiled class: (class, checksum of its fields, state)."""
    kind = args[0] if args else None
    if not isinstance(kind, Symbol) or type(kind.value) is not tuple:
        raise ValueError("an object of a class outside scikit-learn")
    module, name = kind.value
    node = ObjectNode(module, name, "new", ())
    node.build(args[2] if len(args) > 2 else None)
    return node
