"""Named records in a state tree: namedtuples and dataclasses.

A checkpoint names the class; restore takes it only if the running program has it already, under
that name and with those fields. Nothing is imported, no constructor and no `__post_init__` runs, so
bytes from a stranger cannot choose code.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import logging
import sys
from collections.abc import Sequence
from typing import Any, Final

_log = logging.getLogger("casckpt")

FIELD_COUNT_MAX: Final = 10_000
"""More fields than any class written by hand or by a generator."""

_HEAP_TYPE: Final = 1 << 9
"""Flag of the classes that a class statement makes; classes of C without it hold more."""


def is_namedtuple(value: object) -> bool:
    """Return whether `value` is a namedtuple that holds its fields and nothing else."""
    return _has_fields(value) and not unkept(value)


def is_dataclass(value: object) -> bool:
    """Return whether `value` is an instance of a dataclass that holds its fields and no more."""
    return _is_dataclass(value) and _is_made_of_fields(type(value)) and not unkept(value)


def is_record(value: object) -> bool:
    """Return whether `value` has fields: a namedtuple or a dataclass, whatever else it holds."""
    return _has_fields(value) or _is_dataclass(value)


def unkept(value: object) -> list[str]:
    """Return what a namedtuple or dataclass holds beside its fields, which would not come back.

    What a cached_property has computed is computed again.
    """
    if not is_record(value):
        return []
    fields = field_names(value)
    return [
        name
        for name in (*getattr(value, "__dict__", ()), *_filled_slots(value))
        if name not in fields
        and not isinstance(getattr(type(value), name, None), functools.cached_property)
    ]


def _filled_slots(value: object) -> list[str]:
    found = []
    for cls in type(value).__mro__:
        slots = vars(cls).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            own = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            if own not in ("__dict__", "__weakref__") and hasattr(value, own):
                found.append(own)
    return found


def _is_made_of_fields(cls: type) -> bool:
    """Return whether no class of C is above it but object: an Exception, a deque hold more."""
    return all(one is object or one.__flags__ & _HEAP_TYPE for one in cls.__mro__)


def _has_fields(value: object) -> bool:
    fields = getattr(type(value), "_fields", None)
    return (
        isinstance(value, tuple)
        and isinstance(fields, tuple)
        and len(fields) == len(value)
        and all(type(name) is str for name in fields)
    )


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def class_name(cls: type) -> list[str]:
    """Return [module, qualified name]."""
    return [cls.__module__, cls.__qualname__]


def field_names(value: Any) -> list[str]:
    """Return the fields of a namedtuple or dataclass, in order."""
    if isinstance(value, tuple):
        return list(type(value)._fields)  # type: ignore[attr-defined]
    return [item.name for item in dataclasses.fields(value)]


def find_class(module: str, qualified_name: str) -> type | None:
    """Return a class that this process already has, or None; imports and runs nothing."""
    found: Any = sys.modules.get(module)
    if found is None:
        return None
    for name in qualified_name.split("."):
        # vars(), not getattr(): a module's __getattr__ could import, a metaclass could run code.
        namespace = getattr(found, "__dict__", None)
        if namespace is None or name not in namespace:
            return None
        found = namespace[name]
    return found if isinstance(found, type) else None


def make_namedtuple(name: Sequence[str], fields: Sequence[str], values: Sequence[Any]) -> Any:
    """Return a namedtuple of the class of that name, or of a stand-in."""
    cls = find_class(*name)
    if cls is not None and issubclass(cls, tuple) and _fields_of(cls) == tuple(fields):
        return tuple.__new__(cls, values)
    return stand_in(name, fields, values)


def _fields_of(cls: type) -> object:
    """Return what a class, or the namedtuple that it extends by methods, has as fields."""
    return next((vars(one)["_fields"] for one in cls.__mro__ if "_fields" in vars(one)), None)


def make_dataclass(name: Sequence[str], fields: Sequence[str], values: Sequence[Any]) -> Any:
    """Return an instance of the dataclass of that name, or a stand-in namedtuple."""
    cls = find_class(*name)
    if (
        cls is None
        or not dataclasses.is_dataclass(cls)
        or [item.name for item in dataclasses.fields(cls)] != list(fields)
    ):
        return stand_in(name, fields, values)
    try:
        instance = object.__new__(cls)
    except TypeError:  # it extends a class of C: older versions of casckpt saved such
        return stand_in(name, fields, values)
    for field, value in zip(fields, values, strict=True):
        object.__setattr__(instance, field, value)
    return instance


def stand_in(name: Sequence[str], fields: Sequence[str], values: Sequence[Any]) -> Any:
    """Return a namedtuple of that name and those fields, and say so."""
    _log.warning(
        "%s.%s with the fields (%s) is not loaded in this program: a namedtuple of that name "
        "comes back; import its module before restore, or pass into=",
        name[0],
        name[1],
        ", ".join(fields),
    )
    simple = name[1].rpartition(".")[2]
    if not simple.isidentifier():
        simple = "Restored"
    make: Any = collections.namedtuple
    try:
        cls = make(simple, fields, rename=True)
    except ValueError:  # a keyword
        cls = make("Restored", fields, rename=True)
    return tuple.__new__(cls, values)
