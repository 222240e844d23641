"""Flipped bits, cut files, zeroed, swapped and stale sectors."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_damage_is_found_or_harmless_and_never_a_signal(row):
    row("damage")
