"""What benchmarks stand on: turns that rotate, and contenders that give back what they got."""

from __future__ import annotations

import pytest

from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import Context, measure, rotated

torch = pytest.importorskip("torch")

from bench.peers import Dcp, Orbax, Safetensors, TorchSave, ZipNn, ZstdFile  # noqa: E402


def a_state(seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.empty(300, 30).normal_(generator=generator)
    halves = weights.to(torch.bfloat16)
    return {"model": {"weights": weights, "halves": halves}, "steps": [torch.tensor(float(seed))]}


def test_another_contender_begins_each_round():
    order = []
    work = {name: lambda _, name=name: order.append(name) for name in "abc"}
    seconds = measure(work, 5)
    assert order[3:] == list("abcbcacababcbca")  # the first three warmed up
    assert {len(samples) for samples in seconds.values()} == {5}
    assert rotated("abc", -1) == list("cab")


def test_a_median_of_four_rounds_is_refused(tmp_path):
    with pytest.raises(ValueError, match="4 rounds"):
        Context(tmp_path, tmp_path, rounds=4)


@pytest.mark.parametrize(
    "kind", [Casckpt, TorchSave, Dcp, Safetensors, ZstdFile, Orbax, ZipNn], ids=lambda k: k.__name__
)
# Peers warn of much that is not about this.
@pytest.mark.filterwarnings("ignore")
def test_a_contender_is_held_to_the_bits_it_was_given(tmp_path, kind):
    contender: Contender = kind()
    if why := split_missing([contender])[1]:
        pytest.skip(str(why))
    contender.open(tmp_path)
    contender.save(3, a_state(3))
    contender.check(3, a_state(3))
    with pytest.raises(AssertionError, match=contender.name):
        contender.check(3, a_state(4))
    contender.close()
