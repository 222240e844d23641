"""A power failure below a real file system, whose journal the kernel replays."""

from __future__ import annotations

import pytest

from tests.crash import blocklog

pytestmark = pytest.mark.crash


def test_a_power_failure_below_ext4_loses_nothing_acknowledged(row):
    if why := blocklog.missing("ext4"):
        pytest.skip(f"SKIPPED: {why}")
    row("blocks")
