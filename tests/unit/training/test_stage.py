from __future__ import annotations

import contextlib
import copy
import random

import numpy as np
import pytest

import casckpt
from casckpt.checkpoint.encode import write_state
from casckpt.errors import BadLeaf, BadRequest, Deleted, NoSpace, NotFound, Stopped
from casckpt.training import results
from casckpt.training.stages import rows as stage_rows
from casckpt.training.stages.sums import ExactSum
from casckpt.training.stops import request_stop


class Work:
    """A script with one stage: says which items it worked on."""

    def __init__(self, store, name):
        self.store, self.name = store, name

    def __call__(self, items, *, stop_at=None, run=None, **stage):
        worked = []
        with self.store.run(self.name, **(run or {})) as opened:
            st = opened.stage("work", items, **stage)
            for key, item in st:
                if key == stop_at:
                    raise RuntimeError("power cut")
                worked.append(key)
                st.done(key, {"item": item, "seed": st.seed(key)}, chars=len(str(item)))
            self.results, self.totals, self.means = list(st.results()), st.totals, st.means
            self.counts = st.total, st.done_count
        return worked


@pytest.fixture
def work(store, name):
    return Work(store, name)


def test_items_are_done_once_and_results_come_in_their_order(work):
    assert work(["a", "b", "c"]) == ["a", "b", "c"]
    first = work.results
    assert [one["item"] for one in first] == ["a", "b", "c"]
    assert work.counts == (3, 3)
    assert work(["a", "b", "c"]) == []
    assert work.results == first
    assert work(["c", "a"]) == []
    assert [one["item"] for one in work.results] == ["c", "a"]


def test_results_are_copied_and_pickled_as_a_list(store, name):
    with store.run(name) as run:
        results = run.stage("s", [1, 2]).map(lambda item: {"n": item})
        with pytest.raises(BadLeaf, match=r"save list\(it\) in its place"):
            run.save({"all": results})
        run.save({"all": casckpt.Pickled(results), "own": list(results)})
    back = store.restore(name, allow_pickle=True)
    assert back == {"all": [{"n": 1}, {"n": 2}], "own": [{"n": 1}, {"n": 2}]}
    assert copy.deepcopy(results) == back["own"]


@pytest.mark.parametrize("save_every", [1, 2, 10])
def test_an_exception_loses_nothing_that_was_done(work, save_every):
    with pytest.raises(RuntimeError):
        work(list(range(10)), stop_at=7, save_every=save_every)
    assert work(list(range(10)), save_every=save_every) == [7, 8, 9]
    assert work.totals == {"chars": 10}
    assert work.means == {"chars": 1.0}


def test_what_changed_is_redone_and_the_rest_stays(work):
    work({"x": 1, "y": 2})
    assert work({"x": 1, "y": 3}) == ["y"]
    assert work({"x": 1, "y": 2, "z": 0}) == ["z"]
    assert work({"x": 1, "y": 2}, version="2") == ["x", "y"]
    assert work({"x": 1, "y": 2}, uses={"rate": 8000}) == ["x", "y"]
    assert work({"x": 1, "y": 2}) == []
    assert work({"new name": 1, "y": 2}) == ["new name"]


def test_a_changed_file_is_redone(work, tmp_path):
    for track in ("a", "b"):
        (tmp_path / track).write_text(track)
    paths = [tmp_path / "a", tmp_path / "b"]
    assert work(paths) == paths
    (tmp_path / "b").write_text("louder")
    assert work(paths) == [tmp_path / "b"]


def test_functions_in_uses_count(work):
    def louder(x):
        return x + 1

    def quieter(x):
        return x - 1

    assert work(["a"], uses=louder) == ["a"]
    assert work(["a"], uses=quieter) == ["a"]
    assert work(["a"], uses=louder) == []


def test_equal_items_are_one_unit(work):
    assert work(["a", "b", "a"]) == ["a", "b"]
    assert [one["item"] for one in work.results] == ["a", "b", "a"]
    assert work.counts == (2, 2)


def test_items_without_a_key_of_their_own_have_their_fingerprint(work):
    items = [{"text": "a"}, np.arange(3), (1, 2)]
    keys = work(items)
    assert [len(key) for key in keys] == [64] * 3
    assert work(items) == []


def test_keys_of_the_users_own(work):
    items = [{"id": 7, "text": "a"}, {"id": 8, "text": "b"}]
    assert work(items, key=lambda item: item["id"]) == [7, 8]
    items[1]["text"] = "c"
    assert work(items, key=lambda item: item["id"]) == [8]


def test_two_items_of_one_key_are_refused(work):
    with pytest.raises(BadRequest, match="have the key 'x'"):
        work(["a", "b"], key=lambda item: "x")


@pytest.mark.parametrize("items", ["text", b"bytes", 7])
def test_items_that_are_none_are_refused(store, name, items):
    with store.run(name) as run, pytest.raises(BadRequest):
        run.stage("s", items)


def test_an_item_without_a_fingerprint_is_named_before_any_work(work):
    with pytest.raises(BadRequest, match="item 1 of stage work"):
        work(["a", object()])


@pytest.mark.parametrize("options", [{"save_every": 0}, {"save_every": True}])
def test_bad_options(store, name, options):
    with store.run(name) as run:
        with pytest.raises(BadRequest):
            run.stage("s", [], **options)
        with pytest.raises(BadRequest):
            run.stage("bad\0name", [])


# ---- results


def test_all_kinds_of_results_come_back_exactly(store, name):
    values = [None, 1.5, float("inf"), 2**80, "é" * 5000, b"\0" * 10_000, np.arange(5, dtype="f4"),
              np.random.default_rng(0).random((300, 300)), {"a": [1, (2, None)], 3: np.float32(1)},
              [{"x": "y" * 900}] * 20]  # fmt: skip
    with store.run(name) as run:
        st = run.stage("kinds", range(len(values)), save_every=4)
        for key, _ in st:
            st.done(key, values[key])
    with store.run(name) as run:
        found = run.stage("kinds", range(len(values))).results()
        for value, back in zip(values, found, strict=True):
            np.testing.assert_equal(back, value)
        assert list(found[2:4]) == values[2:4]
        assert dict(found.items())[1] == 1.5


def test_a_result_is_taken_when_it_is_given(store, name):
    buffer = np.zeros(5000)
    with store.run(name) as run:
        st = run.stage("reuse", range(3), save_every=10)
        for key, _ in st:
            buffer[:] = key
            st.done(key, buffer)
        assert [one[0] for one in st.results()] == [0, 1, 2]


@pytest.mark.parametrize("result", [object(), casckpt.Pickled(1), {"deep": [{1}, lambda: 0]}])
def test_what_cannot_be_saved_is_refused_and_the_item_is_not_done(store, name, result):
    with store.run(name) as run:
        st = run.stage("s", ["a"])
        with pytest.raises(BadLeaf):
            st.done("a", result)
        assert st.done_count == 0
        st.done("a", 1)
        assert list(st.results()) == [1]


def test_large_results_are_kept_by_gc_and_freed_when_cleared(tmp_path):
    big = np.random.default_rng(1).random(50_000)
    # What is freed of a pack depends on what else is in it: a store of its own.
    with casckpt.open(tmp_path / "s") as store, store.run("big") as run:
        st = run.stage("big", ["a", "b"])
        for key, _ in st:
            st.done(key, big)
        store.gc(now=True)
        assert all(np.array_equal(one, big) for one in st.results())
        assert store.verify("bytes").damaged == ()
        # The same bytes for both items are there once.
        rows = store._repository.rows("progress", run.scope)
        (roots,) = {row.roots for _, row in rows if row.roots}
        assert store._repository.read_manifest(roots[0])
        found = st.results()
        st.clear()
        assert store._repository.gc(now=True).freed_bytes > big.nbytes // 2  # noise is kept whole
        with pytest.raises(Deleted):
            store._repository.read_manifest(roots[0])
        with pytest.raises(NotFound):
            found[0]
        assert [key for key, _ in st] == ["a", "b"]


def test_results_of_an_unfinished_stage_are_refused(store, name):
    with store.run(name) as run:
        st = run.stage("s", ["a", "b"])
        st.done("a", 1)
        with pytest.raises(BadRequest, match="1 of 2 items"):
            st.results()


# ---- numbers and seeds


def test_totals_do_not_depend_on_the_order():
    numbers = [random.Random(3).uniform(-1, 1) * 10 ** (i % 30) for i in range(500)]
    found = set()
    for order in range(5):
        random.Random(order).shuffle(numbers)
        total = ExactSum()
        for number in numbers:
            total.add(number)
        found.add((total.value, total.mean))
    assert len(found) == 1


def test_totals_keep_ints_and_what_is_not_finite(store, name):
    with store.run(name) as run:
        st = run.stage("s", range(3))
        st.done(0, None, tokens=2**60, loss=0.1)
        st.done(1, None, tokens=1, loss=float("nan"))
        st.done(2, None, tokens=np.int64(1))
        assert st.totals["tokens"] == 2**60 + 2
        assert isinstance(st.totals["tokens"], int)
        assert np.isnan(st.totals["loss"])
        with pytest.raises(BadRequest, match="is no number"):
            run.stage("t", [1]).done(1, None, text="x")


def test_seeds_are_fixed_and_differ():
    class Run:
        repository, name, line = None, "r", 0

    stage = casckpt.Stage(Run(), "s", [])
    seeds = [stage.seed(key) for key in range(1000)]
    assert len(set(seeds)) == 1000
    assert seeds == [casckpt.Stage(Run(), "s", [1]).seed(key) for key in range(1000)]
    assert stage.seed(1, base=2) != stage.seed(1)
    assert all(0 <= seed < 2**32 for seed in seeds)


# ---- failures


def test_failed_items_are_told_and_tried_again(store, name):
    with store.run(name) as run:
        st = run.stage("s", ["a", "b"])
        for key, _ in st:
            st.failed(key, ValueError("bad")) if key == "a" else st.done(key, key)
        assert st.errors() == {"a": "ValueError: bad"}
        assert list(st.results()) == [None, "b"]
    with store.run(name) as run:
        st = run.stage("s", ["a", "b"])
        assert st.errors() == {"a": "ValueError: bad"}
        for key, _ in st:
            st.done(key, key)
        assert st.errors() == {}
        assert list(st.results()) == ["a", "b"]


@pytest.mark.parametrize("save_every", [1, 10])
def test_an_item_that_failed_is_done_by_another_try(store, name, save_every):
    for _ in range(2):  # in the second session the failure of the first is durable
        with store.run(name) as run:
            st = run.stage("s", ["a", "b", "c"], save_every=save_every)
            for key, item in st:
                st.failed(key, "first try")
                st.failed(key, "second try")
                if key != "c":
                    st.done(key, item * 2, tries=3)
                    with pytest.raises(BadRequest, match="done already"):
                        st.done(key, item)
            assert list(st.results()) == ["aa", "bb", None]
            assert set(st.errors()) == {"c"}
            assert st.totals == {"tries": 6}
    with store.run(name) as run:
        st = run.stage("s", ["a", "b", "c"], save_every=save_every)
        for key, item in st:
            st.failed(key, "again")
            st.done(key, item * 2)
        assert list(st.results()) == ["aa", "bb", "cc"]
    with store.run(name) as run:
        st = run.stage("s", ["a", "b", "c"])
        assert (st.done_count, st.errors()) == (3, {})
        assert not list(st._ledger._own.failed({unit.identity: 0 for unit in st._ledger.plan()}))


@pytest.mark.parametrize("is_full", [False, True])
def test_an_item_is_done_while_its_failure_is_being_written(store, name, is_full, monkeypatch):
    original = type(store._repository).add_rows
    meanwhile = []

    def add_rows(self, writes):
        if not meanwhile:
            meanwhile.append(st.done("a", 1))
            if is_full:
                raise NoSpace("the disk is full")
        return original(self, writes)

    monkeypatch.setattr(type(store._repository), "add_rows", add_rows)
    with store.run(name) as run:
        st = run.stage("s", ["a"], save_every=2)
        st.failed("a", "first try")
        with contextlib.suppress(NoSpace):
            st._ledger.flush()
        assert list(st.results()) == [1]
        assert st.errors() == {}
    with store.run(name) as run:
        assert run.stage("s", ["a"]).done_count == 1


def test_keys_that_were_not_yielded_are_refused(store, name):
    with store.run(name) as run:
        st = run.stage("s", ["a", "b"])
        with pytest.raises(BadRequest, match="no item with the key 'c'"):
            st.done("c", 1)
        st.done("a", 1)
        with pytest.raises(BadRequest, match="done already"):
            st.done("a", 2)
        with pytest.raises(BadRequest, match="done already"):
            st.failed("a", "x")


# ---- runs


def test_a_stop_leaves_between_items_with_everything_saved(store, name):
    def work():
        with store.run(name) as run:
            st = run.stage("s", range(100), save_every=50)
            for key, _ in st:
                st.done(key, key)
                if key == 4:
                    request_stop(store._repository, name)
                    run._session.watch._next_look_s = 0.0

    with pytest.raises(Stopped):
        work()
    assert store.run(name).info.status == "stopped"
    with store.run(name) as run:
        st = run.stage("s", range(100))
        assert st.done_count == 5


def test_run_stop_ends_the_loop(store, name):
    with store.run(name) as run:
        st = run.stage("s", range(10))
        for key, _ in st:
            st.done(key, key)
            if key == 2:
                run.stop("enough")
        assert st.done_count == 3
    assert store.run(name).info.status == "stopped"


def test_progress_is_seen_from_outside(store, name):
    with store.run(name) as run:
        st = run.stage("s", range(4))
        for key, _ in st:
            st.done(key, key)
            if key == 1:
                break
        run._session.flush()
        (part,) = run.info.progress
        assert (part.part, part.done, part.total) == ("s", 2, 4)


def test_a_stage_can_be_dropped_by_name(store, name):
    with store.run(name) as run:
        run.stage("s", ["a"]).done("a", 1)
        run.stage("t", ["a"]).done("a", 1)
    assert stage_rows.clear_stage(store, name, "s") == 1
    with store.run(name) as run:
        assert run.stage("s", ["a"]).done_count == 0
        assert run.stage("t", ["a"]).done_count == 1


def test_a_full_disk_loses_nothing_and_the_same_stage_goes_on(store, name, monkeypatch):
    repository = store._repository
    original = type(repository).add_rows
    full = [False, True, True, False]

    def add_rows(self, writes):
        if full and full.pop(0):
            raise NoSpace("the disk is full")
        return original(self, writes)

    monkeypatch.setattr(type(repository), "add_rows", add_rows)
    with store.run(name) as run:
        st = run.stage("s", range(6), save_every=2)
        refused = []
        for key, _ in st:
            try:
                st.done(key, key, calls=1)
            except NoSpace:
                refused.append(key)
        assert refused == [3, 4]
        assert list(st.results()) == list(range(6))
        assert st.totals == {"calls": 6}
    with store.run(name) as run:
        assert run.stage("s", range(6)).done_count == 6


def test_a_rebuilt_index_has_the_results_and_no_more_checkpoints(tmp_path):
    with casckpt.open(tmp_path / "s") as store:
        with store.run("r") as run:
            st = run.stage("s", ["a", "b"])
            st.done("a", np.arange(10_000))
            st.done("b", "small")
            run.save({"x": 1}, 1)
        store.repair(rebuild_index=True, accept=True)
        assert [one.ref for one in store.checkpoints()] == ["r@1"]
        assert store.verify("bytes").damaged == ()
        store.gc(now=True)
        with store.run("r") as run:
            found = run.stage("s", ["a", "b"]).results()
            assert np.array_equal(found[0], np.arange(10_000))
            assert found[1] == "small"


def test_a_rebuild_makes_no_checkpoint_of_a_result_whose_row_is_lost(tmp_path):
    with casckpt.open(tmp_path / "s") as store:
        row = results.pending("progress", b"key", "a", np.arange(9000), {})
        with store._repository.saver() as saver:
            refs, entries = write_state(saver, row.flat)
            saver.put_manifest(refs, results._body(row.flat, entries))
        store.save("r", {"x": 1})
        store.repair(rebuild_index=True, accept=True)
        assert [one.ref for one in store.checkpoints()] == ["r@0"]
