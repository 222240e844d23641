"""Stores made to harm: links, bombs, cycles, lengths that lie; each is an error or harmless."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash


def test_no_hostile_store_harms_its_reader(row):
    row("hostile")
