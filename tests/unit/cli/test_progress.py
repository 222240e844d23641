"""What is shown while somebody waits."""

from __future__ import annotations

import time

import pytest

from casckpt.cli import progress
from casckpt.cli.output import Output, Settings


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_S", 0.02)


def until_said(capsys, text):
    """Return what was written once it holds a text; a machine may be slow."""
    said = ""
    for _ in range(500):
        said += capsys.readouterr().err
        if text in said:
            return said
        time.sleep(0.01)
    raise AssertionError(said)


def test_a_line_now_and_then_says_that_work_goes_on(fast, capsys):
    with progress.waiting(Output(Settings()), "collecting"):
        said = until_said(capsys, "so far")
    assert said.startswith("collecting: ")
    time.sleep(0.06)
    capsys.readouterr()
    time.sleep(0.06)
    assert capsys.readouterr().err == ""


def test_short_work_says_nothing_and_quiet_work_never_does(fast, capsys, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL_S", 30)
    with progress.waiting(Output(Settings()), "collecting"):
        pass
    monkeypatch.setattr(progress, "INTERVAL_S", 0.01)
    with progress.waiting(Output(Settings(quiet=True)), "collecting"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""


def test_an_error_ends_it(fast, capsys):
    with pytest.raises(ValueError), progress.waiting(Output(Settings()), "collecting"):
        raise ValueError


def test_bytes_rate_and_time_left(fast, capsys):
    with progress.progress(Output(Settings()), "verifying") as report:
        report(0, 1000 << 20)
        time.sleep(0.05)
        report(500 << 20, 1000 << 20)
    said = capsys.readouterr().err
    assert "verifying: 500 MiB, of 0.98 GiB (50.0 %)" in said
    assert "left" in said
