"""What an optimizer of `into` takes, dtypes included."""

from __future__ import annotations

from typing import Any, Final

import torch

from casckpt.checkpoint.into_parts import optimizer_problems

_PLACED_BY_TORCH: Final = "step"
"""The one name that torch never casts, but to what its fused and capturable kernels need."""


def state_problems(optimizer: torch.optim.Optimizer, plain: Any) -> list[str]:
    """Say why an optimizer could not take a state."""
    groups = optimizer.param_groups
    shapes = [[tuple(item.shape) for item in group["params"]] for group in groups]
    return list(optimizer_problems(shapes, plain)) or _missing_settings(optimizer, plain)


def _missing_settings(optimizer: torch.optim.Optimizer, plain: dict[str, Any]) -> list[str]:
    """Say which settings a saved state lacks that the optimizer's class works with.

    torch takes saved groups as they are, so that another class's fail at its first step. Settings
    that came with a newer torch are added to older groups by `__setstate__`, on a copy here.
    """
    needed = getattr(optimizer, "defaults", {}).keys()
    groups = [{**group, "params": []} for group in plain["param_groups"]]
    if all(needed <= group.keys() for group in groups):
        return []
    copy = object.__new__(type(optimizer))
    try:
        copy.__setstate__({"state": {}, "param_groups": groups, "defaults": {}})
    except Exception:
        return []  # it needs more than torch's own; its load_state_dict will tell
    return [
        f"group {place}: no {name!r} in the checkpoint, which was of another optimizer "
        f"than {type(optimizer).__name__}"
        for place, group in enumerate(groups)
        for name in sorted(needed - group.keys())[:1]
    ]


def load_optimizer(optimizer: torch.optim.Optimizer, plain: dict[str, Any]) -> None:
    """Have an optimizer take a state without a cast.

    torch takes every floating-point parameter's state to be of the parameter's dtype and casts it:
    the float32 moments of a bfloat16 parameter lose bits, and so do counts and masks beside it.
    What an optimizer's own `load_state_dict` does is left alone.
    """
    optimizer.load_state_dict(plain)
    load = getattr(optimizer.load_state_dict, "__func__", None)
    if load is not torch.optim.Optimizer.load_state_dict:
        return
    numbers = [number for group in plain["param_groups"] for number in group["params"]]
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        if parameter in optimizer.state and number in plain["state"]:
            loaded = optimizer.state[parameter]
            optimizer.state[parameter] = _uncast(loaded, plain["state"][number], parameter.dtype)


def _uncast(loaded: Any, saved: Any, dtype: torch.dtype) -> Any:
    """Return what was loaded, with the saved values where torch has cast them to `dtype`."""
    if isinstance(loaded, torch.Tensor) and isinstance(saved, torch.Tensor):
        return saved.to(loaded.device) if loaded.dtype == dtype != saved.dtype else loaded
    if isinstance(loaded, dict) and isinstance(saved, dict):
        for name in loaded.keys() & saved.keys() - {_PLACED_BY_TORCH}:
            loaded[name] = _uncast(loaded[name], saved[name], dtype)
    elif type(loaded) in (list, tuple) and type(saved) is type(loaded):
        return type(loaded)(_uncast(*pair, dtype) for pair in zip(loaded, saved, strict=True))
    return loaded
