"""What a run will need is said before it trains, and while it does."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import casckpt
from casckpt.training.watching import forecast, outlook


def state():
    return {"w": np.arange(50_000, dtype=np.float64), "n": 0}


@pytest.fixture
def room(monkeypatch):
    free = [10**12]
    monkeypatch.setattr(forecast, "free_bytes", lambda path: free[0])
    return free


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, 2),
        ({"save_every": 5}, 22),
        ({"save_every": 5, "keep": casckpt.KeepLast(3)}, 5),
        ({"save_every": 5, "monitor": "loss", "mode": "min"}, 23),
        ({"save_every": casckpt.Every(seconds=60)}, 2),
    ],
)
def test_a_run_that_will_not_fit_is_told_so_before_it_trains(store, room, caplog, options, kept):
    one = 400_000
    room[0] = kept * one
    with store.run("fits") as run:
        run.epochs(100, state(), **options)
    assert "saves will fail" not in caplog.text
    room[0] = kept * one - 1
    with store.run("short") as run:
        run.epochs(100, state(), **options)
    assert f"short needs about {forecast.Need(kept * one, room[0]).__str__()[6:]}" in caplog.text
    assert str(store.path) in caplog.text


def test_a_run_that_goes_on_goes_by_what_its_checkpoints_took(store, room, caplog):
    mine = state()
    with store.run("r") as run:
        for epoch in run.epochs(10, mine, save_every=1):
            mine["n"] = epoch
            if epoch == 6:
                break
    usual = forecast._usual(store.checkpoints("r"))
    assert 0 < usual < 400_000 / 4
    caplog.clear()
    room[0] = 8 * usual
    with store.run("r") as run:
        run.epochs(10, state(), save_every=1)
    assert "saves will fail" not in caplog.text
    room[0] = usual
    with store.run("r") as run:
        run.epochs(10, state(), save_every=1)
    assert "saves will fail" in caplog.text


def test_the_forecast_is_an_alarm_only_if_the_disk_will_be_full(room, tmp_path):
    two = [SimpleNamespace(stored_bytes=10**9)] * 2
    room[0] = 4 * 10**9
    assert forecast.alarms(two, 100, 200, tmp_path) == []
    room[0] -= 1
    assert forecast.alarms(two, 100, 200, tmp_path) == [
        "the disk will be full before it is done: it needs about 3.73 GiB more, 3.73 GiB are free"
    ]
    assert forecast.alarms(two, 100, None, tmp_path) == []
    assert forecast.alarms(two[:1], 100, 10**6, tmp_path) == []


@pytest.mark.parametrize(
    ("most", "needed"), [(None, 10), (2, 2), (0, 0), (100, 10), ("of a newer casckpt", 10)]
)
def test_what_is_kept_grows_no_further_than_the_loop_lets_it(room, tmp_path, most, needed):
    two = [SimpleNamespace(stored_bytes=1000)] * 2
    room[0] = needed * 1000
    assert forecast.alarms(two, 100, 500, tmp_path, most) == []
    room[0] -= 1
    assert bool(forecast.alarms(two, 100, 500, tmp_path, most)) or not needed


def test_a_run_at_work_that_keeps_few_raises_no_false_alarm(store, name, room):
    def alarms():
        info = store.runs(name)[0]
        return outlook.outlook_of(run.repository, info).alarms

    with store.run(name) as run:
        for options, is_false in (({"keep": casckpt.KeepLast(2)}, True), ({}, False)):
            run.note_progress("epochs", 0, 10**9)
            for epoch in run.epochs(10**9, {"n": 0}, save_every=1, **options):
                if epoch % 5 == 0:
                    store.wait()
                    run._session.flush()
                    room[0] = 10**6
                    assert (alarms() == ()) == is_false
                    break
