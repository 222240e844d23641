from __future__ import annotations

from datetime import timedelta

from casckpt.checkpoint.policies import KeepLast, KeepNewerThan
from casckpt.checkpoint.retention import decide, oldest_first, protections


def test_policies_count_per_line_of_a_run(make_checkpoint):
    lines = [
        [make_checkpoint(run, step=i, line=line) for i in range(4)]
        for run, line in (("a", 0), ("a", 1), ("b", 0))
    ]
    decision = decide([ck for line in lines for ck in line], KeepLast(2), lines[0][0].created)
    assert decision.keep == tuple(ck for line in lines for ck in line[2:])
    assert decision.drop == tuple(ck for line in lines for ck in line[:2])


def test_newest_tagged_pinned_and_branch_points_stay(make_checkpoint):
    tagged = make_checkpoint(step=0, tags=("v1",))
    pinned = make_checkpoint(step=1, pinned=True)
    branch = make_checkpoint(step=2)
    plain = make_checkpoint(step=3)
    newest = make_checkpoint(step=4)
    child = make_checkpoint(step=3, line=1, parent=branch.id)
    decision = decide(
        [tagged, pinned, branch, plain, newest, child], KeepNewerThan(0), newest.created
    )
    assert decision.drop == (plain,)
    assert decision.reasons[tagged] == ("tag v1",)
    assert decision.reasons[pinned] == ("pinned",)
    assert decision.reasons[branch] == ("branch point",)
    assert decision.reasons[newest] == ("newest",)
    assert decision.reasons[plain] == ("not newer than 0s",)


def test_a_branch_into_another_run_counts(make_checkpoint):
    root, last = make_checkpoint(step=0), make_checkpoint(step=1)
    elsewhere = make_checkpoint("other", step=5, parent=root.id)
    looked_at = [root, last]
    assert decide(looked_at, KeepLast(1), last.created).drop == (root,)
    decision = decide(looked_at, KeepLast(1), last.created, everything=[*looked_at, elsewhere])
    assert decision.drop == ()


def test_the_parent_on_the_same_line_is_no_branch_point(make_checkpoint):
    first = make_checkpoint(step=0)
    second = make_checkpoint(step=1, parent=first.id)
    assert set(protections([first, second])) == {second}


def test_a_reason_that_a_run_and_a_policy_give_is_named_once(make_checkpoint):
    only = make_checkpoint(step=0)
    declared = {only: ("last 1", "best loss")}
    decision = decide([only], KeepLast(1), only.created, declared=declared)
    reasons = decision.reasons[only]
    assert len(set(reasons)) == len(reasons)
    assert "best loss" in reasons


def test_no_policy_drops_nothing(make_checkpoint):
    line = [make_checkpoint(step=i) for i in range(3)]
    decision = decide(line, None, line[0].created)
    assert decision.drop == ()
    assert decision.reasons[line[0]] == ("no policy",)


def test_a_clock_that_jumped_makes_nothing_older(make_checkpoint):
    start = make_checkpoint(step=0).created
    future = make_checkpoint(step=1, created=start + timedelta(days=400))
    later = make_checkpoint(step=2, created=start + timedelta(days=1))
    last = make_checkpoint(step=3, created=start + timedelta(days=2))
    # `later` was saved after `future`, so it counts as no older; what lies ahead has age 0.
    decision = decide([future, later, last], KeepNewerThan("7d"), start + timedelta(days=30))
    assert decision.keep == (future, later, last)
    decision = decide([future, later, last], KeepNewerThan("7d"), start + timedelta(days=500))
    assert decision.drop == (future, later)


def test_a_limit_takes_the_oldest_that_nothing_protects(make_checkpoint):
    line = [make_checkpoint(step=i, pinned=i == 1) for i in range(4)]
    decision = decide(line, None, line[0].created)
    assert oldest_first(decision) == [line[0], line[2]]
