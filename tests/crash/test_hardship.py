"""No memory, a stopped holder of locks, forks, clocks that jump."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.crash


def test_hardship_loses_nothing_acknowledged(row):
    try:
        row("hardship")
    except AssertionError as failure:
        found = re.findall(r"--replay (\S+)", str(failure))
        # Known (docs/reliability.md): whoever opens a store waits for LMDB's mutex while its holder
        # is stopped. All else that the row finds fails the test.
        if found and all(point.startswith("stop:") for point in found):
            pytest.xfail(f"an opener waits for a process that is stopped: {', '.join(found)}")
        raise
