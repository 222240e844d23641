from __future__ import annotations

import json

import pytest

from casckpt.checkpoint.lines import PLAIN, branch_points, by_line, read_view, visible
from casckpt.checkpoint.refs import ALL_LINES
from casckpt.errors import Corrupt


def three_lines(make):
    """Line 1 leaves line 0 at step 2, line 2 leaves line 1 at step 4."""
    zero = [make(step=1), make(step=2), make(step=3)]
    one = [make(step=3, line=1, parent=zero[1].id), make(step=4, line=1), make(step=5, line=1)]
    two = [make(step=5, line=2, parent=one[1].id), make(step=6, line=2)]
    return zero, one, two


def test_the_bare_name_is_the_newest_line_with_what_it_inherited(make_checkpoint):
    zero, one, two = three_lines(make_checkpoint)
    everything = [*two, *one, *zero]
    assert visible(everything, None) == [zero[0], zero[1], one[0], one[1], two[0], two[1]]


def test_a_line_is_only_itself_and_all_lines_are_all(make_checkpoint):
    zero, one, two = three_lines(make_checkpoint)
    everything = [*two, *one, *zero]
    assert visible(everything, 0) == zero
    assert visible(everything, 1) == one
    assert visible(everything, ALL_LINES) == [*zero, *one, *two]
    assert visible(everything, 7) == []


def test_an_empty_line_that_starts_afresh_inherits_nothing(make_checkpoint):
    zero = [make_checkpoint(step=1), make_checkpoint(step=2)]
    one = [make_checkpoint(step=0, line=1)]
    assert visible([*zero, *one], None) == one


def test_branch_points_are_parents_on_other_lines_and_runs(make_checkpoint):
    zero, one, two = three_lines(make_checkpoint)
    other = make_checkpoint(run="other", step=9, parent=zero[0].id)
    plain = make_checkpoint(step=7, line=2, parent=two[1].id)
    gone = make_checkpoint(step=8, line=2, parent="00" * 32)
    found = branch_points([*zero, *one, *two, other, plain, gone])
    assert found == {zero[1].id, one[1].id, zero[0].id}


def test_a_cycle_of_parents_ends(make_checkpoint):
    a = make_checkpoint(step=1, line=1)
    b = make_checkpoint(step=1, line=2, parent=a.id)
    a.__dict__["parent"] = b.id
    assert visible([a, b], None) == [a, b]


def test_by_line_orders_each(make_checkpoint):
    late, early = make_checkpoint(step=5), make_checkpoint(step=2)
    other = make_checkpoint(run="x", step=1)
    assert by_line([late, other, early]) == {("run", 0): [early, late], ("x", 0): [other]}


def a_line(number, branch=None, **fields):
    return {"number": number, "branch": branch} | fields


def test_the_row_of_a_run_says_where_its_lines_began_and_what_is_best_on_them():
    at = {"run": "r", "store": "", "line": 0, "step": 2, "batch": 5}
    lines = [
        a_line(0, monitor="loss", mode="min"),
        a_line(1, at),
        a_line(2, at | {"run": "other", "id": "c0ffee"}),
        a_line(3, at | {"store": "/elsewhere", "id": "beef"}, monitor="acc"),
    ]
    view = read_view("r", json.dumps({"current": 3, "lines": lines}).encode())
    assert view.current == 3
    assert view.branches == {1: (0, (2, 5))}
    assert view.monitors == {0: ("loss", "min")}
    assert view.begun_from == {"c0ffee"}
    assert read_view("r", json.dumps({"current": 3, "lines": []}).encode()).current is None
    assert read_view("r", None) is PLAIN


@pytest.mark.parametrize(
    "row",
    [b"{", b"\xff", b"5", b"{}", b'{"lines":5}', b'{"lines":[5]}',
     b'{"lines":[{"number":1,"branch":{"run":"r","store":""}}],"current":0}', b"[" * 100_000],
)  # fmt: skip
def test_a_row_of_a_run_that_does_not_decode_is_corrupt(row):
    with pytest.raises(Corrupt, match="the row of r does not decode"):
        read_view("r", row)
