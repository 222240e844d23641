"""A power failure below a real file system, whose journal the kernel replays."""

from __future__ import annotations

import errno
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tests.crash import blockdevice, blocklog
from tests.crash.acks import Expected

pytestmark = pytest.mark.crash


def test_a_power_failure_below_ext4_loses_nothing_acknowledged(row):
    if why := blocklog.missing("ext4"):
        pytest.skip(f"SKIPPED: {why}")
    row("blocks")


def _refuse(number):
    @contextmanager
    def mounted(image, target, kind):
        raise OSError(number, "cannot mount")
        yield

    return mounted


def test_a_btrfs_that_went_back_to_its_last_commit_owes_no_answer(tmp_path, monkeypatch):
    torn = [True]

    @contextmanager
    def mounted(image, target, kind):
        if torn.pop():
            raise OSError(errno.EINVAL, "cannot mount")
        yield

    monkeypatch.setattr(blockdevice, "mounted", mounted)
    monkeypatch.setattr(
        subprocess, "run", lambda command, **how: subprocess.CompletedProcess(command, 0)
    )
    for before, went_back in (([False], False), ([False, True], True)):
        torn[:] = before
        with blocklog._as_found(tmp_path / "image", tmp_path, "btrfs") as found:
            assert found is went_back
    line = {"event": "done", "call": "save", "run": "run", "step": 0, "seed": 1}
    assert Expected([line]).live == {("run", 0): {1}}
    assert Expected([blocklog._unanswered(line)]).live == {("run", 0): {None, 1}}


@pytest.mark.parametrize("status", [0, 8], ids=["mended in vain", "not mended"])
def test_a_file_system_that_is_lost_as_a_whole_is_counted_apart(tmp_path, monkeypatch, status):
    def look(number):
        monkeypatch.setattr(blockdevice, "mounted", _refuse(number))
        with blocklog._as_found(tmp_path / "image", tmp_path, "btrfs"):
            pytest.fail("mounted")

    def ended(command, **how):
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", ended)
    recording = SimpleNamespace(lab=SimpleNamespace(folder=tmp_path))
    looker = blocklog.Looker(recording)
    looks = [lambda: None, lambda: look(errno.EINVAL), lambda: look(errno.EIO), lambda: None]
    found = looker._batch(["whole", "torn", "broken", "whole again"], looks)
    assert looker.count == 3
    assert looker.unmountable == 1
    [(name, said)] = found
    assert name == "broken"
    assert said.startswith("I5: OSError: [Errno 5]")
