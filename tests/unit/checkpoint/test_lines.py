from __future__ import annotations

from casckpt.checkpoint.lines import branch_points, by_line, visible
from casckpt.checkpoint.refs import ALL_LINES


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
