"""`casckpt.transformers`: a Trainer that is killed ends with the same bits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap

import pytest

import casckpt
from casckpt.errors import BadRequest, Stopped
from tests.adapters.kills import PACKAGE_HOME, check

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")

MODULE = textwrap.dedent("""
    import hashlib, sys, time, warnings
    warnings.filterwarnings("ignore")
    import torch, transformers, casckpt, casckpt.transformers
    transformers.logging.set_verbosity_error()

    class Net(torch.nn.Module):
        def __init__(self, pause_s=0.0):
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(8, 200), torch.nn.Dropout(0.3), torch.nn.Linear(200, 1)
            )
            self.pause_s, self.batches = pause_s, 0
        def forward(self, x, labels):
            self.batches += self.training
            time.sleep(self.pause_s)
            return {"loss": torch.nn.functional.mse_loss(self.layers(x), labels)}

    inputs = torch.randn(48, 8, generator=torch.Generator().manual_seed(5))
    data = [{"x": row, "labels": row[:1]} for row in inputs]

    def trainer(net, callbacks, folder, epochs=5, **options):
        arguments = transformers.TrainingArguments(
            str(folder), num_train_epochs=epochs, per_device_train_batch_size=8, save_steps=4,
            logging_steps=4, eval_strategy="steps", eval_steps=4, report_to=[], disable_tqdm=True,
            use_cpu=True, learning_rate=0.01, **options
        )
        return transformers.Trainer(
            net, arguments, train_dataset=data, eval_dataset=data[:16], callbacks=callbacks
        )
""")

PROGRAM = textwrap.dedent("""
    transformers.set_seed(0)
    net = Net(0.004)
    with casckpt.open(sys.argv[1]) as store, store.run("hf") as run:
        saves = casckpt.transformers.Callback(run)
        folder = casckpt.transformers.resume_dir(run)
        print("begin", flush=True)
        one = trainer(net, [saves], sys.argv[1] + "-out", metric_for_best_model="loss")
        one.train(resume_from_checkpoint=folder)
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(value.numpy().tobytes())
    open(sys.argv[2], "w").write(digest.hexdigest())
""")

names: dict[str, object] = {}
exec(compile(MODULE, "module", "exec"), names)
Net, trainer = names["Net"], names["trainer"]


@pytest.fixture
def store(tmp_path):
    with casckpt.open(tmp_path / "store") as store:
        yield store


def test_a_training_goes_on_from_the_folders_of_an_old_one(store, tmp_path):
    transformers.set_seed(0)
    whole = Net()
    trainer(whole, [], tmp_path / "old").train()
    shutil.rmtree(tmp_path / "old" / "checkpoint-30")
    made = store.import_files("hf", tmp_path / "old")
    assert [one.step for one in made] == [4, 8, 12, 16, 20, 24, 28]
    assert made[2].metrics.keys() >= {"loss", "eval_loss", "learning_rate"}
    net, _ = fit(store, tmp_path / "new")
    assert net.batches == 2
    for name, value in whole.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    assert [one.step for one in store.checkpoints("hf")][-2:] == [28, 30]


def fit(store, folder, **options):
    transformers.set_seed(0)
    net = Net()
    saves = options.pop("saves", {})
    with store.run("hf") as run:
        path = casckpt.transformers.resume_dir(run)
        callback = casckpt.transformers.Callback(run, **saves)
        trainer(net, [callback], folder, **options).train(resume_from_checkpoint=path)
    return net, run


@pytest.mark.crash
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    program = tmp_path / "transformers_program.py"
    program.write_text(MODULE + PROGRAM)
    check(program, tmp_path, framework="transformers")


@pytest.mark.slow
def test_a_stop_is_saved_and_the_next_start_goes_on(tmp_path):
    program = tmp_path / "stopped.py"
    program.write_text(MODULE + PROGRAM)

    def run(place, stop):
        child = subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / place), str(tmp_path / f"{place}.out")],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME)},
        )  # fmt: skip
        if stop:
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
        assert store.runs()[0].status == "stopped"
    assert run("stopped", False)[0] == 0
    assert (tmp_path / "stopped.out").read_text() == (tmp_path / "whole.out").read_text()


def test_every_checkpoint_of_the_trainer_is_taken_and_its_folder_removed(store, tmp_path):
    net, run = fit(store, tmp_path / "out", epochs=3)
    assert [ck.step for ck in store.checkpoints("hf")] == [4, 8, 12, 16, 18]
    last = store.get("hf")
    assert {"loss", "eval_loss"} <= store.get("hf@16").metrics.keys()
    assert "final" in last.reasons
    assert run.info.status == "finished"
    assert list((tmp_path / "out").glob("checkpoint-*")) == []
    store.restore_files(last, tmp_path / "back")
    assert (tmp_path / "back/trainer_state.json").is_file()
    again, _ = fit(store, tmp_path / "out", epochs=3)
    assert again.batches == 0
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_limits_of_the_trainer_hold_in_the_run(store, tmp_path):
    fit(store, tmp_path / "out", epochs=3, save_total_limit=2, metric_for_best_model="loss")
    kept = store.checkpoints("hf")
    best = min(kept, key=lambda ck: ck.metrics["eval_loss"])
    assert len(kept) <= 4
    assert "best" in best.reasons
    assert kept[-1].step == 18


def test_the_trainers_own_folder_stays_if_it_needs_it(store, tmp_path):
    fit(store, tmp_path / "out", epochs=2, load_best_model_at_end=True,
        metric_for_best_model="loss")  # fmt: skip
    assert list((tmp_path / "out").glob("checkpoint-*"))
    assert store.checkpoints("hf")


def test_it_is_not_resumed_without_the_folder(store, tmp_path):
    fit(store, tmp_path / "out", epochs=1)
    with store.run("hf") as run, pytest.raises(BadRequest, match="resume_dir"):
        trainer(Net(), [casckpt.transformers.Callback(run)], tmp_path / "out", 2).train()
    with store.run("other") as run:
        run.save({"a": 1})
    with store.run("other") as run, pytest.raises(BadRequest, match="holds a state"):
        casckpt.transformers.resume_dir(run)


def by_epochs(store, folder, name="hf", *, epochs=3, callbacks=(), saves=None, **options):
    """Train with an evaluation and a save after each epoch of six steps; return the Trainer."""
    transformers.set_seed(0)
    with store.run(name) as run:
        path = casckpt.transformers.resume_dir(run)
        both = [*callbacks, casckpt.transformers.Callback(run, **(saves or {}))]
        one = trainer(Net(), both, folder, epochs)
        chosen = {
            "eval_strategy": "epoch", "save_strategy": "epoch", "logging_strategy": "epoch",
            "metric_for_best_model": "loss", "greater_is_better": False,
        }  # fmt: skip
        for key, value in (chosen | options).items():
            setattr(one.args, key, value)
        one.train(resume_from_checkpoint=path)
    return one


def evaluated(one):
    return [(row["step"], row["eval_loss"]) for row in one.state.log_history if "eval_loss" in row]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"load_best_model_at_end": True},
        {"save_strategy": "steps"},  # every 4, and the last, so that an evaluation follows it
        {"save_strategy": "steps", "logging_strategy": "steps"},
    ],
)
def test_the_last_checkpoint_has_the_metrics_of_its_evaluation(store, tmp_path, options):
    one = by_epochs(store, tmp_path / "out", **options)
    last = store.checkpoints("hf")[-1]
    assert (last.step, last.metrics["eval_loss"]) == evaluated(one)[-1]
    assert ("loss" in last.metrics) == ("logging_strategy" not in options)
    assert {"best", "final"} <= set(last.reasons)
    if "save_strategy" not in options:
        made = store.checkpoints("hf")
        assert [(each.step, each.metrics["eval_loss"]) for each in made] == evaluated(one)
    folders = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert bool(folders) == ("load_best_model_at_end" in options)


class Ask(transformers.TrainerCallback):
    """Asks to stop at a step, as a signal does; or at the evaluation there."""

    def __init__(self, step, event="on_step_begin"):
        self._step, self._event = step, event

    def on_step_begin(self, args, state, control, **kwargs):
        if self._event == "on_step_begin" and state.global_step + 1 == self._step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_evaluate(self, args, state, control, **kwargs):
        if self._event == "on_evaluate" and state.global_step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("strategy", "step", "event", "at"),
    [
        ("epoch", 6, "on_step_begin", 6),
        ("epoch", 8, "on_step_begin", 8),
        ("epoch", 18, "on_step_begin", 18),
        ("epoch", 6, "on_evaluate", 6),
        ("best", 6, "on_step_begin", 6),
        ("best", 8, "on_step_begin", 8),
        ("best", 18, "on_step_begin", 18),
        ("steps", 12, "on_step_begin", 12),
        ("no", 12, "on_step_begin", 12),
        ("no", 6, "on_evaluate", 7),
    ],
)
def test_a_stop_anywhere_in_an_epoch_goes_on_to_the_same_bits(
    store, tmp_path, strategy, step, event, at
):
    options = {"save_strategy": strategy}
    whole = by_epochs(store, tmp_path / "whole", "whole", **options)
    with pytest.raises(Stopped):
        by_epochs(store, tmp_path / "out", callbacks=[Ask(step, event)], **options)
    stopped = store.get("hf")
    assert stopped.step == at
    assert stopped.metrics.get("eval_loss") == dict(evaluated(whole)).get(at)
    assert list((tmp_path / "out").glob("checkpoint-*")) == []
    parts = by_epochs(store, tmp_path / "out", **options)
    assert evaluated(parts) == evaluated(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(parts.model.state_dict()[name], value), name
    kept = {one.step: one.metrics.get("eval_loss") for one in store.checkpoints("hf")}
    assert kept == {one.step: one.metrics.get("eval_loss") for one in store.checkpoints("whole")}
    assert store.get("hf@best:eval_loss:min").step == 18


@pytest.mark.parametrize("how", ["term", "error"])
def test_the_signals_are_the_programs_own_when_the_training_was_left(store, tmp_path, how):
    def handlers():
        return signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    class Fail(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 7:
                raise ValueError

    def cell(*callbacks):  # without a `with`, as in a notebook
        transformers.set_seed(0)
        runs.append(store.run("hf"))
        path = casckpt.transformers.resume_dir(runs[-1])
        own = casckpt.transformers.Callback(runs[-1])
        trainer(Net(), [*callbacks, own], tmp_path / "out").train(resume_from_checkpoint=path)

    before, runs = handlers(), []
    if how == "term":
        with pytest.raises(Stopped):
            cell(Ask(7))
        assert handlers() == before
    else:
        with pytest.raises(ValueError):
            cell(Fail())
        if handlers() != before:
            # Nobody has told the callback; it is not for the next training.
            os.kill(os.getpid(), signal.SIGTERM)
    cell()
    assert handlers() == before
    assert store.get("hf").step == 30
    for one in runs:
        one.close()
