from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casckpt.errors import Corrupt
from casckpt.store import facts

CHANGES = st.lists(
    st.tuples(
        st.sampled_from(facts.FACT_TABLES),
        st.binary(min_size=1, max_size=100),
        st.none() | st.binary(max_size=300),
    ),
    max_size=12,
)
U64 = st.integers(0, 2**64 - 1)


@given(U64, U64, CHANGES)
def test_fact_round_trip(seq, now, changes):
    fact = facts.decode_fact(facts.encode_fact(seq, now, changes))
    assert (fact.seq, fact.written_at_ns, list(fact.changes)) == (seq, now, changes)


@given(U64, CHANGES, st.data())
def test_a_cut_or_longer_fact_is_corrupt(seq, changes, data):
    body = facts.encode_fact(seq, 0, changes)
    with pytest.raises(Corrupt):
        facts.decode_fact(body[: data.draw(st.integers(0, len(body) - 1))])
    with pytest.raises(Corrupt):
        facts.decode_fact(body + b"x")


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_corrupt(body):
    for decode in (facts.decode_fact, facts.decode_snapshot):
        try:
            decode(body)
        except Corrupt:
            continue


def test_a_change_of_an_unknown_table_is_corrupt():
    body = bytearray(facts.encode_fact(1, 2, [("cache", b"k", b"v")]))
    body[20] = 6
    with pytest.raises(Corrupt):
        facts.decode_fact(bytes(body))


def test_a_snapshot_has_as_many_parts_as_it_takes_and_marks_the_last():
    rows = [("checkpoints", b"%d" % number, bytes(3 << 20)) for number in range(7)]
    parts = [facts.decode_snapshot(body) for body in facts.encode_snapshot(5, 6, rows)]
    assert len(parts) > 1
    assert [part.part for part in parts] == list(range(len(parts)))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert [row for part in parts for row in part.rows] == rows
    assert {(part.seq, part.written_at_ns) for part in parts} == {(5, 6)}


def test_an_empty_snapshot_is_one_part():
    (body,) = facts.encode_snapshot(1, 2, [])
    part = facts.decode_snapshot(body)
    assert (part.part, part.last, part.rows) == (0, True, ())
