"""`casckpt.keras`: killed and resumed at epochs, to the bit, where Keras's own callback is not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap

import pytest

import casckpt
from tests.adapters.kills import PACKAGE_HOME, check

if importlib.util.find_spec("keras") is None or importlib.util.find_spec("torch") is None:
    pytest.skip("keras or torch is not installed", allow_module_level=True)

MODULE = textwrap.dedent("""
    import hashlib, json, os, sys, time, warnings
    os.environ["KERAS_BACKEND"] = "torch"
    warnings.filterwarnings("ignore")
    import keras, numpy as np, casckpt, casckpt.keras

    def model():
        keras.utils.set_random_seed(0)
        net = keras.Sequential([
            keras.Input((8,)), keras.layers.Dense(32, activation="relu"),
            keras.layers.Dropout(0.3), keras.layers.BatchNormalization(), keras.layers.Dense(1),
        ])
        net.compile("adam", "mse", metrics=["mae"])
        return net

    numbers = np.random.default_rng(3)
    x = numbers.normal(size=(96, 8)).astype("float32")
    y = x[:, :1] * 2

    def fit(net, epochs, *callbacks):
        net.fit(x, y, epochs=epochs, batch_size=16, verbose=0, callbacks=list(callbacks))

    def digest(net):
        total = hashlib.sha256()
        for variable in [*net.variables, *net.optimizer.variables]:
            total.update(np.asarray(keras.ops.convert_to_numpy(variable)).tobytes())
        return total.hexdigest()
""")

PROGRAM = textwrap.dedent("""
    net = model()
    pause = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: time.sleep(0.01))
    with casckpt.open(sys.argv[1]) as store, store.run("nn") as run:
        print("begin", flush=True)
        fit(net, 8, pause, casckpt.keras.Callback(run))
    open(sys.argv[2], "w").write(digest(net))
""")


@pytest.mark.crash
@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_bits(tmp_path):
    program = tmp_path / "keras_fit.py"
    program.write_text(MODULE + PROGRAM)
    check(program, tmp_path, framework="keras")


def run(tmp_path, code: str) -> dict:
    """Run code in a process of its own: the backend is chosen at import. It prints JSON last."""
    program = tmp_path / "program.py"
    program.write_text(MODULE + textwrap.dedent(code))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(program)],
        env={**os.environ, "PYTHONPATH": str(PACKAGE_HOME)},
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_parts_make_the_whole_and_keras_own_callback_does_not(tmp_path):
    found = run(
        tmp_path,
        """
        def fresh():
            keras.backend.clear_session()
            return model()

        whole = fresh()
        fit(whole, 6)
        found = {"whole": digest(whole)}
        with casckpt.open("store") as store:
            for total in (2, 2, 5, 6):
                with store.run("nn") as run:
                    net = fresh()
                    began = []
                    watch = keras.callbacks.LambdaCallback(
                        on_epoch_begin=lambda epoch, logs: began.append(epoch))
                    fit(net, total, casckpt.keras.Callback(run, monitor="mae", mode="min"), watch)
                found[f"began {total} {len(found)}"] = began
            found["parts"] = digest(net)
            with store.run("early") as run:
                net = fresh()
                fit(net, 9, casckpt.keras.Callback(
                    run, monitor="loss", mode="max", patience=2, at_end="best"))
                found["early"] = [one.step for one in store.checkpoints("early")]
                found["best"] = digest(net)
            with store.run("one") as run:
                net = fresh()
                fit(net, 1, casckpt.keras.Callback(run))
                found["one"] = digest(net)
            keras.backend.clear_session()
            net = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
            net.compile("adam", "mse")
            with store.run("nn") as run:
                try:
                    saves = casckpt.keras.Callback(run)
                    net.fit(x, x[:, :2], epochs=9, verbose=0, callbacks=[saves])
                except casckpt.errors.ConfigMismatch as error:
                    found["mismatch"] = str(error)
            for name, parts in (("lazy", (4,)), ("lazy parts", (2, 4))):
                for total in parts:
                    keras.backend.clear_session()
                    keras.utils.set_random_seed(0)
                    lazy = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(1)])
                    lazy.compile("adam", "mse")
                    with store.run(name.replace(" ", "-")) as run:
                        fit(lazy, total, casckpt.keras.Callback(run))
                    found[name] = digest(lazy)

        class Cut(Exception):
            pass

        def cut(epoch, logs):
            if epoch == 2:
                raise Cut

        try:
            fit(fresh(), 6, keras.callbacks.BackupAndRestore("backup"),
                keras.callbacks.LambdaCallback(on_epoch_end=cut))
        except Cut:
            pass
        net = fresh()
        fit(net, 6, keras.callbacks.BackupAndRestore("backup"))
        found["stock"] = digest(net)
        print(json.dumps(found))
        """,
    )
    assert found["parts"] == found["whole"]
    assert found["stock"] != found["whole"]
    assert [value for name, value in found.items() if name.startswith("began")] == [
        [0, 1], [], [2, 3, 4], [5],
    ]  # fmt: skip
    assert found["early"][-1] == 3
    assert found["best"] == found["one"]
    assert found["lazy"] == found["lazy parts"]
    assert "dense_1.kernel: 'float32 32x1' -> (nothing)" in found["mismatch"]
    with casckpt.open(tmp_path / "store") as store:
        assert store.get("nn").metrics.keys() >= {"loss", "mae"}


@pytest.mark.slow
def test_the_signals_are_the_programs_own_when_the_fit_ended_or_was_left(tmp_path):
    found = run(
        tmp_path,
        """
        import signal
        store = casckpt.open("store")
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        found = []

        def cell(total, at=None, do=None):  # without a `with`, as in a notebook
            keras.backend.clear_session()
            net = model()
            during = keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda batch, logs: batch == at and do())
            try:
                fit(net, total, during, casckpt.keras.Callback(store.run("nn")))
                how = "ended"
            except (Exception, KeyboardInterrupt) as error:
                how = type(error).__name__
            own = (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
            found.append([how, own, store.get("nn").step])
            return net

        def interrupt():
            os.kill(os.getpid(), signal.SIGINT)

        def fail():
            raise ValueError

        cell(2)
        cell(4, 2, interrupt)
        cell(4, 2, lambda: [interrupt(), interrupt()])
        cell(4)
        net = cell(9, 2, fail)
        if signal.getsignal(signal.SIGINT) != before[0]:
            interrupt()  # Nobody has told the callback; it is not for the next training.
        cell(6)
        history = net.fit(x, y, epochs=2, verbose=0)
        found.append(len(history.history["loss"]))
        print(json.dumps(found))
        """,
    )
    assert found == [
        ["ended", True, 2],
        ["KeyboardInterrupt", True, 3],
        ["KeyboardInterrupt", True, 3],
        ["ended", True, 4],
        ["ValueError", False, 4],
        ["ended", True, 6],
        2,
    ]


@pytest.mark.slow
def test_a_training_that_early_stopping_has_ended_is_over(tmp_path):
    said = run(tmp_path, """
        done = []
        for epochs in (9, 9, 12):
            net = model()
            with casckpt.open("store") as store, store.run("nn") as opened:
                stop = keras.callbacks.EarlyStopping("loss", patience=1, min_delta=100.0)
                history = net.fit(x, y, epochs=epochs, batch_size=16, verbose=0,
                                  callbacks=[stop, casckpt.keras.Callback(opened)])
                done.append([len(history.epoch), digest(net), opened.store.latest("nn").step])
            keras.backend.clear_session()
        print(json.dumps(done))
    """)  # fmt: skip
    assert said[0][0] == said[0][2] == 2
    assert said[1] == [0, *said[0][1:]]
    assert said[2][0] == 2  # more epochs go on
