"""`status` on a real training script, at work, killed, and finished."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import sys
import termios
import time
from pathlib import Path

import pytest

import casckpt

SCRIPT = str(Path(__file__).with_name("train_counter.py"))


def script(*words: object) -> list[str]:
    return [sys.executable, SCRIPT, *map(str, words)]


@pytest.mark.crash
def test_status_of_a_run_at_work_that_is_killed_and_goes_on(new_cli):
    process = new_cli.begin("run", "net", "--max-restarts", "0", "--", *script(60, 0.1))
    assert process.stdout is not None
    for _ in range(15):
        process.stdout.readline()
    (about,) = json.loads(new_cli("status", "net", "--json").out)["runs"]
    assert about["status"] == "running"
    (part,) = about["progress"]
    assert part["part"] == "epochs"
    assert part["total"] == 60
    assert 0 < part["done"] < 60
    assert about["eta_s"] == pytest.approx((60 - part["done"]) * part["unit_s"])
    assert about["saved_age_s"] < 5
    assert about["monitor"] == "val_loss"
    assert about["alarms"] == []
    text = new_cli("status").out
    assert text.splitlines()[0].split() == [
        "RUN", "STATUS", "PROGRESS", "LEFT", "LAST", "SAVE", "BEST", "WRITTEN",
    ]  # fmt: skip
    assert "/60 epochs" in text
    os.kill(pid_of(new_cli), signal.SIGKILL)
    process.communicate(timeout=20)
    assert json.loads(new_cli("status", "--json").out)["runs"][0]["status"] == "lost"
    assert "lost" in new_cli("status", "net").out


def pid_of(cli) -> int:
    from casckpt.training.lines import read_record

    with casckpt.open(cli.store, mode="r") as store:
        return read_record(store._repository, "net").lines[0].pid


def test_watch_tells_each_change_and_ends_with_the_run(new_cli):
    process = new_cli.begin("run", "net", "--", *script(25, 0.1))
    assert process.stdout is not None
    process.stdout.readline()
    answer = new_cli("status", "net", "--watch", "--interval", "0.3", "--json")
    process.communicate(timeout=20)
    assert answer.code == 0
    lines = [json.loads(line) for line in answer.out.splitlines()]
    assert {(line["schema"], line["command"]) for line in lines} == {(1, "status")}
    assert len(lines) > 2
    assert [lines[0]["status"], lines[-1]["status"]] == ["running", "finished"]
    done = [part["done"] for line in lines for part in line["progress"]]
    assert done == sorted(done)
    assert new_cli("status", "net", "--watch").out.count("\n") == 1


def test_status_of_plain_saves_of_nothing_and_of_a_wrong_name(cli, new_cli):
    answer = cli("status", "-q")
    assert answer.out == "bpm/nn\nbpm/xgboost\n"
    assert "6 checkpoints" in cli("status", "bpm/nn").out
    assert cli("status", "nonsense").code == 12
    fitting = cli("status", "bpm/x*")
    assert [line.split()[0] for line in fitting.out.splitlines()] == ["RUN", "bpm/xgboost"]
    assert cli("status", "*", "-q").out == answer.out
    assert "no run matches 'nonsense*'" in cli("status", "nonsense*").err
    assert cli("status", "--interval", "1").code == 2
    assert cli("status", "--exit-code").code == 0
    new_cli("init", str(new_cli.store))
    empty = new_cli("status")
    assert (empty.code, empty.out, empty.err) == (0, "", "No runs yet.\n")


def test_top_without_a_terminal_prints_lines(cli):
    answer = cli("top", "--count", "1")
    assert answer.code == 0
    assert [line.split()[1] for line in answer.out.splitlines()] == ["bpm/nn", "bpm/xgboost"]
    assert "\x1b" not in answer.out
    lines = [json.loads(line) for line in cli("top", "--count", "1", "--json").out.splitlines()]
    assert {(line["schema"], line["command"]) for line in lines} == {(1, "top")}


@pytest.mark.parametrize("keys", [b"q", b"rrq"])
def test_top_on_a_terminal_shows_runs_and_leaves_with_q(cli, keys):
    master, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = cli.begin(
        "top", "--interval", "30", stdin=terminal, stdout=terminal,
        env={**cli.environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(terminal)
    seen = b""
    while b"bpm/nn" not in seen:
        seen += os.read(master, 4096)
    assert b"LAST SAVE" in seen, "nothing is squeezed on 80 columns"
    assert b"WRITTEN" not in seen
    before = time.monotonic()
    os.write(master, keys)
    with contextlib.suppress(OSError):  # the other end is closed
        while os.read(master, 4096):
            pass
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (0, "")
    assert time.monotonic() - before < 2
    os.close(master)


def test_what_failed_was_pruned_or_ended_early_is_said(new_cli):
    class TrialPruned(Exception):
        pass

    def work(item):
        return 1 // item

    with casckpt.open(new_cli.store) as store:
        with store.run("stages") as run:
            run.stage("feat", {"a": 0, "b": 1}).map(work, on_error="keep")
        with store.run("early") as run:
            for epoch in run.epochs(5, {"v": 0}, monitor="loss", mode="min", patience=2):
                run.log(loss=float(epoch))
        with contextlib.suppress(TrialPruned), store.run("trial") as run:
            for _ in run.epochs(5, {"v": 0}):
                raise TrialPruned
    assert "1/2 feat, 50 %, 1 failed" in new_cli("status", "stages").out
    (about,) = json.loads(new_cli("status", "stages", "--json").out)["runs"]
    assert about["progress"][0]["failed"] == 1
    assert "finished: loss was no better 2 times in a row" in new_cli("status", "early").out
    assert new_cli("status", "trial").out.splitlines()[1].split() == ["status", "pruned"]
    (about,) = json.loads(new_cli("status", "trial", "--json").out)["runs"]
    assert (about["status"], about["reason"]) == ("failed", "TrialPruned")
    assert "pruned" in new_cli("tree", "trial").out
    table = new_cli("status").out
    assert "1 failed" in table
    assert "pruned" in table
    assert "TrialPruned" not in table
