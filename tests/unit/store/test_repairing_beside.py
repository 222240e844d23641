"""Repair while others are at work, in batches, and what a second one finds."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace

import pytest

from casckpt.errors import Corrupt, StoreBusy
from casckpt.store import Repository, files, layout, records, repairing, rows
from casckpt.store.packs import pack_path
from tests.unit.store.stores import check, find, flip, pack_files, read, save
from tests.unit.store.test_repairing import Killed, deltas, repair, verify

COUNT = 5


def chunk_id(data: bytes) -> bytes:
    return records.object_id(layout.TYPE_CHUNK, (), data)


@pytest.fixture
def hurt(path, make_store):
    """Return (path, a checkpoint with five damaged blobs and a whole one, a store with all)."""
    data = [os.urandom(2000) for _ in range(COUNT + 1)]
    source = make_store("source")
    for place in (path, source):
        with Repository.open(place) as repository:
            saved = save(repository, data)
    for piece in data[:COUNT]:
        flip(*find(path, piece[:64]))
    return path, saved, source


def test_many_are_put_back_in_batches(hurt, monkeypatch):
    path, saved, source = hurt
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", 2)
    batches = []
    files.set_crash_hook(
        lambda name, where: batches.append(name) if name == "repaired records durable" else None
    )
    report = repair(path, source)
    files.set_crash_hook(None)
    assert set(report.refilled) == {info.id for info in saved.infos[:COUNT]}
    # Five in three; then the blob and the manifest that leave the damaged pack in one.
    assert len(batches) == 4
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        check(repository, saved)


def test_what_was_put_back_before_a_kill_holds(hurt, monkeypatch):
    path, saved, source = hurt
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", 2)
    batches = 0

    def kill(name: str, where: str) -> None:
        nonlocal batches
        if name == "repaired records durable":
            batches += 1
            if batches == 3:
                raise Killed

    files.set_crash_hook(kill)
    with pytest.raises(Killed):
        repair(path, source)
    files.set_crash_hook(None)
    left = sorted(info.id for info in saved.infos[:COUNT])[4:]
    (hurt_manifest,) = verify(path).damaged_manifests.values()
    assert hurt_manifest == set(left)
    assert repair(path, source).lost == ()
    with Repository.open(path) as repository:
        check(repository, saved)


def test_many_are_lost_in_batches(hurt, monkeypatch):
    path, saved, _ = hurt
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", 2)
    report = repair(path)
    assert set(report.lost) == {info.id for info in saved.infos[:COUNT]}
    with Repository.open(path) as repository:
        assert read(repository, saved.infos[COUNT]) == saved.data[COUNT]


# ---- others at work


def test_a_repair_that_another_collector_overtakes_changes_nothing(hurt, monkeypatch):
    path, saved, _ = hurt
    before = {file: file.read_bytes() for file in pack_files(path)}
    real = repairing._Repair._hurt_packs

    def overtaken(self, report):
        """Purge the damaged packs after they were looked at, as a collector would."""
        found = real(self, report)

        def purge(tx) -> None:
            tx.put("meta", b"gc_run", os.urandom(16))
            for number in found:
                tx.delete("packs", rows.pack_key(number))

        self._shared.writer.run(purge, facts=False)
        return found

    monkeypatch.setattr(repairing._Repair, "_hurt_packs", overtaken)
    with Repository.open(path) as repository:
        with pytest.raises(StoreBusy, match="overtaken"):
            repository.repair()
        with repository._shared().environment.read() as tx:
            row = tx.object(saved.infos[0].id)
    assert row.pack != layout.LOST
    assert list((path / "quarantine").iterdir()) == []
    assert {file: file.read_bytes() for file in before} == before


def test_no_row_names_a_pack_of_the_repair_that_is_gone(hurt):
    path, saved, source = hurt
    with Repository.open(path) as repository, Repository.open(source, mode="r") as other:
        shared = repository._shared()

        def drop(name: str, where: str) -> None:
            if name == "repaired records durable":
                files.set_crash_hook(None)
                own = shared.session().uuid
                with shared.environment.read() as tx:
                    found = [
                        key
                        for key, value in tx.scan("packs")
                        if rows.PackRow.decode(value).session == own
                    ]
                shared.writer.run(
                    lambda tx: [tx.delete("packs", key) for key in found], facts=False
                )

        files.set_crash_hook(drop)
        with pytest.raises(Corrupt, match="a pack of this repair is gone"):
            repository.repair(other)
        with shared.environment.read() as tx:
            named = {tx.pack(tx.object(info.id).pack) for info in saved.infos}
        assert None not in named
    report = repair(path, source)
    assert report.lost == ()
    with Repository.open(path) as repository:
        check(repository, saved)


def test_a_row_that_went_meanwhile_does_not_come_back(path):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(3000), os.urandom(4000)])
    stays, goes = (info.id for info in saved.infos)
    damaged, at = find(path, b"run 1")
    flip(damaged, at)
    with Repository.open(path) as repository:
        shared = repository._shared()
        copied = []

        def forget(name: str, where: str) -> None:
            if name == "repaired records durable":
                copied.append(name)
                shared.writer.run(lambda tx: tx.delete("objects", goes), facts=False)

        files.set_crash_hook(forget)
        report = repository.repair()
        files.set_crash_hook(None)
        # Both were copied out of the damaged pack at once.
        assert (len(copied), report.quarantined) == (1, (damaged.name,))
        with shared.environment.read() as tx:
            assert tx.object(goes) is None
            assert tx.pack(tx.object(stays).pack).uuid.hex() != damaged.stem


def test_damage_that_comes_while_it_works_stays_for_the_next_one(hurt, monkeypatch):
    path, saved, source = hurt
    last = find(path, saved.data[COUNT][:64])
    real = repairing._Repair._set_aside

    def set_aside(self, hurt_packs):
        flip(*last)
        return real(self, hurt_packs)

    monkeypatch.setattr(repairing._Repair, "_set_aside", set_aside)
    report = repair(path, source)
    monkeypatch.undo()
    # What could be read has left the pack; the pack stays, since a row still names it.
    assert (report.quarantined, report.busy) == ((), (last[0].name,))
    assert last[0].exists()
    (damage,) = [one for one in verify(path).damaged if one.blobs]
    assert damage.id == saved.infos[COUNT].id
    report = repair(path, source)
    assert (report.refilled, report.lost) == ((damage.id,), ())
    assert report.quarantined == (last[0].name,)
    with Repository.open(path) as repository:
        check(repository, saved)


def test_what_a_save_stored_anew_meanwhile_is_not_called_lost(hurt, monkeypatch):
    path, saved, _ = hurt
    real = repairing._Repair._lose

    def lose(self, tried):
        with Repository.open(path) as repository:
            save(repository, saved.data, run="again")
        real(self, tried)

    monkeypatch.setattr(repairing._Repair, "_lose", lose)
    assert repair(path).lost == ()
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        check(repository, saved)


@pytest.mark.slow
@pytest.mark.crash
def test_no_collection_deletes_what_a_repair_that_ended_early_left(hurt):
    path, saved, _ = hurt
    damaged = {file.name for file in pack_files(path)}
    points = 0
    while True:
        place = path.parent / "try"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(path, place)
        count = 0

        def die(operation: str, name: str, at: int = points) -> None:
            nonlocal count
            if operation in ("lock", "open", "statvfs", "read"):
                return
            count += 1
            if count > at:
                raise Killed(operation)

        repository = Repository.open(place)
        files.set_crash_hook(die)
        ended_early = True
        try:
            repository.repair()
            ended_early = False
        except BaseException as exc:
            if not isinstance(exc, Killed) and not isinstance(
                exc.__cause__ or exc.__context__, Killed
            ):
                raise
        finally:
            files.set_crash_hook(None)
            repository.close()
        with Repository.open(place) as repository:
            with contextlib.suppress(Corrupt):
                repository.gc(now=True, force=True)
            assert read(repository, saved.infos[COUNT]) == saved.data[COUNT]
        kept = {file.name for file in place.glob("packs/*/*")}
        kept |= {file.name for file in place.glob("quarantine/*")}
        assert damaged <= kept, points
        if not ended_early:
            break
        points += 1
    assert points > 10


def test_packs_that_were_moved_away_are_not_called_lost(path):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(2000)])
    away = path.parent / "away"
    (path / "packs").rename(away)
    with pytest.raises(Corrupt, match="has no packs"):
        repair(path)
    away.rename(path / "packs")
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        repository.gc(now=True, force=True)
        check(repository, saved)


# ---- what is lost, looked at again


def test_a_second_repair_without_a_copy_changes_no_row(path):
    with Repository.open(path) as repository:
        made = deltas(repository)
    base = chunk_id(made[0][2][: layout.MIB])
    with Repository.open(path) as repository, repository._shared().environment.read() as tx:
        row = tx.object(base)
        pack = pack_path(path, tx.pack(row.pack).uuid)
    flip(pack, row.offset + 200)
    assert repair(path).lost == (base,)

    def objects() -> list[tuple[bytes, bytes]]:
        with (
            Repository.open(path, mode="r") as repository,
            repository._shared().environment.read() as tx,
        ):
            return list(tx.scan("objects"))

    before = objects()
    report = repair(path)
    # Deltas that rest on what is lost are whole themselves, and stay where they are.
    assert (report.refilled, report.lost, report.quarantined) == ((), (base,), ())
    assert objects() == before


def test_what_nothing_needs_any_more_is_lost_no_longer(hurt, monkeypatch):
    path, saved, _ = hurt
    monkeypatch.setattr(layout, "ONE_TRANSACTION_ROWS", 2)
    assert len(repair(path).lost) == COUNT
    with Repository.open(path) as repository:
        kept = save(repository, [b"kept"], run="kept")
        repository.trash([("run", saved.seq)])
        repository.gc(now=True)
        report = repository.repair()
        assert report.lost == ()
        assert report.verified.damaged == ()
        with repository._shared().environment.read() as tx:
            assert all(tx.object(info.id) is None for info in saved.infos)
        check(repository, kept)


def test_what_a_save_brings_back_meanwhile_is_not_forgotten(hurt, monkeypatch):
    path, saved, _ = hurt
    assert len(repair(path).lost) == COUNT
    real = repairing._Repair._rows_in
    with Repository.open(path) as repository:
        repository.trash([("run", saved.seq)])
        repository.gc(now=True)
        again = []

        def rows_in(self, numbers):
            found = list(real(self, numbers))
            if numbers == {layout.LOST}:
                again.append(save(repository, saved.data[:1], run="again"))
            return iter(found)

        monkeypatch.setattr(repairing._Repair, "_rows_in", rows_in)
        repository.repair()
        assert len(again) == 1
        check(repository, again[0])
        assert repository.verify("bytes").damaged == ()
        with repository._shared().environment.read() as tx:
            assert [tx.object(info.id) is None for info in saved.infos[:2]] == [False, True]


def test_rows_that_rest_on_each_other_are_put_right(path):
    data = [os.urandom(2000), os.urandom(2000)]
    with Repository.open(path) as repository:
        saved = save(repository, data)
        ids = [info.id for info in saved.infos]

        def tie(tx) -> None:
            for identity, base in zip(ids, ids[::-1], strict=True):
                tied = replace(tx.object(identity), base=base, ref_count=1, depth=1)
                tx.put("objects", identity, tied.encode())

        repository._shared().writer.run(tie, facts=False)
        assert repository.verify("refs").damaged_manifests
        report = repository.repair()
        assert set(report.refilled) == set(ids)
        assert report.lost == ()
        assert repository.verify("bytes").damaged == ()
        check(repository, saved)
