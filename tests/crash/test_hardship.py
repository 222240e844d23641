"""No memory, a stopped holder of locks, forks, clocks that jump."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_hardship_loses_nothing_acknowledged(row):
    row("hardship")
