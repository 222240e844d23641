"""Processes that train one run: any of them killed, or their launcher, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import casckpt
from tests.adapters.kills import JOURNAL, KILLS, PACKAGE_HOME, note
from tests.e2e.test_resume_torch import equal

torch = pytest.importorskip("torch")

pytestmark = [pytest.mark.slow, pytest.mark.crash]

SCRIPT = Path(__file__).with_name("train_ddp.py")
MODES = [("middle", 2), ("accelerate", 2)]
if JOURNAL:
    MODES += [("epoch", 2), ("steps", 2), ("epoch", 3), ("middle", 4), ("steps", 4)]
    MODES += [("accelerate", 3)]


class Launch:
    """A launcher and the processes that it has started."""

    def __init__(self, store: Path, out: Path, mode: str, pace_s: float = 0.0, count: int = 2):
        command = [
            sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
            "--nproc-per-node", str(count), str(SCRIPT), str(store), str(out), mode, str(pace_s),
        ]  # fmt: skip
        environment = {
            **os.environ, "PYTHONPATH": str(PACKAGE_HOME), "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",
        }  # fmt: skip
        self.pids: list[int] = []
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def wait_for_work(self) -> bool:
        """Return at the first batch; False if there is none left."""
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.pids = [int(word) for word in words[1:]]
        return bool(words)

    def end(self) -> str:
        """Wait for all of them, and return what they said."""
        _, errors = self.process.communicate(timeout=600)
        deadline = time.monotonic() + 60
        while any(Path(f"/proc/{pid}").exists() for pid in self.pids):
            assert time.monotonic() < deadline, "processes are left behind"
            time.sleep(0.02)
        return errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a function: mode to the states of all processes when nobody kills them."""
    made: dict[tuple[str, int], tuple[list[dict], float]] = {}

    def make(mode: str, count: int = 2) -> tuple[list[dict], float]:
        if (mode, count) not in made:
            folder = tmp_path_factory.mktemp(mode)
            launch = Launch(folder / "store", folder / "out", mode, count=count)
            assert launch.wait_for_work()
            began_s = time.monotonic()
            errors = launch.end()
            assert launch.process.returncode == 0, errors
            made[mode, count] = states(folder / "out", count), time.monotonic() - began_s
        return made[mode, count]

    return make


def states(out: Path, count: int = 2) -> list[dict]:
    return [torch.load(f"{out}.{rank}") for rank in range(count)]


@pytest.mark.parametrize(("mode", "count"), MODES)
def test_killed_and_run_again_all_processes_end_with_the_same_bits(mode, count, whole, tmp_path):
    if mode == "accelerate":
        pytest.importorskip("accelerate")
    kills = KILLS if JOURNAL or (mode, count) == MODES[0] else 1
    expected, work_s = whole(mode, count)
    dice = random.Random(len(mode))
    landed = starts = ends = place = here = 0
    said = ""
    while True:
        store, out = tmp_path / f"store-{place}", tmp_path / f"out-{place}"
        launch = Launch(store, out, mode, 0.01, count)
        starts += 1
        if landed < kills and launch.wait_for_work():
            # One after the other: each process, and the launcher.
            target = [*launch.pids, launch.process.pid][landed % (count + 1)]
            time.sleep(dice.uniform(0.0, work_s / 2 + 0.3))
            try:
                os.kill(target, signal.SIGKILL)
            except ProcessLookupError:
                target = 0
            said += launch.end()
            if launch.process.returncode != 0:
                landed += bool(target)
                here += bool(target)
                continue
        else:
            said += launch.end()
        assert launch.process.returncode == 0, said
        ends += bool(here)
        different = equal(expected, states(out, count))
        if different or landed >= kills:
            break
        place, here = place + 1, 0
    kind = "accelerate, processes" if mode == "accelerate" else "torch, DistributedDataParallel"
    program = f"{mode}, {count} processes"
    note(kind, program, landed, starts, ends=ends, other=int(bool(different)))
    assert different == [], said
    if (mode, count) == MODES[0]:
        assert "after batch" in said


def test_all_leave_at_the_same_batch_and_nobody_else_gets_in(whole, tmp_path):
    expected, _ = whole("middle")
    store, out = tmp_path / "store", tmp_path / "out"
    launch = Launch(store, out, "middle", 3.0)
    assert launch.wait_for_work()
    other = Launch(store, tmp_path / "other", "middle")
    errors = other.end()
    assert other.process.returncode != 0
    assert "RunBusy: net is being trained by another process" in errors, errors
    assert f"process {launch.pids[0]} on" in errors
    os.kill(launch.pids[1], signal.SIGTERM)
    errors = launch.end()
    assert "net stopped by SIGTERM, saved as net@0+" in errors
    with casckpt.open(store) as opened:
        assert opened.runs("net")[0].status == "stopped"
        assert opened.get("net").reasons == ("stop",)
    single = Launch(store, tmp_path / "single", "middle", count=1)
    errors = single.end()
    assert single.process.returncode != 0
    assert "env.world_size: 2 -> 1" in errors
    assert "on_mismatch={'env.world_size': 'allow'}" in errors
    again = Launch(store, out, "middle")
    errors = again.end()
    assert again.process.returncode == 0, errors
    assert equal(expected, states(out)) == []


def test_early_stopping_and_the_best_are_the_first_processs(tmp_path):
    launch = Launch(tmp_path / "store", tmp_path / "out", "early")
    errors = launch.end()
    assert launch.process.returncode == 0, errors
    first, second = states(tmp_path / "out")
    assert equal(first["model"], second["model"]) == []
    assert first["losses"] == second["losses"]
    assert [value for _, value in first["history"]["loss"]] == [3.0, 2.0, 2.5, 2.5]
    with casckpt.open(tmp_path / "store") as store:
        assert len(first["losses"]) == store.best("net", "loss", "min").step == 2
        assert equal(dict(store.restore("net@best:loss:min")["model"]), dict(first["model"])) == []
        assert store.get("net").step == 4


def test_any_process_may_end_the_training(tmp_path):
    launch = Launch(tmp_path / "store", tmp_path / "out", "alone")
    errors = launch.end()
    assert launch.process.returncode == 0, errors
    first, second = states(tmp_path / "out")
    assert len(first["losses"]) == len(second["losses"]) == 2
    with casckpt.open(tmp_path / "store") as store:
        assert store.runs("net")[0].reason == "enough"
