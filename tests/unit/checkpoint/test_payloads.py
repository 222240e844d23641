from __future__ import annotations

import json
import math
import struct
from datetime import UTC, datetime

import pytest

from casckpt.checkpoint import payloads
from casckpt.checkpoint.payloads import (
    RowFacts,
    decode_row,
    edit_payload,
    encode_payload,
    make_ref,
    payload_tags,
)
from casckpt.errors import BadRequest, Corrupt, NewerFormat
from casckpt.store import CheckpointRow

FACTS = RowFacts(
    created_us=1_700_000_000_123_457,
    metrics={"val_loss": 1 / 3, "acc": math.nan, "up": math.inf, "down": -math.inf, "zero": -0.0},
    tags=("b", "a"),
    reasons=("every", "best"),
    parent="ab" * 32,
    logical_bytes=2**40,
    new_bytes=12,
    stored_bytes=7,
    stall_s=0.0125,
    durable_s=1.5,
)


def row(payload: bytes, **fields) -> CheckpointRow:
    facts = {
        "run": "bpm/nn",
        "seq": 4,
        "manifest_id": bytes(range(32)),
        "line": 0,
        "step": 7,
        "batch": 0,
        "state": "live",
        "trashed_at_ns": 0,
    }
    return CheckpointRow(**(facts | fields), payload=payload)


def test_every_field_comes_back():
    checkpoint = decode_row(row(encode_payload(FACTS)))
    assert checkpoint.ref == "bpm/nn@7"
    assert checkpoint.id == bytes(range(32)).hex()
    assert checkpoint.created == datetime(2023, 11, 14, 22, 13, 20, 123457, tzinfo=UTC)
    assert list(checkpoint.metrics) == ["val_loss", "acc", "up", "down", "zero"]
    assert checkpoint.tags == ("a", "b")
    assert checkpoint.reasons == ("every", "best")
    assert checkpoint.parent == "ab" * 32
    assert (checkpoint.logical_bytes, checkpoint.new_bytes, checkpoint.stored_bytes) == (
        2**40,
        12,
        7,
    )
    assert (checkpoint.stall_s, checkpoint.durable_s) == (0.0125, 1.5)
    assert not checkpoint.pinned
    assert checkpoint.trashed_at is None


def test_metrics_keep_every_bit():
    odd_nan = struct.unpack("<d", bytes.fromhex("0100000000000ff8")[::1])[0]
    values = {"a": 0.1 + 0.2, "b": 5e-324, "c": -0.0, "d": math.inf, "e": odd_nan, "f": 1e308}
    facts = RowFacts(0, values, (), (), None, 0, 0, 0, 0, 0)
    back = decode_row(row(encode_payload(facts))).metrics
    assert {k: struct.pack("<d", v) for k, v in back.items()} == {
        k: struct.pack("<d", v) for k, v in values.items()
    }


@pytest.mark.parametrize("name", ["val/loss", "rouge-L", "精度", "a b", "x" * 3000])
def test_metric_names_come_back(name):
    facts = RowFacts(0, {name: 1.0, "other": 2.0}, (), (), None, 0, 0, 0, 0, 0)
    assert decode_row(row(encode_payload(facts))).metrics == {name: 1.0, "other": 2.0}


@pytest.mark.parametrize("created_us", [0, 1, 1_700_000_000_000_001, 4_000_000_000_999_999])
def test_times_are_exact_to_the_microsecond(created_us):
    facts = RowFacts(created_us, {}, (), (), None, 0, 0, 0, 0, 0)
    created = decode_row(row(encode_payload(facts))).created
    delta = created - datetime(1970, 1, 1, tzinfo=UTC)
    assert (delta.days * 86400 + delta.seconds) * 10**6 + delta.microseconds == created_us


def test_edits_change_what_they_name_only():
    payload = encode_payload(FACTS)
    edited = edit_payload(
        payload, metrics={"acc": 0.5, "new": 1.0}, add_tags=["c"], drop_tags=["a", "z"], pinned=True
    )
    before, after = decode_row(row(payload)), decode_row(row(edited))
    assert after.metrics["acc"] == 0.5
    assert after.metrics["val_loss"] == before.metrics["val_loss"]
    assert list(after.metrics) == [*before.metrics, "new"]
    assert after.tags == ("b", "c") == payload_tags(edited)
    assert after.pinned
    assert after.created == before.created
    assert after.reasons == before.reasons
    assert not decode_row(row(edit_payload(edited, pinned=False))).pinned
    assert edit_payload(payload) == payload


def test_keys_of_a_later_version_survive_an_edit():
    payload = encode_payload(FACTS)
    cut = payload.rindex(b'{"r"')
    rest = json.loads(payload[cut:]) | {"zz": [1, {"a": None}]}
    extended = payload[:cut] + json.dumps(rest).encode()
    edited = edit_payload(extended, add_tags=["c"])
    assert json.loads(edited[edited.rindex(b'{"r"') :])["zz"] == [1, {"a": None}]
    assert decode_row(row(edited)).tags == ("a", "b", "c")


def test_an_empty_payload_is_a_recovered_row():
    checkpoint = decode_row(row(b""))
    assert checkpoint.reasons == ("recovered",)
    assert checkpoint.metrics == {}
    assert decode_row(row(edit_payload(b"", pinned=True))).pinned


def test_a_newer_version_is_named():
    payload = b"\x02" + encode_payload(FACTS)[1:]
    with pytest.raises(NewerFormat, match="newer casckpt"):
        decode_row(row(payload))
    with pytest.raises(NewerFormat):
        edit_payload(payload, pinned=True)


@pytest.mark.parametrize("cut", [1, 40, 88, 100, 130, -1])
def test_a_cut_payload_is_corrupt(cut):
    with pytest.raises(Corrupt):
        decode_row(row(encode_payload(FACTS)[:cut]))


@pytest.mark.parametrize("rest", [b"[]", b"5", b"{", b"\xff", b'{"t":5}'])
def test_a_payload_whose_end_is_no_table_is_corrupt(rest):
    payload = encode_payload(FACTS)
    payload = payload[: payload.rindex(b'{"r"')] + rest
    with pytest.raises(Corrupt, match="the row of bpm/nn at step 7 does not decode"):
        decode_row(row(payload))
    if rest != b'{"t":5}':
        with pytest.raises(Corrupt, match="a row of a checkpoint does not decode"):
            edit_payload(payload, pinned=True)


def test_rows_of_many_kinds_are_read_as_they_are(monkeypatch):
    monkeypatch.setattr(payloads, "_CACHE_MAX", 2)
    monkeypatch.setattr(payloads, "_repeated_cache", {})
    made = [
        encode_payload(RowFacts(i, {f"m{i}": i}, (), (), None, 0, 0, 0, 0.0, 0.0)) for i in range(5)
    ]
    for _ in range(2):
        for number, payload in enumerate(made):
            assert decode_row(row(payload)).metrics == {f"m{number}": number}
    assert len(payloads._repeated_cache) <= 2


def test_more_metrics_than_fit_are_refused():
    facts = RowFacts(0, {str(i): 0.0 for i in range(70_000)}, (), (), None, 0, 0, 0, 0, 0)
    with pytest.raises(BadRequest, match="70000 metrics"):
        encode_payload(facts)


def test_trash_says_when():
    moment = 1_700_000_000_000_000_000
    checkpoint = decode_row(row(encode_payload(FACTS), state="trash", trashed_at_ns=moment))
    assert checkpoint.trashed_at == datetime.fromtimestamp(1_700_000_000, UTC)


@pytest.mark.parametrize(
    ("line", "batch", "many_lines", "ref"),
    [
        (0, 0, False, "r@5"),
        (0, 0, True, "r~0@5"),
        (2, 0, True, "r~2@5"),
        (1, 3, False, "r~1@5+3"),
    ],
)
def test_refs_name_the_line_where_there_are_more(line, batch, many_lines, ref):
    assert make_ref("r", line, 5, batch, many_lines=many_lines) == ref
