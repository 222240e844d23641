"""Processes that torch.distributed has connected, as a run's channel between them.

A process group of its own, over gloo, so that what a run says does not mix with what the training
says, needs no GPU, and waits for none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed

from casckpt.errors import OperationFailed


class TorchChannel:
    """Calls that every process of the default group makes at the same place.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
    """

    def __init__(self) -> None:
        """Connect; every process of the default group has to do it."""
        self.world = distributed.group.WORLD
        with _mapped():
            self._group = distributed.new_group(backend="gloo")
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()

    def broadcast(self, payload: bytes | None) -> bytes:
        """Return what the first process gave; the others give None."""
        with _mapped():
            length = torch.tensor([0 if payload is None else len(payload)], device="cpu")
            distributed.broadcast(length, 0, group=self._group)
            data = _tensor(payload, int(length))
            distributed.broadcast(data, 0, group=self._group)
        return _bytes(data)

    def gather(self, payload: bytes) -> list[bytes] | None:
        """Return what each process gave, by rank, in the first one; None in the others."""
        with _mapped():
            lengths = [torch.zeros(1, dtype=torch.int64, device="cpu") for _ in range(self.size)]
            mine = torch.tensor([len(payload)], device="cpu")
            distributed.all_gather(lengths, mine, group=self._group)
            longest = int(max(lengths))
            data = _tensor(payload, longest)
            found = [torch.empty_like(data) for _ in lengths] if self.rank == 0 else None
            distributed.gather(data, found, 0, group=self._group)
        if found is None:
            return None
        return [_bytes(one[: int(length)]) for one, length in zip(found, lengths, strict=True)]

    def most(self, numbers: Sequence[int]) -> list[int]:
        """Return, place by place, the largest number that any process gave."""
        with _mapped():
            tensor = torch.tensor(numbers, dtype=torch.int64, device="cpu")
            distributed.all_reduce(tensor, distributed.ReduceOp.MAX, group=self._group)
        found: list[int] = tensor.tolist()
        return found


_channel: TorchChannel | None = None


def connect() -> TorchChannel | None:
    """Return the channel to the processes of the default group; None if there is no other."""
    global _channel
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    if distributed.get_world_size() == 1:
        return None
    if _channel is None or _channel.world is not distributed.group.WORLD:
        _channel = TorchChannel()
    return _channel


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except RuntimeError as exc:
        raise OperationFailed(
            "the processes of the training do not hear each other any more",
            str(exc).partition("\n")[0][:200],
            "one of them has ended; run the same command again",
        ) from exc


def _tensor(payload: bytes | None, length: int) -> torch.Tensor:
    data = torch.zeros(length, dtype=torch.uint8, device="cpu")
    if payload:
        data[: len(payload)] = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    return data


def _bytes(data: torch.Tensor) -> bytes:
    found: Any = data.numpy().tobytes()
    return bytes(found)
