"""What others do to a store while a call is under way, and what is asked of the wrong one."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys

import pytest

import casckpt
from casckpt.checkpoint import guards, handle
from casckpt.checkpoint.queries import Catalog
from casckpt.errors import (
    BadRef,
    BadRequest,
    Busy,
    Corrupt,
    Deleted,
    NotFound,
    OperationFailed,
    RunMoved,
    StepExists,
)
from casckpt.store import Repository, SaveAgain, packs
from casckpt.store.saving import Saver

np = pytest.importorskip("numpy")


def weights(seed, count=1000):
    return np.random.default_rng(seed).standard_normal(count)


def test_a_delete_says_what_it_frees_though_a_collection_moves_it_meanwhile(tmp_path, monkeypatch):
    place = tmp_path / "s"
    with casckpt.open(place) as store:  # one pack, of which little stays
        store.save("gone", {"w": weights(1, 200_000)})
        store.save("moved", {"w": weights(2)})
    real, looks = packs.read_header, []

    def read_header(*where):
        looks.append(where)
        if len(looks) == 1:
            for _ in range(2):
                subprocess.run(
                    [sys.executable, "-m", "casckpt", "--store", place, "gc", "--now", "--yes"],
                    check=True,
                )
        return real(*where)

    with casckpt.open(place) as store:
        store.save("r", {"w": weights(3)})
        store.delete("gone")
        monkeypatch.setattr(packs, "read_header", read_header)
        store._repository._shared().packs.let_go()
        assert store.delete("moved").freed_bytes >= 0
        assert looks
        monkeypatch.setattr(Repository, "plan_gc", _damaged)
        with pytest.raises(Corrupt, match="object 0102 cannot be read"):
            store.delete("r")
        monkeypatch.setattr(Repository, "plan_gc", _always_elsewhere())
        with pytest.raises(Busy, match="what this would free is not known"):
            store.delete("r")
        assert [ck.ref for ck in store.checkpoints()] == ["r@0"]


def _damaged(*_):
    raise Corrupt("object 0102 cannot be read", "its pack file is missing; nothing is freed")


def _always_elsewhere():
    numbers = itertools.count()

    def plan_gc(*_):
        raise Corrupt(f"object {next(numbers)} cannot be read", "its pack file is missing")

    return plan_gc


@pytest.mark.parametrize(("met", "saved"), [(4, True), (5, False)])
def test_a_save_that_meets_a_collector_is_begun_anew(store, monkeypatch, met, saved):
    real, calls = Saver.commit, []

    def commit(self, request):
        calls.append(request)
        if len(calls) <= met:
            raise SaveAgain("a collector freed what the save had found")
        return real(self, request)

    monkeypatch.setattr(Saver, "commit", commit)
    if saved:
        assert store.save("r", {"w": weights(0)}).ref == "r@0"
    else:
        with pytest.raises(SaveAgain, match="a collector freed"):
            store.save("r", {"w": weights(0)})
    assert len(calls) == 5
    assert [ck.ref for ck in store.checkpoints()] == (["r@0"] if saved else [])


def test_a_plan_that_others_keep_ahead_of_is_given_up(store, monkeypatch):
    for step in range(3):
        store.save("r", {"v": step}, step)
    plan = store.plan_gc(casckpt.KeepLast(1))

    def trash(rows, guard):
        raise NotFound("one of them is gone")

    monkeypatch.setattr(store._repository, "trash", trash)
    with pytest.raises(Busy, match="the plan could not be carried out"):
        store.gc(plan)


def at_the_last_moment(monkeypatch, store, call, change):
    """Have another process make a change between the look and the transaction that goes by it."""
    writer = store._repository._shared(write=True).writer
    real, moments = writer.run, iter([change])

    def run(job, **options):
        named = getattr(job, "func", job).__qualname__
        for now in moments if call in named else ():
            now()
        return real(job, **options)

    monkeypatch.setattr(writer, "run", run)


def branch(store, ref):
    """Begin a line there that has saved nothing yet."""
    with store.run("branch", resume=ref) as run:
        run._begin(None)


def saved(store, count=4):
    for step in range(count):
        store.save("r", {"v": step}, step)
    return [ck.ref for ck in store.checkpoints("r")]


@pytest.mark.parametrize("now", [True, False])
@pytest.mark.parametrize(
    ("change", "skipped"),
    [
        (lambda store: store.tag("r@1", "champion"), ["r@1"]),
        (lambda store: store.pin("r@1"), ["r@1"]),
        (lambda store: store.delete("r@3"), ["r@2"]),
        (lambda store: branch(store, "r@1"), ["r@1"]),
    ],
)
def test_what_is_marked_at_the_last_moment_outlives_a_gc(
    tmp_path, monkeypatch, now, change, skipped
):
    with casckpt.open(tmp_path / "s") as store:
        saved(store)
        plan = store.plan_gc(casckpt.KeepLast(1))
        assert [ck.ref for ck in plan.drop] == ["r@0", "r@1", "r@2"]
        at_the_last_moment(monkeypatch, store, "trash_checkpoints", lambda: change(store))
        done = store.gc(plan, now=now)
        assert [ck.ref for ck in done.skipped] == skipped
        for ref in skipped:
            assert store.restore(ref) == {"v": int(ref[2:])}


@pytest.fixture
def own(tmp_path):
    """Return a store of the test's own: rows of runs are not removed."""
    with casckpt.open(tmp_path / "own") as found:
        yield found


_numbers = itertools.count()


def other(old):
    """Return a row of a run without lines, each time another one."""
    return b'{"lines": [], "current": 0, "n": %d}' % next(_numbers)


def at_each_moment(monkeypatch, store, change):
    """Have another process make a change before every removal."""
    trash = store._repository.trash

    def after(rows, guard):
        change()
        return trash(rows, guard)

    monkeypatch.setattr(store._repository, "trash", after)


def test_other_runs_at_work_keep_no_gc_from_its_plan(own, monkeypatch):
    store = own
    saved(store)
    plan = store.plan_gc(casckpt.KeepLast(1))
    at_each_moment(monkeypatch, store, lambda: store._repository.edit_run("other", other))
    assert len(store.gc(plan).dropped) == 3


def test_a_run_that_others_work_on_without_end_is_left_alone_and_the_rest_is_dropped(
    own, monkeypatch
):
    store = own
    saved(store)
    for step in range(3):
        store.save("busy", {"v": step}, step)
    plan = store.plan_gc(casckpt.KeepLast(1))
    at_each_moment(monkeypatch, store, lambda: store._repository.edit_run("busy", other))
    done = store.gc(plan)
    assert [ck.ref for ck in done.dropped] == ["r@0", "r@1", "r@2"]
    assert [ck.ref for ck in done.skipped] == ["busy@0", "busy@1"]


def test_what_came_back_and_was_pinned_after_the_look_is_not_dropped(store):
    saved(store)
    (found,) = [row for row in store._repository.checkpoint_rows("r") if row.step == 1]
    store.delete("r@1")
    seen = guards.Seen(store._repository)
    store.undelete("r@1")
    store.pin("r@1")
    doomed = [("r", found.seq)]
    with pytest.raises(RunMoved):
        store._repository.trash(doomed, seen.allows(doomed))
    assert store.get("r@1").pinned


def test_a_pin_at_the_last_moment_forbids_a_delete(store, monkeypatch):
    saved(store)
    at_the_last_moment(monkeypatch, store, "trash_checkpoints", lambda: store.pin("r@1"))
    with pytest.raises(BadRequest, match="r@1 is pinned"):
        store.delete("r")
    assert len(store.checkpoints("r")) == 4


@pytest.mark.parametrize("mark", [lambda s: s.tag("r@3", "x"), lambda s: s.pin("r@3")])
def test_what_is_marked_at_the_last_moment_is_not_replaced(store, monkeypatch, mark):
    saved(store)
    at_the_last_moment(monkeypatch, store, "_publish", lambda: mark(store))
    with pytest.raises(StepExists, match="cannot be replaced"):
        store.save("r", {"v": "other"}, 3, replace=True)
    assert store.restore("r@3") == {"v": 3}


def test_a_step_whose_checkpoint_goes_at_the_last_moment_is_saved_all_the_same(store, monkeypatch):
    saved(store)
    at_the_last_moment(monkeypatch, store, "_publish", lambda: store.delete("r@3"))
    store.save("r", {"v": "other"}, 3, replace=True)
    assert store.restore("r@3") == {"v": "other"}


@pytest.mark.parametrize(
    ("job", "call"),
    [
        ("swap", lambda store: store.tag("r@1", "champion")),
        ("_publish", lambda store: store.save("r", {"v": 9}, 9, tags="champion")),
        ("swap", lambda store: store.save("r", {"v": 3}, 3, tags="champion")),
    ],
)
def test_a_tag_that_another_takes_at_the_last_moment_is_given_to_one_only(
    store, monkeypatch, job, call
):
    saved(store)
    at_the_last_moment(monkeypatch, store, job, lambda: store.tag("r@0", "champion"))
    with pytest.raises(BadRequest, match="'champion' is taken"):
        call(store)
    assert [ck.ref for ck in store.checkpoints("r") if ck.tags] == ["r@0"]


def test_what_takes_the_place_at_the_last_moment_keeps_it(store, monkeypatch):
    saved(store)
    store.delete("r@3")
    at_the_last_moment(
        monkeypatch, store, "untrash", lambda: store.save("r", {"v": "new"}, 3, tags="t")
    )
    with pytest.raises(StepExists, match="r@3 cannot come back"):
        store.undelete("r@3")
    assert store.restore("r@3") == {"v": "new"}


def test_a_step_brought_back_stays_the_newest_when_what_came_later_there_is_gone(store):
    saved(store)
    first = store.get("r@3")
    store.delete(first)
    store.delete(store.save("r", {"v": "later"}, 3))
    assert store.undelete(f"id:{first.id}") == first
    store.gc(now=True)
    assert store.latest("r") == first
    assert store.restore("r") == {"v": 3}
    with pytest.raises(StepExists):
        store.save("r", {"v": "fourth"}, 3)
    assert store.save("r", {"v": 4}).ref == "r@4"


def test_of_two_in_the_trash_that_were_at_one_place_the_last_removed_comes_back(store):
    saved(store)
    first = store.get("r@3")
    store.delete(first)
    store.delete(store.save("r", {"v": "later"}, 3))
    store.undelete(f"id:{first.id}")
    store.delete("r@3")
    assert store.undelete("r@3") == first
    store.delete("r")
    assert store.undelete("r") == first
    assert store.restore("r") == {"v": 3}


def test_what_comes_back_is_looked_up_in_one_go(store, monkeypatch):
    for step in range(30):
        store.save("r", {"v": step}, step, tags=f"t{step}")
    store.delete("r")
    looks, tags = [], []
    real, read = Repository.checkpoint_rows, guards.payload_tags
    monkeypatch.setattr(
        Repository, "checkpoint_rows", lambda *a, **k: looks.append(a) or real(*a, **k)
    )
    monkeypatch.setattr(guards, "payload_tags", lambda payload: tags.append(1) or read(payload))
    assert store.undelete("r").step == 29
    assert len(looks) < 10
    assert len(tags) <= 30
    assert len(store.checkpoints("r")) == 30


@pytest.fixture
def collected(store, monkeypatch):
    """Save two steps; the first cannot be read, the second is collected before it is."""
    store.save("r", {"w": weights(0)}, 0)
    store.save("r", {"w": weights(1, 100_000)}, 1)  # most of its pack, which is collected
    real = Catalog.manifest_and_refs

    def read(self, checkpoint):
        if checkpoint.step == 0:
            raise Corrupt("a manifest is damaged", "its hash differs")
        store.delete("r@1")
        store.gc(now=True, force=True)
        return real(self, checkpoint)

    monkeypatch.setattr(Catalog, "manifest_and_refs", read)
    return store


def test_what_is_collected_while_it_is_restored_is_deleted(collected):
    with pytest.raises(Deleted):
        collected.restore("r")


def test_where_no_other_is_whole_a_fallback_tells_of_the_one_asked_for(collected, caplog):
    asked = collected.get("r")
    with caplog.at_level(logging.WARNING, "casckpt"), pytest.raises(Deleted) as caught:
        collected.restore(asked, fallback=True)
    assert asked.id[:8] in str(caught.value)
    assert "r@0 is damaged too" in caplog.text


def test_a_store_that_another_process_is_making_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(handle, "_MAKING_WAIT_S", 0.1)
    real, calls = Repository.init, []

    def busy(path):
        calls.append(path)
        raise OperationFailed(f"{path} is being made")

    monkeypatch.setattr(Repository, "init", busy)
    with pytest.raises(OperationFailed, match="is being made"):
        casckpt.open(tmp_path / "never")
    assert len(calls) > 1

    def made_by_another(path):
        real(path)
        busy(path)

    monkeypatch.setattr(Repository, "init", made_by_another)
    with casckpt.open(tmp_path / "made") as store:
        assert store.checkpoints() == []


# ---- of the wrong store, or in the wrong way


def test_a_checkpoint_of_another_handle_is_found_by_its_id(store, tmp_path):
    saved = store.save("r", {"v": 1})
    with casckpt.open(store.path, mode="r") as again:
        assert again.get(saved) == saved
        assert store.get(again.get("r")) == saved
    with casckpt.open(tmp_path / "other") as other:
        with pytest.raises(NotFound, match="no such id"):
            other.get(saved)
        with pytest.raises(BadRequest, match="cannot save against r@0 of another store"):
            other.save("r", {"v": 2}, parent=f"{store.path}::r")
        assert other.checkpoints() == []


def test_a_call_with_what_there_is_not_says_what_there_is(store, tmp_path):
    with pytest.raises(BadRequest, match="bad mode 'w'"):
        casckpt.open(tmp_path / "s", mode="w")
    assert not (tmp_path / "s").exists()
    with pytest.raises(BadRequest, match=r"bad level 'tiny'\n.*fast, balanced, small"):
        store.save("r", {"v": 1}, level="tiny")
    with pytest.raises(BadRef, match="after '~' comes the number of a line"):
        store.get("r~x")
    for options in ({"sample": 0.5}, {"max_rate": 1e6}, {"resume": True}):
        with pytest.raises(BadRequest, match="level 'refs' reads no records"):
            store.verify("refs", **options)
