from __future__ import annotations

import dataclasses
import math
import pickle

import pytest

from casckpt.checkpoint.records import check_metrics
from casckpt.errors import BadRequest


class Scalar:
    def __float__(self) -> float:
        return 2.5


def test_metrics_take_whatever_takes_float():
    assert check_metrics({"a": 1, "b": True, "c": Scalar()}) == {"a": 1.0, "b": 1.0, "c": 2.5}
    assert math.isnan(check_metrics({"a": math.nan})["a"])
    assert check_metrics(None) == {}


@pytest.mark.parametrize("value", ["1.5", b"1", None, [1.0], object(), 1j, 10**400])
def test_a_metric_that_is_no_number_is_named(value):
    with pytest.raises(BadRequest, match="metric 'loss' is no number"):
        check_metrics({"loss": value})


@pytest.mark.parametrize("name", ["", 3, None, "a\0b", "\ud800"])
def test_a_metric_name_is_text(name):
    with pytest.raises(BadRequest, match="bad metric name"):
        check_metrics({name: 1.0})


def test_checkpoints_are_equal_by_commit(make_checkpoint):
    checkpoint = make_checkpoint()
    tagged = dataclasses.replace(checkpoint, tags=("x",))
    assert tagged == checkpoint
    assert hash(tagged) == hash(checkpoint)
    assert make_checkpoint() != checkpoint
    assert checkpoint != "run@0"


def test_checkpoints_are_frozen(make_checkpoint):
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_checkpoint().step = 3


def test_a_copy_keeps_facts_and_says_it_has_no_store(make_checkpoint):
    copy = pickle.loads(pickle.dumps(make_checkpoint(metrics={"a": 1.0})))
    assert copy.metrics == {"a": 1.0}
    with pytest.raises(BadRequest, match="belongs to no open store"):
        _ = copy.environment
