"""Whatever the policies and the checkpoints: what must stay stays, and every reason is true."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from casckpt.checkpoint.policies import KeepBest, KeepEvery, KeepLast, KeepNewerThan
from casckpt.checkpoint.records import Checkpoint
from casckpt.checkpoint.retention import decide, oldest_first

START = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def checkpoints(draw):
    found = []
    places = draw(
        st.lists(
            st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 30)),
            unique=True,
            max_size=25,
        )
    )
    for seq, (run, line, step) in enumerate(places):
        parent = draw(st.sampled_from(found)).id if found and draw(st.booleans()) else None
        metric = draw(st.none() | st.floats(allow_nan=True, allow_infinity=True))
        found.append(
            Checkpoint(
                ref=f"{run}~{line}@{step}",
                id=hashlib.sha256(str(seq).encode()).hexdigest(),
                run=run,
                line=line,
                step=step,
                batch=0,
                created=START + timedelta(hours=draw(st.integers(-1000, 1000))),
                metrics={} if metric is None else {"m": metric},
                tags=draw(st.sampled_from([(), (), ("t",)])),
                pinned=draw(st.sampled_from([False, False, True])),
                reasons=(),
                parent=parent,
                logical_bytes=0,
                new_bytes=0,
                stored_bytes=0,
                stall_s=0.0,
                durable_s=0.0,
                seq=seq,
            )
        )
    return found


leaf_policies = st.one_of(
    st.builds(KeepLast, st.integers(1, 5)),
    st.builds(KeepEvery, st.integers(1, 7)),
    st.builds(KeepBest, st.just("m"), st.sampled_from(["min", "max"]), st.integers(1, 3)),
    st.builds(KeepNewerThan, st.integers(0, 40).map(lambda hours: f"{hours * 24}h")),
)
policies = st.recursive(
    leaf_policies,
    lambda inner: st.tuples(inner, inner, st.booleans()).map(
        lambda parts: parts[0] | parts[1] if parts[2] else parts[0] & parts[1]
    ),
    max_leaves=4,
)
moments = st.integers(-1200, 1200).map(lambda hours: START + timedelta(hours=hours))


@given(checkpoints(), policies, moments)
def test_what_must_stay_stays(found, policy, now):
    decision = decide(found, policy, now)
    assert sorted([*decision.keep, *decision.drop], key=lambda ck: ck.seq) == found
    assert set(decision.reasons) == set(found)
    assert all(decision.reasons.values())
    lines = defaultdict(list)
    for checkpoint in found:
        lines[checkpoint.run, checkpoint.line].append(checkpoint)
    by_id = {ck.id: ck for ck in found}
    for line in lines.values():
        assert max(line, key=lambda ck: ck.position) in decision.keep
    for checkpoint in decision.drop:
        assert not checkpoint.tags
        assert not checkpoint.pinned
    for checkpoint in found:
        parent = by_id.get(checkpoint.parent)
        if parent and (parent.run, parent.line) != (checkpoint.run, checkpoint.line):
            assert parent in decision.keep


@given(checkpoints(), policies, policies, moments)
def test_or_is_union_and_and_is_intersection(found, first, second, now):
    drop_first = set(decide(found, first, now).drop)
    drop_second = set(decide(found, second, now).drop)
    assert set(decide(found, first | second, now).drop) == drop_first & drop_second
    assert set(decide(found, first & second, now).drop) == drop_first | drop_second


@given(checkpoints(), policies, moments)
def test_doing_it_twice_drops_no_more(found, policy, now):
    decision = decide(found, policy, now)
    if "best" in str(policy) or " and " in str(policy) or "last" in str(policy):
        return  # what these keep depends on what else there is
    # A branch point may go once all of the branch that began at it has gone.
    branches = {ck.parent for ck in decision.drop}
    assert {ck.id for ck in decide(decision.keep, policy, now).drop} <= branches


@given(checkpoints(), st.integers(1, 4), st.sampled_from(["min", "max"]), moments)
def test_best_keeps_the_best_finite_values_of_each_line(found, count, mode, now):
    decision = decide(found, KeepBest("m", mode, count), now)
    sign = 1 if mode == "min" else -1
    lines = defaultdict(list)
    for checkpoint in found:
        if math.isfinite(checkpoint.metrics.get("m", math.nan)):
            lines[checkpoint.run, checkpoint.line].append(checkpoint)
    for line in lines.values():
        best = sorted(sign * ck.metrics["m"] for ck in line)[:count]
        kept = sorted(
            sign * ck.metrics["m"]
            for ck in line
            if ck in decision.keep and any("best" in why for why in decision.reasons[ck])
        )
        assert kept == best


@given(checkpoints(), policies, moments)
def test_a_limit_never_reaches_what_is_protected(found, policy, now):
    decision = decide(found, policy, now)
    candidates = oldest_first(decision)
    assert candidates == sorted(candidates, key=lambda ck: (ck.created, ck.seq))
    assert set(candidates) == set(decision.keep) - decision.protected
