"""Chunks kept in memory for the next save: what is handed over, what makes room, and its use."""

from __future__ import annotations

import os

import numpy as np
import pytest

import casckpt
from casckpt.store.reading import Reader
from casckpt.store.recent import RecentChunks


def chunk(fill: int, length: int = 100) -> bytearray:
    return bytearray([fill]) * length


@pytest.fixture
def recent():
    chunks = RecentChunks()
    chunks.begin_save(250)
    return chunks


@pytest.fixture
def reads(monkeypatch):
    """Return the bases that are read from the store."""
    found = []
    read_base = Reader.read_base

    def noted(self, identity):
        found.append(identity)
        return read_base(self, identity)

    monkeypatch.setattr(Reader, "read_base", noted)
    return found


def test_a_chunk_is_handed_over_once_and_only_at_its_length(recent):
    recent.put(b"a", chunk(1))
    assert recent.take(b"a", 99) is None
    assert recent.take(b"a", 100) == chunk(1)
    assert recent.take(b"a", 100) is None


def test_memory_is_used_again(recent):
    recent.put(b"a", chunk(1))
    memory = recent.take(b"a", 100)
    recent.give_back(memory)
    assert recent.room(99) is not memory
    assert recent.room(100) is memory
    assert recent.room(100) is not memory
    recent.put(b"b", memory)
    assert recent.take(b"b", 100) is memory


def test_what_is_not_kept_is_room_for_others(recent):
    for name in (b"a", b"b"):
        recent.put(name, chunk(1))
    left_out, twice = chunk(2), chunk(3)
    recent.put(b"c", left_out)
    recent.put(b"a", twice)
    assert {id(recent.room(100)), id(recent.room(100))} == {id(left_out), id(twice)}


def test_spare_memory_is_bounded(recent, monkeypatch):
    monkeypatch.setattr("casckpt.store.recent._SPARE_BYTES", 250)
    for length in (100, 100, 60, 100, 60):
        recent.give_back(bytearray(length))
        held = [memory for spare in recent._spare.values() for memory in spare]
        assert sum(map(len, held)) == recent._spare_bytes <= 250


def test_a_full_memory_keeps_what_it_has(recent):
    for name in (b"a", b"b", b"c"):
        recent.put(name, chunk(1))
    assert recent.take(b"c", 100) is None
    assert recent.take(b"a", 100) is not None
    recent.put(b"c", chunk(3))  # the room of `a`
    assert recent.take(b"c", 100) == chunk(3)


def test_what_no_save_met_for_long_makes_room(recent):
    recent.put(b"a", chunk(1))
    recent.put(b"b", chunk(2))
    for _ in range(4):
        recent.begin_save(250)
        recent.keep(b"b")
    recent.put(b"c", chunk(3))
    assert recent.take(b"a", 100) is None
    assert recent.take(b"b", 100) is not None
    assert recent.take(b"c", 100) is not None


def test_a_base_at_hand_is_not_read_and_gives_the_same_bytes(tmp_path, monkeypatch, reads):
    numbers = np.random.default_rng(1)
    weights = numbers.normal(0, 0.02, 700_000).astype("<f4")
    states = [weights + np.float32(1e-6 * step) * weights for step in range(7)]
    sizes = {}
    for memory in (256 << 20, 16 << 20):
        path = tmp_path / str(memory)
        options = casckpt.Options(memory_bytes=memory)
        with casckpt.open(path, options=options) as store:
            if memory == 16 << 20:
                monkeypatch.setattr(RecentChunks, "take", lambda *_: None)
            reads.clear()
            saved = [store.save("run", {"w": state}) for state in states]
            assert bool(reads) is (memory == 16 << 20)
            sizes[memory] = [ck.stored_bytes for ck in saved]
        with casckpt.open(path, mode="r") as store:
            for step, state in enumerate(states):
                assert store.restore(f"run@{step}")["w"].tobytes() == state.tobytes()
    # Manifests hold times, and compress to a byte more or less.
    assert sizes[256 << 20] == pytest.approx(sizes[16 << 20], abs=64)


def test_a_state_beyond_the_memory_is_saved_all_the_same(tmp_path):
    options = casckpt.Options(memory_bytes=16 << 20)
    with casckpt.open(tmp_path / "store", options=options) as store:
        large = np.frombuffer(os.urandom(24 << 20), np.uint8).view("<u2").astype("<u4")
        for step in range(3):
            store.save("run", {"w": large + np.uint32(step)})
        shared = store._repository._shared()
        assert 0 < shared.recent._held <= 8 << 20
        np.testing.assert_array_equal(store.restore("run")["w"], large + np.uint32(2))


def test_chunks_make_room_for_what_takes_their_place(tmp_path, reads):
    """With keyframes in turn, a state that just fits needs no base from the disk after it began."""
    numbers = np.random.default_rng(1)
    state = {str(i): numbers.normal(0, 0.02, 250_000).astype("<f4") for i in range(7)}
    options = casckpt.Options(memory_bytes=16 << 20)
    depths = []
    with casckpt.open(tmp_path / "store", options=options) as store:
        for step in range(9):
            near = {k: v + np.float32(1e-6 * step) * v for k, v in state.items()}
            store.save("run", near)
            shared = store._repository._shared()
            assert shared.recent._held == sum(v.nbytes for v in near.values())
            depths.append(max(coding.depth for coding in store.codings("run").values()))
        assert reads == []
        assert max(depths) == 3
        for name, value in near.items():
            np.testing.assert_array_equal(store.restore("run")[name], value)
