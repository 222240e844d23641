"""`casckpt.ignite`: killed and resumed, at epochs and inside them, to the bit."""

from __future__ import annotations

import os
import signal
import textwrap

import pytest

import casckpt
from casckpt.errors import BadRequest, Stopped
from tests.adapters.kills import check

ignite = pytest.importorskip("ignite")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = textwrap.dedent("""
    import sys, time, warnings
    warnings.filterwarnings("ignore")
    import torch, casckpt, casckpt.ignite, casckpt.torch
    from ignite.engine import Engine, Events
    from ignite.handlers import EarlyStopping
    from ignite.metrics import RunningAverage

    class Noisy(torch.utils.data.Dataset):
        def __init__(self):
            self.x = torch.randn(46, 8, generator=torch.Generator().manual_seed(5))
        def __len__(self):
            return len(self.x)
        def __getitem__(self, index):
            return self.x[index] + 0.1 * torch.randn(8), self.x[index, :1]

    def train(run, epochs, pause_s=0.0, before=None, stopper=None, **options):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(8, 64), torch.nn.Dropout(0.3), torch.nn.Linear(64, 1)]
        model = torch.nn.Sequential(*layers)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        loader = torch.utils.data.DataLoader(Noisy(), 4, shuffle=True)

        def step(engine, batch):
            loss = torch.nn.functional.mse_loss(model(batch[0]), batch[1])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(pause_s)
            engine.state.sum += loss.item()
            return loss.item()

        trainer = Engine(step)
        trainer.state_dict_user_keys.append("sum")
        trainer.state.sum = 0.0
        state = casckpt.torch.State(model=model, optimizer=optimizer, drawn=[])
        if stopper is not None:
            stopping = EarlyStopping(2, lambda engine: stopper[engine.state.epoch - 1], trainer)
            trainer.add_event_handler(Events.EPOCH_COMPLETED, stopping)
            state.stopping = stopping
        casckpt.ignite.Handler(run, state, **options).attach(trainer)

        @trainer.on(Events.EPOCH_STARTED)
        def draw(engine):
            torch.rand(1)

        @trainer.on(Events.EPOCH_COMPLETED)
        def note(engine):
            # Handlers that were added later, and draw themselves, are part of the epoch too.
            state.drawn.append(torch.rand(1).item())
            run.log(total=engine.state.sum)

        if before is not None:
            trainer.add_event_handler(Events.ITERATION_COMPLETED, before)
        trainer.run(loader, max_epochs=epochs)
        return model, state, trainer
""")

PROGRAM = textwrap.dedent("""
    import hashlib
    with casckpt.open(sys.argv[1]) as store, store.run("nn") as run:
        print("begin", flush=True)
        model, state, trainer = train(run, 6, 0.005, save_every_s={every_s})
        facts = state.drawn, trainer.state.sum, trainer.state.epoch, trainer.state.iteration
    digest = hashlib.sha256(repr(facts).encode())
    for value in [*model.state_dict().values(), torch.get_rng_state()]:
        digest.update(value.numpy().tobytes())
    open(sys.argv[2], "w").write(digest.hexdigest())
""")

names: dict[str, object] = {}
exec(compile(MODULE, "module", "exec"), names)
train = names["train"]


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def fit(store, epochs, name="nn", **options):
    with store.run(name) as run:
        return train(run, epochs, **options)


def same(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize("every_s", [0.0, 600.0])
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, every_s):
    program = tmp_path / f"ignite_{every_s}.py"
    program.write_text(MODULE + PROGRAM.format(every_s=every_s))
    check(program, tmp_path, framework="ignite")


class Cut(Exception):
    pass


@pytest.mark.parametrize("at", [1, 11, 12, 13, 30])
def test_cut_after_any_batch_it_goes_on_to_the_same_bits(store, at):
    whole, whole_state, _ = fit(store, 3, "whole")

    def cut(engine):
        if engine.state.iteration == at:
            raise Cut

    def stop(engine):
        if engine.state.iteration == at:
            request = casckpt.training.stops.StopRequest("term", "SIGTERM", 0.0)
            current[0]._session.watch._own = request

    with pytest.raises(Cut):
        fit(store, 3, before=cut, save_every_s=0.0)
    parts, state, trainer = fit(store, 3)
    assert same(parts, whole)
    assert state.drawn == whole_state.drawn
    assert trainer.state.iteration == 36
    # And by a request to stop, which saves at that very batch.
    current: list[casckpt.Run] = []
    with store.run("stopped") as run:
        current.append(run)
        with pytest.raises(Stopped):
            train(run, 3, before=stop)
    saved = store.get("stopped")
    assert saved.step * 12 + saved.batch == at
    assert same(fit(store, 3, "stopped")[0], whole)


def test_a_finished_training_is_not_done_again_and_may_go_on(store):
    fit(store, 2, monitor="total", mode="min")
    batches = []
    _, _, trainer = fit(store, 2, before=batches.append)
    assert batches == []
    assert trainer.state.epoch == 2
    whole, _, _ = fit(store, 4, "whole")
    assert same(fit(store, 4)[0], whole)
    assert store.get("nn").metrics["total"] > 0
    assert [step for step, _ in store.history("nn")["total"]] == [1, 2, 3, 4]


def test_ignites_own_early_stopping_is_kept_and_final(store):
    scores = [1.0, 3.0, 2.0, 2.0, 2.0, 2.0]
    _, _, trainer = fit(store, 6, stopper=scores)
    assert trainer.state.epoch == 4
    assert store.get("nn").reasons == ("final",)
    batches = []
    fit(store, 6, stopper=scores, before=batches.append)
    assert batches == []


def test_patience_and_the_best(store):
    _, state, trainer = fit(
        store, 9, monitor="total", mode="min", patience=2, at_end="best"
    )  # the total only grows
    assert trainer.state.epoch == 3
    assert len(state.drawn) == 1


def test_what_cannot_be_exact_is_refused(store):
    trainer = ignite.engine.Engine(lambda engine, batch: None)
    with store.run("a") as run:
        casckpt.ignite.Handler(run, {"x": 1}).attach(trainer)
        with pytest.raises(BadRequest, match="leave epoch_length out"):
            trainer.run([1, 2, 3], max_epochs=2, epoch_length=2)
    trainer = ignite.engine.Engine(lambda engine, batch: None)
    with store.run("b") as run:
        casckpt.ignite.Handler(run, {"x": 1}).attach(trainer)
        with pytest.raises(BadRequest, match="max_epochs"):
            trainer.run([1, 2, 3], max_iters=2)


def build(run, fail_at=(), taker=None, **options):
    """Return an Engine, its loader, and how many batches it has done; it fails at some of them."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rows = torch.utils.data.TensorDataset(torch.randn(16, 2), torch.randn(16, 1))
    loader = torch.utils.data.DataLoader(rows, batch_size=4, shuffle=True)
    done = []

    def step(engine, batch):
        done.append(engine.state.iteration)
        if len(done) in fail_at:
            raise Cut
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()

    trainer = ignite.engine.Engine(step)
    if taker is not None:
        trainer.add_event_handler(ignite.engine.Events.EXCEPTION_RAISED, taker)
    state = names["casckpt"].torch.State(model=model, optimizer=optimizer)
    casckpt.ignite.Handler(run, state, **options).attach(trainer)
    return trainer, loader, done, model


def whole(store):
    with store.run("whole") as run:
        trainer, loader, _, model = build(run)
        trainer.run(loader, max_epochs=4)
    return model


def test_trained_again_after_an_exception_that_a_handler_took_it_ends_with_the_same_bits(store):
    Events = ignite.engine.Events
    with store.run("nn") as run:
        trainer, loader, done, model = build(run, save_every_s=0.0)
        taken = []
        trainer.add_event_handler(
            Events.EXCEPTION_RAISED, lambda engine, error: taken.append(error)
        )

        @trainer.on(Events.EPOCH_COMPLETED(once=2))
        def fail(engine):
            if not taken:
                raise Cut

        trainer.run(loader, max_epochs=4)
        assert [type(one) for one in taken] == [Cut]
        trainer.run(loader, max_epochs=4)
        assert trainer.state.dataloader is loader
        assert (trainer.state.epoch, trainer.state.iteration) == (4, 16)
        assert store.get("nn").step == 4
    assert same(model, whole(store))
    assert len(taken) == 1
    assert len(done) == 16 + 1  # the last batch of an epoch is done again


@pytest.mark.parametrize("is_heard", [True, False])
def test_trained_again_after_an_exception_it_ends_with_the_same_bits(store, is_heard):
    heard = []

    def hear(engine, error):
        heard.append(error)
        raise error

    with store.run("nn") as run:
        trainer, loader, _, model = build(run, fail_at=(6,), taker=hear if is_heard else None)
        trainer.interrupt_resume_enabled = False  # else ignite's next run does nothing
        with pytest.raises(Cut):
            trainer.run(loader, max_epochs=4)
        trainer.run(loader, max_epochs=4)
        assert store.get("nn").step == 4
    assert bool(heard) is is_heard
    assert same(model, whole(store))
    assert store.runs("nn")[0].status == "finished"


def test_an_exception_that_is_taken_inside_an_epoch_ends_the_epoch_as_in_ignite(store):
    Events = ignite.engine.Events
    with store.run("nn") as run:
        trainer, loader, done, _ = build(run, fail_at=(6,))
        trainer.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: None)
        trainer.run(loader, max_epochs=4)
        assert len(done) == 4 + 2 + 4 + 4
    assert [one.step for one in store.checkpoints("nn")] == [4]
    assert store.runs("nn")[0].status == "finished"


def test_terminated_without_its_last_event_the_engine_is_let_go_of_too(store):
    Events = ignite.engine.Events
    with store.run("nn") as run:
        trainer, loader, done, _ = build(run)

        @trainer.on(Events.EPOCH_COMPLETED(once=2))
        def stop(engine):
            engine.terminate(skip_completed=True)

        completed = []
        trainer.add_event_handler(Events.COMPLETED, completed.append)
        trainer.run(loader, max_epochs=4)
        assert completed == []
        assert trainer.state.dataloader is loader
        assert store.get("nn").step == 2
        trainer.run(loader, max_epochs=4)
    assert len(done) == 8
    assert store.get("nn").step == 2


@pytest.mark.parametrize("how", ["signal", "exception", "interrupt", "skip_completed"])
def test_without_a_with_signals_are_the_programs_own_again_when_it_was_left(store, how):
    Events = ignite.engine.Events
    mine = signal.getsignal(signal.SIGINT)
    run = store.run("nn")
    trainer, loader, _, model = build(run, fail_at=(6,) if how == "exception" else ())

    @trainer.on(Events.ITERATION_STARTED(once=6))
    def leave(engine):
        assert signal.getsignal(signal.SIGINT) is not mine
        if how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        elif how == "interrupt":
            engine.interrupt()
        elif how == "skip_completed":
            engine.terminate(skip_completed=True)

    @trainer.on(Events.EPOCH_STARTED(once=4))
    def look(engine):
        assert signal.getsignal(signal.SIGINT) is not mine

    expected = {"signal": KeyboardInterrupt, "exception": Cut}.get(how)
    if expected is None:
        trainer.run(loader, max_epochs=4)
    else:
        with pytest.raises(expected):
            trainer.run(loader, max_epochs=4)
    assert signal.getsignal(signal.SIGINT) is mine
    if how == "interrupt":
        trainer.run(loader, max_epochs=4)  # goes on where it stood
        assert signal.getsignal(signal.SIGINT) is mine
        assert store.get("nn").step == 4
        assert same(model, whole(store))
    run.close()
    if how != "skip_completed":
        status = "finished" if how == "interrupt" else "stopped"
        assert store.runs("nn")[0].status == status
