from __future__ import annotations

import math

from casckpt.cli.plot import chart, sparkline


def dots(line: str) -> int:
    return sum(bin(ord(c) - 0x2800).count("1") for c in line if 0x2800 <= ord(c) < 0x2900)


def test_a_chart_has_title_axis_labels_and_the_width_asked_for():
    lines = chart("loss", [(1, 4.0), (2, 2.0), (4, 1.0)], 40, 5)
    assert lines[0] == "loss"
    assert lines[1].startswith("4 ┤")
    assert lines[5].startswith("1 ┤")
    assert lines[-1].split() == ["1", "4"]
    assert len(lines) == 8
    assert max(map(len, lines)) == 40


def test_values_that_are_not_finite_leave_a_gap_and_are_counted():
    lines = chart("loss", [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)], 40)
    assert lines[0] == "loss  (2 values not finite)"
    assert chart("loss", [(1, math.nan)], 40) == ["loss  (1 value not finite)"]


def test_one_point_a_constant_and_the_largest_floats_are_drawn():
    assert sum(map(dots, chart("x", [(7, 3.0)], 40))) == 1
    assert sum(map(dots, chart("x", [(s, 3.0) for s in range(50)], 40))) > 50
    assert sum(map(dots, chart("x", [(0, -1.7e308), (1, 1.7e308)], 40))) > 1


def test_a_peak_between_two_dots_is_not_lost():
    points = [(step, 0.0) for step in range(10_000)]
    points[5_003] = (5_003, 1.0)
    lines = chart("x", points, 40)
    assert all(dots(line) for line in lines[1:11])


def test_sparklines():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 20) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, math.nan, 1], 20) == "▁·█"
    assert sparkline(list(map(float, range(100))), 5).startswith("▁")
    assert len(sparkline(list(map(float, range(100))), 5)) == 5
    assert sparkline([math.nan], 5) == ""
    assert sparkline([2.0, 2.0], 5) == "▁▁"
