from __future__ import annotations

import os

import numpy as np
import pytest

from casckpt.errors import Corrupt
from casckpt.store import marking
from tests.unit.store.stores import save


def fill(repository) -> list:
    """Save checkpoints that share chunks, with lists of lists and with chains of bases."""
    weights = np.random.default_rng(0).normal(0, 1, 20_000).astype("<f4")
    saved, bases = [], []
    for step in range(4):
        weights = weights + np.float32(1e-4)
        lists = os.urandom(300_000) + bytes([step]) * 100
        one = save(
            repository,
            [weights.tobytes(), lists, b"shared" * 9999],
            opaque=True,
            step=step,
            bases=bases,
        )
        bases = [one.infos[0].id]
        saved.append(one)
    return saved


@pytest.mark.parametrize("batch", [1, 3, 2000])
def test_a_mark_reaches_what_checkpoints_need_in_any_number_of_steps(
    repository, monkeypatch, batch
):
    monkeypatch.setattr(marking, "_BATCH", batch)
    saved = fill(repository)
    gone = saved.pop(1)
    repository.trash([("run", gone.seq)])
    shared = repository._shared()
    mark = marking.mark(shared, without={("run", gone.seq)})
    needed = repository.closure([one.manifest_id for one in saved])
    assert len(mark.reached) == len(needed)
    assert all(identity in mark.reached for identity in needed)
    assert gone.manifest_id not in mark.reached
    assert sum(stored for _, stored in needed.values()) == mark.total_bytes


def test_what_waits_is_a_batch_for_each_level_not_all_that_manifests_name(repository, monkeypatch):
    monkeypatch.setattr(marking, "_BATCH", 4)
    chunks = [os.urandom(100) for _ in range(50)]
    for step in range(20):
        save(repository, chunks, step=step)
    waiting, look_up = [0], marking._look_up

    def watched(shared, result, batch):
        further = look_up(shared, result, batch)
        waiting.append(len(further))
        assert len(batch) <= 4
        return further

    monkeypatch.setattr(marking, "_look_up", watched)
    marking.mark(repository._shared())
    assert max(waiting) <= 4
    # Twenty manifests of fifty refs each: those known already are never looked up again.
    assert len(waiting) <= 1 + 5 + 20 * 13


def test_an_object_that_is_missing_stops_the_mark(repository):
    saved = fill(repository)[0]
    shared = repository._shared()
    shared.writer.run(lambda tx: tx.delete("objects", saved.infos[2].id), facts=False)
    with pytest.raises(Corrupt, match="is missing"):
        marking.mark(shared)
