"""Staging: a copy of the state that a background save reads while training goes on."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from casckpt.checkpoint import staging
from casckpt.checkpoint.leaves import BytesSource
from casckpt.checkpoint.staging import StagingPool
from casckpt.checkpoint.tree import flatten


def test_staging_keeps_what_was_there_and_its_memory_is_used_again():
    state = {"a": np.zeros(10), "b": bytearray(b"a" * 2000), "l": [1]}
    pool = StagingPool()
    staged = pool.stage(flatten(state))
    state["a"][:] = 1
    state["b"][:] = b"b" * 2000
    state["l"].append(2)
    leaves = staged.state.leaves
    assert bytes(leaves[0].source.view()) == bytes(80)
    assert bytes(leaves[1].source.view()) == b"a" * 2000
    assert staged.state.tree["v"][2] == [1]
    arena = staged._arena.memory
    staged.release()
    staged.release()
    assert pool.stage(flatten(state))._arena.memory is arena


def test_no_memory_within_a_copy_is_a_memory_error_and_nothing_is_held(monkeypatch):
    def refuse(*addresses):
        raise ctypes.ArgumentError("argument 1: MemoryError: ")

    pool = StagingPool()
    with monkeypatch.context() as patched:
        patched.setattr(ctypes, "memmove", refuse)
        with pytest.raises(MemoryError, match="no memory to copy the state"):
            pool.stage(flatten({"a": np.zeros(10)}))
    staged = pool.stage(flatten({"a": np.ones(10)}))
    assert bytes(staged.state.leaves[0].source.view()) == np.ones(10).tobytes()


def test_values_that_cannot_change_are_not_copied():
    flat = flatten({"a": b"x" * 2000, "b": "y" * 5000, "c": np.empty(0), "n": 1})
    staged = StagingPool().stage(flat)
    for leaf, kept in zip(flat.leaves[:2], staged.state.leaves[:2], strict=True):
        assert kept.source is leaf.source
    assert bytes(staged.state.leaves[2].source.view()) == b""
    staged.release()


def test_memory_of_another_size_is_let_go_of():
    pool = StagingPool()
    large, small = {"a": np.zeros(100_000)}, {"a": np.zeros(10)}
    staged = pool.stage(flatten(large))
    arena = staged._arena.memory
    staged.release()
    other = pool.stage(flatten(small))
    assert len(other._arena.memory) < len(arena)
    other.release()
    again = pool.stage(flatten(large))
    assert len(again._arena.memory) >= 800_000
    assert again._arena.memory is not arena


@pytest.mark.parametrize("refuse", [False, True])
def test_a_large_state_is_copied_whole_by_as_many_threads_as_there_are(monkeypatch, refuse):
    monkeypatch.setattr(staging.os, "sched_getaffinity", lambda pid: set(range(3)))
    if refuse:

        def no_thread(self, work):
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(staging.Workers, "submit", no_thread)
    numbers = np.random.default_rng(0).integers(0, 256, 9_000_001, np.uint8)
    strided = np.arange(1000)[::3]
    state = {"large": numbers, "strided": strided}
    staged = StagingPool().stage(flatten(state))
    large, small = (bytes(leaf.source.view()) for leaf in staged.state.leaves)
    assert large == numbers.tobytes()
    assert small == strided.tobytes()


def test_a_state_without_arrays_needs_no_numpy(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    staged = StagingPool().stage(flatten([bytearray(b"a" * 2000)]))
    assert bytes(staged.state.leaves[0].source.view()) == b"a" * 2000


class Device:
    """A device that copies what it is given only when somebody waits for it."""

    def __init__(self):
        self.queue, self.waits = [], 0

    def wait(self):
        self.waits += 1
        while self.queue:
            place, data = self.queue.pop()
            place[:] = data


class OnDevice(BytesSource):
    def __init__(self, data, device):
        super().__init__(data)
        object.__setattr__(self, "device", device)

    def start_copy(self, dest):
        if self.device is None:
            return None
        self.device.queue.append((dest, self.data))
        return self.device.wait


def on_devices(devices):
    """Return a flat state with a leaf of 2,000 bytes on each device."""
    flat = flatten({str(i): bytearray(bytes([i]) * 2000) for i in range(len(devices))})
    flat.leaves = [
        leaf.moved_to(OnDevice(leaf.source.data, device))
        for leaf, device in zip(flat.leaves, devices, strict=True)
    ]
    return flat


@pytest.mark.parametrize("shared_from", [1, 1 << 40])
def test_devices_copy_meanwhile_and_each_is_waited_for_once(monkeypatch, shared_from):
    monkeypatch.setattr(staging, "_SHARED_FROM_BYTES", shared_from)
    monkeypatch.setattr(staging.os, "sched_getaffinity", lambda _: {0, 1})
    one, other = Device(), Device()
    flat = on_devices([one, other, None, one, one])
    flat.leaves += flatten({"h": np.ones(1000)}).leaves
    staged = StagingPool().stage(flat)
    assert (one.waits, other.waits) == (1, 1)
    found = [bytes(leaf.source.view()) for leaf in staged.state.leaves]
    assert found == [bytes([i]) * 2000 for i in range(5)] + [np.ones(1000).tobytes()]


def test_a_copy_that_is_queued_is_waited_for_after_an_error(monkeypatch):
    device = Device()
    flat = on_devices([device, None])
    refused = flat.leaves[1].source
    object.__setattr__(refused, "copy_to", None)
    pool = StagingPool()
    with pytest.raises(TypeError):
        pool.stage(flat)
    assert (device.waits, device.queue) == (1, [])
