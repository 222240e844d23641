"""How often to save by overhead: the interval follows from what saves cost."""

from __future__ import annotations

import math
import time

import pytest

from casckpt.training.loops.every import Every, Since, interval_s


def lost_share(interval, cost, failure=86_400.0):
    """Return the share of time that saving and doing again take, as Young reckons it."""
    return cost / interval + interval / (2 * failure)


@pytest.mark.parametrize("cost", [0.001, 0.05, 1.0, 10.0])
def test_where_the_share_allows_it_is_the_best_interval(cost):
    best = interval_s(cost, 0.5)
    assert best == pytest.approx(math.sqrt(2 * cost * 86_400))
    for other in (best * 0.8, best * 1.25):
        assert lost_share(best, cost) < lost_share(other, cost)


def test_the_share_is_kept_and_an_hour_is_the_most():
    assert interval_s(10.0, 0.005) == 2000.0
    assert 10.0 / interval_s(10.0, 0.005) <= 0.005
    assert interval_s(100.0, 0.001) == 3600.0
    assert interval_s(0.0, 0.01) == interval_s(0.001, 0.01)


def test_it_follows_what_is_measured():
    since, every = Since(), Every(overhead=0.01)
    since.measured(1.0)
    assert since.is_due(every, 420.0)
    assert not since.is_due(every, 410.0)
    since.measured(9.0)
    assert since.cost_s == 5.0
    assert not since.is_due(every, 900.0)
    assert since.is_due(every, 930.0)
    since.saved(930.0)
    assert not since.is_due(every, 940.0)


def test_a_loop_saves_by_what_its_saves_cost(store, name, monkeypatch):
    monkeypatch.setattr("casckpt.training.loops.every._COST_MIN_S", 1e-9)
    monkeypatch.setattr("casckpt.training.loops.every.FAILURE_S", 1e-9)
    with store.run(name) as run:
        for _ in run.epochs(40, {"v": 0}, save_every=Every(overhead=0.5), save_latest=False):
            time.sleep(0.005)
    often = len([one for one in store.checkpoints(name) if "every" in one.reasons])
    monkeypatch.setattr("casckpt.training.loops.every.FAILURE_S", 86_400.0)
    with store.run(f"{name}-rarely") as run:
        for _ in run.epochs(30, {"v": 0}, save_every=Every(overhead=0.5), save_latest=False):
            pass
    rarely = [one for one in store.checkpoints(f"{name}-rarely") if "every" in one.reasons]
    assert often > 1
    assert len(rarely) <= 1
