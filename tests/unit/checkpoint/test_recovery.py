"""Repair: where there is no store, and rows made anew from manifests."""

from __future__ import annotations

import logging

import pytest

from casckpt.checkpoint import manifest as manifests
from casckpt.checkpoint.payloads import RowFacts, decode_row, encode_payload
from casckpt.checkpoint.recovery import fill_recovered, place_of, repair_store_at
from casckpt.errors import BadRequest, Corrupt, NoStore
from casckpt.store import CheckpointRow
from tests.suites.memory_repository import Saved

ID = bytes(range(32))


def repair(path, **options):
    facts = {"rebuild_index": False, "accept": False, "source": None, "progress": None}
    return repair_store_at(path, **(facts | options))


def test_what_has_no_store_is_not_repaired_and_packs_say_what_may_help(tmp_path):
    with pytest.raises(NoStore) as caught:
        repair(tmp_path)
    assert "--rebuild-index" not in str(caught.value)
    (tmp_path / "packs" / "00").mkdir(parents=True)
    with pytest.raises(NoStore, match=r"it has no format\.json") as caught:
        repair(tmp_path)
    assert "casckpt repair --rebuild-index" in caught.value.hint
    with pytest.raises(NoStore, match=r"no store at .*missing"):
        repair(tmp_path, rebuild_index=True, source=tmp_path / "missing")


def test_a_store_is_no_source_for_itself(tmp_path):
    (tmp_path / "format.json").write_text("{}")
    with pytest.raises(BadRequest, match="a store is no source for itself"):
        repair(tmp_path, source=tmp_path / "." / "")


def test_a_manifest_without_a_row_goes_where_it_was_saved():
    saved = Saved({"a": 1})
    request = place_of(ID, saved.body)
    assert (request.run, request.line, request.step, request.batch) == ("run", 0, 1, 0)
    assert request.manifest_id == ID
    assert request.payload == b""


def test_a_result_without_a_row_is_no_checkpoint():
    body = Saved({"a": 1}).body.replace(
        b'"config":null', b'"config":' + manifests.canonical(manifests.RESULT)
    )
    assert manifests.is_result(body)
    assert place_of(ID, body) is None


@pytest.mark.parametrize("body", [b"", b"{}", b"\xff" * 9])
def test_a_manifest_that_does_not_decode_goes_under_its_id(body):
    folder, name = place_of(ID, body).run.split("/")
    assert folder == "recovered"
    assert len(name) >= 8
    assert ID.hex().startswith(name)


class Rows:
    """A repository of a few rows and their manifests."""

    def __init__(self, rows, bodies):
        self.rows, self.bodies = rows, bodies

    def checkpoint_rows(self):
        return list(self.rows.values())

    def read_manifest(self, manifest_id):
        if manifest_id not in self.bodies:
            raise Corrupt("a manifest is damaged", "its hash differs")
        return [b"\0" * 32] * 9, self.bodies[manifest_id]

    def edit_checkpoint(self, run, seq, edit):
        self.rows[run, seq] = self.rows[run, seq]._replace(
            payload=edit(self.rows[run, seq].payload)
        )


def a_row(seq, manifest_id, payload=b""):
    return CheckpointRow("run", seq, manifest_id, 0, seq, 0, "live", 0, payload)


def test_rows_get_the_facts_that_their_manifests_hold(caplog):
    body = Saved({"a": 1}).body.replace(
        b'"metrics":{}', b'"metrics":{"loss":"0x1.8000000000000p+0"}'
    )
    whole = encode_payload(RowFacts(0, {"acc": 1.0}, ("kept",), (), None, 0, 0, 0, 0.0, 0.0))
    rows = {
        ("run", 1): a_row(1, b"1" * 32),
        ("run", 2): a_row(2, b"2" * 32),
        ("run", 3): a_row(3, b"1" * 32, whole),
    }
    repository = Rows(rows, {b"1" * 32: body})
    with caplog.at_level(logging.WARNING, "casckpt"):
        assert fill_recovered(repository) == [("run", 1)]
    assert "run at step 2 cannot be read: a manifest is damaged" in caplog.text
    filled = decode_row(repository.rows["run", 1])
    assert filled.metrics == {"loss": 1.5}
    assert filled.reasons == ("recovered",)
    assert filled.created.isoformat() == "2024-01-02T03:04:05.000006+00:00"
    assert decode_row(repository.rows["run", 3]).tags == ("kept",)
    assert fill_recovered(repository) == []


def test_a_row_that_another_filled_meanwhile_stays():
    body = Saved({"a": 1}).body
    repository = Rows({("run", 1): a_row(1, ID)}, {ID: body})
    theirs = encode_payload(RowFacts(0, {}, ("theirs",), (), None, 0, 0, 0, 0.0, 0.0))
    real = repository.read_manifest

    def read_while_another_fills(manifest_id):
        repository.edit_checkpoint("run", 1, lambda payload: theirs)
        return real(manifest_id)

    repository.read_manifest = read_while_another_fills
    fill_recovered(repository)
    assert decode_row(repository.rows["run", 1]).tags == ("theirs",)
