from __future__ import annotations

import math

import pytest

from casckpt.checkpoint.refs import ALL_LINES, Ref, Selector, parse_ref, rank, select, split_store
from casckpt.errors import BadRef, NotFound


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bpm/nn", Ref("", None, "bpm/nn")),
        ("bpm/nn@60", Ref("", None, "bpm/nn", None, Selector("step", 60))),
        ("r@60+7", Ref("", None, "r", None, Selector("step", 60, 7))),
        ("r@latest", Ref("", None, "r", None, Selector())),
        ("r~2@latest", Ref("", None, "r", 2, Selector())),
        ("r~*", Ref("", None, "r", ALL_LINES)),
        ("r@best", Ref("", None, "r", None, Selector("best"))),
        ("r@best:val", Ref("", None, "r", None, Selector("best", metric="val"))),
        ("r@best:val:min", Ref("", None, "r", None, Selector("best", metric="val", mode="min"))),
        ("r@best:a:b:max", Ref("", None, "r", None, Selector("best", metric="a:b", mode="max"))),
        ("r@best:min", Ref("", None, "r", None, Selector("best", metric="min"))),
        ("r@best:v@1/x", Ref("", None, "r", None, Selector("best", metric="v@1/x"))),
        ("r@paper-v1", Ref("", None, "r", None, Selector("tag", tag="paper-v1"))),
        ("id:90FFa1", Ref("", None, id_prefix="90ffa1")),
        ("ckpts::r", Ref("", "ckpts", "r")),
        ("/a/b@c/~x::r~1@3", Ref("", "/a/b@c/~x", "r", 1, Selector("step", 3))),
        ("a::b::r@3", Ref("", "a::b", "r", None, Selector("step", 3))),
        ("~/ckpts::id:abcd", Ref("", "~/ckpts", id_prefix="abcd")),
        ("r@best:a::b", Ref("", None, "r", None, Selector("best", metric="a::b"))),
    ],
)
def test_parse(text, expected):
    found = parse_ref(text)
    assert found.text == text
    assert found == Ref(
        text,
        *[getattr(expected, f) for f in ("store", "run", "line")],
        expected.selector,
        expected.id_prefix,
    )


@pytest.mark.parametrize(
    "text",
    ["", "@3", "r@", "r@best:", "r@-3", "r@3+", "r@a b", "r~x", "r~", "r~-1", "a//b", "/a", "..",
     "a/../b", "id:", "id:abc", "id:xyzw", "id:" + "a" * 65, "::r", "s::", "r@" + "9" * 30,
     "r@99999999999999999999", "r@a:b", "ré", "a" * 201, None, 3],
)  # fmt: skip
def test_what_is_no_ref_is_refused(text):
    with pytest.raises(BadRef):
        parse_ref(text)


def test_split_store_leaves_folders_alone():
    assert split_store("./some folder@3") == (None, "./some folder@3")


def test_select_by_step_batch_tag_and_latest(make_checkpoint):
    first = make_checkpoint(step=1, tags=("a",))
    middle = make_checkpoint(step=2, batch=5)
    last = make_checkpoint(step=3)
    line = [first, middle, last]
    assert select(parse_ref("run"), line) is last
    assert select(parse_ref("run@1"), line) is first
    assert select(parse_ref("run@2+5"), line) is middle
    assert select(parse_ref("run@a"), line) is first
    for missing in ("run@2", "run@9", "run@b"):
        with pytest.raises(NotFound):
            select(parse_ref(missing), line)
    with pytest.raises(NotFound):
        select(parse_ref("run"), [])


def test_best_is_finite_and_of_equals_the_older(make_checkpoint):
    values = [math.nan, 2.0, -math.inf, 1.0, math.inf, 1.0]
    line = [make_checkpoint(step=i, metrics={"m": v}) for i, v in enumerate(values)]
    line.append(make_checkpoint(step=9))
    assert select(parse_ref("run@best:m:min"), line).step == 3
    assert select(parse_ref("run@best:m:max"), line).step == 1
    assert [value for value, _ in rank(line, "m", "min")] == [1.0, 1.0, 2.0]
    with pytest.raises(NotFound, match="not found"):
        select(parse_ref("run@best:other:min"), line)


def test_best_never_guesses(make_checkpoint):
    line = [make_checkpoint(metrics={"val_loss": 1.0})]
    with pytest.raises(BadRef) as caught:
        select(parse_ref("run@best:val_loss"), line)
    assert "best:val_loss:min" in caught.value.hint
    with pytest.raises(BadRef) as caught:
        select(parse_ref("run@best"), line)
    assert "best:val_loss:min" in caught.value.hint
