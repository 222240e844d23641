"""States that a power failure may leave, drawn from logs of operations."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("workload", ["init", "first_save", "gc", "compact", "rebuild"])
def test_a_power_failure_loses_nothing_acknowledged(campaign, workload):
    campaign("--kind", "power", "--workload", workload, "--seed-range", "1:2", minutes=0.15)
