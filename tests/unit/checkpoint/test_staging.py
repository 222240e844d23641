"""Staging: a copy of the state that a background save reads while training goes on."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

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
