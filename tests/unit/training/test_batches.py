"""Positions inside an epoch, steps without epochs, and loaders that cannot be put back."""

from __future__ import annotations

import random
import signal
from contextlib import suppress

import numpy as np
import pytest

from casckpt import Every, State
from casckpt.errors import BadRequest, Stopped
from casckpt.training.loops import position


class PowerCut(Exception):
    pass


def epochs_script(store, name, loader_of, *, cut=None, accumulate=1, total=3, every_s=0.0):
    """Train with draws in every batch; `cut` is the number of batches after which it dies."""
    random.seed(1)
    state = {"seen": [], "draws": []}
    count = 0
    with store.run(name) as run:
        for epoch in run.epochs(total, state):
            order = random.random()  # drawn before the loader begins
            for batch in run.batches(loader_of(), accumulate=accumulate, save_every_s=every_s):
                count += 1
                if count == cut:
                    raise PowerCut
                state["seen"].append((epoch, batch))
                state["draws"].append((order, random.random()))
    return state


class Stateful:
    """A loader with state_dict that shuffles with python's generator."""

    def __init__(self):
        self.order, self.at = None, 0

    def __len__(self):
        return 5

    def __iter__(self):
        if self.order is None:
            self.order, self.at = random.sample(range(5), 5), 0
        while self.at < 5:
            self.at += 1
            yield self.order[self.at - 1]
        self.order = None

    def state_dict(self):
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state):
        self.order, self.at = state["order"], state["at"]


class Shuffled:
    """A sequence whose iteration draws, as torch's sampler does."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise IndexError

    def __iter__(self):
        return iter(random.sample(range(5), 5))


class Drawing(Shuffled):
    """A sequence that draws its order from a generator of its own."""

    def __init__(self, rng):
        self.rng = rng

    def __iter__(self):
        return iter(list(self.rng.permutation(5)))


def rng_script(store, name, make, *, kill=0):
    seen = []
    with suppress(PowerCut), store.run(name) as run:
        loader = make()
        for _ in run.epochs(3, {"w": 0}):
            for batch in run.batches(loader, save_every_s=0):
                if len(seen) == kill - 1:
                    raise PowerCut
                seen.append(int(batch))
    return seen


@pytest.mark.parametrize("kind", [np.random.default_rng, np.random.RandomState])
def test_generators_of_a_loader_go_on_whatever_their_name(store, name, kind):
    whole = rng_script(store, f"{name}-whole", lambda: Drawing(kind(0)))
    for kill in (3, 6, 11, 13):
        before = rng_script(store, f"{name}-{kill}", lambda: Drawing(kind(0)), kill=kill)
        after = rng_script(store, f"{name}-{kill}", lambda: Drawing(kind(0)))
        assert before[: len(whole) - len(after)] + after == whole, kill


def test_a_cut_inside_an_epoch_puts_the_generators_of_the_state_back_too(store, name):
    def script(run_name, cut=None):
        own = random.Random(3)
        state, count = State(own=own, seen=[]), 0
        with store.run(run_name) as run:
            for _ in run.epochs(3, state):
                order = own.sample(range(6), 6)  # before the batches, again after a resume
                for item in run.batches(order, save_every_s=0):
                    count += 1
                    if count == cut:
                        raise PowerCut
                    state.seen.append((item, own.random()))
                state.seen.append(own.random())
        return state.seen

    whole = script(f"{name}-whole")
    for cut in (4, 3, 6):
        with pytest.raises(PowerCut):
            script(name, cut)
    assert script(name) == whole


@pytest.mark.parametrize("loader_of", [lambda: list(range(5)), Stateful, Shuffled])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_cut_inside_an_epoch_changes_nothing(store, name, loader_of, accumulate):
    whole = epochs_script(store, f"{name}-whole", loader_of, accumulate=accumulate)
    for cut in (4, 3, 6):
        with pytest.raises(PowerCut):
            epochs_script(store, name, loader_of, cut=cut, accumulate=accumulate)
    assert epochs_script(store, name, loader_of, accumulate=accumulate) == whole


@pytest.mark.parametrize("loader_of", [lambda: list(range(5)), Stateful])
def test_no_body_goes_on_where_no_batch_is_left(store, name, loader_of):
    def script(cut=False):
        state = {"seen": []}
        with store.run(name) as run:
            for epoch in run.epochs(2, state):
                for batch in run.batches(loader_of(), save_every_s=0):
                    state["seen"].append((epoch, batch))
                    last = batch
                if cut:
                    raise PowerCut
                run.log(last=last)
        return state

    with pytest.raises(PowerCut):
        script(cut=True)
    assert store.latest(name).position == (0, 4)
    assert len(script()["seen"]) == 10


def test_positions_are_at_multiples_of_accumulate(store, name):
    with pytest.raises(PowerCut):
        epochs_script(store, name, lambda: list(range(9)), cut=8, accumulate=3)
    newest = store.latest(name)
    assert (newest.step, newest.batch, newest.reasons) == (0, 6, ("latest",))
    assert "position of the loader" in newest.captured


def test_a_loader_that_cannot_be_put_back_is_saved_at_boundaries_only(store, name):
    with pytest.raises(PowerCut):
        epochs_script(store, name, lambda: iter(range(4)), cut=7)
    newest = store.latest(name)
    assert newest.position == (1, 0)
    assert newest.missing == ("position of the loader",)


@pytest.fixture(params=["x" * 2**22, {1, 2}], ids=["large", "of a set"])
def unkept(request):
    """Return what makes loaders whose state no checkpoint can keep."""

    class Unkept(Stateful):
        def state_dict(self):
            return {**super().state_dict(), "more": request.param}

    return Unkept


def test_a_position_that_cannot_be_kept_ends_no_training(store, name, unkept, caplog):
    seen = []
    with suppress(Stopped), store.run(name) as run:
        for _ in run.epochs(3, {"w": 0}):
            for _ in run.batches(unkept(), save_every_s=0):
                seen.append(name)
                if len(seen) == 7:
                    signal.raise_signal(signal.SIGTERM)
    assert len(seen) == 10
    newest = store.latest(name)
    assert newest.position == (2, 0)  # a stop loses nothing
    assert newest.missing == ("position of the loader",)
    assert caplog.text.count("the position of a loader cannot be saved") == 1


def test_steps_whose_position_cannot_be_kept_say_what_is_missing(store, name, unkept, caplog):
    with store.run(name) as run:
        list(run.steps(7, {"w": 0}, unkept(), save_every=3))
    assert {one.missing for one in store.checkpoints(name)} == {("position of the loader",)}
    assert caplog.text.count("the position of a loader cannot be saved") == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Stateful, lambda: [5, 6]),
        (lambda: list(range(5)), Stateful),
        (lambda: list(range(5)), lambda: [5, 6]),
        (lambda: list(range(5)), lambda: list(range(9))),
    ],
)
def test_a_loader_of_another_kind_or_length_begins_anew_and_that_is_said(
    store, name, before, after, caplog
):
    with pytest.raises(PowerCut):
        epochs_script(store, name, before, cut=4, total=1)
    seen = epochs_script(store, name, after, total=1)["seen"]
    assert len(seen) == 3 + len(after())
    assert caplog.text.count("its pass begins anew") == 1
    with store.run(f"{name}-steps") as run:
        list(run.steps(3, {}, before()))
    with store.run(f"{name}-steps") as run:
        assert len(list(run.steps(9, {}, after()))) == 6
    assert caplog.text.count("its pass begins anew") == 2


def test_a_second_pass_in_an_epoch_is_only_passed_on(store, name):
    state = {"n": 0}
    with store.run(name) as run:
        for _ in run.epochs(2, state):
            for _ in run.batches([1, 2], save_every_s=None):
                state["n"] += 1
            assert list(run.batches([7, 8, 9], save_every_s=0)) == [7, 8, 9]
    assert [one.position for one in store.checkpoints(name)] == [(2, 0)]


def zip_script(store, name, loader_of, *, kill=0):
    """Train on pairs of batches; `kill` is the number of them after which it dies."""
    random.seed(1)
    own = random.Random(2)
    state = State(own=own, seen=[])
    with suppress(PowerCut), store.run(name) as run:
        for _ in run.epochs(2, state):
            pairs = zip(
                run.batches(Shuffled(), save_every_s=0), run.batches(loader_of()), strict=True
            )
            for pair in pairs:
                if len(state.seen) == kill - 1:
                    raise PowerCut
                state.seen.append((pair, own.random(), random.random()))
    return state.seen


@pytest.mark.parametrize("loader_of", [Shuffled, Stateful, lambda: list(range(5))])
def test_passes_at_once_go_on_where_they_stood(store, name, loader_of):
    whole = zip_script(store, f"{name}-whole", loader_of)
    for kill in (2, 4, 9):
        zip_script(store, f"{name}-{kill}", loader_of, kill=kill)
        assert zip_script(store, f"{name}-{kill}", loader_of) == whole, kill
    zip_script(store, name, loader_of, kill=3)
    zip_script(store, name, loader_of, kill=5)
    assert store.latest(name).batch == 4
    assert zip_script(store, name, loader_of) == whole


def test_nothing_is_saved_beside_a_pass_that_cannot_be_put_back(store, name):
    zip_script(store, name, lambda: (one for one in range(5)), kill=8)
    assert store.latest(name).position == (1, 0)
    assert store.latest(name).missing == ("position of the loader",)


def test_a_pass_that_goes_on_in_the_next_epoch_is_named(store, name, caplog):
    with store.run(name) as run:
        for epoch in run.epochs(3, {"n": 0}):
            if epoch == 1:
                other = run.batches(range(9))
            for _ in run.batches([1, 2], save_every_s=0):
                next(other)
    assert caplog.text.count("goes on in epoch") == 1
    assert store.latest(name).missing == ("position of the loader",)


def test_batches_of_a_validation_are_no_steps(store, name):
    with store.run(name) as run:
        for _ in run.epochs(4, {"n": 0}, save_every=Every(steps=20), save_latest=False):
            for _ in run.batches(range(10), save_every_s=None):
                pass
            for _ in run.batches(range(10)):
                pass
    assert [one.step for one in store.checkpoints(name)] == [2, 4]


def test_batches_outside_an_epoch(store, name):
    run = store.run(name)
    with pytest.raises(BadRequest, match="outside an epoch"):
        run.batches([1])
    run.close()


def steps_script(store, name, total, *, cut=None, accumulate=1, **options):
    random.seed(2)
    state = {"seen": []}
    count = 0
    with store.run(name) as run:
        for step, batch in run.steps(total, state, Shuffled(), accumulate=accumulate, **options):
            count += 1
            if count == cut:
                raise PowerCut
            state["seen"].append((step, batch, random.random()))
            run.log(loss=step)
    return state


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_go_on_inside_a_pass(store, name, accumulate):
    options = {"accumulate": accumulate, "save_latest_s": 0.0}
    whole = steps_script(store, f"{name}-whole", 17, **options)
    for cut in (8, 3, 4):
        with pytest.raises(PowerCut):
            steps_script(store, name, 17, cut=cut, **options)
    assert steps_script(store, name, 17, **options) == whole
    assert whole["seen"][-1][0] == 17


class Carrying(Stateful):
    """A loader that shuffles with a generator of its own; some give an empty pass at the end."""

    def __init__(self, *, ends_empty):
        super().__init__()
        self.random, self.ends_empty, self.is_over = random.Random(0), ends_empty, False

    def __iter__(self):
        if self.order is None:
            if self.is_over:
                self.is_over = False
                random.random()  # making an iterator draws
                return
            random.random()
            self.order, self.at = self.random.sample(range(5), 5), 0
        while self.at < 5:
            self.at += 1
            yield self.order[self.at - 1]
        self.order = None

    def state_dict(self):
        return {"random": self.random.getstate(), "order": self.order, "at": self.at}

    def load_state_dict(self, state):
        self.random.setstate(state["random"])
        self.order, self.at = state["order"], state["at"]
        if self.at == 5:
            self.order, self.is_over = None, self.ends_empty


@pytest.mark.parametrize("ends_empty", [True, False])
@pytest.mark.parametrize("cut", [5, 6, 10])
def test_steps_go_on_at_the_end_of_a_pass_with_the_next_one(store, name, ends_empty, cut):
    def script(run_name, total):
        random.seed(1)
        state = {"seen": []}
        with store.run(run_name) as run:
            for _, batch in run.steps(total, state, Carrying(ends_empty=ends_empty)):
                state["seen"].append((batch, random.random()))
        return state

    whole = script(f"{name}-whole", 15)
    script(name, cut)
    assert script(name, 15) == whole


def test_steps_keep_every_and_best(store, name):
    steps_script(store, name, 10, save_every=4, monitor="loss", mode="min", save_latest_s=None)
    found = {one.step: one.reasons for one in store.checkpoints(name)}
    assert found == {1: ("best",), 4: ("every",), 8: ("every",), 10: ("final",)}


def test_steps_over_a_stream_say_what_is_missing(store, name):
    state = {"n": 0}
    with store.run(name) as run:
        for _ in run.steps(3, state, iter(range(99))):
            state["n"] += 1
    assert store.latest(name).missing == ("position of the loader",)


def test_a_generator_that_is_used_up(store, name):
    with pytest.raises(BadRequest, match="gives nothing after step 3"), store.run(name) as run:
        list(run.steps(5, {"n": 0}, (batch for batch in range(3))))


def test_an_empty_loader(store, name):
    with pytest.raises(BadRequest, match="empty"), store.run(name) as run:
        list(run.steps(3, {}, []))


def test_kinds_of_loaders():
    assert position.kind_of([1]) == "replay"
    assert position.kind_of(range(3)) == "replay"
    assert position.kind_of(Stateful()) == "own"
    assert position.kind_of(iter([1])) == "none"
    assert position.kind_of(x for x in "ab") == "none"
