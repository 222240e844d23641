"""save and save_async through the public Store."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import casckpt
from casckpt.checkpoint.queries import Catalog
from casckpt.errors import (
    BadLeaf,
    BadRef,
    BadRequest,
    Corrupt,
    NoSpace,
    NotFound,
    RunMoved,
    StepExists,
)
from casckpt.store import layout

np = pytest.importorskip("numpy")


def state(value=0):
    return {"w": np.arange(40_000, dtype=np.float32) + value, "epoch": value, "name": "x"}


def test_a_save_is_there_with_its_facts(store):
    saved = store.save("bpm/nn", state(), 5, metrics={"loss": 1.5}, tags=["a", "b"])
    found = store.get("bpm/nn@5")
    assert found == saved
    for name in ("ref", "id", "run", "line", "step", "metrics", "tags", "created", "parent",
                 "logical_bytes", "new_bytes", "stored_bytes", "reasons", "pinned"):  # fmt: skip
        assert getattr(found, name) == getattr(saved, name), name
    assert found.ref == "bpm/nn@5"
    assert found.logical_bytes == 160_000
    assert found.new_bytes >= 160_000
    assert 0 < found.stored_bytes < 160_000
    assert found.durable_s > 0
    assert found.missing == found.captured == ()
    assert found.environment["casckpt"] == casckpt.__version__


def test_a_structure_that_no_reader_takes_is_refused_and_harms_nothing(store, monkeypatch):
    monkeypatch.setattr(layout, "BODY_MAX_BYTES", 20_000)
    store.save("r", {"w": 1}, 0)
    texts = [f"{number:0100d}" for number in range(300)]
    with pytest.raises(BadRequest, match="the state's structure takes 3"):
        store.save("r", {"w": 1, "texts": texts}, 1)
    assert store.save("r", {"w": 2}, 1).step == 1
    assert store.verify().damaged == ()


def test_steps_count_up_from_0(store):
    assert [store.save("r", state(i)).step for i in range(3)] == [0, 1, 2]
    store.save("r", state(9), 10)
    assert store.save("r", state(11)).step == 11


def test_the_parent_is_the_step_before(store):
    first = store.save("r", state(1))
    second = store.save("r", state(2))
    assert first.parent is None
    assert second.parent == first.id
    assert store.save("r", state(3), 1, replace=True).parent == first.id


def test_a_state_in_the_place_of_its_step_is_not_printed(store):
    with pytest.raises(BadRef) as caught:
        store.save("r", 1, {"w": np.zeros((9, 9))})
    assert caught.value.what == "bad step of type dict"
    with pytest.raises(BadRef, match=r"bad step 1\.5"):
        store.save("r", {}, 1.5)


def test_an_unchanged_state_writes_next_to_nothing(store):
    store.save("r", state(1))
    again = store.save("r", state(1))
    assert again.new_bytes == 0
    assert again.stored_bytes < 2000


def test_the_same_step_and_content_is_the_existing_checkpoint(store):
    first = store.save("r", state(1), 3, metrics={"a": 1.0}, tags="x")
    again = store.save("r", state(1), 3, metrics={"b": 2.0}, tags=["y"])
    assert again == first
    assert again.metrics == {"a": 1.0, "b": 2.0}
    assert again.tags == ("x", "y")
    assert len(store.checkpoints("r")) == 1


def test_the_same_save_again_changes_nothing(store, monkeypatch):
    first = store.save("r", state(1), 3, metrics={"a": 1.0}, tags="x")

    def edit(*arguments):
        raise AssertionError("its row was written again")

    monkeypatch.setattr(store._repository, "edit_checkpoint", edit)
    assert store.save("r", state(1), 3, tags="x") == first
    assert store.get("r").metrics == {"a": 1.0}


def test_a_parent_that_cannot_be_read_is_no_reason_not_to_save(store, monkeypatch):
    store.save("r", state(1))
    with casckpt.open(store.path) as another:  # which does not remember what it saved last

        def damaged(self, checkpoint):
            raise Corrupt("a manifest is damaged", "its hash differs")

        with monkeypatch.context() as patched:
            patched.setattr(Catalog, "manifest_and_refs", damaged)
            saved = another.save("r", state(2))
    assert saved.parent == store.get("r@0").id
    assert np.array_equal(store.restore("r@1")["w"], state(2)["w"])


def test_the_same_step_with_other_content_is_refused(store):
    store.save("r", state(1), 3)
    with pytest.raises(StepExists) as caught:
        store.save("r", state(2), 3)
    assert caught.value.step == 3
    assert caught.value.exit_code == 2
    assert store.restore("r@3")["epoch"] == 1
    assert store.save("r", state(3)).step == 4


def test_replace_trashes_the_old_one(store):
    old = store.save("r", state(1), 3)
    new = store.save("r", state(2), 3, replace=True)
    assert store.checkpoints("r") == [new]
    assert store.checkpoints("r", trash=True) == [old]
    assert store.restore("r@3")["epoch"] == 2


@pytest.mark.parametrize("protect", ["pin", "tag"])
def test_replace_leaves_pinned_and_tagged_alone(store, protect):
    store.save("r", state(1), 3)
    if protect == "pin":
        store.pin("r@3")
    else:
        store.tag("r@3", "paper")
    with pytest.raises(StepExists, match="cannot be replaced"):
        store.save("r", state(2), 3, replace=True)
    assert store.restore("r@3")["epoch"] == 1


def test_a_smaller_step_is_refused_before_anything_is_written(store):
    store.save("r", state(1), 7)
    before = sum(file.stat().st_size for file in store.path.rglob("*.pack"))
    with pytest.raises(StepExists, match="step 5 is not larger"):
        store.save("r", state(2), 5)
    assert sum(file.stat().st_size for file in store.path.rglob("*.pack")) == before


def test_a_step_after_a_deleted_one_can_be_saved(store):
    for value in range(3):
        store.save("r", state(value))
    store.delete("r@2")
    assert store.save("r", state(9)).step == 2
    assert store.restore("r")["epoch"] == 9


@pytest.mark.parametrize("run", ["", "a//b", "../x", "a b", "a@3", "a~1", 3])
def test_a_bad_run_name_is_refused(store, run):
    with pytest.raises(BadRef):
        store.save(run, state())


@pytest.mark.parametrize("step", [-1, 1.5, "3", 2**63, True])
def test_a_bad_step_is_refused(store, step):
    with pytest.raises(BadRef):
        store.save("r", state(), step)


def test_a_metric_that_is_no_number_is_refused_and_nothing_is_saved(store):
    with pytest.raises(BadRequest, match="'loss'"):
        store.save("r", state(), metrics={"loss": "low"})
    assert store.runs() == []


def test_nan_is_kept_and_never_best(store):
    store.save("r", state(0), metrics={"loss": math.nan})
    store.save("r", state(1), metrics={"loss": 2.0})
    store.save("r", state(2), metrics={"loss": -math.inf})
    assert store.best("r", "loss", "min").step == 1
    assert math.isnan(store.get("r@0").metrics["loss"])


def test_a_leaf_that_cannot_be_stored_is_named_and_the_next_save_works(store):
    with pytest.raises(BadLeaf, match=r"opt\.lr"):
        store.save("r", {"opt": {"lr": object()}})
    assert store.save("r", state()).step == 0


def test_a_taken_tag_is_refused(store):
    store.save("r", state(0), tags="best-so-far")
    with pytest.raises(BadRequest, match=r"names r@0"):
        store.save("r", state(1), tags="best-so-far")
    assert store.save("other", state(1), tags="best-so-far").tags == ("best-so-far",)


@pytest.mark.parametrize("tag", ["3", "latest", "best", "a b", "4+5", ""])
def test_a_bad_tag_is_refused(store, tag):
    with pytest.raises(BadRef, match="bad tag"):
        store.save("r", state(), tags=[tag])


def test_async_takes_the_state_as_it_was(store):
    tree = state(1)
    pending = store.save_async("r", tree, metrics={"loss": 1.0})
    tree["w"][:] = -1
    tree["epoch"] = 99
    assert pending.result().step == 0
    back = store.restore("r@0")
    assert back["epoch"] == 1
    assert np.array_equal(back["w"], state(1)["w"])


def test_async_saves_of_a_run_come_in_order(store):
    for value in range(5):
        store.save_async("r", state(value))
    assert store.save("r", state(5)).step == 5
    assert [store.restore(ck)["epoch"] for ck in store.checkpoints("r")] == list(range(6))


def test_an_async_error_is_told_once_by_the_next_call(store):
    store.save("r", state(0))
    pending = store.save_async("r", state(1))
    pending.result()
    store.save_async("r", state(7), 1)  # another content at a step that is there
    with pytest.raises(StepExists):
        store.save("r", state(2))
    assert store.save("r", state(2)).step == 2


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.latest("r"),
        lambda store: store.best("r", "loss", "min"),
        lambda store: store.get("r"),
        lambda store: store.history("r"),
        lambda store: store.checkpoints("r"),
        lambda store: store.checkpoints("r~*"),
        lambda store: store.checkpoints(),
        lambda store: store.checkpoints("?"),
    ],
)
def test_who_asks_after_an_async_error_is_told_and_gets_no_older_one(store, ask):
    store.save("r", state(0), 0, metrics={"loss": 1.0})
    store.save("other", state(0), 0)
    store.save_async("r", state(7), 0)._finished.wait(30)
    store.latest("other")
    store.checkpoints("o*")
    with pytest.raises(StepExists):
        ask(store)
    assert ask(store)


def test_who_asks_while_a_save_is_in_flight_is_not_kept_waiting(store, monkeypatch):
    store.save("r", state(0), 0)
    gate, real = threading.Event(), store._commit
    monkeypatch.setattr(store, "_commit", lambda *args: gate.wait(60) and real(*args))
    pending = store.save_async("r", state(1))
    assert store.latest("r").step == store.get("r").step == 0
    assert len(store.checkpoints("r")) == 1
    gate.set()
    assert pending.result() == store.latest("r")


@pytest.mark.parametrize("ask", [lambda s: s.get("new"), lambda s: s.restore("new")])
def test_who_asks_for_a_run_whose_first_save_failed_is_told(store, monkeypatch, ask):
    def fail(*arguments):
        raise NoSpace("the disk is full")

    monkeypatch.setattr(store, "_commit", fail)
    store.save_async("new", state(0))._finished.wait(30)
    with pytest.raises(NoSpace, match="the disk is full"):
        ask(store)
    with pytest.raises(NotFound):
        ask(store)


def test_an_async_error_is_told_by_restore_wait_and_close(tmp_path):
    with casckpt.open(tmp_path / "s") as store:
        store.save("r", state(0))
        store.save_async("r", state(7), 0)._finished.wait(30)
        with pytest.raises(StepExists):
            store.restore("r")
        store.restore("r")
        store.save_async("r", state(7), 0)
        with pytest.raises(StepExists):
            store.wait()
        store.wait()
    store = casckpt.open(tmp_path / "s")
    store.save_async("r", state(7), 0)
    with pytest.raises(StepExists):
        store.close()
    store.close()


def test_another_writer_is_noticed(tmp_path):
    with casckpt.open(tmp_path / "s") as one, casckpt.open(tmp_path / "s") as two:
        one.save("r", state(0))
        request = two._request("r", None, None, (), False, None)
        place = two._place(request)
        one.save("r", state(1))
        from casckpt.checkpoint.tree import flatten

        with pytest.raises(RunMoved):
            two._commit(request, place, flatten(state(2)))
        assert two.save("r", state(2)).step == 2


def test_a_long_run_is_not_read_again_for_every_save(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a save read all rows")

    with casckpt.open(tmp_path / "s") as one:
        one.save("r", state(0))
        with monkeypatch.context() as patch:
            patch.setattr(one._repository, "checkpoint_rows", refuse)
            second = one.save("r", state(1))
            assert second.step == 1
            assert one.save("r", state(2), 7).parent == second.id
            assert one.save_async("r", state(3)).result().step == 8
        with casckpt.open(one.path) as other:
            assert other.save("r", state(4)).step == 9
        assert one.save("r", state(5)).step == 10


def test_threads_save_side_by_side(store):
    errors = []

    def work(run):
        try:
            for value in range(5):
                store.save(run, state(value))
        except Exception as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(f"r{i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [info.checkpoint_count for info in store.runs()] == [10, 10]


def test_a_reader_cannot_save(tmp_path):
    casckpt.open(tmp_path / "s").close()
    with casckpt.open(tmp_path / "s", mode="r") as store:
        for call in (
            lambda: store.save("r", state()),
            lambda: store.save_async("r", state()),
            lambda: store.gc(),
            lambda: store.delete("r"),
            lambda: store.tag("r", "x"),
        ):
            with pytest.raises(BadRequest, match="reading only"):
                call()


def test_a_closed_store_says_so(tmp_path):
    store = casckpt.open(tmp_path / "s")
    store.close()
    with pytest.raises(BadRequest, match="is closed"):
        store.save("r", state())
    with pytest.raises(BadRequest, match="is closed"):
        store.checkpoints()


def run_script(body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(body), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_interpreter_waits_for_saves_in_flight(tmp_path):
    done = run_script(
        """
        import sys, numpy, casckpt
        store = casckpt.open(sys.argv[1])
        for i in range(4):
            store.save_async(f"run{i}", {"w": numpy.full(500_000, i, "f4")})
        """,
        str(tmp_path / "s"),
    )
    assert done.returncode == 0, done.stderr
    with casckpt.open(tmp_path / "s", mode="r") as store:
        assert [info.name for info in store.runs()] == [f"run{i}" for i in range(4)]


def test_an_error_that_nobody_asked_for_is_printed_at_exit(tmp_path):
    done = run_script(
        """
        import sys, casckpt
        store = casckpt.open(sys.argv[1])
        store.save("r", {"a": 1}, 3)
        store.save_async("r", {"a": 2}, 3)
        """,
        str(tmp_path / "s"),
    )
    assert "background save of r failed" in done.stderr
    assert "r@3 is there already" in done.stderr
    assert done.stdout == ""


def test_a_store_is_opened_again_in_a_spawned_worker(store):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        saved = pool.submit(store.save, "r", state(3)).result()
        assert pool.submit(store.restore, saved.ref).result()["epoch"] == 3
    assert store.get("r").id == saved.id


def test_a_closed_store_goes_to_no_worker(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        pass
    with pytest.raises(BadRequest, match="closed"):
        pickle.dumps(store)
