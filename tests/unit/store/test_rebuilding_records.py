"""Rebuild of odd records: copies, forged ids and keys, shared blobs, and batches of any size."""

from __future__ import annotations

import os

import pytest

from casckpt.store import Repository, facts, layout, packs, rebuilding, records, rows
from tests.unit.store.stores import check, save
from tests.unit.store.test_rebuilding import contents, lose_index, open_rebuilt
from tests.unit.store.test_rebuilding_manifests import orphan


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_manifests_without_a_fact_are_found_in_batches_of_any_size(path, monkeypatch, count):
    data = [os.urandom(500) for _ in range(4)]
    with Repository.open(path) as repository:
        saved = save(repository, [data[0]])
        # The last two share their blob: what is known of it is not looked up again.
        orphans = {
            orphan(repository, "run", step, data[min(step, 3)]).hex() for step in range(1, 5)
        }
    lose_index(path)
    monkeypatch.setattr(rebuilding, "_SCAN_ROWS", count)
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", count)
    report = Repository.rebuild_index(path)
    assert set(report.recovered) == orphans
    assert len(report.recovered) == len(orphans) == 4
    assert report.checkpoints == 5
    with open_rebuilt(path) as repository:
        check(repository, saved)
        assert repository.verify("bytes").damaged == ()


def test_a_fact_under_another_id_is_left_out(path):
    """Its checks hold: somebody has made it so. The number that it takes may be that of a fact."""
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(500)])
        own = repository._shared().own
        for seq in (saved.seq, saved.seq + 5):
            body = facts.encode_fact(seq, 0, [])
            pack, _ = own.append(layout.TYPE_FACT, 0, bytes(32), len(body), (), body)
        own.sync([pack])
    lose_index(path)
    report = Repository.rebuild_index(path)
    assert report.checkpoints == 1
    assert len(report.unreadable) == 2
    assert all("have another id" in line for line in report.unreadable)
    assert report.gaps == ()
    with open_rebuilt(path) as repository:
        check(repository, saved)


def test_of_several_copies_of_a_record_one_counts(path):
    """A collector that died had copied a chunk and a list, and had not dropped their pack."""
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(3 << 20)])
        shared = repository._shared()
        with shared.environment.read() as tx:
            named = [
                (key, rows.ObjectRow.decode(value), tx.pack(rows.ObjectRow.decode(value).pack).uuid)
                for key, value in tx.scan("objects")
            ]
        shared.own.seal_all()
        for key, row, uuid in named:
            with shared.packs.borrow(uuid) as file:
                record = packs.read_header(file.descriptor, file.path, uuid, row.offset)
                payload = packs.read_payload(file.descriptor, file.path, record)
            pack, _ = shared.own.append(
                record.kind, record.encoding, key, record.logical, record.refs, payload
            )
        shared.own.sync([pack])
    before = contents(path)
    lose_index(path)
    report = Repository.rebuild_index(path)
    assert (report.packs, report.objects, report.checkpoints) == (2, len(named), 1)
    assert (report.recovered, report.unreadable) == ((), ())
    assert contents(path) == before
    with open_rebuilt(path) as repository:
        check(repository, saved)
        assert repository.verify("bytes").damaged == ()


@pytest.mark.parametrize("length", [0, 512, 5000])
def test_a_row_of_a_fact_that_no_index_can_hold_is_left_out(path, length):
    row = rows.Row("live", (), b"payload").encode()
    changes = [("history", b"before", row), ("history", b"k" * length, row)]
    changes += [("history", b"after", row)]
    with Repository.open(path) as repository:
        saved = save(repository, [b"chunk"])
        body = facts.encode_fact(saved.seq + 1, 0, changes)
        identity = records.object_id(layout.TYPE_FACT, (), body)
        own = repository._shared().own
        pack, _ = own.append(layout.TYPE_FACT, layout.ENCODING_RAW, identity, len(body), (), body)
        own.sync([pack])
    lose_index(path)
    report = Repository.rebuild_index(path)
    assert report.unreadable == (f"a row of history: a key of {length} bytes",)
    with open_rebuilt(path) as repository:
        assert [key for key, _ in repository.rows("history")] == [b"after", b"before"]
        check(repository, saved)


@pytest.mark.parametrize("forged", [False, True])
def test_a_manifest_whose_bytes_have_another_id_is_not_recovered(path, forged):
    body = b"a manifest without a fact"
    with Repository.open(path) as repository:
        saved = save(repository, [b"chunk"])
        refs = (saved.infos[0].id,)
        identity = records.object_id(layout.TYPE_MANIFEST, refs, body)
        own = repository._shared().own
        pack, _ = own.append(
            layout.TYPE_MANIFEST, layout.ENCODING_RAW, bytes(32) if forged else identity,
            len(body), refs, body,
        )  # fmt: skip
        own.sync([pack])
    lose_index(path)
    report = Repository.rebuild_index(path)
    assert report.recovered == (() if forged else (identity.hex(),))
    assert report.checkpoints == (1 if forged else 2)
    with open_rebuilt(path) as repository:
        check(repository, saved)
