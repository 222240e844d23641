"""Repair puts back what has a copy, says what has none, and loses nothing on the way."""

from __future__ import annotations

import errno
import os
import shutil

import pytest

from casckpt.errors import Corrupt, OperationFailed, PermissionRefused, StoreBusy
from casckpt.store import BlobRead, Repository, files, layout, records
from casckpt.store.collectors import gc_lock
from tests.unit.store.stores import MIB, check, find, flip, pack_files, read, save


class Killed(Exception):
    pass


@pytest.fixture
def stored(path):
    """Return (path, two checkpoints that share a blob, the bytes of their three blobs)."""
    shared, one, two = os.urandom(200_000), os.urandom(100_000), os.urandom(3 * MIB)
    with Repository.open(path) as repository:
        first = save(repository, [shared, one], step=1, body=b"first manifest")
    with Repository.open(path) as repository:
        second = save(repository, [shared, two], step=2, body=b"second manifest")
    return path, first, second, (shared, one, two)


def verify(path, level="bytes"):
    with Repository.open(path, mode="r") as repository:
        return repository.verify(level)


def repair(path, source=None):
    with Repository.open(path) as repository:
        if source is None:
            return repository.repair()
        with Repository.open(source, mode="r") as other:
            return repository.repair(other)


def test_a_whole_store_stays_as_it_is(stored):
    path, first, second, _ = stored
    before = {file: file.read_bytes() for file in pack_files(path)}
    report = repair(path)
    assert (report.refilled, report.lost, report.quarantined, report.busy) == ((), (), (), ())
    assert report.verified.damaged == ()
    assert {file: file.read_bytes() for file in before} == before
    with Repository.open(path) as repository:
        check(repository, first)
        check(repository, second)


def test_what_no_copy_has_is_lost_and_all_else_is_kept(stored):
    path, first, second, (shared, _, two) = stored
    file, at = find(path, two[:64])
    damaged_bytes = file.read_bytes()
    flip(file, at + 7)
    report = repair(path)
    chunk = records.object_id(layout.TYPE_CHUNK, (), two[:MIB])
    assert report.lost == (chunk,)
    assert report.quarantined == (file.name,)
    assert report.verified.whole == (first.manifest_id,)
    # Nothing was deleted, and the pack is no part of the store any more.
    aside = path / "quarantine" / file.name
    assert len(aside.read_bytes()) == len(damaged_bytes)
    assert not file.exists()
    after = verify(path)
    assert [(one.kind, one.id) for one in after.damaged] == [("missing", chunk)]
    assert after.damaged_manifests == {second.manifest_id: frozenset({second.infos[1].id})}
    with Repository.open(path) as repository:
        check(repository, first)
        assert read(repository, second.infos[0]) == shared
        assert read(repository, second.infos[1], MIB, 2 * MIB) == two[MIB:]
        with pytest.raises(Corrupt):
            read(repository, second.infos[1])


@pytest.mark.parametrize("offset", [0, 9, 20, 40, 60, 79])
def test_a_damaged_header_of_a_pack_takes_no_record_with_it(stored, offset):
    path, first, second, _ = stored
    for file in pack_files(path):
        flip(file, offset)
    report = verify(path)
    assert {(one.kind, one.offset) for one in report.damaged} == {("pack", 0)}
    assert len(report.damaged) == 2
    assert not report.damaged_manifests
    with Repository.open(path) as repository:
        check(repository, first)
        check(repository, second)
    report = repair(path)
    assert (report.refilled, report.lost, len(report.quarantined)) == ((), (), 2)
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        repository.gc(now=True, force=True)
        check(repository, first)
        check(repository, second)


def test_an_index_is_rebuilt_from_packs_with_damaged_headers(stored):
    path, first, second, _ = stored
    for file in pack_files(path):
        flip(file, 30)
    garbage = path / "packs" / "ab" / ("ab" * 16 + ".pack")
    garbage.parent.mkdir(exist_ok=True)
    garbage.write_bytes(bytes(5000))
    shutil.rmtree(path / "index.0")
    report = Repository.rebuild_index(path)
    assert len([one for one in report.unreadable if "its header is damaged" in one]) == 3
    assert verify(path, "refs").damaged_manifests == {}
    assert len(repair(path).quarantined) == 2
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        check(repository, first)
        check(repository, second)


def test_gc_works_after_a_loss_and_the_same_bytes_put_it_back(stored):
    path, _, second, (_, _, two) = stored
    file, at = find(path, two[:64])
    flip(file, at)
    assert repair(path).lost
    with Repository.open(path) as repository:
        repository.gc(now=True)
        save(repository, [two], run="again")
        check(repository, second)
        repository.gc(now=True)
        check(repository, second)
    assert verify(path).damaged == ()


def test_another_record_in_the_store_is_taken(stored):
    path, first, second, (_, _, two) = stored
    file, at = find(path, two[:64])
    # A copy of the pack under its name stands in what a repair set aside before.
    shutil.copy(file, path / "quarantine" / file.name)
    flip(file, at + 100)
    report = repair(path)
    assert report.refilled == (records.object_id(layout.TYPE_CHUNK, (), two[:MIB]),)
    assert report.lost == ()
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        check(repository, first)
        check(repository, second)


@pytest.mark.parametrize("what", ["chunk", "list", "manifest", "pack", "cut", "header", "all"])
def test_another_store_gives_back_what_is_lost(stored, make_store, what):
    path, first, second, (_, _, two) = stored
    source = make_store("source")
    with Repository.open(source) as repository:
        for saved, body in ((first, b"first manifest"), (second, b"second manifest")):
            save(repository, saved.data, body=body, run=body.split()[0].decode())
    file, at = find(path, two[:64])
    if what == "chunk":
        flip(file, at)
    elif what == "header":
        flip(file, at - 50)
    elif what == "list":
        flip(*find(path, second.infos[1].id), 255)
    elif what == "manifest":
        flip(*find(path, b"second manifest"))
    elif what == "pack":
        file.unlink()
    elif what == "cut":
        os.truncate(file, at + 2 * MIB)
    else:
        for pack in pack_files(path):
            pack.write_bytes(os.urandom(pack.stat().st_size))
    assert verify(path).damaged
    report = repair(path, source)
    assert report.refilled
    assert report.lost == ()
    assert report.verified.damaged == ()
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        check(repository, first)
        check(repository, second)
        repository.gc(now=True)
        check(repository, second)


def deltas(repository):
    """Save a blob and two that are deltas of it, and one of its own; return data and saves."""
    import numpy as np

    from casckpt.store import BlobSource, CommitRequest

    generator = np.random.default_rng(5)
    data = generator.standard_normal(2 * MIB // 4).astype(np.float32)
    made, base = [], None
    for step in range(3):
        data = data + generator.standard_normal(len(data)).astype(np.float32) * 1e-6
        blob = data.tobytes()
        with repository.saver() as saver:
            infos = saver.put_blobs([BlobSource([blob], 4, base=base)])
            manifest = saver.put_manifest([infos[0].id], f"delta {step}".encode())
            head = repository.head("deltas", 0)
            saver.commit(CommitRequest("deltas", 0, step, 0, manifest.id, b"", head))
        base = infos[0].id
        made.append((manifest.id, infos[0], blob))
    return made


def test_a_lost_base_is_the_damage_of_exactly_those_that_rest_on_it(path, make_store):
    with Repository.open(path) as repository:
        made = deltas(repository)
        other = save(repository, [os.urandom(100_000)], run="other")
    shutil.copytree(path, path.parent / "copy")
    first = made[0][2]
    base = records.object_id(layout.TYPE_CHUNK, (), first[:MIB])
    with Repository.open(path) as repository:
        shared = repository._shared()
        with shared.environment.read() as tx:
            assert len(tx.chain(records.object_id(layout.TYPE_CHUNK, (), made[2][2][:MIB]))) == 3
            row = tx.object(base)
            uuid = tx.pack(row.pack).uuid
    file = next(pack for pack in pack_files(path) if uuid.hex() in pack.name)
    flip(file, row.offset + 200)
    (damage,) = verify(path).damaged
    assert damage.id == base
    assert damage.blobs == {info.id for _, info, _ in made}
    assert verify(path).whole == (other.manifest_id,)
    report = repair(path)
    assert report.lost == (base,)
    assert report.verified.whole == (other.manifest_id,)
    with Repository.open(path) as repository:
        repository.gc(now=True)
    # Deltas are whole themselves: their base is all that is to be put back.
    report = repair(path, path.parent / "copy")
    assert report.lost == ()
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        for _, info, blob in made:
            assert read(repository, info) == blob


def test_facts_survive_the_pack_they_were_in(stored):
    path = stored[0]
    with Repository.open(path) as repository:
        repository.edit_run("run", lambda old: b"a note")
    for file in pack_files(path):
        flip(file, file.stat().st_size // 2)
    repair(path)
    shutil.rmtree(path / "index.0")
    Repository.rebuild_index(path)
    with Repository.open(path) as repository:
        assert repository.run_row("run") == b"a note"
        assert [row.step for row in repository.checkpoint_rows("run")] == [1, 2]


def test_a_damaged_index_is_not_repaired_by_guessing(stored):
    path = stored[0]
    with Repository.open(path) as repository:
        environment = repository._shared().environment
        environment.write(lambda tx: tx.put("history", b"a key", b"nonsense"))
        with pytest.raises(Corrupt, match="index is damaged"):
            repository.repair()
    assert list((path / "quarantine").iterdir()) == []


def test_one_collector_at_a_time(stored):
    with (
        Repository.open(stored[0]) as repository,
        gc_lock(repository._shared()),
        pytest.raises(StoreBusy),
    ):
        repository.repair()


@pytest.mark.slow
@pytest.mark.crash
def test_a_repair_that_dies_anywhere_is_finished_by_the_next(stored, make_store):
    path, first, second, (_, _, two) = stored
    source = make_store("source")
    with Repository.open(source) as repository:
        save(repository, second.data, body=b"second manifest")
    file, at = find(path, two[:64])
    flip(file, at)
    points = 0
    while True:
        shutil.rmtree(path.parent / "try", ignore_errors=True)
        shutil.copytree(path, path.parent / "try")
        count = 0

        def die(operation: str, name: str, at: int = points) -> None:
            nonlocal count
            if operation in ("lock", "open", "statvfs", "read"):
                return
            count += 1
            if count > at:
                raise Killed(operation)

        repository = Repository.open(path.parent / "try")
        other = Repository.open(source, mode="r")
        files.set_crash_hook(die)
        try:
            repository.repair(other)
            done = True
        except Killed:
            done = False
        except Exception as exc:
            if not isinstance(exc.__cause__ or exc.__context__, Killed):
                raise
            done = False
        finally:
            files.set_crash_hook(None)
            repository.close()
            other.close()
        with Repository.open(path.parent / "try") as repository:
            check(repository, first)
        report = repair(path.parent / "try", source)
        assert report.lost == ()
        assert verify(path.parent / "try").damaged == ()
        with Repository.open(path.parent / "try") as repository:
            check(repository, first)
            check(repository, second)
        if done:
            break
        points += 1
    assert points > 10


def test_a_pack_that_a_live_session_appends_to_is_left_for_later(stored):
    path, _, second, _ = stored
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from casckpt.store import Repository\n"
        "from tests.unit.store.stores import save\n"
        f"repository = Repository.open({str(path)!r})\n"
        "save(repository, [bytes(range(256)) * 400], run='live')\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "save(repository, [bytes(reversed(range(256))) * 400], run='live', step=2)\n"
        "repository.close()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout.readline() == "ready\n"
        file, at = find(path, b"live 1")
        flip(file, at)
        report = repair(path)
        assert report.busy == (file.name,)
        assert report.quarantined == ()
        assert file.exists()
    finally:
        child.communicate("\n")
    assert child.returncode == 0
    report = repair(path)
    assert report.quarantined == (file.name,)
    with Repository.open(path) as repository:
        rows = repository.checkpoint_rows("live")
        dest = bytearray(102_400)
        refs, _ = repository.read_manifest(rows[-1].manifest_id)
        repository.read_blobs([BlobRead(refs[0], len(dest), 0, dest)])
        assert bytes(dest) == bytes(reversed(range(256))) * 400
        check(repository, second)


def test_packs_with_deltas_on_a_lost_base_can_be_rewritten(path):
    with Repository.open(path) as repository:
        made = deltas(repository)
        ballast = save(repository, [os.urandom(4 * MIB)], run="other")
    base = records.object_id(layout.TYPE_CHUNK, (), made[0][2][:MIB])
    with Repository.open(path) as repository, repository._shared().environment.read() as tx:
        row = tx.object(base)
        uuid = tx.pack(row.pack).uuid
    file = next(pack for pack in pack_files(path) if uuid.hex() in pack.name)
    flip(file, row.offset + 200)
    assert repair(path).lost == (base,)
    with Repository.open(path) as repository:
        repository.trash([("other", ballast.seq)])
        # Their packs are mostly dead now: what is alive moves, or it would be copied each time.
        assert repository.gc(now=True).freed_bytes > 3 * MIB
        before = {pack.name for pack in pack_files(path)}
        repository.gc(now=True)
        assert {pack.name for pack in pack_files(path)} <= before
        save(repository, [made[0][2]], run="again")
        for _, info, blob in made:
            assert read(repository, info) == blob


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_what_cannot_be_looked_at_is_not_called_lost(stored, number):
    path, first, second, _ = stored
    hurt = pack_files(path)[0]

    def refuse(operation, path):
        if operation == "open" and path == str(hurt):
            raise OSError(number, os.strerror(number))

    files.set_crash_hook(refuse)
    try:
        for look in (repair, verify):
            with pytest.raises((OperationFailed, PermissionRefused), match="cannot open"):
                look(path)
    finally:
        files.set_crash_hook(None)
    assert verify(path).damaged == ()
    with Repository.open(path) as repository:
        repository.gc(now=True)
        check(repository, first)
        check(repository, second)
