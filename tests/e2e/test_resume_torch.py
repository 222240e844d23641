"""A training script killed at random moments, run again with the same command until it is done.

Its final state is the uninterrupted one's, tensor by tensor and bit by bit.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.adapters.kills import note

torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).with_name("train_torch.py")
KILLS = int(os.environ.get("CASCKPT_TEST_KILLS", "5"))
PACE_S = {"epoch": "0.005", "middle": "0.004", "steps": "0.005"}


def begin(store: Path, out: Path, mode: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), str(store), str(out), mode, PACE_S[mode]]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> str:
    _, errors = process.communicate(timeout=120)
    text = errors.decode()
    assert process.returncode == 0, text
    return text


def wait_for_work(process: subprocess.Popen[bytes]) -> None:
    """Return at the first batch: a kill before that hits nothing."""
    assert process.stdout is not None
    process.stdout.readline()


def equal(one: Any, other: Any, path: str = "") -> list[str]:
    """Return the paths at which two states differ in any bit."""
    if isinstance(one, torch.Tensor):
        first, second = (part.contiguous().view(-1).view(torch.uint8) for part in (one, other))
        same = one.dtype == other.dtype and torch.equal(first, second)
        return [] if same else [path]
    if isinstance(one, dict):
        if list(one) != list(other):
            return [f"{path}: {list(one)} or {list(other)}"]
        return [bad for key in one for bad in equal(one[key], other[key], f"{path}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{path}: {len(one)} or {len(other)} items"]
        pairs = zip(one, other, strict=True)
        return [bad for at, (a, b) in enumerate(pairs) for bad in equal(a, b, f"{path}.{at}")]
    return [] if one == other else [f"{path}: {one} or {other}"]


@pytest.mark.slow
@pytest.mark.crash
@pytest.mark.parametrize("mode", ["epoch", "middle", "steps"])
def test_killed_and_run_again_is_the_same_to_the_bit(mode, tmp_path, capsys):
    began_s = time.monotonic()
    process = begin(tmp_path / "whole", tmp_path / "whole.pt", mode)
    wait_for_work(process)
    work_began_s = time.monotonic()
    finish(process)
    work_s = time.monotonic() - work_began_s
    whole = torch.load(tmp_path / "whole.pt")
    dice = random.Random(len(mode))
    landed = inside = 0
    store, out = tmp_path / "store", tmp_path / "out.pt"
    messages = []
    while True:
        process = begin(store, out, mode)
        if landed < KILLS:
            wait_for_work(process)
            try:
                process.wait(dice.uniform(0.0, work_s / 2))
            except subprocess.TimeoutExpired:
                process.kill()
            text = process.communicate()[1].decode()
            assert process.returncode in (0, -9), text
            landed += process.returncode == -9
        else:
            text = finish(process)
        messages.append(text)
        inside += "after batch" in text
        if process.returncode != 0:
            continue
        assert equal(whole, torch.load(out)) == [], messages
        if landed >= KILLS:
            break
        # It came to its end before it was killed often enough: once more, in another store.
        store = tmp_path / f"store-{len(messages)}"
    with capsys.disabled():
        took_s = time.monotonic() - began_s
        sys.stdout.write(f"\n{mode}: {inside} resumes inside an epoch, {took_s:.0f} s\n")
    note("torch, plain loops", mode, landed, len(messages))
    if mode == "middle":
        assert inside > 0


def test_a_finished_script_run_again_does_no_work(tmp_path):
    store, out = tmp_path / "store", tmp_path / "out.pt"
    finish(begin(store, out, "epoch"))
    before = torch.load(out)
    size = sum(file.stat().st_size for file in store.glob("packs/*"))
    text = finish(begin(store, out, "epoch"))
    assert "6 of 6 epochs are done" in text
    after = torch.load(out)
    for name in ("model", "optimizer", "losses", "history"):
        assert equal(before[name], after[name]) == []
    assert sum(file.stat().st_size for file in store.glob("packs/*")) - size < 20_000
