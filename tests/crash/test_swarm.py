"""Savers, gc and readers in many processes on one store, killed at random."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_random_kills_beside_gc_and_readers_lose_no_acknowledged_save(row):
    row("swarm")
