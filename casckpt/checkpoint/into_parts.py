"""The tree given as `into`, looked at: its containers, how its parts pair up, what differs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from casckpt.checkpoint import leaves as leaf_module
from casckpt.checkpoint import tree_classes
from casckpt.checkpoint.scalars import encode_key

_LISTED_MAX: Final = 6
_LIKE_THE_PARAMETER: Final = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
)
"""State that torch's optimizers keep in the shape of the parameter; they do not check it."""


@dataclass
class Differences:
    """What keeps `into` from taking a checkpoint.

    Attributes:
        missing: paths of `into` that the checkpoint lacks.
        extra: paths of the checkpoint that `into` lacks.
        wrong: "path: what is different" where both have something.
    """

    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return one text per kind of difference, long lists cut."""
        kinds = (
            ("missing in the checkpoint", self.missing),
            ("extra in the checkpoint", self.extra),
            ("different", self.wrong),
        )
        return [
            f"{name}: {'; '.join(found[:_LISTED_MAX])}"
            + (f" and {len(found) - _LISTED_MAX} more" if len(found) > _LISTED_MAX else "")
            for name, found in kinds
            if found
        ]

    def hint(self) -> str:
        """Return what to do, where the differences show it; else empty."""
        if self.extra and {_unwrapped(path) for path in self.extra} & {*self.missing}:
            return (
                "the names were saved from a DataParallel or DDP model: pass the wrapped model, or "
                "restore without `into` and take `module.` off the names"
            )
        if self.missing and {_unwrapped(path) for path in self.missing} & {*self.extra}:
            return (
                "the names were saved from the model itself: pass `model.module`, not its wrapper"
            )
        if self.wrong and all(": dtype " in text for text in self.wrong):
            return "restore without `into`, and convert: {name: value.to(dtype) ...}"
        return ""


def _unwrapped(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != "module")


def is_object(target: Any) -> bool:
    """Return whether it gives and takes its state as a plain tree."""
    return (
        not isinstance(target, type)
        and callable(getattr(target, "state_dict", None))
        and callable(getattr(target, "load_state_dict", None))
    )


def is_array(target: Any) -> bool:
    """Return whether it is an array or tensor."""
    handler = leaf_module.handler_of(target)
    return handler is not None and handler.is_leaf(target)


def type_text(target: Any) -> str:
    """Return the name of its class."""
    return f"{type(target).__module__}.{type(target).__qualname__}".removeprefix("builtins.")


def child_kind(target: Any) -> str | None:
    """Return "dict", "fields" or "items" for a container, else None."""
    if isinstance(target, dict):
        return "dict"
    if tree_classes.is_record(target):
        return "fields"
    # What a library has derived from list or tuple is one value, saved whole, as torch.Size is.
    own = isinstance(target, list | tuple) and leaf_module.root_of(target) is None
    return "items" if own else None


def items_of(target: Any) -> list[tuple[Any, Any]]:
    """Return (key, part) of a container."""
    if isinstance(target, dict):
        return list(target.items())
    if tree_classes.is_record(target):
        return [(name, getattr(target, name)) for name in tree_classes.field_names(target)]
    return list(enumerate(target)) if isinstance(target, list | tuple) else []


def keyed(tag: str | None, target: Any, pairs: Any) -> list[tuple[Any, tuple[Any, Any]]]:
    """Give each pair the name by which both sides are compared.

    Dict keys by type and bits (1 is not True); fields by name if both have names, else by place.
    """
    if tag == "d":
        result = []
        for key, value in pairs:
            try:
                result.append((json.dumps(encode_key(key)), (key, value)))
            except TypeError:
                result.append((key, (key, value)))
        return result
    if tag in ("n", "D") and child_kind(target) == "fields":
        return [(key, (key, value)) for key, value in pairs]
    return [(place, pair) for place, pair in enumerate(pairs)]


def is_pure(target: Any) -> bool:
    """Return whether a container holds plain values only: nothing with memory to be kept."""
    return all(
        not is_array(value) and not is_object(value) and is_pure(value)
        for _, value in items_of(target)
    )


def replace_parts(target: Any, pairs: list[tuple[Any, Any]]) -> Any:
    """Return `target` with parts replaced: in place where it can be changed."""
    if isinstance(target, dict | list):
        for key, value in pairs:
            if target[key] is not value:
                target[key] = value
        return target
    old = dict(items_of(target))
    changed = [(key, value) for key, value in pairs if old[key] is not value]
    if not changed:
        return target
    if isinstance(target, tuple):
        return tuple.__new__(type(target), (old | dict(changed)).values())
    if type(target).__dataclass_params__.frozen:
        target = copy.copy(target)
    for key, value in changed:
        object.__setattr__(target, key, value)
    return target


def optimizer_problems(shapes: list[list[tuple[int, ...]]], plain: Any) -> Iterator[str]:
    """Say why an optimizer could not take a state: other groups, other shapes.

    Args:
        shapes: of the optimizer's parameters, by group.
        plain: the saved state; arrays may be stood for by anything with a `shape`.
    """
    groups = plain.get("param_groups") if isinstance(plain, dict) else None
    if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
        yield "something else in the checkpoint, an optimizer in into"
        return
    if len(groups) != len(shapes):
        yield f"{len(groups)} parameter groups in the checkpoint, {len(shapes)} in into"
        return
    numbers: list[Any] = []
    for place, (group, own) in enumerate(zip(groups, shapes, strict=True)):
        saved = group.get("params")
        if not isinstance(saved, list) or len(saved) != len(own):
            count = len(saved) if isinstance(saved, list) else 0
            yield f"group {place}: {count} parameters in the checkpoint, {len(own)} in into"
            return
        numbers += saved
    state = plain.get("state")
    flat = [shape for own in shapes for shape in own]
    for number, shape in zip(numbers, flat, strict=True):
        parts = state.get(number) if isinstance(state, dict) else None
        for name in _LIKE_THE_PARAMETER:
            found = getattr(parts.get(name), "shape", None) if isinstance(parts, dict) else None
            if found is not None and tuple(found) != shape:
                yield f"state.{number}.{name}: shape {found} in the checkpoint, {shape} in into"
