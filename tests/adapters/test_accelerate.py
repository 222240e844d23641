"""`casckpt.accelerate`: killed and resumed, at epochs and inside them, to the bit."""

from __future__ import annotations

import textwrap

import pytest

import casckpt
from casckpt.errors import BadRequest
from tests.adapters.kills import check

accelerate = pytest.importorskip("accelerate")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = textwrap.dedent("""
    import sys, time, warnings
    warnings.filterwarnings("ignore")
    import accelerate, torch, casckpt, casckpt.accelerate
    from torch.optim.lr_scheduler import StepLR

    class Noisy(torch.utils.data.Dataset):
        def __init__(self):
            self.x = torch.randn(46, 8, generator=torch.Generator().manual_seed(5))
        def __len__(self):
            return len(self.x)
        def __getitem__(self, index):
            return self.x[index] + 0.1 * torch.randn(8), self.x[index, :1]

    class Counter:
        def __init__(self):
            self.count = 0
        def state_dict(self):
            return {"count": self.count}
        def load_state_dict(self, state):
            self.count = state["count"]

    def prepare(seedable=False):
        accelerate.utils.set_seed(0)
        settings = accelerate.DataLoaderConfiguration(use_seedable_sampler=seedable)
        one = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=2, dataloader_config=settings
        )
        layers = [torch.nn.Linear(8, 64), torch.nn.Dropout(0.3), torch.nn.Linear(64, 1)]
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = torch.utils.data.DataLoader(Noisy(), 4, shuffle=True)
        prepared = one.prepare(model, optimizer, loader, StepLR(optimizer, 5))
        one.counter = Counter()
        one.register_for_checkpointing(one.counter)
        return one, *prepared

    def train(run, epochs, seedable=False, every_s=600.0, pause_s=0.0):
        one, model, optimizer, loader, scheduler = prepare(seedable)
        state = casckpt.accelerate.State(one, losses=[], sum=0.0)
        for epoch in run.epochs(epochs, state):
            for x, y in run.batches(loader, accumulate=2, save_every_s=every_s):
                with one.accumulate(model):
                    loss = torch.nn.functional.mse_loss(model(x), y)
                    one.backward(loss)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()
                state.sum += loss.item()
                one.counter.count += 1
                time.sleep(pause_s)
            state.losses.append(state.sum)
            state.sum = 0.0
        return one, model, optimizer, state
""")

PROGRAM = textwrap.dedent("""
    import hashlib
    with casckpt.open(sys.argv[1]) as store, store.run("net") as run:
        print("begin", flush=True)
        one, model, optimizer, state = train(run, 6, {seedable}, {every_s}, 0.005)
    digest = hashlib.sha256(repr((state.losses, one.counter.count, one.step)).encode())
    for value in [*model.state_dict().values(), torch.get_rng_state()]:
        digest.update(value.numpy().tobytes())
    for moments in optimizer.state_dict()["state"].values():
        digest.update(moments["exp_avg"].numpy().tobytes())
    open(sys.argv[2], "w").write(digest.hexdigest())
""")

names: dict[str, object] = {}
exec(compile(MODULE, "module", "exec"), names)
train, prepare = names["train"], names["prepare"]


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize(("every_s", "seedable"), [(0.0, False), (0.0, True), (600.0, True)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, every_s, seedable):
    program = tmp_path / f"accelerate_{every_s}_{seedable}.py"
    program.write_text(MODULE + PROGRAM.format(every_s=every_s, seedable=seedable))
    check(program, tmp_path, framework="accelerate")


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


@pytest.mark.parametrize("seedable", [False, True])
def test_the_order_of_later_epochs_is_that_of_one_training(store, seedable):
    with store.run("whole") as run:
        whole = train(run, 4, seedable)
    for total in (1, 3, 4):
        with store.run("parts") as run:
            parts = train(run, total, seedable)
    assert whole[3].losses == parts[3].losses
    assert whole[0].counter.count == parts[0].counter.count == 48
    assert len(set(whole[3].losses)) == 4


def test_a_checkpoint_has_the_names_of_the_bare_module(store):
    with store.run("net") as run:
        train(run, 1)
    weights = casckpt.restore(f"{store.path}::net", only="model.*")["model"]
    bare = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Dropout(), torch.nn.Linear(64, 1))
    bare.load_state_dict(weights)
    assert store.get("net").missing == ()
    state = store.restore("net")
    assert {"model", "optimizer", "scheduler", "object", "loaders", "accelerator"} <= state.keys()


def test_the_state_of_a_prepared_optimizer_is_not_cast(store):
    def prepared():
        one = accelerate.Accelerator(cpu=True)
        one.free_memory()
        model = torch.nn.Linear(3, 2)
        model, optimizer = one.prepare(model, torch.optim.Adam(model.parameters()))
        return model, optimizer, casckpt.accelerate.State(one)

    model, optimizer, state = prepared()
    model(torch.rand(1, 3)).sum().backward()
    optimizer.step()
    model.bfloat16()
    store.save("r", state)
    other, fresh, into = prepared()
    other.bfloat16()
    store.restore("r", into=into)
    assert into.optimizer is fresh
    mine, theirs = fresh.state[other.weight], optimizer.state[model.weight]
    assert mine["exp_avg"].dtype == torch.float32
    assert torch.equal(mine["exp_avg"], theirs["exp_avg"])


def test_an_accelerator_without_a_model_is_refused():
    one = accelerate.Accelerator(cpu=True)
    one.free_memory()
    with pytest.raises(BadRequest, match=r"accelerator.prepare"):
        casckpt.accelerate.State(one)
