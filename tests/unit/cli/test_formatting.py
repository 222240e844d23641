"""Bytes, times and numbers as people read them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from casckpt.cli import formatting


@pytest.mark.parametrize(
    ("byte_count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (96 * 1024**2 + 100 * 1024, "96.1 MiB"),
        (1023 * 1024, "1.00 MiB"),
        (1524713390, "1.42 GiB"),
        (5 * 1024**4, "5.00 TiB"),
        (-2048, "-2.00 KiB"),
    ],
)
def test_sizes_have_three_digits_and_iec_units(byte_count, text):
    assert formatting.size(byte_count) == text


def test_a_size_never_shows_more_digits_than_its_unit_allows():
    for exponent in range(10, 60):
        for byte_count in (2**exponent - 1, 2**exponent, int(2**exponent * 1.0239)):
            number = formatting.size(byte_count).split()[0]
            assert len(number) <= 4, (byte_count, number)


def test_saved_is_a_percentage_and_no_division_by_zero():
    assert formatting.saved(155, 1000) == "84.5 %"
    assert formatting.saved(10, 0) == "-"


def test_a_column_of_numbers_lines_up_at_the_point():
    column = formatting.numbers([0.183, 0.25, 12.5, None, float("nan"), float("inf")])
    assert column == ["0.183", "0.250", "12.500", "-", "nan", "inf"]


def test_whole_numbers_have_no_decimals():
    assert formatting.numbers([1.0, 20.0, None]) == ["1", "20", "-"]


def test_a_column_of_extremes_shows_each_on_its_own():
    assert formatting.numbers([1e-9, 123.0]) == ["1e-09", "123"]


def test_an_empty_column_and_one_without_finite_values():
    assert formatting.numbers([]) == []
    assert formatting.numbers([None, float("nan")]) == ["-", "nan"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0008, "0.8 ms"),
        (0.042, "42 ms"),
        (1.25, "1.2 s"),
        (99.9, "99.9 s"),
        (245, "4:05 min"),
        (7980, "2:13 h"),
    ],
)
def test_durations(seconds, text):
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("elapsed_s", "text"),
    [
        (-5, "just now"),
        (10, "just now"),
        (300, "5 min ago"),
        (3600, "1 h ago"),
        (86400 * 1.5, "36 h ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 90, "3 months ago"),
    ],
)
def test_how_long_ago(elapsed_s, text):
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    assert formatting.ago(moment, moment.timestamp() + elapsed_s) == text


def test_times_in_json_are_rfc_3339_with_microseconds():
    moment = datetime(2026, 11, 20, 13, 2, 11, 250000, tzinfo=UTC)
    assert formatting.rfc3339(moment) == "2026-11-20T13:02:11.250000Z"
    assert formatting.rfc3339(moment.replace(microsecond=0)) == "2026-11-20T13:02:11.000000Z"


def test_local_time_is_that_of_the_machine(monkeypatch):
    import time

    monkeypatch.setenv("TZ", "UTC-5:30")
    time.tzset()
    try:
        moment = datetime(2026, 11, 20, 20, 2, 11, tzinfo=UTC)
        assert formatting.local_time(moment) == "2026-11-21 01:32"
        assert formatting.local_time(moment, seconds=True) == "2026-11-21 01:32:11"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_name_cannot_drive_the_terminal():
    assert formatting.printable("loss\x1b[2J\n") == "loss\\x1b[2J\\n"
    assert formatting.printable("Verlust ü") == "Verlust ü"


def test_counts():
    assert formatting.count(1, "checkpoint") == "1 checkpoint"
    assert formatting.count(10000, "checkpoint") == "10,000 checkpoints"
    assert formatting.count(0, "day", "days") == "0 days"
