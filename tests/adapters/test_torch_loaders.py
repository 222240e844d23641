"""Loaders that carry generators of their own, or a state, from one epoch into the next."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

import casckpt

torch = pytest.importorskip("torch")
from torch.utils.data import DataLoader  # noqa: E402

from casckpt.training.loops.boundary import Boundary  # noqa: E402
from casckpt.training.loops.positioned import PositionedLoader  # noqa: E402


class Killed(BaseException):
    """Ends a training as a signal does: nothing is saved any more."""


def die_if(is_time: bool, run) -> None:
    if is_time:
        run._loop.saver.settle()
        raise Killed


class Stateful:
    """A loader of a program's own, as docs/resume.md asks."""

    def __init__(self) -> None:
        self.random, self.left = random.Random(0), None

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        if self.left is None:
            self.left = self.random.sample(range(100), 3)
        while self.left:
            yield self.left.pop(0)
        self.left = None

    def state_dict(self):
        return {"random": self.random.getstate(), "left": self.left}

    def load_state_dict(self, state):
        version, words, gauss = state["random"]
        self.random.setstate((version, tuple(words), gauss))
        self.left = state["left"]


def shuffled(size: int, generator) -> DataLoader:
    return DataLoader(list(range(size)), batch_size=4, shuffle=True, generator=generator)


def generator_of(seed: int):
    return torch.Generator().manual_seed(seed)


SWITCHES = {
    "curriculum": lambda epoch: epoch > 2,
    "by turns": lambda epoch: epoch % 2,
}
"""Which of two loaders an epoch trains on."""


def train(place, kind: str, kill: int = 0) -> list:
    """Return the batches of each epoch of this session; `kill` ends the body of that epoch."""
    own = torch.Generator().manual_seed(0)
    other = own if kind == "shared" else torch.Generator().manual_seed(5)
    training = Stateful() if kind == "state" else shuffled(8, own)
    check = shuffled(4, other)
    stages = [training, shuffled(12, generator_of(7))]
    seen = []
    with suppress(Killed), casckpt.open(place) as store, store.run("r") as run:
        for epoch in run.epochs(5, {"w": 0}):
            if kind == "seeded":
                training = shuffled(8, torch.Generator().manual_seed(epoch))
            if kind == "reseeded":
                own.manual_seed(epoch)
            if kind == "rewrapped":
                training = shuffled(8, own)
            if kind in SWITCHES:
                training = stages[SWITCHES[kind](epoch)]
            batches = [torch.as_tensor(batch).tolist() for batch in run.batches(training)]
            if kind != "second" or epoch % 2 == 0:
                batches += [batch.tolist() for batch in run.batches(check)]
            seen.append((epoch, batches))
            die_if(epoch == kill, run)
    return seen


@pytest.mark.parametrize("kill", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "kind",
    ["own", "shared", "state", "seeded", "reseeded", "second", "rewrapped", *SWITCHES],
)
def test_a_run_killed_in_an_epoch_sees_the_batches_of_one_that_was_not(tmp_path, kind, kill):
    whole = train(tmp_path / "whole", kind)
    assert len({str(batches) for _, batches in whole}) == 5  # they do differ
    train(tmp_path / "killed", kind, kill)
    assert train(tmp_path / "killed", kind) == whole[kill - 1 :]


def test_a_run_killed_twice_sees_them_too(tmp_path):
    whole = train(tmp_path / "whole", "own")
    train(tmp_path / "killed", "own", 2)
    train(tmp_path / "killed", "own", 3)
    assert train(tmp_path / "killed", "own") == whole[2:]


def train_with_workers_that_stay(place, kind: str, kill: tuple[int, int] = (0, 0)) -> list:
    """Return the batches and draws of all sessions; `kill` is an epoch and a batch of it."""
    torch.manual_seed(0)
    stay = {"num_workers": 1, "persistent_workers": True}
    training = DataLoader(
        list(range(12)), 4, shuffle=True, generator=generator_of(7) if kind == "own" else None,
        **({} if kind == "validation" else stay),
    )  # fmt: skip
    check = DataLoader(list(range(4)), 4, **stay)
    state = casckpt.State(seen=[])
    with suppress(Killed), casckpt.open(place) as store, store.run("r") as run:
        for epoch in run.epochs(3, state):
            for count, batch in enumerate(run.batches(training, save_every_s=0)):
                die_if((epoch, count) == kill, run)
                state.seen.append((batch.tolist(), float(torch.rand(()))))
            if kind == "validation":
                state.seen += [batch.tolist() for batch in run.batches(check)]
    return state.seen


@pytest.mark.parametrize("kind", ["plain", "own", "validation"])
def test_workers_that_stay_change_nothing_for_a_run_that_was_killed(tmp_path, kind):
    whole = train_with_workers_that_stay(tmp_path / "whole", kind)
    for kill in ((2, 1), (3, 0)):
        place = tmp_path / f"killed-{kill}"
        train_with_workers_that_stay(place, kind, kill)
        assert train_with_workers_that_stay(place, kind) == whole, kill


class Resumable:
    """A stream that goes on from its state, as those of datasets do: at its end that is empty."""

    def __init__(self, *, size=6, padding=0, breaks=False):
        self.at, self.size, self.padding, self.breaks = None, size, padding, breaks
        self.goes_on_from = None

    def __iter__(self):
        begin, self.goes_on_from = self.goes_on_from or 0, None
        for at in range(begin, self.size):
            self.at = at
            yield at
        self.at = self.size

    def state_dict(self):
        if self.breaks:
            raise RuntimeError("no pass has begun")
        return {"at": self.at, "seen": list(range(self.padding))}

    def load_state_dict(self, state):
        self.at = self.goes_on_from = state["at"]


@pytest.mark.parametrize("options", [{}, {"padding": 200_000}, {"breaks": True}])
def test_a_loader_whose_last_state_is_empty_or_cannot_be_kept_begins_as_it_is_made(
    tmp_path, options, caplog
):
    def session(kill=0):
        seen = []
        store = casckpt.open(tmp_path / "store")
        with suppress(Killed), store, store.run("r") as run:
            loader = Resumable(**options)
            for epoch in run.epochs(4, {"w": 0}):
                seen.append((epoch, list(run.batches(loader, save_every_s=None))))
                die_if(epoch == kill, run)
        return seen

    whole = list(range(6))
    session(2)
    assert session(3) == [(2, whole), (3, whole)]
    assert session() == [(3, whole), (4, whole)]
    assert ("not kept between epochs" in caplog.text) == ("padding" in options)


def test_a_pass_that_is_broken_off_goes_on_as_the_state_says_and_that_is_said(tmp_path, caplog):
    def session(name, kill=0):
        seen = []
        store = casckpt.open(tmp_path / "store")
        with suppress(Killed), store, store.run(name) as run:
            loader = Stateful()
            for epoch in run.epochs(4, {"w": 0}):
                for count, batch in enumerate(run.batches(loader, save_every_s=None), 1):
                    seen.append((epoch, batch))
                    if count == 2:
                        break
                die_if(epoch == kill, run)
        return seen

    whole = session("whole")
    session("killed", 2)
    assert caplog.text.count("was left at batch 2 of 3") == 2
    assert session("killed") == [one for one in whole if one[0] > 1]


def test_what_is_made_anew_and_holds_nothing_leaves_nothing_in_a_checkpoint(tmp_path):
    with casckpt.open(tmp_path / "store") as store, store.run("r") as run:
        for _ in run.epochs(3, {"w": 0}):
            list(run.batches(list(range(4))))
            list(run.batches(DataLoader(list(range(4)))))
        assert run._loop._boundary.capture() == {}


def test_loaders_of_one_epoch_that_position_themselves_are_told_apart():
    def epochs(count, saved):
        boundary = Boundary(saved)
        loaders = [
            PositionedLoader(
                shuffled(8, torch.Generator().manual_seed(seed)), {}, None, boundary, n
            )
            for n, seed in enumerate((1, 2))
        ]
        for _ in range(count):
            seen = [[batch.tolist() for batch in loader] for loader in loaders]
            saved = boundary.capture()
        return seen, saved

    whole, _ = epochs(3, {})
    for before in (1, 2):
        _, saved = epochs(before, {})
        assert epochs(3 - before, saved)[0] == whole


class OnHost(DataLoader):
    """Draws its seed on the CPU: torch's own loader cannot with a default device without values."""

    def __iter__(self):
        with torch.device("cpu"):
            yield from super().__iter__()


def test_a_run_with_another_default_device_goes_on(tmp_path):
    def session(name, kill=0):
        seen = []
        torch.manual_seed(0)
        weights = torch.zeros(100_000, device="cpu")
        state = casckpt.torch.State(weights=weights, module=torch.nn.Linear(2, 2, device="cpu"))
        try:
            with casckpt.open(tmp_path / "store") as store, store.run(name) as run:
                loader = OnHost(list(range(12)), batch_size=4)
                for epoch in run.epochs(4, state):
                    for batch in run.batches(loader, save_every_s=None):
                        weights += batch.sum()
                    seen.append((epoch, weights[0].item(), state.module.weight.tolist()))
                    if epoch == kill:
                        run._loop.saver.settle()
                        raise Killed
        except Killed:
            pass
        return seen

    with torch.device("meta"):
        whole = session("whole")
        session("killed", 2)
        assert session("killed") == whole[1:]
