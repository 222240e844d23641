"""Kills, errors of the operating system, lost flushes and lost indexes: samples of every point."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.crash

SEED = ("--seed-range", "1:2")


def test_every_workload_passes_without_a_fault(campaign):
    campaign("--kind", "none", *SEED)


def test_a_kill_before_any_operation_loses_nothing_acknowledged(campaign):
    campaign("--kind", "kill", "--sample", "9", *SEED)


def test_a_second_kill_during_recovery_loses_nothing_either(campaign):
    campaign("--kind", "again", "--sample", "3", *SEED)


def test_packs_alone_give_everything_back_after_a_kill(campaign):
    campaign("--kind", "lost", "--sample", "3", *SEED)


def test_an_error_at_any_operation_is_typed_and_loses_nothing(campaign):
    campaign("--kind", "error", "--sample", "10", *SEED)


def test_short_writes_are_finished_or_reported(campaign):
    campaign("--kind", "short", "--sample", "3", *SEED)


def test_a_flush_that_fails_and_drops_its_data_is_never_an_acknowledgement(campaign):
    campaign("--kind", "lie", "--sample", "4", *SEED)


def test_a_save_that_a_collection_overtakes_keeps_what_it_found(campaign):
    campaign("--kind", "beside")
