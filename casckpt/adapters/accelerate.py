"""accelerate: the state of a training that an Accelerator has prepared, for a run's own loops.

The Accelerator knows the models, optimizers and schedulers; a run knows when to save, and puts
generators and positions back. What only the Accelerator's loaders know, the number of passes that
decides their order and the generator that its processes share, is a part of the state here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from casckpt.adapters import missing_extra
from casckpt.adapters.torch_state import State as TorchState
from casckpt.errors import BadRequest
from casckpt.training.loops import position

try:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer
    from accelerate.utils import DistributedType
except ModuleNotFoundError as exc:
    raise missing_extra("accelerate") from exc

_SHARDED: Final = ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP", "XLA")
"""What keeps a model in pieces that its `state_dict` does not show."""


class State(TorchState):
    """What an Accelerator has prepared, and further named parts of the training loop.

        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        state = casckpt.accelerate.State(accelerator, losses=[])
        for epoch in run.epochs(10, state):
            for batch in run.batches(loader):
                ...

    The parts are called `model`, `optimizer`, `scheduler` and `object` (those of
    `register_for_checkpointing`), the second of a kind `model_1` and so on; `scaler`,
    `loaders` and `accelerator` are the rest of what it keeps. Models have the names of the bare
    module, whatever they were wrapped into.

    Args:
        accelerator: it has prepared all that it will.
        parts: name to part, as in `casckpt.torch.State`.

    Raises:
        BadRequest: it has prepared no model, or keeps its models in pieces.
    """

    def __init__(self, accelerator: Accelerator, **parts: Any) -> None:
        kind = accelerator.distributed_type
        if kind in [
            DistributedType[name] for name in _SHARDED if name in DistributedType.__members__
        ]:
            raise BadRequest(
                f"an Accelerator with {kind.value}",
                "it keeps a model in pieces, which a state does not hold",
                "save with torch.distributed.checkpoint and casckpt.dcp",
            )
        if not accelerator._models:
            raise BadRequest(
                "the Accelerator has prepared no model",
                "a state is made of what it has prepared",
                "call accelerator.prepare(...) before casckpt.accelerate.State(accelerator)",
            )
        found: dict[str, Any] = {}
        for name, items in (
            ("model", accelerator._models),
            ("optimizer", accelerator._optimizers),
            ("scheduler", accelerator._schedulers),
            ("object", accelerator._custom_objects),
        ):
            for number, item in enumerate(items):
                found[f"{name}_{number}" if number else name] = item
        if accelerator.scaler is not None:
            found["scaler"] = accelerator.scaler
        found["loaders"] = _Loaders(accelerator)
        found["accelerator"] = _Steps(accelerator)
        super().__init__(**found, **parts)

    def _shown(self, part: Any) -> Any:
        # The wrapper hands its state on, and of torch's own no dtype is cast.
        return super()._shown(part.optimizer if isinstance(part, AcceleratedOptimizer) else part)


class _Loaders:
    """The passes that each loader has made, and the generators that it and its samplers hold."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._loaders = accelerator._dataloaders

    def state_dict(self) -> dict[str, Any]:
        return {
            str(number): {
                "passes": int(getattr(loader, "iteration", 0)),
                "generators": position.generators_of(loader),
            }
            for number, loader in enumerate(self._loaders)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for number, loader in enumerate(self._loaders):
            found = state.get(str(number))
            if found is not None:
                loader.iteration = found["passes"]
                position.restore_generators(loader, found["generators"])


class _Steps:
    """The count that `accelerator.accumulate` goes by."""

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def state_dict(self) -> dict[str, Any]:
        return {"step": int(self._accelerator.step)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._accelerator.step = state["step"]
