"""States that a power failure may leave, drawn from logs of operations."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_a_power_failure_loses_nothing_acknowledged(row):
    row("power")
