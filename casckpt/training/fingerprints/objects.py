"""What functions, classes and objects hold, and where they come from."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import dis
import fractions
import functools
import re
import sys
import types
import uuid
from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final

PLAIN: Final = (int, float, complex, str, bytes, bool, type(None))

BY_REPR: Final = (
    datetime.date,
    datetime.time,
    datetime.timedelta,
    datetime.tzinfo,
    decimal.Decimal,
    fractions.Fraction,
    uuid.UUID,
    range,
    slice,
    re.Pattern,
    type(Ellipsis),
    type(NotImplemented),
)
"""Types whose repr says all there is to them, and whose values nobody changes."""


def first_function(value: Any) -> Any:
    """Return what is called in the end by way of partials, methods and decorators."""
    while True:
        if isinstance(value, functools.partial):
            value = value.func
        elif isinstance(value, types.MethodType | staticmethod | classmethod):
            value = value.__func__
        elif hasattr(value, "__wrapped__") and not isinstance(value, types.FunctionType):
            value = value.__wrapped__
        else:
            return value


def parts(member: Any) -> list[tuple[str, Any]]:
    """Return (kind, part) of what a class has under a name: a property is up to three functions."""
    if isinstance(member, functools.cached_property):
        return [("", member.func)]
    if isinstance(member, property):
        parts = [("", member.fget), (" set", member.fset), (" del", member.fdel)]
        return [one for one in parts if one[1] is not None]
    return [("", getattr(member, "fget", member))]


def holds(value: Any) -> list[tuple[str, Any]]:
    """Return (name, object) of what a wrapper holds, in order of name."""
    held: dict[str, Any] = {}
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not filled yet
                held[name] = cell.cell_contents
        registry = held.get("registry")
        if isinstance(registry, Mapping):  # functools.singledispatch
            held.update(
                (f"for {getattr(cls, '__qualname__', cls)}", registry[cls]) for cls in registry
            )
    else:
        held.update(getattr(value, "__dict__", None) or {})
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:
        held["__wrapped__"] = wrapped
    return sorted(
        ((name, one) for name, one in held.items() if type(name) is str), key=itemgetter(0)
    )


def is_generated(member: Any) -> bool:
    """Return whether a member was made by `dataclass` and its like from the fields."""
    return isinstance(member, types.FunctionType) and member.__code__.co_filename == "<string>"


def names_of(code: types.CodeType) -> set[str]:
    """Return all names in a function and in those inside it, of globals and of attributes."""
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_of(constant)
    return names


@functools.lru_cache(maxsize=4096)
def globals_read_by(code: types.CodeType) -> frozenset[str]:
    """Return the names of its module that a function and those inside it read, and do not set."""
    read: set[str] = set()
    bound: set[str] = set()
    waiting = [code]
    for one in waiting:
        waiting += [const for const in one.co_consts if isinstance(const, types.CodeType)]
        for step in dis.get_instructions(one):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                read.add(step.argval)
            elif step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                bound.add(step.argval)
    return frozenset(read - bound)


def key_text(key: Any) -> str:
    """Return a key of a table without an address in it."""
    return repr(key) if is_plain(key) else place(key)[1]


def place(value: Any) -> tuple[str, str, int]:
    """Return where something was written, to order what has no order."""
    value = first_function(value)
    code = getattr(value, "__code__", None)
    name = getattr(value, "__qualname__", type(value).__qualname__)
    return str(getattr(value, "__module__", "")), name, getattr(code, "co_firstlineno", 0)


def is_plain(value: Any) -> bool:
    """Return whether a value is a number, text or a tuple of them, which nobody changes."""
    if isinstance(value, tuple | frozenset):
        return all(map(is_plain, value))
    return isinstance(value, PLAIN)


def is_number(value: Any) -> bool:
    """Return whether a value is a scalar of numpy: a number like Python's, which nobody changes."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)
