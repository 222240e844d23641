from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casckpt.errors import Corrupt
from casckpt.store import layout, rows

U64 = st.integers(0, 2**64 - 1)
COUNTED = st.integers(0, 2**62)
ID = st.binary(min_size=32, max_size=32)
UUID = st.binary(min_size=16, max_size=16)
NAME = st.text("abcXYZ019._-/", min_size=1, max_size=200)


OBJECT_ROWS = st.builds(
    rows.ObjectRow,
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 2**16 - 1),
    st.integers(0, layout.REFS_MAX),
    U64,
    st.integers(0, layout.PACK_CAP_BYTES),
    st.integers(0, layout.BODY_MAX_BYTES),
    st.integers(0, layout.BODY_MAX_BYTES),
    st.just(b"") | ID,
).filter(lambda row: row.kind != layout.TYPE_CHUNK or row.logical <= layout.CHUNK_MAX_BYTES)
PACK_ROWS = st.builds(
    rows.PackRow, UUID, UUID, st.sampled_from([0, 1, 2]), st.booleans(), COUNTED, COUNTED, COUNTED
)


@given(OBJECT_ROWS)
def test_object_row_round_trip(row):
    assert rows.ObjectRow.decode(row.encode()) == row


@pytest.mark.parametrize("field", ["ref_count", "offset", "stored", "logical"])
def test_an_object_row_with_an_impossible_length_is_corrupt(field):
    row = rows.ObjectRow(1, 0, 0, 0, 1, 80, 100, 100)
    with pytest.raises(Corrupt):
        rows.ObjectRow.decode(replace(row, **{field: 2**32 - 1}).encode())


@pytest.mark.parametrize("field", ["ref_count", "offset", "stored", "logical"])
def test_an_object_row_of_impossible_lengths_is_corrupt(field):
    """A reader makes room for what the row says before it has seen a record."""
    possible = rows.ObjectRow(1, 0, 0, 0, 1, 80, 10, 10)
    row = replace(possible, **{field: 2**31})
    with pytest.raises(Corrupt):
        rows.ObjectRow.decode(row.encode())


@given(PACK_ROWS)
def test_pack_row_round_trip(row):
    assert rows.PackRow.decode(row.encode()) == row


@given(
    st.sampled_from(["live", "trash", "tombstone"]),
    st.lists(ID, max_size=4).map(tuple),
    st.binary(max_size=100),
)
def test_row_round_trip(state, roots, payload):
    row = rows.Row(state, roots, payload)
    if state == "trash":
        row = rows.Row(state, roots, payload, 5, 6, b"b" * 16)
    assert rows.Row.decode(row.encode()) == row
    assert row.is_root == (state != "tombstone")


@given(
    NAME, U64, st.integers(0, 2**32 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1),
    ID, st.binary(max_size=50), st.binary(max_size=50),
)  # fmt: skip
def test_checkpoint_round_trip_and_edit(run, seq, line, step, batch, identity, payload, other):
    row = rows.encode_checkpoint(run, line, step, batch, identity, payload)
    found = rows.decode_checkpoint(rows.checkpoint_key(run, seq), row.encode())
    assert (found.run, found.seq, found.line, found.step, found.batch) == (
        run,
        seq,
        line,
        step,
        batch,
    )
    assert (found.manifest_id, found.state, found.payload) == (identity, "live", payload)
    edited = rows.with_checkpoint_payload(row, other)
    again = rows.decode_checkpoint(rows.checkpoint_key(run, seq), edited.encode())
    assert (again.payload, again.run, again.step) == (other, run, step)


@pytest.mark.parametrize("decode", [rows.ObjectRow.decode, rows.PackRow.decode, rows.Row.decode])
@given(value=st.binary(max_size=120))
def test_any_bytes_decode_or_are_corrupt(decode, value):
    try:
        decode(value)
    except Corrupt:
        return


@given(st.binary(min_size=9, max_size=60), st.binary(max_size=150))
def test_any_checkpoint_decodes_or_is_corrupt(key, value):
    try:
        rows.decode_checkpoint(key, value)
    except Corrupt:
        return


def test_a_run_name_that_is_cut_off_is_corrupt():
    row = rows.encode_checkpoint("a-long-name", 0, 1, 0, bytes(32), b"")
    short = rows.Row("live", row.roots, row.payload[:-3])
    with pytest.raises(Corrupt):
        rows.decode_checkpoint(rows.checkpoint_key("a-long-name", 1), short.encode())


@given(NAME, NAME, U64, U64)
def test_keys_of_a_run_sort_by_seq_and_never_mix_with_another_run(one, other, a, b):
    assert (rows.checkpoint_key(one, a) < rows.checkpoint_key(one, b)) == (a < b)
    assert len(rows.step_key(one, 1, a, b)) <= 511
    if one != other:
        assert not rows.checkpoint_key(other, a).startswith(rows.run_prefix(one))
        assert not rows.step_key(other, 0, a, b).startswith(rows.line_prefix(one, 0))


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1)), max_size=20))
def test_step_keys_sort_by_step_and_batch(places):
    keys = [rows.step_key("run", 0, step, batch) for step, batch in sorted(places)]
    assert keys == sorted(keys)


def test_a_chunk_longer_than_a_chunk_may_be_is_corrupt():
    """A reader makes room for it before it has seen its header."""
    row = rows.ObjectRow(layout.TYPE_CHUNK, 0, 0, 0, 1, 80, 10, layout.CHUNK_MAX_BYTES)
    assert rows.ObjectRow.decode(row.encode()) == row
    with pytest.raises(Corrupt):
        rows.ObjectRow.decode(replace(row, logical=layout.CHUNK_MAX_BYTES + 1).encode())


def test_a_number_that_no_store_counts_up_to_is_corrupt():
    with pytest.raises(Corrupt):
        rows.read_u64(b"\xff" * 8)
    with pytest.raises(Corrupt):
        rows.PackRow.decode(rows.PackRow(bytes(16), bytes(16), epoch=2**63).encode())


def test_numbers():
    assert rows.read_u64(None) == 0
    assert rows.read_u64(rows.u64(2**62)) == 2**62
    with pytest.raises(Corrupt):
        rows.read_u64(b"123")


@pytest.mark.parametrize("state", [3, 255])
def test_a_pack_in_a_state_that_there_is_not_is_corrupt(state):
    value = bytearray(rows.PackRow(bytes(16), bytes(16), rows.LIVE, size=80).encode())
    value[32] = state
    with pytest.raises(Corrupt, match="a pack in state"):
        rows.PackRow.decode(bytes(value))


def test_rows_that_end_early_are_corrupt():
    trash = rows.Row("trash", (bytes(32),), b"", 1, 2, bytes(16)).encode()
    with pytest.raises(Corrupt, match="a trash row is cut off"):
        rows.Row.decode(trash[:20])
    with pytest.raises(Corrupt, match="ids are cut off"):
        rows.Row.decode(trash[:-1])
    two_roots = rows.Row("live", (bytes(32), bytes(32)), bytes(40)).encode()
    no_place = rows.Row("live", (bytes(32),), b"short").encode()
    for value in (two_roots, no_place):
        with pytest.raises(Corrupt, match="a checkpoints row is cut off"):
            rows.decode_checkpoint(rows.checkpoint_key("run", 1), value)
