from __future__ import annotations

import math
from datetime import timedelta

import pytest

from casckpt.checkpoint.policies import (
    KeepBest,
    KeepEvery,
    KeepLast,
    KeepNewerThan,
    parse_duration,
)
from casckpt.errors import BadRef, BadRequest


@pytest.fixture
def line(make_checkpoint):
    losses = [3.0, math.nan, 1.0, 2.0, math.inf, 1.0]
    return [make_checkpoint(step=i * 5, metrics={"loss": loss}) for i, loss in enumerate(losses)]


AGES_S = [6 * 86400, 5 * 86400, 4 * 86400, 3 * 86400, 2 * 86400, 0.0]


def steps(policy, line):
    return sorted(line[at].step for at in policy.keep(line, AGES_S[: len(line)]))


def test_each_policy_keeps_what_it_says(line):
    assert steps(KeepLast(2), line) == [20, 25]
    assert steps(KeepLast(99), line) == [0, 5, 10, 15, 20, 25]
    assert steps(KeepEvery(10), line) == [0, 10, 20]
    assert steps(KeepBest("loss", "min"), line) == [10]
    assert steps(KeepBest("loss", "min", 3), line) == [10, 15, 25]
    assert steps(KeepBest("loss", "max"), line) == [0]
    assert steps(KeepBest("other", "max"), line) == []
    assert steps(KeepNewerThan("3d"), line) == [20, 25]
    assert steps(KeepNewerThan(timedelta(days=3, seconds=1)), line) == [15, 20, 25]
    assert steps(KeepNewerThan(0), line) == []


def test_or_keeps_what_either_keeps_and_and_what_both_do(line):
    either = KeepLast(1) | KeepBest("loss", "min")
    assert steps(either, line) == [10, 25]
    both = KeepLast(3) & KeepNewerThan("2d")
    assert steps(both, line) == [25]
    assert steps((KeepLast(1) | KeepEvery(10)) & KeepBest("loss", "min", 2), line) == [10, 25]


def test_reasons_of_both_are_told(line):
    reasons = (KeepLast(1) | KeepEvery(25) | KeepLast(1)).keep(line, AGES_S)
    assert reasons[5] == ("last 1", "every 25")
    assert (KeepLast(1) & KeepEvery(25)).keep(line, AGES_S) == {5: ("last 1", "every 25")}


def test_every_means_boundaries_of_steps(make_checkpoint):
    line = [make_checkpoint(step=10), make_checkpoint(step=10, batch=4)]
    assert set(KeepEvery(10).keep(line, [0, 0])) == {0}


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("45s", 45), ("30m", 1800), ("12h", 43200), ("7d", 604800), ("2w", 1209600), ("1.5h", 5400),
     (90, 90), (0.5, 0.5), (timedelta(minutes=2), 120), ("0s", 0)],
)  # fmt: skip
def test_durations(duration, seconds):
    assert parse_duration(duration) == seconds


@pytest.mark.parametrize("duration", ["", "7", "d", "-1d", "7 days", -1, math.nan, None, True])
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(BadRequest, match="bad duration"):
        KeepNewerThan(duration)


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "3"])
def test_a_count_is_an_integer_from_1_on(count):
    for make in (KeepLast, KeepEvery, lambda n: KeepBest("m", "min", n)):
        with pytest.raises(BadRequest):
            make(count)


def test_best_needs_a_mode():
    with pytest.raises(BadRef, match="loss"):
        KeepBest("loss")
    with pytest.raises(BadRef):
        KeepBest("loss", "lowest")


def test_policies_read_well():
    policy = (KeepLast(3) | KeepBest("val_loss", "min", 2)) & KeepNewerThan("7d")
    assert str(policy) == "(last 3 or best 2 val_loss) and (newer than 7d)"
    with pytest.raises(TypeError):
        _ = KeepLast(3) | 3
