"""A power failure below a real file system, whose journal the kernel replays."""

from __future__ import annotations

import errno
import subprocess
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from tests.crash import blockdevice, blocklog

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
