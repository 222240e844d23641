"""Several processes that train one run, played by threads with a channel between them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import casckpt
from casckpt.errors import BadRequest, ConfigMismatch, OperationFailed, RunBusy
from casckpt.training import opening, peers, runlock
from casckpt.training.resume import Extra


class Exchange:
    """What a channel needs: all come, all see what all have brought."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.brought: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=20)

    def meet(self, rank: int, value: Any) -> list[Any]:
        self.brought[rank] = value
        self.barrier.wait()
        found = list(self.brought)
        self.barrier.wait()
        return found


class Channel:
    def __init__(self, exchange: Exchange, rank: int) -> None:
        self._exchange, self.rank, self.size = exchange, rank, exchange.size

    def broadcast(self, payload):
        return self._exchange.meet(self.rank, payload)[0]

    def gather(self, payload):
        found = self._exchange.meet(self.rank, payload)
        return found if self.rank == 0 else None

    def most(self, numbers):
        found = self._exchange.meet(self.rank, list(numbers))
        return [max(column) for column in zip(*found, strict=True)]


def together(store: casckpt.Store, work: Callable[[Any, int], Any], size: int = 2, **options: Any):
    """Run `work(run, rank)` in so many threads; return what each returned or raised."""
    exchange = Exchange(size)
    results: list[Any] = [None] * size

    def body(rank: int) -> None:
        try:
            mine = peers.Connected(Channel(exchange, rank))
            with opening.open_run(store, "net", peers=mine, **options) as run:
                results[rank] = work(run, rank)
        except BaseException as exc:
            results[rank] = exc

    threads = [threading.Thread(target=body, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def train(epochs: int, **options: Any) -> Callable[[Any, int], Any]:
    def work(run, rank):
        state = {"seen": []}
        for epoch in run.epochs(epochs, state, **options):
            for batch in run.batches(range(4)):
                state["seen"].append((epoch, batch))
            run.log(loss=float(rank * 10 - epoch))
        return len(state["seen"]), run.line

    return work


def test_the_first_writes_and_the_others_restore_what_it_wrote(store):
    assert together(store, train(2, save_every=1)) == [(8, 0), (8, 0)]
    assert together(store, train(3, save_every=1)) == [(12, 0), (12, 0)]
    assert [one.step for one in store.checkpoints("net")] == [1, 2, 3]
    assert store.history("net")["loss"] == [(1, -1.0), (2, -2.0), (3, -3.0)]
    assert store.runs("net")[0].status == "finished"


def test_the_first_ones_metric_decides_and_anybody_may_end_it(store):
    def work(run, rank):
        last = 0
        for epoch in run.epochs(9, {"x": 0}, monitor="loss", mode="max", patience=2):
            last = epoch
            # It only gets worse for the first, and only better for the second.
            run.log(loss=float(epoch * (1 if rank else -1)))
        return last

    assert together(store, work) == [3, 3]

    def ends(run, rank):
        last = 0
        for epoch in run.epochs(9, {"x": 0}):
            last = epoch
            if rank == 1 and epoch == 5:
                run.stop("enough")
        return last, run._session.watch.asked.reason

    assert together(store, ends) == [(5, "enough"), (5, "enough")]


def test_errors_of_the_first_are_everybodys(store):
    together(store, train(1), config={"lr": 1})
    first, second = together(store, train(2), config={"lr": 2})
    assert isinstance(first, ConfigMismatch)
    assert isinstance(second, ConfigMismatch)
    assert second.differences == first.differences == [("lr", 1, 2)]


def test_a_run_that_is_busy_is_busy_for_all(store, monkeypatch):
    def taken(path, run):
        raise RunBusy("busy", "by another", "wait", run=run, pid=1)

    monkeypatch.setattr(runlock, "take", taken)
    first, second = together(store, train(1))
    assert isinstance(first, RunBusy)
    assert isinstance(second, RunBusy)
    assert second.pid == 1


def test_unequal_numbers_of_batches_are_an_error_and_no_hang(store):
    def work(run, rank):
        for _ in run.epochs(1, {"x": 0}):
            for _ in run.batches(range(4 + rank)):
                pass

    first, second = together(store, work)
    assert isinstance(first, OperationFailed)
    assert isinstance(second, OperationFailed)
    assert "1 epochs and 0 batches" in str(first)
    assert "0 epochs and 4 batches" in str(first)


def test_a_save_is_one_and_all_have_it(store):
    def work(run, rank):
        saved = run.save({"x": 3}, 5)
        return saved.ref, run.restore(5)

    assert together(store, work) == [("net@5", {"x": 3})] * 2
    assert len(store.checkpoints()) == 1


def test_a_value_is_computed_once_and_a_stage_is_refused(store, tmp_path):
    calls = str(tmp_path / "calls")

    def compute(x):
        with Path(calls).open("a") as file:
            file.write("called\n")
        return x * 2

    assert together(store, lambda run, rank: run.cached("double", compute, 21)) == [42, 42]
    assert (tmp_path / "calls").read_text() == "called\n"
    for error in together(store, lambda run, rank: run.stage("s", [1])):
        assert isinstance(error, BadRequest)
        assert "world_size=1" in str(error)


def test_another_number_of_processes_is_refused_and_may_be_allowed(store):
    together(store, train(2))
    with pytest.raises(ConfigMismatch, match=r"env.world_size: 2 -> 1"):
        store.run("net")
    assert all(isinstance(one, ConfigMismatch) for one in together(store, train(3), size=3))
    done = together(store, train(3), size=3, on_mismatch={"env.world_size": "allow"})
    assert done == [(12, 0)] * 3


def test_a_position_fits_only_as_many_processes(store):
    extra = Extra(
        streams={"python": 0}, middle={"pass": 0},
        peers=[{"streams": {"python": 1}, "middle": {"pass": 1}, "held": {"own": 2}}],
    )  # fmt: skip
    second = extra.of_rank(1, 2)
    assert (second.streams, second.middle, second.held) == ({"python": 1}, {"pass": 1}, {"own": 2})
    assert extra.of_rank(0, 2) is extra
    assert extra.of_rank(0, 1).middle is None
    third = extra.of_rank(2, 3)
    assert (third.streams, third.middle, third.held) == ({}, None, {})


def test_a_launch_that_is_not_connected_is_refused(store, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(BadRequest, match="2 processes train together, and are not connected"):
        store.run("net")
    with store.run("net", world_size=1) as run:
        assert list(run.epochs(1, {"x": 1})) == [1]
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(BadRequest, match="init_process_group"):
        store.run("net", world_size=4)
