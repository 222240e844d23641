from __future__ import annotations

import numpy as np
import pytest

from casckpt.cli import root
from casckpt.errors import BadLeaf, BadRequest
from casckpt.store.commits import RowWrite
from casckpt.training import cached


@pytest.fixture
def calls():
    return []


def test_a_value_is_computed_once_in_a_store(store, name, calls):
    results = []
    for run_name in (name, name, f"{name}-other"):
        with store.run(run_name, resume="never") as run:
            results.append(run.cached(name, make(calls), 1, rows=50))
    assert calls == [1]
    assert all(np.array_equal(one["x"], results[0]["x"]) for one in results)


def make(calls):
    """Return a function that counts its calls without closing over a list that changes."""

    class Loader:
        def __init__(self):
            self.calls = calls

        def __call__(self, seed, rows):
            self.calls.append(seed)
            return {"x": np.random.default_rng(seed).random((rows, 100))}

    loader = Loader()
    counting.loader = loader
    return counting


def counting(seed, rows):
    return counting.loader(seed, rows)


def test_arguments_version_and_files_count(store, name, calls, tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("1")
    fn = make(calls)
    with store.run(name) as run:
        for version, seed in (("1", 1), ("1", 2), ("2", 1), ("1", 1)):
            run.cached(name, fn, seed, rows=1, version=version)
        assert calls == [1, 2, 1]
        assert run.cached(name, read, path) == "1"
        path.write_text("22")
        assert run.cached(name, read, path) == "22"
        assert run.cached(f"{name}-b", read, path) == "22"


def read(path):
    return path.read_text()


def test_what_has_no_fingerprint_or_cannot_be_stored_is_refused(store, name):
    with store.run(name) as run:
        with pytest.raises(BadRequest, match="has no fingerprint"):
            run.cached(name, read, object())
        with pytest.raises(BadLeaf):
            run.cached(name, object)


def test_an_error_is_the_functions_own_and_nothing_is_kept(store, name):
    def fail():
        raise ZeroDivisionError

    with store.run(name) as run:
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run.cached(name, fail)


def test_a_damaged_value_is_computed_again(store, name, calls, caplog):
    fn = make(calls)
    repository = store._repository
    with store.run(name) as run:
        run.cached(name, fn, 3, rows=1)
        prefix = cached.PREFIX + name.encode() + b"\0"
        ((key, row),) = repository.rows("cache", prefix)
        repository.write_rows([RowWrite("cache", key, row.payload[:10])])
        run.cached(name, fn, 3, rows=1)
        run.cached(name, fn, 3, rows=1)
    assert calls == [3, 3]
    assert "computed again" in caplog.text


def test_the_cache_can_be_listed_and_dropped(store, name, calls):
    fn = make(calls)
    with store.run(name) as run:
        run.cached(name, fn, 1, rows=100)
        run.cached(name, fn, 2, rows=1)
        run.stage(name, ["a"], shared=True).done("a", 1)
    found = {(one.kind, one.count) for one in cached.entries(store._repository) if one.name == name}
    assert found == {("value", 2), ("stage", 1)}
    assert cached.drop(store._repository, name) == 3
    assert not [one for one in cached.entries(store._repository) if one.name == name]
    with store.run(name) as run:
        run.cached(name, fn, 1, rows=100)
    assert calls == [1, 2, 1]


def test_what_has_a_long_name_goes_by_it_and_by_what_stands_for_it(store):
    long = "ü" * 190
    (shown,) = cached.shown_as(long) - {long}

    def names():
        return {one.name for one in cached.entries(store._repository)}

    with store.run("long") as run:
        for said in (shown, long):
            run.stage(long, ["a"], shared=True).done("a", 1)
            assert shown in names()
            command = ["cache", "rm", said, "--yes", "--store", str(store.path)]
            assert root.run(command) == 0
            assert shown not in names()
            assert root.run(command) == 12
