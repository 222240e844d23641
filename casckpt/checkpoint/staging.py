"""One copy of a state's bytes, so that training can go on while they are written.

The training thread waits for one copy of the state, which a few threads share: one core cannot use
all of the memory's bandwidth. The memory is kept and used again by the next save, because fresh
pages cost more than the copy itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from casckpt.checkpoint.leaves import ALIGNMENT, BytesSource, Leaf, Source
from casckpt.checkpoint.tree import FlatState
from casckpt.store.workers import Workers

_PAGE: Final = 4096
_COPIERS_MAX: Final = 4
_SHARED_FROM_BYTES: Final = 2 << 20
"""Bytes for each thread from which on there is more than one; starting one costs 100 us."""

_PIECE_BYTES: Final = 2 << 20
"""Longest piece that a thread copies at once, so that all end at about the same time."""

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
        leaves = [leaf.moved_to(leaf.source) for leaf in flat.leaves]
        if not offsets:
            return StagedState(FlatState(flat.tree, leaves), self, None)
        arena = self._take(length, maker)
        try:
            copies = _Copies(deque(), [])
            base = _address(arena.memory)
            for index, offset in offsets.items():
                leaf = flat.leaves[index]
                place = arena.memory[offset : offset + leaf.length]
                copies.add(leaf, place, base + offset)
                leaves[index] = leaf.moved_to(BytesSource(place))
            copies.carry_out()
        except BaseException:
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


_Piece = tuple[int, int, int]
"""Addresses to copy to and from, and bytes."""


@dataclasses.dataclass(slots=True)
class _Copies:
    """What is to be copied: memory that any thread may read, and sources that copy themselves."""

    pieces: deque[_Piece]
    others: list[tuple[Source, memoryview]]

    def add(self, leaf: Leaf, place: memoryview, address: int) -> None:
        """Note that a leaf's bytes go to a place, which begins at an address."""
        assert leaf.source is not None
        source = getattr(leaf.source, "address", None)
        if source is None:
            self.others.append((leaf.source, place))
            return
        for at in range(0, leaf.length, _PIECE_BYTES):
            length = min(_PIECE_BYTES, leaf.length - at)
            self.pieces.append((address + at, source + at, length))

    def carry_out(self) -> None:
        """Copy everything, on several threads if it is much; return when all is done.

        Devices copy meanwhile: what they do is queued from this thread, whose stream the state is
        computed on, and waited for at the end, also after an error, since it writes to the arena.
        """
        length = sum(piece[2] for piece in self.pieces)
        count = min(_COPIERS_MAX, len(os.sched_getaffinity(0)), length // _SHARED_FROM_BYTES)
        with contextlib.ExitStack() as devices:
            others = self._start_devices(devices)
            if count < 2:
                self._work()
                _copy_each(others)
                return
            with Workers(count - 1, "casckpt-stage") as threads:
                helpers = []
                with contextlib.suppress(RuntimeError):  # no more threads: a limit
                    helpers += [threads.submit(self._work) for _ in range(1, count)]
                _copy_each(others)
                self._work()
                for helper in helpers:
                    helper.result()

    def _start_devices(self, devices: contextlib.ExitStack) -> list[tuple[Source, memoryview]]:
        """Queue what devices copy by themselves, and have it waited for; return the others."""
        waits: set[Callable[[], None]] = set()
        left = []
        for source, place in self.others:
            start = getattr(source, "start_copy", None)
            wait = None if start is None else start(place)
            if wait is None:
                left.append((source, place))
            elif wait not in waits:  # one wait for all that was queued on a stream
                waits.add(wait)
                devices.callback(wait)
        return left

    def _work(self) -> None:
        # Addresses, since threads that make views of memory wait for each other. ctypes lets go
        # of the GIL; a deque gives each piece to one thread.
        move, take = ctypes.memmove, self.pieces.popleft
        try:
            while True:
                move(*take())
        except IndexError:
            return  # all are taken
        except ctypes.ArgumentError as exc:
            # So ctypes says that it has no memory for an argument; addresses are always numbers.
            raise MemoryError("no memory to copy the state") from exc


def _copy_each(sources: list[tuple[Source, memoryview]]) -> None:
    for source, place in sources:
        source.copy_to(place)


def _plain_memory(length: int) -> memoryview:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        return memoryview(numpy.empty(length, numpy.uint8)).cast("B")  # not zeroed first
    return memoryview(bytearray(length))


def _address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _is_immutable(leaf: Leaf) -> bool:
    return isinstance(leaf.source, BytesSource) and isinstance(leaf.source.data, bytes)
