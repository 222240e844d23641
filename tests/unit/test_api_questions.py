"""What the public Store answers."""

from __future__ import annotations

import pytest

import casckpt
from casckpt.errors import BadRef, BadRequest, NotFound

np = pytest.importorskip("numpy")


def weights(seed, count=100_000):
    return np.random.default_rng(seed).standard_normal(count).astype(np.float32)


def test_latest_and_best_are_none_where_there_is_nothing(store):
    assert store.latest("r") is None
    assert store.best("r", "loss", "min") is None
    store.save("r", {"v": 1})
    assert store.best("r", "loss", "min") is None
    assert store.latest("r").step == 0


def test_best_needs_a_metric_and_a_mode(store):
    store.save("r", {"v": 1}, metrics={"loss": 1.0})
    with pytest.raises(BadRef):
        store.best("r")
    with pytest.raises(BadRef):
        store.best("r", "loss")
    assert store.best("r", "loss", "max").step == 0


def test_a_run_may_be_of_another_store_and_is_never_a_checkpoint(store, tmp_path):
    with casckpt.open(tmp_path / "other") as other:
        for step in range(3):
            other.save("r", {"v": step}, step, metrics={"loss": step})
    store.save("r", {"v": 7}, 7, metrics={"loss": 7})
    there = f"{tmp_path / 'other'}::r"
    assert store.latest(there).step == 2
    assert store.best(there, "loss", "min").step == 0
    assert store.history(there) == {"loss": [(0, 0.0), (1, 1.0), (2, 2.0)]}
    assert store.stats(there).checkpoint_count == 3
    assert store.stats("r~*").checkpoint_count == 1
    for asked in (
        lambda: store.latest("r@7"),
        lambda: store.best("r@7", "loss", "min"),
        lambda: store.history("r@7"),
        lambda: store.history(f"id:{store.get('r@7').id}"),
        lambda: store.stats("r~0"),
        lambda: store.plan_gc(casckpt.KeepLast(1), "r~0"),
        lambda: store.plan_gc(casckpt.KeepLast(1), there),
    ):
        with pytest.raises(BadRef):
            asked()


def test_checkpoints_by_glob_and_by_name(store):
    for run in ("a", "a/x", "a/y", "b"):
        for step in (2, 10):
            store.save(run, {"v": run}, step)
    assert [ck.ref for ck in store.checkpoints()] == [
        "a@2", "a@10", "a/x@2", "a/x@10", "a/y@2", "a/y@10", "b@2", "b@10",
    ]  # fmt: skip
    assert [ck.ref for ck in store.checkpoints("a/*")] == ["a/x@2", "a/x@10", "a/y@2", "a/y@10"]
    assert [ck.ref for ck in store.checkpoints("a")] == ["a@2", "a@10"]
    assert [ck.ref for ck in store.checkpoints("[ab]")] == ["a@2", "a@10", "b@2", "b@10"]
    assert store.checkpoints("nothing") == []
    assert [info.name for info in store.runs("a*")] == ["a", "a/x", "a/y"]


def test_a_run_in_numbers(store):
    first = store.save("r", {"w": weights(1)}, 3, metrics={"loss": 2.0})
    last = store.save("r", {"w": weights(2)}, 4, metrics={"loss": 1.0})
    (info,) = store.runs()
    assert (info.name, info.line, info.lines, info.checkpoint_count) == ("r", 0, 1, 2)
    assert info.last == last
    assert info.metrics == {"loss": 1.0}
    assert (info.created, info.updated) == (first.created, last.created)
    assert info.logical_bytes == 800_000
    assert info.new_bytes == first.new_bytes + last.new_bytes


def test_history_is_one_series_per_metric(store):
    store.save("r", {"v": 1}, 1, metrics={"loss": 3.0})
    store.save("r", {"v": 2}, 2, metrics={"loss": 2.0, "acc": 0.5})
    assert store.history("r") == {"loss": [(1, 3.0), (2, 2.0)], "acc": [(2, 0.5)]}
    with pytest.raises(NotFound, match="no run x"):
        store.history("x")


def test_a_line_or_run_without_checkpoints_is_told_from_one_that_is_not_there(tmp_path):
    with casckpt.open(tmp_path / "own") as store:
        store.save("r", {"v": 1}, 1)
        for name in ("r", "new"):
            with store.run(name, resume="never") as run:
                run.stage("s", [1]).map(str)
        with pytest.raises(NotFound, match=r"current line of r, r~1\n.*on r~0\n.*ls 'r~.'"):
            store.get("r@1")
        with pytest.raises(NotFound, match=r"no checkpoint of new\n.*\n.*casckpt status new"):
            store.get("new")


def test_a_near_miss_is_suggested(store):
    store.save("bpm/xgboost", {"v": 1})
    with pytest.raises(NotFound, match="did you mean bpm/xgboost") as caught:
        store.get("bpm/xgbost")
    assert caught.value.why == f"the store {store.path} has 1 run"
    with pytest.raises(NotFound, match="did you mean bpm/xgboost"):
        store.get("bpm")


def test_diff_names_what_changed(store):
    tree = {"w": weights(1), "small": weights(2, 10), "other": weights(3, 10), "lr": 0.1, "n": [1]}
    store.save("r", tree, metrics={"loss": 2.0})
    changed = {**tree, "small": weights(4, 10), "lr": 0.2, "n": (1,), "new": "x"}
    del changed["other"]
    store.save("r", changed, metrics={"loss": 1.0})
    diff = store.diff("r@0", "r@1")
    assert not diff.same_state
    assert [change.path for change in diff.added] == ["new"]
    assert [change.path for change in diff.removed] == ["other"]
    assert {change.path: change.changed_bytes for change in diff.changed} == {
        "small": 40, "lr": 0, "n": 0,
    }  # fmt: skip
    assert diff.metrics == {"loss": (2.0, 1.0)}
    assert diff.shared_bytes > 300_000


def test_small_arrays_that_moved_in_their_group_are_equal(store):
    store.save("r", {"b": weights(1, 10), "c": weights(2, 10)})
    store.save("r", {"a": weights(9, 10), "b": weights(1, 10), "c": weights(2, 10)})
    diff = store.diff("r@0", "r@1")
    assert [change.path for change in diff.added] == ["a"]
    assert diff.changed == ()
    assert diff.equal_count == 2


def test_equal_states_have_no_diff_and_order_of_keys_is_one(store):
    store.save("a", {"x": 1, "y": weights(1)})
    store.save("b", {"x": 1, "y": weights(1)})
    store.save("c", {"y": weights(1), "x": 1})
    assert store.diff("a", "b").same_state
    assert not store.diff("a", "c").same_state
    store.save("d", {1: 0})
    store.save("e", {"1": 0})
    assert not store.diff("d", "e").same_state


def test_diff_stays_in_one_store(store, tmp_path):
    store.save("r", {"v": 1})
    with casckpt.open(tmp_path / "other") as other:
        other.save("r", {"v": 2})
    with pytest.raises(BadRequest, match="one store"):
        store.diff("r", f"{tmp_path}/other::r")


def test_sizes_mean_one_thing(store):
    shared, own = weights(1), weights(2)
    store.save("a", {"w": shared}, 0)
    store.save("a", {"w": shared, "x": 1}, 1)
    store.save("b", {"w": shared, "own": own}, 0)
    stats = store.stats()
    assert stats.checkpoint_count == 3
    assert stats.logical_bytes == 4 * 400_000
    per_run = {run.run: run for run in stats.runs}
    assert per_run["a"].logical_bytes == 800_000
    assert per_run["a"].unique_bytes < 10_000
    assert 300_000 < per_run["a"].stored_bytes < 420_000
    assert 300_000 < per_run["b"].unique_bytes < 420_000
    assert stats.saved == 1 - stats.stored_bytes / stats.logical_bytes
    on_disk = sum(
        path.stat().st_blocks * 512
        for path in store.path.rglob("*")
        if path.is_file() and path.name != "ballast"
    )
    assert stats.stored_bytes == pytest.approx(on_disk, rel=0.05)
    only_b = store.stats("b")
    assert only_b.unique_bytes == per_run["b"].unique_bytes
    assert only_b.stored_bytes == per_run["b"].stored_bytes
    assert [run.run for run in only_b.runs] == ["b"]
    assert store.stats("nothing").saved == 0


def test_unique_bytes_are_what_no_other_checkpoint_holds(store):
    store.save("r", {"w": weights(1), "own": weights(2)})
    last = store.save("r", {"w": weights(1), "own": weights(3)})
    assert 300_000 < last.unique_bytes < 420_000
    assert store.get("r@0").unique_bytes == pytest.approx(last.unique_bytes, rel=0.01)


def test_unique_bytes_are_what_dropping_it_would_free(tmp_path):
    # A store of its own: a gc of the shared one frees what other tests have left, too.
    with casckpt.open(tmp_path / "own") as store:
        for seed in range(4):
            store.save("r", {"w": weights(1), "own": weights(10 + seed, 500_000)})
        checkpoint = store.get("r@1")
        freed = store.plan_gc(casckpt.KeepLast(2)).freed_bytes
        unique = checkpoint.unique_bytes + store.get("r@0").unique_bytes
        assert freed == pytest.approx(unique, rel=0.05)


def test_verify_finds_all_whole(store):
    store.save("r", {"w": weights(1)})
    for level in ("structure", "refs", "bytes"):
        result = store.verify(level)
        assert result.ok
        assert result.damaged == ()
        assert result.whole == ("r@0",)
    with pytest.raises(BadRequest, match="bad level"):
        store.verify("deep")


def test_verify_says_whom_damage_concerns(tmp_path):
    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"hurt": weights(1), "fine": weights(2)}, 0)
        store.save("r", {"fine": weights(2)}, 1)
        entries = store.entries("r@0")
        assert [entry.path for entry in entries] == ["hurt", "fine"]
        manifest, refs = store._catalog.manifest_and_refs(store.get("r@0"))
        blob = refs[manifest.entries[0].blob]
        for pack in store.path.glob("packs/*/*.pack"):
            data = bytearray(pack.read_bytes())
            at = data.find(blob)
            if at >= 0:
                data[at + 4000 : at + 4064] = bytes(64)
                pack.write_bytes(data)
        result = store.verify("bytes")
        assert not result.ok
        (damage,) = result.damaged
        assert damage.tensors == ("hurt",)
        assert damage.checkpoints == ("r@0",)
        assert damage.pack
        assert result.whole == ("r@1",)
        assert result.lost == ("r@0",)
