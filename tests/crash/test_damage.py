"""Flipped bits, cut files, zeroed and swapped sectors of a small store."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_damage_is_found_or_harmless_and_never_a_signal(campaign):
    campaign("--kind", "flip", "--seed-range", "1:2")
