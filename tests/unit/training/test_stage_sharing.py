"""Stages beside others: new lines, branches, other stores, and two that work at once."""

from __future__ import annotations

import os

import numpy as np

import casckpt
from casckpt.errors import RunBusy


def test_never_begins_anew_and_shared_stays(store, name):
    items = [f"{name}-1", f"{name}-2"]
    worked = []
    for _ in range(2):
        with store.run(name, resume="never") as run:
            for kind in ("own", "shared"):
                st = run.stage(kind, items, shared=kind == "shared")
                for key, _ in st:
                    worked.append(kind)
                    st.done(key, key)
    assert worked == ["own", "own", "shared", "shared", "own", "own"]
    with store.run(f"{name}-other") as run:
        assert list(run.stage("shared", items, shared=True)) == []


def test_stages_come_along_to_a_branch(store, name):
    with store.run(name) as run:
        st = run.stage("s", ["a", "b"])
        st.done("a", 1)
        run.save({"x": 1}, 1)
    with store.run(f"{name}-new", resume=f"{name}@1") as run:
        st = run.stage("s", ["a", "b"])
        assert [key for key, _ in st] == ["b"]
        st.done("b", 2)
        assert list(st.results()) == [1, 2]
    with store.run(name) as run:
        assert run.stage("s", ["a", "b"]).done_count == 1
    with store.run(f"{name}-new") as run:
        st = run.stage("s", ["a", "b"])
        assert st.done_count == 2
        st.clear()
        assert st.done_count == 0
    with store.run(f"{name}-new") as run:
        assert run.stage("s", ["a", "b"]).done_count == 0


def test_stages_come_along_from_another_store(tmp_path, store, name):
    with casckpt.open(tmp_path / "old") as old, old.run("exp") as run:
        st = run.stage("s", ["a", "b"])
        st.done("a", np.arange(3000))
        run.save({"x": 1}, 1)
    with store.run(name, resume=f"{tmp_path / 'old'}::exp@1") as run:
        st = run.stage("s", ["a", "b"])
        assert [key for key, _ in st] == ["b"]
        st.done("b", 2)
        assert np.array_equal(st.results()[0], np.arange(3000))


def test_of_two_processes_on_a_shared_item_the_first_wins(store, name):
    key = f"{name}-item"
    with store.run(name) as one, store.run(f"{name}-b") as two:
        first, second = (run.stage("race", [key], shared=True) for run in (one, two))
        assert first.done_count == second.done_count == 0
        first.done(key, "first", tokens=1)
        second.done(key, "second", tokens=5)
        assert list(first.results()) == list(second.results()) == ["first"]
        assert second.totals == first.totals == {"tokens": 1}


def test_a_shared_item_done_meanwhile_is_skipped(store, name):
    keys = [f"{name}-1", f"{name}-2"]
    with store.run(name) as one, store.run(f"{name}-b") as two:
        second = two.stage("skip", keys, shared=True)
        assert second.done_count == 0
        for key, _ in one.stage("skip", keys, shared=True):
            one.stage("skip", keys, shared=True).done(key, "one")
        assert list(second) == []
        assert list(second.results()) == ["one", "one"]


def test_a_second_process_on_a_run_is_refused(store, name):
    reader, writer = os.pipe()
    with store.run(name) as run:
        st = run.stage("s", ["a", "b"])
        next(iter(st))
        child = os.fork()
        if child == 0:
            code = b"?"
            try:
                with casckpt.open(store.path) as other, other.run(name) as again:
                    for key, _ in again.stage("s", ["a", "b"]):
                        again.stage("s", ["a"]).done(key, 1)
            except RunBusy:
                code = b"busy"
            finally:
                os.write(writer, code)
                os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 10) == b"busy"
        st.done("a", 1)
        st.done("b", 2)
    os.close(reader)
    os.close(writer)
