"""Tags, pins, deletes, plans and gc through the public Store."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import casckpt
from casckpt import KeepBest, KeepEvery, KeepLast
from casckpt.errors import BadRef, BadRequest, Busy, NotFound, StepExists

np = pytest.importorskip("numpy")


def weights(seed, count=100_000):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


@pytest.fixture
def five(store):
    for step in range(5):
        store.save("r", {"w": weights(step)}, step, metrics={"loss": abs(step - 1.2)})
    return store


def refs(checkpoints):
    return [ck.ref for ck in checkpoints]


def test_metrics_are_added_and_replaced(store):
    store.save("r", {"v": 1}, metrics={"a": 1.0})
    now = store.attach_metrics("r@0", {"a": 2.0, "b": math.nan})
    assert now.metrics["a"] == 2.0
    assert math.isnan(store.get("r").metrics["b"])
    with pytest.raises(BadRequest, match="no number"):
        store.attach_metrics("r@0", {"c": "x"})


def test_tags_name_one_checkpoint_of_a_run(five):
    assert five.tag("r@1", "paper", "v1").tags == ("paper", "v1")
    assert five.get("r@paper").step == 1
    assert five.tag("r@1", "paper").tags == ("paper", "v1")
    with pytest.raises(BadRequest, match="is taken"):
        five.tag("r@2", "paper")
    assert five.untag("r@paper", "paper", "never-there").tags == ("v1",)
    assert five.tag("r@2", "paper").step == 2
    with pytest.raises(BadRef, match="bad tag"):
        five.tag("r@2", "7")
    with pytest.raises(NotFound):
        five.tag("r@99", "x")


def test_a_checkpoint_object_is_looked_up_as_it_is_now(five):
    old = five.get("r@1")
    five.tag(old, "x")
    assert old.tags == ()
    assert five.get(old).tags == ("x",)
    five.delete(old)
    with pytest.raises(NotFound):
        five.get(old)
    assert five.undelete(old).tags == ("x",)


def test_pins_hold(five):
    assert five.pin("r@0").pinned
    plan = five.plan_gc(KeepLast(1))
    assert refs(plan.keep) == ["r@0", "r@4"]
    with pytest.raises(BadRequest, match="is pinned"):
        five.delete("r@0")
    with pytest.raises(BadRequest, match="is pinned"):
        five.delete("r")
    assert len(five.checkpoints("r")) == 5
    assert not five.pin("r@0", on=False).pinned
    five.delete("r@0")


def test_delete_and_undelete_one(five):
    plan = five.delete("r@2")
    assert refs(plan.drop) == ["r@2"]
    assert refs(five.checkpoints()) == ["r@0", "r@1", "r@3", "r@4"]
    (gone,) = five.checkpoints(trash=True)
    assert gone.trashed_at is not None
    with pytest.raises(NotFound):
        five.get("r@2")
    with pytest.raises(NotFound, match="it is in the trash"):
        five.get(f"id:{gone.id}")
    back = five.undelete("r@2")
    assert back == gone
    assert back.trashed_at is None
    assert np.array_equal(five.restore("r@2")["w"], weights(2))
    with pytest.raises(NotFound):
        five.undelete("r@2")


def test_delete_and_undelete_a_run(five):
    five.save("other", {"v": 1})
    plan = five.delete("r")
    assert len(plan.drop) == 5
    assert plan.freed_bytes > 1_500_000
    assert refs(five.checkpoints()) == ["other@0"]
    with pytest.raises(NotFound, match="5 checkpoints are in the trash"):
        five.get("r")
    with pytest.raises(NotFound):
        five.delete("r")
    assert five.undelete("r").step == 4
    assert len(five.checkpoints("r")) == 5


def test_delete_by_glob_and_latest(store):
    for run in ("k/fold-1", "k/fold-2", "z"):
        store.save(run, {"v": 1})
        store.save(run, {"v": 2})
    assert refs(store.delete("z@latest").drop) == ["z@1"]
    assert len(store.delete("k/*").drop) == 4
    assert refs(store.checkpoints()) == ["z@0"]
    with pytest.raises(NotFound, match="no run matches"):
        store.delete("q*")


def test_what_was_replaced_cannot_come_back_over_its_successor(store):
    old = store.save("r", {"v": 1}, 3)
    store.save("r", {"v": 2}, 3, replace=True)
    with pytest.raises(StepExists, match="cannot come back"):
        store.undelete(f"id:{old.id}")
    store.delete("r@3")
    assert store.undelete(f"id:{old.id}") == old
    assert store.restore("r@3") == {"v": 1}


def test_of_several_at_one_place_the_last_comes_back(store):
    store.save("a", {"x": 1}, 1)
    store.save("a", {"x": 2}, 1, replace=True)
    store.save("a", {"x": 3}, 2)
    store.delete("a")
    assert store.undelete("a").step == 2
    assert refs(store.checkpoints("a")) == ["a@1", "a@2"]
    assert store.restore("a@1") == {"x": 2}


def test_what_comes_back_takes_no_tag_of_another(store):
    store.save("b", {"x": 1}, 1, tags="good")
    store.delete("b@1")
    store.save("b", {"x": 2}, 2, tags="good")
    for target in ("b@1", "b"):
        with pytest.raises(BadRequest, match="the tag 'good' is taken"):
            store.undelete(target)
    store.delete("b@2")
    with pytest.raises(BadRequest, match="both have the tag 'good'"):
        store.undelete("b")
    assert store.checkpoints("b") == []
    assert store.undelete("b@2").tags == ("good",)


def test_a_plan_tells_reasons_and_real_bytes(five):
    plan = five.plan_gc(KeepLast(2) | KeepBest("loss", "min"))
    assert refs(plan.keep) == ["r@1", "r@3", "r@4"]
    assert refs(plan.drop) == ["r@0", "r@2"]
    assert plan.reasons["r@1"] == ("best loss",)
    assert plan.reasons["r@4"] == ("last 2", "newest")
    assert plan.reasons["r@0"] == ("not last 2 or best loss",)
    assert 600_000 < plan.freed_bytes < 900_000
    assert len(five.checkpoints()) == 5


def test_gc_frees_what_the_plan_said(five):
    plan = five.plan_gc(KeepLast(2))
    before = five.stats().stored_bytes
    done = five.gc(plan, now=True)
    assert refs(done.dropped) == ["r@0", "r@1", "r@2"]
    assert done.freed_bytes == pytest.approx(plan.freed_bytes, rel=0.05)
    five.gc()  # what the first one had reserved for packs that it wrote is given back by now
    assert before - five.stats().stored_bytes > 0.8 * plan.freed_bytes
    assert five.checkpoints(trash=True) == []
    assert np.array_equal(five.restore("r@4")["w"], weights(4))
    assert five.verify().ok


def test_gc_without_now_keeps_a_way_back(five):
    five.gc(five.plan_gc(KeepLast(1)))
    assert refs(five.checkpoints()) == ["r@4"]
    assert np.array_equal(five.restore(five.undelete("r@0"))["w"], weights(0))


def test_gc_without_a_plan_drops_nothing(five):
    done = five.gc(now=True)
    assert done.dropped == ()
    assert len(five.checkpoints()) == 5


def test_an_old_plan_leaves_alone_what_changed_since(five, caplog):
    plan = five.plan_gc(KeepLast(1))
    five.tag("r@0", "keep-me")
    five.pin("r@1")
    five.delete("r@2")
    done = five.gc(plan)
    assert refs(done.dropped) == ["r@3"]
    assert refs(done.skipped) == ["r@0", "r@1", "r@2"]
    assert refs(five.checkpoints()) == ["r@0", "r@1", "r@4"]
    assert "left alone" in caplog.text


def test_a_removal_between_look_and_deed_is_looked_at_again(five, monkeypatch):
    plan = five.plan_gc(KeepLast(2))
    real = five._repository.trash
    rivals = iter(["r@1"])

    def trash(rows, guard):
        for rival in rivals:
            with casckpt.open(five.path) as other:
                other.delete(rival)
        real(rows, guard)

    monkeypatch.setattr(five._repository, "trash", trash)
    done = five.gc(plan)
    assert refs(done.dropped) == ["r@0", "r@2"]
    assert refs(done.skipped) == ["r@1"]


@pytest.mark.parametrize("named", ["r", "r~0", "*"])
def test_a_delete_beside_a_training_takes_what_is_left(five, monkeypatch, named):
    real = five._repository.trash
    rivals = iter(["r@4"])

    def trash(rows, guard):
        for rival in rivals:
            with casckpt.open(five.path) as other:
                other.delete(rival)
                other.save("r", {"v": 1}, 9)
        real(rows, guard)

    monkeypatch.setattr(five._repository, "trash", trash)
    plan = five.delete(named)
    assert refs(plan.drop) == ["r@0", "r@1", "r@2", "r@3"]
    assert set(plan.reasons) == set(refs(plan.drop))
    assert refs(five.checkpoints()) == ["r@9"]


def test_a_delete_that_never_gets_through_says_so(five, monkeypatch):
    def trash(rows, guard):
        raise NotFound("gone")

    monkeypatch.setattr(five._repository, "trash", trash)
    with pytest.raises(Busy, match="could not be deleted"):
        five.delete("r")


def test_what_became_the_newest_since_stays(five):
    plan = five.plan_gc(KeepLast(1))
    five.delete("r@4")
    five.gc(plan)
    assert refs(five.checkpoints()) == ["r@3"]


def test_a_plan_for_some_runs(five):
    for step in range(3):
        five.save("x/y", {"w": weights(50 + step)}, step)
    assert refs(five.plan_gc(KeepLast(1), "x/*").drop) == ["x/y@0", "x/y@1"]
    assert refs(five.plan_gc(KeepEvery(2), "r").drop) == ["r@1", "r@3"]
    with pytest.raises(NotFound):
        five.plan_gc(KeepLast(1), "nothing")
    assert five.plan_gc(KeepLast(1), "nothing*").drop == ()


def test_a_limit_of_bytes_drops_the_oldest(five):
    stored = five.stats().stored_bytes
    plan = five.plan_gc(max_bytes=stored - 500_000)
    assert refs(plan.drop) == ["r@0", "r@1"]
    assert "oldest above" in plan.reasons["r@0"][0]
    assert plan.freed_bytes >= 500_000
    assert five.plan_gc(max_bytes=stored).drop == ()
    five.gc(plan, now=True)
    five.gc()  # what the first one had reserved for packs that it wrote is given back by now
    assert five.stats().stored_bytes <= stored - 500_000


def test_a_limit_that_cannot_be_met_says_so(five, caplog):
    plan = five.plan_gc(max_bytes=0)
    assert refs(plan.keep) == ["r@4"]
    assert "cannot get under 0 bytes" in caplog.text
    with pytest.raises(BadRequest):
        five.plan_gc(max_bytes=-1)


def test_a_limit_of_bytes_leaves_the_best_that_a_policy_names(five):
    best = KeepBest("loss", "min")
    for policy in (best, best | KeepLast(5), KeepEvery(1) & best, (KeepLast(5) & best) | best):
        plan = five.plan_gc(policy, max_bytes=0)
        assert refs(plan.keep) == ["r@1", "r@4"]
        assert "best loss" in plan.reasons["r@1"]
    for policy in (KeepLast(5), KeepLast(1) & best | KeepEvery(1)):
        plan = five.plan_gc(policy, max_bytes=0)
        assert refs(plan.keep) == ["r@4"]
        assert plan.reasons["r@1"] == ("oldest above 0 bytes",)


def test_a_limit_that_cannot_be_met_costs_no_checkpoint_for_nothing(tmp_path, caplog):
    with casckpt.open(tmp_path / "s") as store:
        # All in one pack, which is not rewritten for the little that each has of its own.
        for step in range(4):
            store.save("r", {"w": weights(1), "step": step}, step)
        plan = store.plan_gc(max_bytes=0)
        assert (plan.drop, plan.freed_bytes) == ((), 0)
        assert plan.reasons["r@0"] == ("no policy",)
        assert "cannot get under 0 bytes" in caplog.text


@pytest.mark.parametrize("policy", [3, "last", {"keep_last": 3}])
def test_what_is_no_policy_is_refused(store, policy):
    with pytest.raises(BadRequest, match="is no policy"):
        store.plan_gc(policy)


def test_a_policy_by_a_metric_that_nothing_has_drops_nothing(five):
    for policy in (KeepBest("losss", "min"), KeepLast(1) | KeepBest("losss", "min")):
        with pytest.raises(NotFound, match="metrics here: loss"):
            five.plan_gc(policy, "r")


def test_what_a_delete_frees_is_its_own(five):
    both = five.plan_gc(KeepLast(3), "r")
    assert refs(both.drop) == ["r@0", "r@1"]
    first, second = (five.delete(f"r@{step}").freed_bytes for step in (0, 1))
    # What is removed leaves a fact of that in the same pack.
    assert first + second == pytest.approx(both.freed_bytes, rel=0.01)
    assert both.freed_bytes > 0


def test_policies_combine(store):
    for step in range(60):
        store.save("r", {"v": step}, step)
    plan = store.plan_gc(casckpt.KeepEvery(10) & casckpt.KeepLast(35))
    assert [ck.step for ck in plan.keep] == [30, 40, 50, 59]


def test_what_a_collection_frees_is_not_held_open(tmp_path):
    def held():
        links = (os.path.realpath(link) for link in Path("/proc/self/fd").iterdir())
        return [link for link in links if str(tmp_path) in link and link.endswith("(deleted)")]

    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"w": weights(0)})
        store.save("r", {"w": weights(1)})
        store.restore("r@0")
        store.delete("r@0")
        # As in another process, whose collection this one is not told of.
        script = "import sys, casckpt; casckpt.open(sys.argv[1]).gc(now=True, force=True)"
        store.restore("r@1")
        store.gc(now=True, force=True)
        assert held() == []
        store.save("kept", {"w": weights(2)})
        store.restore("kept")
        store.delete("r@1")
        subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], check=True)
        store.save("kept", {"w": weights(3)})
        assert held() == []
