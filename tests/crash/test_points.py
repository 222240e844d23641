"""Kills, errors of the operating system, lost flushes and lost indexes: samples of every point."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash

SEED = ("--seed-range", "1:2")


def test_every_workload_passes_without_a_fault(campaign):
    campaign("--kind", "none", *SEED)


def test_kills_before_any_operation_and_in_the_recovery_lose_nothing_acknowledged(row):
    row("kills")


def test_errors_short_writes_and_lost_flushes_are_typed_and_lose_nothing(row):
    row("errors")


def test_a_save_that_a_collection_overtakes_keeps_what_it_found(campaign):
    campaign("--kind", "beside")
