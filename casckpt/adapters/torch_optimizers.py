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
    return list(optimizer_problems(shapes, plain))


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
