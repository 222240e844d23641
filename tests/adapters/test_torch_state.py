"""`casckpt.torch.State`: what goes in comes back in place, bit for bit, wrapped or not."""

from __future__ import annotations

import copy
import random
import warnings

import numpy as np
import pytest
import torch

import casckpt
import casckpt.torch
from casckpt.adapters.torch_random import RANDOMNESS
from casckpt.errors import BadRequest, TreeMismatch
from casckpt.training import randomness


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with casckpt.open(tmp_path_factory.mktemp("torch") / "store") as store:
        yield store


def network(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    )


def train(model, optimizer, steps, after=lambda: None):
    for _ in range(steps):
        inputs = torch.randn(16, 4)

        def closure(inputs=inputs):
            optimizer.zero_grad()
            loss = (model(inputs) ** 2).mean()
            loss.backward()
            return loss

        optimizer.step(closure)
        after()


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def optimizer_classes():
    found = []
    for name in dir(torch.optim):
        cls = getattr(torch.optim, name)
        if (
            isinstance(cls, type)
            and issubclass(cls, torch.optim.Optimizer)
            and cls is not torch.optim.Optimizer
            and name not in ("SparseAdam", "Muon")  # other kinds of parameters than a network's
        ):
            found.append(pytest.param(cls, id=name))
    return found


@pytest.mark.parametrize("cls", optimizer_classes())
def test_training_goes_on_exactly_with_every_optimizer(store, cls):
    model = network()
    optimizer = cls(model.parameters(), lr=0.01)
    train(model, optimizer, 3)
    state = casckpt.torch.State(model=model, optimizer=optimizer)
    store.save(f"optimizer/{cls.__name__}", state)
    torch.manual_seed(5)
    train(model, optimizer, 3)

    other = network(seed=9)
    resumed = casckpt.torch.State(model=other, optimizer=cls(other.parameters(), lr=0.5))
    weights = [parameter.data_ptr() for parameter in other.parameters()]
    store.restore(f"optimizer/{cls.__name__}", into=resumed)
    torch.manual_seed(5)
    train(other, resumed.optimizer, 3)
    assert same(other.state_dict(), model.state_dict())
    assert same(resumed.optimizer.state_dict(), optimizer.state_dict())
    assert [parameter.data_ptr() for parameter in other.parameters()] == weights


SCHEDULERS = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.5),
    "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2, 5]),
    "ConstantLR": lambda o: torch.optim.lr_scheduler.ConstantLR(o, 0.3, 4),
    "LinearLR": lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.3, total_iters=7),
    "ExponentialLR": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8),
    "PolynomialLR": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 9),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        o, 3
    ),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.9**e),
    "MultiplicativeLR": lambda o: torch.optim.lr_scheduler.MultiplicativeLR(o, lambda e: 0.9),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.1, 3),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.ConstantLR(o, 0.1, 2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [3],
    ),
    "ChainedScheduler": lambda o: torch.optim.lr_scheduler.ChainedScheduler(
        [
            torch.optim.lr_scheduler.ConstantLR(o, 0.1, 2),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        optimizer=o,
    ),
    "ReduceLROnPlateau": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.02, anneal_epochs=6),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_learning_rates_go_on_with_every_scheduler(store, name):
    def rates(optimizer, scheduler, count):
        found = []
        for index in range(count):
            optimizer.step()
            arguments = (1.0 + index % 2,) if name == "ReduceLROnPlateau" else ()
            scheduler.step(*arguments)
            found.append([group["lr"] for group in optimizer.param_groups])
        return found

    def make():
        optimizer = torch.optim.SGD(network().parameters(), lr=0.1, momentum=0.9)
        return optimizer, SCHEDULERS[name](optimizer)

    with warnings.catch_warnings():
        # torch's own chained schedulers use a parameter that it has deprecated
        warnings.simplefilter("ignore", UserWarning)
        optimizer, scheduler = make()
        rates(optimizer, scheduler, 4)
        store.save(f"scheduler/{name}", casckpt.torch.State(o=optimizer, s=scheduler))
        expected = rates(optimizer, scheduler, 6)
        optimizer, scheduler = make()
        store.restore(f"scheduler/{name}", into=casckpt.torch.State(o=optimizer, s=scheduler))
        assert rates(optimizer, scheduler, 6) == expected


def test_scaler_and_averaged_model_go_on(store):
    def make(seed):
        model = network(seed)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
        average = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        return casckpt.torch.State(
            model=model,
            average=average,
            scaler=scaler,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        )

    def steps(state):
        for _ in range(3):
            state.optimizer.zero_grad()
            loss = (state.model(torch.randn(8, 4)) ** 2).mean()
            state.scaler.scale(loss).backward()
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.average.update_parameters(state.model)

    state = make(0)
    steps(state)
    store.save("scaler", state)
    torch.manual_seed(1)
    steps(state)
    other = make(3)
    store.restore("scaler", into=other)
    torch.manual_seed(1)
    steps(other)
    assert state.scaler.state_dict() == other.scaler.state_dict()
    assert other.scaler.get_scale() > 8.0
    assert same(state.average.state_dict(), other.average.state_dict())


def test_plain_values_are_attributes_and_lists_stay_the_same_objects(store):
    state = casckpt.torch.State(best=0.0, losses=[], by_name={}, weights=None, note="a")
    state.best = 0.5
    state.losses.append(1.0)
    state.by_name["x"] = 2
    state.weights = {"w": torch.arange(3.0)}
    state.added = (1, 2)
    store.save("plain", state)
    fresh = casckpt.torch.State(best=0.0, losses=[], by_name={"old": 1}, weights=None, note="b")
    losses, by_name = fresh.losses, fresh.by_name
    assert store.restore("plain", into=fresh) is fresh
    assert (fresh.best, fresh.note, fresh.added) == (0.5, "a", (1, 2))
    assert fresh.losses is losses
    assert losses == [1.0]
    assert fresh.by_name is by_name
    assert by_name == {"x": 2}
    assert torch.equal(fresh.weights["w"], torch.arange(3.0))


def test_a_part_that_the_checkpoint_lacks_is_named(store):
    store.save("lacks", casckpt.torch.State(best=0.0))
    fresh = casckpt.torch.State(best=1.0, epoch=3)
    with pytest.raises(TreeMismatch, match="epoch"):
        store.restore("lacks", into=fresh)
    assert fresh.best == 1.0


def test_another_shape_is_refused_before_anything_is_touched(store):
    store.save("shape", casckpt.torch.State(best=0.5, model=torch.nn.Linear(2, 3)))
    other = casckpt.torch.State(best=0.0, model=torch.nn.Linear(3, 3))
    before = copy.deepcopy(other.model.state_dict())
    with pytest.raises(TreeMismatch, match="shape"):
        store.restore("shape", into=other)
    assert other.best == 0.0
    assert same(dict(other.model.state_dict()), dict(before))


@pytest.mark.parametrize("name", ["state_dict", "load_state_dict", "_parts", "__class__"])
def test_names_that_state_needs_are_refused(name):
    with pytest.raises(BadRequest, match="cannot be called"):
        casckpt.torch.State(**{name: 1})


class Wrapped(torch.nn.Module):
    """What DistributedDataParallel and torch.compile do to names, without either's machinery."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, inputs):
        return self._orig_mod(inputs)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        lambda model: torch.nn.DataParallel(model),
        lambda model: Wrapped(model),
        lambda model: torch.nn.DataParallel(Wrapped(model)),
        lambda model: torch.compile(model),
        lambda model: torch.nn.Sequential(model[0], Wrapped(model[1]), *model[2:]),
    ],
    ids=["bare", "parallel", "compiled", "both", "torch.compile", "one layer compiled"],
)
@pytest.mark.filterwarnings("ignore")
def test_wrappers_do_not_show_in_names(store, wrap):
    model = network(1)
    store.save("wrapped", casckpt.torch.State(model=wrap(model)))
    bare = network(2)
    store.restore("wrapped", into=casckpt.torch.State(model=bare))
    assert same(dict(bare.state_dict()), dict(model.state_dict()))
    inner = network(3)
    store.restore("wrapped", into=casckpt.torch.State(model=wrap(inner)))
    assert same(dict(inner.state_dict()), dict(model.state_dict()))
    assert "_orig_mod" not in str(list(store.restore("wrapped")["model"]))
    store.delete("wrapped")


def test_generators_in_the_state_go_on(store):
    def make(seed):
        return casckpt.torch.State(
            torch=torch.Generator().manual_seed(seed),
            numpy=np.random.default_rng(seed),
            old=np.random.RandomState(seed),
            python=random.Random(seed),
        )

    def draw(state):
        return (
            torch.rand(3, generator=state.torch).tolist(),
            state.numpy.normal(size=3).tolist(),
            state.old.normal(size=3).tolist(),
            [state.python.gauss(0, 1) for _ in range(3)],
        )

    state = make(1)
    draw(state)
    store.save("generators", state)
    expected = draw(state)
    other = make(2)
    kept = other.torch
    store.restore("generators", into=other)
    assert other.torch is kept
    assert draw(other) == expected


def test_torch_randomness_goes_on_through_the_hook(store):
    import casckpt.api  # noqa: F401  what names the provider

    torch.rand(5)
    streams = randomness.capture()
    assert "torch" in streams
    expected = torch.randn(4)
    torch.manual_seed(77)
    randomness.restore(streams)
    assert torch.equal(torch.randn(4), expected)
    assert set(RANDOMNESS.capture()) <= {"cpu", "cuda"}


def test_processes_hear_each_other_whatever_the_default_device_is():
    distributed = pytest.importorskip("torch.distributed")
    from casckpt.adapters.torch_peers import TorchChannel

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        with torch.device("meta"):
            channel = TorchChannel()
            assert channel.broadcast(b"told") == b"told"
            assert channel.gather(b"given") == [b"given"]
            assert channel.most([3, 1]) == [3, 1]
    finally:
        distributed.destroy_process_group()


def test_state_without_torch(store):
    state = casckpt.State(weights=np.arange(3.0), best=1, rng=np.random.default_rng(3))
    store.save("numpy", state)
    expected = state.rng.random(2).tolist()
    fresh = casckpt.State(weights=np.zeros(3), best=0, rng=np.random.default_rng(0))
    weights = fresh.weights
    store.restore("numpy", into=fresh)
    assert fresh.weights is weights
    assert weights.tolist() == [0.0, 1.0, 2.0]
    assert fresh.rng.random(2).tolist() == expected


def test_a_dtype_that_torch_files_cannot_hold_is_said(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        store.save("r", {"w": torch.zeros(4, dtype=torch.int8).view(torch.int4)})
        with pytest.raises(BadRequest, match="torch files cannot hold this state"):
            store.export("r", tmp_path / "x.pt", format="torch")
        assert not (tmp_path / "x.pt").exists()
