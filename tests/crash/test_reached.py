"""A short row that ran next to nothing is not told from a good one by its status alone."""

from __future__ import annotations

import pytest

from tests.crash.reached import too_few
from tests.crash.rows import ROWS

KILLS = next(row for row in ROWS if row.name == "kills")


@pytest.mark.parametrize(
    ("said", "lacks"),
    [
        ("row 1: points 600, kill 200, again 200, lost 200; 20 s", ""),
        ("warned of something\nrow 1: kill 61, points 1,061; 30 s", ""),
        ("row 1: points 60; 30 s", ""),
        ("row 1: points 59; 30 s", "row kills: 59 of 600 points within its time"),
        ("row 1: ; 30 s", "row kills: 0 of 600 points within its time"),
        ("row 11: points 600; 30 s", "row kills: it did not say how far it came"),
    ],
)
def test_a_row_that_came_nowhere_says_so(said, lacks):
    assert too_few(KILLS, said) == lacks
