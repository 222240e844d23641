from __future__ import annotations

import shlex
import signal
import subprocess
import sys

import pytest

from casckpt.training.programs import supervisor
from casckpt.training.programs.supervisor import delay_s, judge


def verdict(code, *, told=None, asked=False, restarts=0, max_restarts=3):
    return judge(code, told=told, asked=asked, restarts=restarts, max_restarts=max_restarts)


@pytest.mark.parametrize("code", [1, 3, 16, 139, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS])
def test_crashes_are_started_again(code):
    assert verdict(code).restart


@pytest.mark.parametrize("code", [0, 75, 130, 2, 10, 11, 14, 126, 127, -signal.SIGTERM])
def test_ends_wishes_and_hopeless_cases_are_not(code):
    assert not verdict(code).restart


@pytest.mark.parametrize(("told", "again"), [(2, False), (11, False), (13, True), (16, True)])
def test_of_an_exception_the_error_decides_and_not_pythons_exit_code(told, again):
    assert verdict(1, told=told).restart is again


def test_a_crash_after_a_request_to_end_is_an_end():
    assert not verdict(-signal.SIGKILL, asked=True).restart


def test_the_limit_is_over_all():
    assert verdict(1, restarts=2).restart
    assert verdict(1, restarts=3).text == "it failed with exit code 1, after 3 restarts"
    assert "restarts are off" in verdict(1, max_restarts=0).text


def test_the_wait_grows_to_a_minute():
    assert [delay_s(crashes) for crashes in (1, 2, 3, 6, 7, 100)] == [1, 2, 4, 32, 60, 60]


FAIL = "import sys, casckpt; casckpt.open(sys.executable)"
"""Ends with NoStore, exit code 10, which no restart mends."""

HELPED = f"""
import os, signal, subprocess, sys, casckpt
helper = subprocess.run([sys.executable, "-c", {FAIL!r}], stderr=subprocess.DEVNULL)
assert helper.returncode == 1
"""


def supervised(monkeypatch, *argv):
    """Return how a command ended that may be started again once."""
    monkeypatch.setattr(supervisor, "FIRST_DELAY_S", 0.01)
    return supervisor.supervise(argv, max_restarts=1, tell=lambda event: None)


@pytest.mark.parametrize(
    "argv",
    [
        [sys.executable, "-c", FAIL],
        ["sh", "-c", f"{shlex.join([sys.executable, '-c', FAIL])}; exit 3"],
    ],
)
def test_the_error_of_the_command_or_of_what_it_launched_decides(monkeypatch, argv):
    outcome = supervised(monkeypatch, *argv)
    assert (outcome.restarts, "store cannot be used" in outcome.text) == (0, True)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "raise ValueError"])
def test_the_failure_of_a_helper_does_not(monkeypatch, end):
    assert supervised(monkeypatch, sys.executable, "-c", f"{HELPED}\n{end}").restarts == 1


def test_nor_does_that_of_a_process_further_below(monkeypatch):
    inner = f"{shlex.join([sys.executable, '-c', FAIL])}; exit 0"
    command = f"import subprocess, sys; subprocess.run(['sh', '-c', {inner!r}]); sys.exit(1)"
    assert supervised(monkeypatch, sys.executable, "-c", command).restarts == 1


def test_variables_can_be_taken_away(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    for environment, code in ((None, 0), ({"CUDA_VISIBLE_DEVICES": None}, 1)):
        outcome = supervisor.supervise(
            ["sh", "-c", 'test -n "$CUDA_VISIBLE_DEVICES"'],
            max_restarts=0, tell=lambda event: None, environment=environment,
        )  # fmt: skip
        assert outcome.code == code


NOHUP = """
import signal, sys
for number in (signal.SIGHUP, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
from casckpt.training.programs import supervisor
supervisor.FIRST_DELAY_S = 0.01
told = []
outcome = supervisor.supervise(["sh", "-c", "kill -HUP $PPID; kill -INT $PPID; sleep 1; exit 3"],
                               max_restarts=1, tell=told.append)
assert outcome.restarts == 1, outcome
"""


def test_signals_that_it_was_started_to_ignore_ask_for_nothing():
    """As under nohup, and as a shell starts what goes on in the background."""
    done = subprocess.run(
        [sys.executable, "-c", NOHUP], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
