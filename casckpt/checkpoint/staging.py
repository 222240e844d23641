"""One copy of a state's bytes, so that training can go on while they are written.

The training thread waits for one copy of the state, which a few threads share: one core cannot use
all of the memory's bandwidth. The memory is kept and used again by the next save, because fresh
pages cost more than the copy itself.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from casckpt.checkpoint.leaves import ALIGNMENT, BytesSource, Leaf, Source
from casckpt.checkpoint.tree import FlatState

_PAGE: Final = 4096
_COPIERS_MAX: Final = 4
_SHARED_FROM_BYTES: Final = 1 << 20
"""Leaves from this size on are shared out to threads; smaller ones cost more calls than bytes."""

_SPARE_ARENAS_MAX: Final = 1
"""Arenas kept between saves: one save is in flight per run; more would hold memory for nothing."""


@dataclasses.dataclass(slots=True)
class _Arena:
    memory: memoryview
    maker: Callable[[int], memoryview]


@dataclasses.dataclass(slots=True)
class StagedState:
    """A state whose leaves are copies; release it when the store has read them.

    Attributes:
        state: the same tree, leaves in staging memory.
    """

    state: FlatState
    _pool: StagingPool
    _arena: _Arena | None

    def release(self) -> None:
        """Give the memory back to the pool; `state` must not be used after."""
        arena, self._arena = self._arena, None
        if arena is not None:
            self._pool._put(arena)


class StagingPool:
    """Staging memory that is used again. Thread safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: list[_Arena] = []

    def stage(self, flat: FlatState) -> StagedState:
        """Copy every leaf's bytes; later changes of the state do not reach the copy.

        Raises:
            MemoryError: if there is no memory for a copy of the state.
        """
        offsets: dict[int, int] = {}
        length = 0
        maker: Callable[[int], memoryview] = _plain_memory
        for index, leaf in enumerate(flat.leaves):
            if leaf.source is None or not leaf.length or _is_immutable(leaf):
                continue
            offsets[index] = length
            length += -(-leaf.length // ALIGNMENT) * ALIGNMENT
            maker = leaf.source.memory_maker or maker
        arena = self._take(length, maker) if length else None
        leaves = []
        copies: list[_Copy] = []
        try:
            for index, leaf in enumerate(flat.leaves):
                offset = offsets.get(index)
                if offset is None or arena is None or leaf.source is None:
                    leaves.append(leaf.moved_to(leaf.source))
                    continue
                place = arena.memory[offset : offset + leaf.length]
                copies.append((leaf.source, place))
                leaves.append(leaf.moved_to(BytesSource(place)))
            _copy_all(copies)
        except BaseException:
            if arena is not None:
                self._put(arena)
            raise
        return StagedState(FlatState(flat.tree, leaves), self, arena)

    def close(self) -> None:
        """Let go of the spare memory."""
        with self._lock:
            self._spare.clear()

    def _take(self, length: int, maker: Callable[[int], memoryview]) -> _Arena:
        with self._lock:
            for index, arena in enumerate(self._spare):
                # Not for much smaller states: the memory would be held without use.
                if arena.maker is maker and length <= len(arena.memory) <= 2 * length + _PAGE:
                    return self._spare.pop(index)
            self._spare.clear()
        length = -(-length // _PAGE) * _PAGE
        return _Arena(maker(length), maker)

    def _put(self, arena: _Arena) -> None:
        with self._lock:
            if len(self._spare) < _SPARE_ARENAS_MAX:
                self._spare.append(arena)


_Copy = tuple[Source, memoryview]


def _copy_all(copies: list[_Copy]) -> None:
    """Copy, large leaves of the CPU's memory on several threads; return when all is done."""
    mine: list[_Copy] = []
    large: list[_Copy] = []
    for source, place in copies:
        # What copies from a device belongs on the stream of the thread that computes.
        shared = len(place) >= _SHARED_FROM_BYTES and source.memory_maker is None
        (large if shared else mine).append((source, place))
    count = min(_COPIERS_MAX, len(os.sched_getaffinity(0)), len(large))
    if count < 2:
        _copy_some(copies)
        return
    large.sort(key=lambda copy: len(copy[1]), reverse=True)
    with ThreadPoolExecutor(count - 1, thread_name_prefix="casckpt-stage") as threads:
        try:
            others = [
                threads.submit(_copy_some, large[number::count]) for number in range(1, count)
            ]
        except RuntimeError:  # no more threads: a limit, or the interpreter is leaving
            _copy_some(copies)
            return
        _copy_some([*large[::count], *mine])
        for other in others:
            other.result()


def _copy_some(copies: list[_Copy]) -> None:
    for source, place in copies:
        source.copy_to(place)


def _plain_memory(length: int) -> memoryview:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        return memoryview(numpy.empty(length, numpy.uint8)).cast("B")  # not zeroed first
    return memoryview(bytearray(length))


def _is_immutable(leaf: Leaf) -> bool:
    return isinstance(leaf.source, BytesSource) and isinstance(leaf.source.data, bytes)
