"""States of any size whose bytes look like weights: normal values, in fp32."""

from __future__ import annotations

from typing import Any

import torch

TENSOR_BYTES = 4 << 20


def state_of(size_bytes: int, seed: int = 0, tensor_bytes: int = TENSOR_BYTES) -> dict[str, Any]:
    """Return a model-like tree of about `size_bytes` in tensors of `tensor_bytes` each."""
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(size_bytes / tensor_bytes))
    length = min(size_bytes, tensor_bytes) // 4
    weights = {
        f"layer{i}.weight": torch.empty(length).normal_(std=0.02, generator=generator)
        for i in range(count)
    }
    return {"model": weights, "step": 0}


def nudge(state: dict[str, Any], seed: int) -> None:
    """Change every value of a state a little, in place, as some optimizer steps do.

    All tensors get the same noise: drawing it anew would take longer than saving.
    """
    generator = torch.Generator().manual_seed(seed)
    first = next(iter(state["model"].values()))
    noise = torch.empty_like(first).normal_(std=1e-3, generator=generator)
    for tensor in state["model"].values():
        tensor.add_(noise)
    state["step"] += 1


def many_tensors(count: int, seed: int = 0) -> dict[str, Any]:
    """Return a state of `count` tensors of 16 to 255 values: adapters, statistics, embeddings."""
    generator = torch.Generator().manual_seed(seed)
    pool = torch.empty(count + 255).normal_(generator=generator)
    return {
        "model": {
            f"block{i // 100}.part{i % 100}": pool[i : i + 16 + i % 240].clone()
            for i in range(count)
        }
    }
