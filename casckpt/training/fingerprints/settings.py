"""What an object is besides its state dict or its content: its class, and its settings.

`nn.AvgPool2d(2)` and `nn.ReLU()` have the same empty state dict. No framework is imported: a module
is what has `named_modules`.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import functools
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from casckpt.checkpoint.leaves import root_of
from casckpt.training.fingerprints.spelling import put

if TYPE_CHECKING:
    from casckpt.training.fingerprints.values import Fingerprinter

_DEPTH: Final = 8
_PLAIN: Final = (
    int, float, complex, str, bytes, type(None), range, enum.Enum, type,
    types.FunctionType, types.BuiltinFunctionType, functools.partial,
)  # fmt: skip

_MACHINERY: Final = frozenset({
    # In the state dict, or written on their own.
    "_parameters", "_buffers", "_modules", "param_groups", "state",
    # Not settings: how it is used right now, and copies of weights.
    "training", "_is_full_backward_hook", "_compiled_call_impl", "_is_hf_initialized",
    "_flat_weights", "_flat_weight_refs", "__orig_class__",
})  # fmt: skip


def write_settings(
    to: Fingerprinter,
    value: Any,
    out: bytearray,
    where: str,
    above: tuple[Any, ...] = (),
) -> None:
    """Append what an object with a state dict is besides that, with all modules in it."""
    classes: dict[type, Any] = {}
    with to.leniently():
        for name, part in _parts(value):
            classes.setdefault(type(part), part)
            put(out, b"M", f"{name}:{type(part).__qualname__}")
            code = _code_text(part)
            if code is not None:
                put(out, b"m", code)
            for key, held in sorted(vars(part).items() if hasattr(part, "__dict__") else ()):
                if key not in _MACHINERY and "_hook" not in key:
                    put(out, b"k", key)
                    _write_one(to, held, out, f"{where}.{key}", (*above, value))
            for key in sorted(getattr(part, "_non_persistent_buffers_set", ())):
                put(out, b"k", f"buffer {key}")
                to.write(part._buffers.get(key), out, where)
        for part in classes.values():
            to.code_writer().write_class_of(part, out, where)


def settings_of(value: Any) -> dict[str, Any]:
    """Return the attributes of an object whose value is a setting."""
    held = getattr(value, "__dict__", None) or {}
    return {
        name: one
        for name, one in sorted(held.items())
        if type(name) is str and name not in _MACHINERY and is_setting(one)
    }


def _write_one(
    to: Fingerprinter, value: Any, out: bytearray, where: str, above: tuple[Any, ...]
) -> None:
    if is_setting(value):
        to.write(value, out, where)
    elif callable(getattr(value, "state_dict", None)) and not any(one is value for one in above):
        write_settings(to, value, out, where, above)
    else:
        put(out, b"?", type(value).__qualname__)


def _parts(value: Any) -> list[tuple[str, Any]]:
    named = getattr(value, "named_modules", None)
    if not callable(named):
        return [("", value)]
    try:
        # One module at two places is called twice.
        return list(named(remove_duplicate=False))
    except TypeError:
        return list(named())


def _code_text(part: Any) -> str | None:
    """Return the code of a scripted or traced module, whose class says nothing."""
    if not isinstance(getattr(type(part), "code", None), property):
        return None
    try:
        code = part.code
    except Exception:  # what a framework raises for a module without a forward
        return None
    return code if isinstance(code, str) else None


def is_setting(value: Any, depth: int = _DEPTH) -> bool:
    """Return whether a value is plain through and through: no module, no path, no client."""
    if isinstance(value, _PLAIN):
        return True
    if depth == 0:
        return False
    if isinstance(value, list | tuple | set | frozenset):
        return all(is_setting(one, depth - 1) for one in value)
    if isinstance(value, Mapping):
        return all(is_setting(k, 1) and is_setting(v, depth - 1) for k, v in value.items())
    if isinstance(value, types.SimpleNamespace | argparse.Namespace):
        return is_setting(vars(value), depth)
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return all(is_setting(getattr(value, one.name, None), depth - 1) for one in fields)
    # Arrays and tensors, which need not be buffers.
    return root_of(value) is not None and hasattr(value, "dtype") and hasattr(value, "shape")
