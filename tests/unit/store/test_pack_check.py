"""Verify of packs and their rows: forged records, rows in batches, and what moves meanwhile."""

from __future__ import annotations

import os
import random
from dataclasses import replace

import pytest
import zstandard

from casckpt.store import Repository, facts, layout, lists, pack_check, records, rows
from casckpt.store.effort import Effort, Journal
from tests.unit.store.stores import MIB, check, pack_files, save
from tests.unit.store.test_verification import LEVELS, add_record, edit_index, verify_trusting


class Stop(Exception):
    pass


@pytest.fixture
def many(path):
    """Return the folder of a store with four packs of a checkpoint each, and these."""
    saved = []
    for step in range(1, 5):
        with Repository.open(path) as repository:
            saved.append(save(repository, [os.urandom(5000), os.urandom(MIB)], step=step))
    return path, saved


def test_a_check_that_is_stopped_leaves_the_store_as_it_was(many):
    path, saved = many
    seen = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done > total // 2:
            raise Stop

    with Repository.open(path) as repository:
        with pytest.raises(Stop):
            repository.verify("bytes", stop)
        assert seen[0] == 0
        assert repository.verify("bytes").damaged == ()
        for one in saved:
            check(repository, one)


def test_a_sample_says_nothing_of_what_it_left_out(many, tmp_path, monkeypatch):
    """A journal of a sample that was stopped holds no pack: the rest of each was not read."""
    path, _ = many
    file = tmp_path / "journal.json"
    monkeypatch.setattr(pack_check, "_UNITS_MAX", 2)

    def stop(done: int, total: int) -> None:
        if done > total * 0.9:
            raise Stop

    for sample, expected in ((0.5, 0), (1.0, 3)):
        with Repository.open(path, mode="r") as repository:
            marks = Journal(file, repository.uuid, resume=False)
            effort = Effort(sample, journal=marks, chance=random.Random(1))
            with pytest.raises(Stop):
                repository.verify("bytes", stop, effort)
            kept = Journal(file, repository.uuid, resume=True)
        ends = [kept.end(bytes.fromhex(pack.stem)) for pack in pack_files(path)]
        assert sum(end > 0 for end in ends) == expected


@pytest.mark.parametrize("level", LEVELS)
def test_a_pack_of_another_session_under_the_name_is_a_finding(path, level):
    with Repository.open(path) as repository:
        saved, uuid = save(repository, [os.urandom(1000)]), repository.uuid
    (pack,) = pack_files(path)
    head = records.encode_pack_header(bytes.fromhex(pack.stem), uuid, os.urandom(16))
    with pack.open("r+b") as stream:
        stream.write(head)
    report = verify_trusting(path, level)
    (damage,) = report.damaged
    assert (damage.kind, damage.pack) == ("pack", pack.name)
    assert damage.message == "its header names another session"
    assert report.damaged_manifests.keys() == {saved.manifest_id}


# ---- forged records


FORGED = {
    "chunk": (layout.TYPE_CHUNK, b"another chunk" * 9),
    "list": (layout.TYPE_LIST, lists.encode_list(1, [5])),
    "manifest": (layout.TYPE_MANIFEST, b"another manifest"),
    "fact": (layout.TYPE_FACT, facts.encode_fact(9, 9, [])),
    "snapshot": (layout.TYPE_SNAPSHOT, next(iter(facts.encode_snapshot(9, 9, [])))),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_record_whose_bytes_have_another_id_is_found_by_reading_them(path, what):
    kind, body = FORGED[what]
    refs = (bytes(32),) if kind == layout.TYPE_LIST else ()
    packed = zstandard.compress(body)
    with Repository.open(path) as repository:
        saved = save(repository, [b"whole"])
        identity = os.urandom(32)
        add_record(
            repository, kind, layout.ENCODING_ZSTD, packed,
            identity=identity, logical=len(body), refs=refs,
        )  # fmt: skip
        assert repository.verify("structure").damaged == ()
        (damage,) = repository.verify("bytes").damaged
    assert (damage.id, damage.message) == (identity, "its bytes have another id")
    assert damage.blobs == frozenset()
    assert verify_trusting(path).whole == (saved.manifest_id,)


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_that_names_the_place_of_another_record_is_a_finding(path, level):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(1000), os.urandom(1000)])
    one, two = (info.id for info in saved.infos)

    def mix_up(tx) -> None:
        tx.put("objects", one, tx.get("objects", two))

    edit_index(path, mix_up)
    report = verify_trusting(path, level)
    (damage,) = report.damaged
    assert (damage.kind, damage.id) == ("record", one)
    assert damage.message == "its row in the index says something else"
    # Both rows name that place; which of them is right, a place cannot tell.
    assert report.damaged_manifests[saved.manifest_id] >= {one}


# ---- rows


@pytest.mark.parametrize("count", [1, 2, 3, 1000])
def test_rows_are_looked_at_in_batches_of_any_size(path, monkeypatch, count):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(900) for _ in range(7)])
    ids = sorted(info.id for info in saved.infos)
    strangers = (bytes(32), ids[3][:-1] + bytes([ids[3][-1] ^ 1]), b"\xff" * 32)

    def damage(tx) -> None:
        for stranger in strangers:
            tx.put("objects", stranger, b"short")
        for identity in (ids[0], ids[-1]):
            row = tx.object(identity)
            tx.put("objects", identity, replace(row, offset=row.offset + 1).encode())

    edit_index(path, damage)
    monkeypatch.setattr(pack_check, "_SCAN_ROWS", count)
    report = verify_trusting(path, "structure")
    found = {(one.kind, one.id) for one in report.damaged}
    assert found == {
        *(("index", stranger) for stranger in strangers),
        ("record", ids[0]),
        ("record", ids[-1]),
    }
    assert report.damaged_manifests[saved.manifest_id] >= {ids[0], ids[-1]}


@pytest.mark.parametrize("goes", ["row", "pack", "all of the pack"])
def test_a_row_that_goes_meanwhile_is_no_finding(path, monkeypatch, goes):
    with Repository.open(path) as repository:
        save(repository, [b"whole"])
        stranger = os.urandom(32)

        def add(tx) -> None:
            uuid, session = os.urandom(16), os.urandom(16)
            tx.put("packs", rows.pack_key(77), rows.PackRow(uuid, session, size=80).encode())
            row = rows.ObjectRow(layout.TYPE_CHUNK, layout.ENCODING_RAW, 0, 0, 77, 80, 5, 5)
            tx.put("objects", stranger, row.encode())

        def take(tx) -> None:
            if goes == "row":
                tx.delete("objects", stranger)
            elif goes == "pack":
                dropped = replace(tx.pack(77), state=rows.DROPPED)
                tx.put("packs", rows.pack_key(77), dropped.encode())
            else:
                tx.delete("packs", rows.pack_key(77))

        writer = repository._shared().writer
        writer.run(add, facts=False)
        (damage,) = repository.verify("structure").damaged
        assert (damage.id, damage.message) == (stranger, "its pack file is missing")
        real = pack_check.PackCheck._check_row
        looked = []

        def check_row(self, identity, row) -> None:
            looked.append(identity)
            writer.run(take, facts=False)
            real(self, identity, row)
            assert self._found.by_key == {}

        monkeypatch.setattr(pack_check.PackCheck, "_check_row", check_row)
        assert repository.verify("structure").damaged == ()
        assert looked == [stranger]
