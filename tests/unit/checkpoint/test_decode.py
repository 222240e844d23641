"""Reading what a restore needs: in batches, once, and with an error that names the place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from casckpt.checkpoint import decode
from casckpt.errors import Corrupt, OperationFailed
from tests.suites.memory_repository import Saved


def test_a_view_that_is_met_twice_is_one_object():
    torch = pytest.importorskip("torch")
    memory = torch.arange(8.0)
    part = memory[2:5]
    back = Saved({"whole": memory, "part": part, "again": part}).restore()
    assert back["part"] is back["again"]
    assert back["part"].tolist() == [2, 3, 4]


def test_what_exists_twice_while_it_is_read_is_handed_out_batch_by_batch(monkeypatch):
    state = {f"{width}{i}": np.full(3, i, width) for width in ("f4", "f8", "i2") for i in range(3)}
    saved = Saved(state)
    calls = []
    real = saved.repo.read_blobs
    monkeypatch.setattr(
        saved.repo, "read_blobs", lambda reads, verify: calls.append(len(reads)) or real(reads)
    )
    saved.restore()
    assert calls == [3]
    calls.clear()
    monkeypatch.setattr(decode, "BATCH_BYTES", 1)
    back = saved.restore()
    assert calls == [1, 1, 1]
    assert all(np.array_equal(back[name], array) for name, array in state.items())


def test_damage_of_which_nobody_knows_the_place_is_told_as_it_is(monkeypatch):
    saved = Saved({"a": np.ones(3)})
    error = Corrupt("a pack is damaged", "its head does not decode")

    def fail(reads, verify):
        raise error

    monkeypatch.setattr(saved.repo, "read_blobs", fail)
    with pytest.raises(Corrupt) as caught:
        saved.restore()
    assert caught.value is error


def test_more_bytes_than_there_is_memory_for_are_an_error_that_names_the_path():
    saved = Saved({"a": np.ones(3)})
    huge = dataclasses.replace(saved.manifest.entries[0], length=2**62, shape=(2**59,))
    saved.manifest = dataclasses.replace(saved.manifest, entries=(huge,))
    with pytest.raises(OperationFailed, match=f"a: no memory for {2**62} bytes") as caught:
        saved.restore()
    assert caught.value.path == "a"
