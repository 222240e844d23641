"""Lineages: which blobs of a line are versions of one another, and of what numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from casckpt.checkpoint.lineages import TURNED_FROM, lineages
from casckpt.errors import Corrupt
from tests.suites.memory_repository import Saved


class Line:
    """The checkpoints of one run, oldest first; None is one whose manifest cannot be read."""

    def __init__(self, make_checkpoint, *saved):
        made = [(make_checkpoint(step=step), one) for step, one in enumerate(saved)]
        self.checkpoints = [checkpoint for checkpoint, _ in made]
        self.saved = {checkpoint.id: one for checkpoint, one in made}

    def matching(self, run):
        return list(reversed(self.checkpoints))

    def manifest_and_refs(self, checkpoint):
        saved = self.saved[checkpoint.id]
        if saved is None:
            raise Corrupt("a manifest is damaged", "its hash differs")
        return saved.manifest, saved.refs


def weights(seed):
    return Saved({"w": np.full(20_000, seed, "f4"), "b": np.full(20_000, seed, "f8")})


def test_the_newest_comes_first_and_what_cannot_be_read_is_left_out(make_checkpoint):
    saved = [weights(0), None, weights(1)]
    found = lineages(Line(make_checkpoint, *saved))
    assert [(one.blobs, one.length, one.item_size) for one in found] == [
        ((saved[2].refs[0], saved[0].refs[0]), 80_000, 4),
        ((saved[2].refs[1], saved[0].refs[1]), 160_000, 8),
    ]


def test_a_blob_that_did_not_change_is_one_version(make_checkpoint):
    found = lineages(Line(make_checkpoint, *[weights(0)] * TURNED_FROM))
    assert [len(one.blobs) for one in found] == [1, 1]


def with_dtype(saved, dtype):
    entry = dataclasses.replace(saved.manifest.entries[0], dtype=dtype)
    saved.manifest = dataclasses.replace(saved.manifest, entries=(entry,))
    return saved


@pytest.mark.parametrize(
    ("dtype", "width"),
    [("<f4", 4), ("<c16", 8), ("<U3", 4), ("bfloat16", 2), ("|V7", 1), ("no such", 1), ("", 1)],
)
def test_the_width_of_the_numbers_is_that_of_the_dtype(make_checkpoint, dtype, width):
    saved = with_dtype(Saved([np.zeros(20_000, "i8")]), dtype)
    assert [one.item_size for one in lineages(Line(make_checkpoint, saved))] == [width]


def test_a_tensor_and_memory_that_tensors_share_have_the_width_of_their_numbers(make_checkpoint):
    torch = pytest.importorskip("torch")
    both = torch.zeros(60_000, dtype=torch.float16)
    saved = Saved([both[:40_000], both[30_000:], torch.zeros(40_000, dtype=torch.bfloat16)])
    found = lineages(Line(make_checkpoint, saved))
    assert [one.item_size for one in found] == [2, 2]
    assert {one.length for one in found} == {120_000, 80_000}
    with_hostile = with_dtype(Saved([torch.zeros(40_000)]), "no such")
    assert [one.item_size for one in lineages(Line(make_checkpoint, with_hostile))] == [1]
