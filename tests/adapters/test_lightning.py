"""`casckpt.lightning`: killed and resumed, at epochs and inside them, to the bit."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import casckpt
from casckpt.errors import BadRequest
from tests.adapters.kills import PACKAGE_HOME, check

lightning = pytest.importorskip("lightning")
torch = pytest.importorskip("torch")

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = textwrap.dedent("""
    import logging, sys, time, warnings
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    import lightning, torch, casckpt, casckpt.lightning

    class Noisy(torch.utils.data.Dataset):
        def __init__(self):
            self.x = torch.randn(48, 8, generator=torch.Generator().manual_seed(5))
        def __len__(self):
            return len(self.x)
        def __getitem__(self, index):
            return self.x[index] + 0.1 * torch.randn(8), self.x[index, :1]

    class Net(lightning.LightningModule):
        def __init__(self, scheduler="step", pause_s=0.0):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(8, 200), torch.nn.Dropout(0.3), torch.nn.Linear(200, 1)
            )
            self.scheduler, self.pause_s, self.batches = scheduler, pause_s, 0
        def training_step(self, batch, index):
            loss = torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1])
            self.log("loss", loss, on_step=False, on_epoch=True)
            self.batches += 1
            time.sleep(self.pause_s)
            return loss
        def validation_step(self, batch, index):
            self.log("val", torch.nn.functional.mse_loss(self.layers(batch[0]), batch[1]))
        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            if self.scheduler == "plateau":
                plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
                return {"optimizer": optimizer,
                        "lr_scheduler": {"scheduler": plateau, "monitor": "val"}}
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]

    def loader(workers=0):
        return torch.utils.data.DataLoader(Noisy(), 8, shuffle=True, num_workers=workers)

    def validation():
        return torch.utils.data.DataLoader(Noisy(), 24)

    def trainer(callbacks, epochs, **options):
        return lightning.Trainer(
            max_epochs=epochs, callbacks=callbacks, logger=False, accelerator="cpu",
            enable_progress_bar=False, enable_model_summary=False, **options
        )
""")

PROGRAM = textwrap.dedent("""
    import hashlib
    lightning.seed_everything(0, verbose=False)
    net = Net(pause_s=0.004)
    with casckpt.open(sys.argv[1]) as store, store.run("nn") as run:
        saves = casckpt.lightning.Callback(run, monitor="val", mode="min", save_every_s={every_s})
        path = casckpt.lightning.resume_path(run)
        print("begin", flush=True)
        trainer([saves], 5).fit(net, loader({workers}), validation(), ckpt_path=path)
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(value.numpy().tobytes())
    open(sys.argv[2], "w").write(digest.hexdigest())
""")

names: dict[str, object] = {}
exec(compile(MODULE, "module", "exec"), names)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
Net, loader, validation, trainer = (
    names[name] for name in ("Net", "loader", "validation", "trainer")
)


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def fit(store, epochs=3, callbacks=(), scheduler="step", name="nn", **options):
    """Train from a fixed seed, or from where the run is; return (net, run, trainer)."""
    lightning.seed_everything(0, verbose=False)
    net = Net(scheduler)
    saves = options.pop("saves", {})
    with store.run(name) as run:
        path = casckpt.lightning.resume_path(run)
        one = trainer([casckpt.lightning.Callback(run, **saves), *callbacks], epochs, **options)
        one.fit(net, loader(), validation(), ckpt_path=path)
    return net, run, one


def same(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.crash
@pytest.mark.slow
@pytest.mark.parametrize(("every_s", "workers"), [(0.01, 0), (600, 0), (0.01, 1)])
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path, every_s, workers):
    program = tmp_path / f"lightning_{every_s}_{workers}.py"
    program.write_text(MODULE + PROGRAM.format(every_s=every_s, workers=workers))
    check(program, tmp_path, framework="lightning")


@pytest.mark.slow
def test_a_stop_saves_inside_the_epoch_and_the_next_start_goes_on(tmp_path):
    program = tmp_path / "stopped.py"
    program.write_text(MODULE + PROGRAM.format(every_s=600, workers=0))

    def run(place, stop_after):
        environment = {**os.environ, "PYTHONPATH": str(PACKAGE_HOME)}
        child = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / place), str(tmp_path / f"{place}.out")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        if stop_after:
            assert child.stdout is not None
            child.stdout.readline()
            with casckpt.open(tmp_path / place) as store:
                while not store.checkpoints():
                    assert child.poll() is None
            child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=120)
        return child.returncode, errors

    assert run("whole", False)[0] == 0
    code, errors = run("stopped", True)
    assert code == 75, errors
    with casckpt.open(tmp_path / "stopped") as store:
        assert "stop" in store.get("nn").reasons
        assert store.runs()[0].status == "stopped"
    assert run("stopped", False)[0] == 0
    assert (tmp_path / "stopped.out").read_text() == (tmp_path / "whole.out").read_text()


def test_a_finished_training_does_nothing_and_more_epochs_go_on(store):
    net, run, _ = fit(store, 2, saves={"save_every": 1, "monitor": "val", "mode": "min"})
    assert [ck.step for ck in store.checkpoints("nn")] == [1, 2]
    assert store.get("nn").metrics.keys() == {"loss", "val"}
    assert "final" in store.get("nn").reasons
    assert run.info.status == "finished"
    again, _, _ = fit(store, 2)
    assert again.batches == 0
    assert same(net, again)
    more, _, _ = fit(store, 4)
    assert more.batches == 12
    whole, _, _ = fit(store, 4, name="whole")
    assert same(more, whole)
    assert len(store.history("nn")["loss"]) == 4


def test_early_stopping_stays_stopped(store):
    def stopping():
        return lightning.pytorch.callbacks.EarlyStopping("val", patience=1, min_delta=10.0)

    net, run, _ = fit(store, 9, [stopping()])
    assert store.get("nn").step == 2
    assert run.info.status == "finished"
    again, _, _ = fit(store, 9, [stopping()])
    assert again.batches == 0
    assert same(net, again)


def test_the_scheduler_that_waits_for_a_plateau_is_exact(store):
    fit(store, 2, scheduler="plateau", name="parts")
    more, _, _ = fit(store, 5, scheduler="plateau", name="parts")
    whole, _, _ = fit(store, 5, scheduler="plateau", name="whole")
    assert same(more, whole)


def test_it_is_not_resumed_without_the_path(store):
    fit(store, 1)
    with store.run("nn") as run, pytest.raises(BadRequest, match="resume_path"):
        trainer([casckpt.lightning.Callback(run)], 2).fit(Net(), loader(), validation())
    with store.run("other") as run:
        run.save({"a": 1})
    with store.run("other") as run, pytest.raises(BadRequest, match="holds a state"):
        casckpt.lightning.resume_path(run)


def test_saves_share_what_has_not_changed(store):
    fit(store, 1)
    saved = store.get("nn")
    kinds = {entry.kind for entry in store.entries("nn")}
    assert kinds <= {"array", "bytes"}
    assert saved.logical_bytes > 4 * 8 * 200


def test_model_checkpoint_needs_no_adapter(store, monkeypatch, tmp_path):
    pytest.importorskip("fsspec")
    monkeypatch.setenv("CASCKPT_STORE", str(store.path))
    monkeypatch.chdir(tmp_path)

    def saves():
        return lightning.pytorch.callbacks.ModelCheckpoint(
            dirpath="casckpt://files/deep", monitor="val", save_top_k=2, save_last=True
        )

    first = saves()
    net = Net()
    trainer([first], 3).fit(net, loader(), validation())
    import fsspec

    fs = fsspec.filesystem("casckpt")
    found = [Path(path).name for path in fs.ls("files/deep", detail=False)]
    assert "last.ckpt" in found
    assert len(found) == 3
    assert first.best_model_path.startswith("casckpt://files/deep/epoch=")
    best = torch.load(fsspec.open(first.best_model_path).open(), weights_only=False)
    assert best["state_dict"].keys() == net.state_dict().keys()
    second = saves()
    one = trainer([second], 5)
    one.fit(Net(), loader(), validation(), ckpt_path="last")
    assert one.current_epoch == 5
    fs.close()


class Seen(lightning.Callback):
    """Notes the batches, and may end the training as a signal does."""

    def __init__(self, kill=None):
        self.batches, self._kill = [], kill

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self._kill:
            raise _Killed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((trainer.current_epoch, [one.tolist() for one in batch]))


class _Killed(BaseException):
    pass


def fit_with_a_generator(store, name, kill=None):
    """Train with a loader that has a generator of its own; return the batches."""
    lightning.seed_everything(0, verbose=False)
    numbers = torch.utils.data.TensorDataset(torch.randn(24, 8), torch.randn(24, 1))
    own = torch.utils.data.DataLoader(
        numbers, 8, shuffle=True, generator=torch.Generator().manual_seed(3)
    )
    seen = Seen(kill)
    with store.run(name) as run:
        path = casckpt.lightning.resume_path(run)
        one = trainer([casckpt.lightning.Callback(run), seen], 4)
        one.fit(Net("step"), own, ckpt_path=path)
    return seen.batches


@pytest.mark.parametrize("kill", [1, 2, 3])
def test_a_loader_with_a_generator_of_its_own_goes_on(store, kill):
    whole = fit_with_a_generator(store, "whole")
    with pytest.raises(_Killed):
        fit_with_a_generator(store, "killed", kill)
    left = fit_with_a_generator(store, "killed")
    assert left == [one for one in whole if one[0] >= kill]


def test_saves_by_steps_come_inside_epochs_too(store):
    fit(store, saves={"save_every": casckpt.Every(steps=2)})
    found = [one.position for one in store.checkpoints("nn") if "every" in one.reasons]
    assert (0, 2) in found
    assert len(found) > 3


class Shared(lightning.Callback):
    """Logs what both kinds of epochs log, and what the training logs in its first epoch only."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        epoch = torch.tensor(float(trainer.current_epoch))
        pl_module.log("shared", epoch, on_step=False, on_epoch=True)
        if trainer.current_epoch == 0:
            pl_module.log("first", torch.tensor(1.0))

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("shared", torch.tensor(-1.0))


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        ({"check_val_every_n_epoch": 2}, [2, 4]),
        ({"val_check_interval": 0.5}, [1, 2, 3, 4, 5]),
        ({"val_check_interval": 4}, [1, 2, 3, 4, 5]),
        ({"val_check_interval": 9, "check_val_every_n_epoch": None}, [2, 3, 5]),
        ({"check_val_every_n_epoch": 5}, [5]),
    ],
)
@pytest.mark.parametrize("kill", [None, 2, 4])
def test_a_checkpoint_has_the_metrics_of_a_validation_of_its_own(store, options, validated, kill):
    saves = {"monitor": "val", "mode": "min", "save_every": 1}
    if kill is not None:
        with pytest.raises(_Killed):
            fit(store, 5, [Shared(), Seen(kill)], saves=saves, **options)
    fit(store, 5, [Shared()], saves=saves, **options)
    made = store.checkpoints("nn")
    assert [one.step for one in made] == [1, 2, 3, 4, 5]
    assert [one.step for one in made if "val" in one.metrics] == validated
    assert [one.metrics["shared"] for one in made] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [one.step for one in made if "first" in one.metrics] == [1]
    assert all("loss" in one.metrics for one in made)
    history = store.history("nn")
    assert [at for at, _ in history["val"]] == validated
    values = [one.metrics["val"] for one in made if "val" in one.metrics]
    assert len(set(values)) == len(values)


def test_the_best_that_are_kept_were_validated(store):
    keep = casckpt.KeepBest("val", "min", 2)
    saves = {"monitor": "val", "mode": "min", "save_every": 1, "keep": keep}
    fit(store, 7, saves=saves, check_val_every_n_epoch=2)
    made = store.checkpoints("nn")
    assert len([one for one in made if "val" in one.metrics]) == 2
    assert all(one.step % 2 == 0 for one in made if "val" in one.metrics)
    assert made[-1].step == 7


def handlers():
    return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)


@pytest.mark.parametrize("how", ["interrupt", "term", "error", "stop"])
def test_the_signals_are_the_programs_own_when_the_fit_ended_or_was_left(store, how):
    class Ask(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if (trainer.current_epoch, batch_idx) != (1, 2):
                return
            if how == "error":
                raise ValueError
            if how == "stop":
                run.stop()
            else:
                os.kill(os.getpid(), signal.SIGINT if how == "interrupt" else signal.SIGTERM)

    def cell(epochs, *callbacks):  # without a `with`, as in a notebook
        lightning.seed_everything(0, verbose=False)
        path = casckpt.lightning.resume_path(run)
        one = trainer([casckpt.lightning.Callback(run), *callbacks], epochs)
        process = one.strategy.process_dataloader
        try:
            one.fit(Net(), loader(), validation(), ckpt_path=path)
        finally:
            assert one.strategy.process_dataloader == process
        return one

    before = handlers()
    run = store.run("nn")
    if how == "stop":
        cell(3, Ask())
    else:
        with pytest.raises(ValueError if how == "error" else casckpt.errors.Stopped):
            cell(3, Ask())
    assert handlers() == before
    run.close()
    run = store.run("nn")
    assert cell(3).current_epoch == 3
    assert handlers() == before
    run.close()
    assert run.info.status == "finished"
