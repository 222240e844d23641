"""A kernel that gives wrong bytes is left before it names or codes anything."""

from __future__ import annotations

import functools

import pytest

from casckpt.native import chunking, entropy, filters, hashing, kernels


def _returns_wrong(call):
    def wrong(*arguments, **options):
        found = call(*arguments, **options)
        return found[:-1] + type(found)([found[-1] ^ 1])

    return wrong


def _fills_wrong(call, at):
    def wrong(*arguments, **options):
        call(*arguments, **options)
        arguments[at][-1] ^= 1

    return wrong


def _names_wrong(call):
    def wrong(*arguments):
        first, *others = call(*arguments)
        return [bytes([first[0] ^ 1]) + first[1:], *others]

    return wrong


def _refuses(_call):
    def wrong(*_arguments):
        raise ValueError("it does not decode")

    return wrong


WRONG = [
    (hashing.IdContext, "hash_many", _names_wrong),
    (chunking, "cut_points", _returns_wrong),
    (filters, "split_planes", functools.partial(_fills_wrong, at=1)),
    (filters, "join_planes", functools.partial(_fills_wrong, at=1)),
    (filters, "sub_split", functools.partial(_fills_wrong, at=2)),
    (filters, "sub_join", functools.partial(_fills_wrong, at=2)),
    (filters, "xor_split", functools.partial(_fills_wrong, at=2)),
    (filters, "xor_join", functools.partial(_fills_wrong, at=2)),
    (entropy, "entropy_encode", _returns_wrong),
    (entropy, "entropy_decode", functools.partial(_fills_wrong, at=1)),
    (entropy, "entropy_decode", _refuses),
]


def test_the_active_kernel_is_kept_when_it_agrees(caplog: pytest.LogCaptureFixture) -> None:
    before = kernels.active()
    assert kernels.prove() == before
    assert not caplog.records


@pytest.mark.parametrize(("place", "name", "spoil"), WRONG)
def test_a_kernel_that_differs_in_one_function_is_left(
    place, name, spoil, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = kernels.active()
    if before == "portable":
        pytest.skip("this processor has only the portable kernel")
    honest = getattr(place, name)
    spoilt = spoil(honest)

    def of_the_kernel(*arguments, **options):
        call = spoilt if kernels.active() == before else honest
        return call(*arguments, **options)

    monkeypatch.setattr(place, name, of_the_kernel)
    try:
        assert kernels.prove() != before
        assert caplog.text.count(f"the {before} kernel gives wrong bytes") == 1
    finally:
        kernels.use(before)
