from __future__ import annotations

import email.utils
import threading
import time

import pytest

import casckpt
from casckpt.errors import BadLeaf, BadRequest, StageFailed, Stopped
from casckpt.training.stages import calls as mapping_calls
from casckpt.training.stages.calls import Pace, call, retry_after_s
from casckpt.training.stops import request_stop


class Busy(Exception):
    """What a client raises."""

    def __init__(self, retry_after: object = None) -> None:
        super().__init__("busy")
        if retry_after is not None:
            self.retry_after = retry_after


class Counted:
    """A function that counts how often it was called for what."""

    def __init__(self, failures=()):
        self.calls = []
        self.failures = dict(failures)
        self.lock = threading.Lock()

    def __call__(self, item):
        with self.lock:
            self.calls.append(item)
            error = self.failures.get(item)
        if error is not None:
            raise error
        return item * 2


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(mapping_calls, "FIRST_PAUSE_S", 0.001)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("save_every", [1, 5])
def test_every_item_is_called_once(store, name, workers, save_every):
    fn = Counted()
    for _ in range(2):
        with store.run(name) as run:
            found = run.stage("s", range(20), save_every=save_every).map(fn, workers=workers)
            assert list(found) == [2 * i for i in range(20)]
    assert sorted(fn.calls) == list(range(20))


def test_batches_and_a_size_that_changes(store, name):
    seen = []

    def fn(items):
        seen.append(len(items))
        return [item + 1 for item in items]

    with store.run(name) as run:
        run.stage("s", range(5)).map(fn, batch_size=2)
    with store.run(name) as run:
        assert list(run.stage("s", range(12)).map(fn, batch_size=4)) == list(range(1, 13))
    assert seen == [2, 2, 1, 4, 3]


def test_a_group_is_of_items_however_many_a_call_makes(store, name):
    class PowerCut(BaseException):
        pass

    def fn(items):
        if items[0] >= 60:
            raise PowerCut
        return items

    with pytest.raises(PowerCut), store.run(name) as run:
        run.stage("s", range(100), save_every=20).map(fn, batch_size=5)
    with store.run(name) as run:
        assert run.stage("s", range(100)).done_count == 60


def test_keys_are_passed_where_asked_for(store, name):
    with store.run(name) as run:
        items = {"a": 1, "b": 2}
        assert list(run.stage("s", items).map(lambda k, v: k * v, pass_key=True)) == ["a", "bb"]
        whole = run.stage("t", items).map(
            lambda keys, values: list(zip(keys, values, strict=True)), batch_size=5, pass_key=True
        )
        assert list(whole) == [("a", 1), ("b", 2)]


def test_numbers_beside_results_add_up_over_sessions(store, name):
    def single(item):
        return casckpt.Result(str(item), tokens=item)

    def batch(items):
        each = [casckpt.Result(str(item), tokens=item) for item in items]
        return casckpt.Result(each, latency=0.5)

    with store.run(name) as run:
        run.stage("s", [1, 2]).map(single)
    with store.run(name) as run:
        st = run.stage("s", [1, 2, 3, 4])
        assert list(st.map(batch, batch_size=2)) == ["1", "2", "3", "4"]
        assert st.totals == {"latency": 0.5, "tokens": 10}
        assert st.means == {"latency": 0.5, "tokens": 2.5}


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_raised_at_the_end_and_only_they_are_tried_again(store, name, workers):
    fn = Counted({3: ValueError("three"), 5: KeyError("five")})
    with store.run(name) as run:
        st = run.stage("s", range(8))
        with pytest.raises(StageFailed, match="2 of 8 items of stage s failed") as caught:
            st.map(fn, workers=workers)
        assert caught.value.errors == {3: "ValueError: three", 5: "KeyError: 'five'"}
        assert st.done_count == 6
    fn.failures.clear()
    with store.run(name) as run:
        assert list(run.stage("s", range(8)).map(fn)) == [2 * i for i in range(8)]
    assert len(fn.calls) == 10


def test_kept_failures_are_none_in_the_results(store, name):
    with store.run(name) as run:
        st = run.stage("s", range(3))
        found = st.map(Counted({1: ValueError("one")}), on_error="keep")
        assert list(found) == [0, None, 4]
        assert st.errors() == {1: "ValueError: one"}


@pytest.mark.usefixtures("quick")
def test_what_is_named_is_tried_again_as_often(store, name):
    tries = []

    def flaky(item):
        tries.append(item)
        if len(tries) < 4:
            raise TimeoutError("slow")
        return item

    with store.run(name) as run:
        assert list(run.stage("s", ["a"]).map(flaky, retry={TimeoutError: 3})) == ["a"]
    assert len(tries) == 4


@pytest.mark.usefixtures("quick")
def test_an_api_that_always_fails_ends(store, name):
    fn = Counted(dict.fromkeys(range(3), Busy()))
    with store.run(name) as run, pytest.raises(StageFailed, match="busy"):
        run.stage("s", range(3)).map(fn, retry={Busy: 2, OSError: 9}, workers=2)
    assert len(fn.calls) == 9


def test_retry_after_is_obeyed_by_all(store, name):
    began = time.monotonic()
    times = []

    def fn(item):
        times.append(time.monotonic() - began)
        if len(times) == 1:
            raise Busy("0.3")
        return item

    with store.run(name) as run:
        st = run.stage("s", range(4))
        began = time.monotonic()
        st.map(fn, retry={Busy: 1}, workers=2)
    # The other worker may have begun before the answer was there.
    assert sum(at < 0.3 for at in times) <= 2


def test_where_a_server_says_when_to_come_back():
    class Answer:
        headers = {"Retry-After": "7"}

    error = ValueError()
    error.response = Answer()
    assert retry_after_s(error) == 7.0
    error.response.headers = {"Retry-After": email.utils.formatdate(time.time() + 100)}
    assert 95 < retry_after_s(error) < 101
    assert retry_after_s(Busy(3)) == 3.0
    assert retry_after_s(Busy(-3)) == 0.0
    for nonsense in ("soon", float("nan"), float("inf")):
        assert retry_after_s(Busy(nonsense)) is None
    assert retry_after_s(ValueError()) is None


def test_calls_per_second_are_bounded(store, name):
    times = []
    with store.run(name) as run:
        run.stage("s", range(6)).map(
            lambda item: times.append(time.monotonic()), workers=3, per_second=20
        )
    gaps = [b - a for a, b in zip(sorted(times), sorted(times)[1:], strict=False)]
    assert sum(gaps) >= 0.24


def test_pauses_grow_and_can_be_given_up():
    pace = Pace(None, lambda: True)
    with pytest.raises(mapping_calls.Cancelled):
        pace.pause(5)
    pace = Pace(None, lambda: False)
    pace.cancel()
    with pytest.raises(mapping_calls.Cancelled):
        call(lambda: 1, {}, pace)


@pytest.mark.parametrize("save_every", [1, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_no_more_are_open_than_workers_or_a_group(store, name, workers, save_every):
    lock = threading.Lock()
    began = 0
    most = 0
    st = None

    def fn(item):
        nonlocal began, most
        with lock:
            began += 1
            most = max(most, began - st.done_count)
        return item

    with store.run(name) as run:
        st = run.stage("s", range(40), save_every=save_every)
        st.map(fn, workers=workers)
    assert most <= max(workers, save_every)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_saves_what_is_finished(store, name, workers):
    def fn(item):
        if item == 5:
            request_stop(store._repository, name)
            run._session.watch._next_look_s = 0.0
        return item

    run = store.run(name)
    with pytest.raises(Stopped), run:
        run.stage("s", range(1000), save_every=100).map(fn, workers=workers)
    with store.run(name) as run:
        done = run.stage("s", range(1000)).done_count
        assert 6 <= done < 1000
        counted = Counted()
        results = list(run.stage("s", range(10)).map(counted))
        assert 10 - len(counted.calls) >= 6
        assert results == [2 * item if item in counted.calls else item for item in range(10)]


def test_what_cannot_be_stored_stops_at_once(store, name):
    calls = []
    with store.run(name) as run, pytest.raises(BadLeaf, match="result of 0 of stage s") as caught:
        run.stage("s", range(50)).map(lambda item: calls.append(item) or object())
    assert "an object cannot be stored" in caught.value.what
    assert "Pickled" not in caught.value.hint
    assert calls == [0]


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"batch_size": 0}, {"on_error": "x"}, {"per_second": 0}, {"retry": {1: 1}},
     {"retry": {ValueError: -1}}, {"retry": [ValueError]}],
)  # fmt: skip
def test_bad_options(store, name, options):
    with store.run(name) as run, pytest.raises(BadRequest):
        run.stage("s", [1]).map(str, **options)


@pytest.mark.parametrize("answer", [[1], 7, [1, 2, 3]])
def test_a_batch_needs_a_result_for_each_item(store, name, answer):
    with store.run(name) as run, pytest.raises(BadRequest, match="returned"):
        run.stage("s", [1, 2]).map(lambda items: answer, batch_size=2)


def test_a_changed_function_redoes_nothing_and_is_told(store, name, caplog):
    with store.run(name) as run:
        run.stage("s", ["a"]).map(lambda item: item + "1")
    with store.run(name) as run, caplog.at_level("WARNING", "casckpt"):
        found = run.stage("s", ["a", "b"]).map(lambda item: item + "2")
        assert list(found) == ["a1", "b2"]
    assert "its function has changed" in caplog.text


def test_a_finished_stage_needs_no_lock_and_gives_its_results(store, name):
    with store.run(name) as run:
        run.stage("s", ["a"]).map(str.upper)
    again = store.run(name)
    assert again.finished
    assert list(again.stage("s", ["a"]).map(str.upper)) == ["A"]
    assert not again._session.is_begun


def test_an_interrupt_in_a_worker_keeps_what_was_finished(store, name):
    def fn(item):
        if item == 6:
            raise KeyboardInterrupt
        return item

    with pytest.raises(KeyboardInterrupt), store.run(name) as run:
        run.stage("s", range(10), save_every=4).map(fn)
    with store.run(name) as run:
        assert run.stage("s", range(10)).done_count == 6


@pytest.mark.parametrize("on_error", ["raise", "keep"])
@pytest.mark.parametrize("workers", [1, 2])
def test_run_stop_ends_map_as_it_ends_a_loop(store, name, workers, on_error, caplog):
    fn = Counted({0: ValueError("zero")})

    def until_enough(item):
        if item == 5:
            run.stop("budget used up")
        return fn(item)

    with store.run(name) as run:
        st = run.stage("s", range(100), save_every=4)
        found = list(st.map(until_enough, workers=workers, on_error=on_error))
        assert run.stopping
        assert found == [2 * i if i > 0 and i in fn.calls else None for i in range(100)]
        assert st.done_count == len(fn.calls) - 1 < 20
        # What comes after is cut too: nothing is called for what is not there.
        assert list(run.stage("t", found[:3]).map(fn)) == [None] * 3
    assert "run.stop() ended map" in caplog.text
    info = store.run(name).info
    assert (info.status, info.reason) == ("stopped", "budget used up")
    fn.failures.clear()
    with store.run(name) as run:
        assert list(run.stage("s", range(100)).map(fn)) == [2 * i for i in range(100)]
    assert len(fn.calls) == 101


@pytest.mark.parametrize("workers", [1, 2])
def test_run_stop_at_the_last_item_cuts_nothing(store, name, workers):
    def fn(item):
        if item == 4:
            run.stop("enough")
        raise ValueError("bad")

    with store.run(name) as run:
        st = run.stage("s", range(5))
        with pytest.raises(StageFailed, match="5 of 5"):
            st.map(fn, workers=workers)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("workers", [1, 2])
def test_run_stop_ends_the_tries_of_an_item(store, name, workers):
    def fn(item):
        run.stop("enough")
        raise TimeoutError

    with store.run(name) as run:
        found = run.stage("s", ["a"]).map(fn, workers=workers, retry={TimeoutError: 99})
        assert list(found) == [None]
    assert store.run(name).info.status == "stopped"
