"""Arguments of a wrong type are named in three lines; nothing is saved, changed or removed."""

from __future__ import annotations

import pytest

import casckpt
from casckpt.errors import BadRef, BadRequest


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.save("r", {"a": 1}, 2, metrics=3), BadRequest, "metrics are no mapping"),
        (lambda s: s.save("r", {"a": 1}, 2, metrics=[1.0]), BadRequest, "but list"),
        (lambda s: s.attach_metrics("r@1", 3), BadRequest, "metrics are no mapping"),
        (lambda s: s.save("r", {"a": 1}, 2, tags=3), BadRef, "bad tags 3"),
        (lambda s: s.save("r", {"a": 1}, 2, tags=["a", 3]), BadRef, "bad tag 3"),
        (lambda s: s.save("r", {"a": 1}, 11.5), BadRef, "bad step 11.5"),
        (lambda s: s.save("r", {"a": 1}, -1), BadRef, "bad step -1"),
        (lambda s: s.restore("r", only=3), BadRequest, "only= selects nothing"),
        (lambda s: s.restore("r", only=["a", 3]), BadRequest, "only= selects nothing"),
        (lambda s: s.gc(3), BadRequest, "gc carries out a plan"),
        (lambda s: s.gc(casckpt.KeepLast(1)), BadRequest, "gc carries out a plan"),
        (lambda s: s.verify(sample="a"), BadRequest, "bad sample 'a'"),
        (lambda s: s.verify(max_rate="fast"), BadRequest, "bad max_rate 'fast'"),
        (lambda s: casckpt.open(None), BadRequest, "named by a path"),
        (lambda s: casckpt.open(b"/tmp"), BadRequest, "named by a path"),
        (lambda s: casckpt.open(s.path, options=3), BadRequest, "bad options 3"),
        (lambda s: casckpt.open("s3://bucket/store"), BadRequest, "s3://bucket/store is a URL"),
        (lambda s: s.get("id:zzzz"), BadRef, "an id is hex digits"),
        (lambda s: s.plan_gc(3), BadRequest, "3 is no policy"),
        (lambda s: s.run("other").finish(keep=3), BadRequest, "3 is no policy"),
        (lambda s: s.run("other").epochs(2, {}, keep=3), BadRequest, "3 is no policy"),
        (lambda s: s.run("other").epochs(2, {}, save_every=1.5), BadRequest, "a whole number"),
        (lambda s: s.run("other").cached("d", 5), BadRequest, "it takes a function"),
    ],
)
def test_a_wrong_type_is_named(store, call, error, words):
    store.save("r", {"a": 1}, 1)
    with pytest.raises(error) as caught:
        call(store)
    assert words in str(caught.value)
    assert caught.value.hint
    assert [checkpoint.step for checkpoint in store.checkpoints("r")] == [1]
    assert store.restore("r") == {"a": 1}
