"""torch's own generators: of the CPU, and of each device that the program has used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from casckpt.logs import logger


class TorchRandomness:
    """The default generators of torch; those that a program makes itself belong into the state."""

    name = "torch"

    def capture(self) -> dict[str, Any]:
        """Return the states: "cpu", and "cuda" with one per device once CUDA is in use."""
        captured: dict[str, Any] = {"cpu": torch.get_rng_state()}
        # Before that, no CUDA generator has been drawn from; asking would start CUDA.
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            captured["cuda"] = torch.cuda.get_rng_state_all()
        return captured

    def restore(self, captured: Mapping[str, Any]) -> None:
        """Put the states back; devices that are not there are named in a warning."""
        torch.set_rng_state(captured["cpu"])
        states = captured.get("cuda", [])
        count = torch.cuda.device_count() if states and torch.cuda.is_available() else 0
        for device, state in enumerate(states[:count]):
            torch.cuda.set_rng_state(state, device)
        if count < len(states):
            logger.warning(
                "the generators of %d CUDA devices are not put back: there are %d here",
                len(states),
                count,
            )


RANDOMNESS = TorchRandomness()
