"""Savers, gc and readers in many processes on one store, killed at random."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_random_kills_beside_gc_and_readers_lose_no_acknowledged_save(campaign):
    said = campaign("--kind", "swarm", "--seed-range", "1:2", "--seconds", "15")
    assert "acknowledged saves" in said
