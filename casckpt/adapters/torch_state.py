"""The state of a torch training loop: `State` that knows wrapped modules.

DistributedDataParallel and torch.compile put a module into another one, which shows in the names
of its parameters. A checkpoint holds the names of the module itself, so that it fits with and
without the wrappers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final

from casckpt.adapters import missing_extra
from casckpt.training.state import State as PlainState

try:
    import torch
except ModuleNotFoundError as exc:
    raise missing_extra("torch") from exc

_COMPILED: Final = "_orig_mod"
_PARALLEL: Final = (torch.nn.parallel.DistributedDataParallel, torch.nn.DataParallel)


class State(PlainState):
    """Named parts of a torch training loop; each is an attribute.

        state = casckpt.torch.State(model=model, optimizer=optimizer, scaler=scaler, best=0.0)
        state.best = 0.9

    Modules, optimizers, schedulers, gradient scalers, averaged models, generators, tensors and
    plain values. Modules are saved without the prefixes of DistributedDataParallel, DataParallel
    and torch.compile, also where only a part of a module is compiled. On restore, modules and
    tensors take their values in place.

    Args:
        parts: name to part.

    Raises:
        BadRequest: a part has a name that State needs itself.
    """

    def _shown(self, part: Any) -> Any:
        if isinstance(part, torch.nn.Module):
            module = bare(part)
            return BareModule(module) if _has_compiled_parts(module) else module
        return super()._shown(part)


class BareModule:
    """A module of which parts are wrapped, with the names of the parts themselves.

    Args:
        module: the module; its own wrappers are off.
    """

    casckpt_into: ClassVar[str] = "shown"
    """Its `state_dict()` is the module's memory; see casckpt/checkpoint/into.py."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module

    def state_dict(self) -> dict[str, Any]:
        """Return the module's tensors by their bare names; the memory is the module's."""
        state = self.module.state_dict()
        result: OrderedDict[str, Any] = OrderedDict(
            (bare_name(name), value) for name, value in state.items()
        )
        metadata = getattr(state, "_metadata", None)
        if metadata is not None:
            bare_metadata: OrderedDict[str, Any] = OrderedDict()
            for name, value in metadata.items():
                bare_metadata.setdefault(bare_name(name), value)
            result._metadata = bare_metadata  # type: ignore[attr-defined]
        return result

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load tensors by their bare names.

        Raises:
            RuntimeError: with `strict`, if names are missing or unknown.
        """
        own = {bare_name(name): name for name in self.module.state_dict()}
        named = OrderedDict((own.get(name, name), value) for name, value in state.items())
        self.module.load_state_dict(named, strict=strict)

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Yield the module's parameters by their bare names."""
        for name, parameter in self.module.named_parameters():
            yield bare_name(name), parameter


def bare(module: torch.nn.Module) -> torch.nn.Module:
    """Return a module without the wrappers around it."""
    while True:
        if isinstance(module, _PARALLEL):
            module = module.module
        elif isinstance(getattr(module, _COMPILED, None), torch.nn.Module):
            module = getattr(module, _COMPILED)
        else:
            return module


def bare_name(name: str) -> str:
    """Return the name of a parameter without the marks of torch.compile."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _has_compiled_parts(module: torch.nn.Module) -> bool:
    return any(_COMPILED in name.split(".") for name, _ in module.named_modules())
