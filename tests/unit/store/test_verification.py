from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from casckpt.errors import BadRequest
from casckpt.store import Repository, codec, layout, pack_check, records, rows
from casckpt.store.environment import Environment
from tests.unit.store.stores import MIB, check, find, flip, pack_files, save

LEVELS = ("structure", "refs", "bytes")


@pytest.fixture
def stored(path):
    """Return (path, two checkpoints that share a blob, the bytes)."""
    shared, one, two = os.urandom(200_000), os.urandom(1000), os.urandom(3 * MIB)
    with Repository.open(path) as repository:
        first = save(repository, [shared, one], step=1, body=b"first manifest")
        second = save(repository, [shared, two], step=2, body=b"second manifest")
    return path, first, second, (shared, one, two)


def verify(path, level="bytes", progress=None):
    with Repository.open(path, mode="r") as repository:
        return repository.verify(level, progress)


def edit_index(path, job) -> None:
    environment = Environment(path / "index.0", readonly=False)
    environment.write(job)
    environment.close()


def add_record(repository, kind, encoding, payload, *, identity, logical, refs=(), depth=0):
    """Append a record and a row that names it, whatever it says."""
    shared = repository._shared()
    pack, record = shared.own.append(kind, encoding, identity, logical, refs, payload)
    shared.own.sync([pack])

    def index(tx):
        row = replace(tx.pack(pack.number), size=pack.synced)
        tx.put("packs", rows.pack_key(pack.number), row.encode())
        base = refs[0] if kind == layout.TYPE_CHUNK and refs else b""
        row = rows.ObjectRow(
            kind,
            encoding,
            depth,
            len(refs),
            pack.number,
            record.offset,
            record.stored,
            logical,
            base,
        )
        tx.put("objects", identity, row.encode())

    shared.writer.run(index, facts=False)


@pytest.mark.parametrize("level", LEVELS)
def test_a_whole_store_has_no_findings(stored, level):
    path, first, second, _ = stored
    seen: list[tuple[int, int]] = []
    report = verify(path, level, lambda done, total: seen.append((done, total)))
    assert report.damaged == ()
    assert report.damaged_manifests == {}
    assert set(report.whole) == {first.manifest_id, second.manifest_id}
    assert report.garbage_bytes == 0
    assert seen == sorted(seen)
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1] > 0
    assert (report.checked_bytes > 3 * MIB) == (level == "bytes")


def test_an_unknown_level_is_refused(stored):
    with pytest.raises(BadRequest):
        verify(stored[0], "everything")


def test_verify_changes_nothing(stored):
    path = stored[0]

    def facts() -> dict[str, tuple[int, int]]:
        found = {}
        for file in path.rglob("*"):
            if file.is_file() and file.name not in ("lock.mdb", "clean"):
                found[str(file)] = (file.stat().st_size, file.stat().st_mtime_ns)
        return found

    before = facts()
    verify(path)
    assert facts() == before


def test_a_flipped_bit_is_one_finding_that_names_who_needs_it(stored):
    path, first, second, (_shared, _one, two) = stored
    file, at = find(path, two[:64])
    flip(file, at + 7)
    for level in ("structure", "refs"):
        assert verify(path, level).damaged == ()
    report = verify(path)
    (damage,) = report.damaged
    assert (damage.pack, damage.offset, damage.kind) == (file.name, at - 96, "record")
    assert damage.id == records.object_id(layout.TYPE_CHUNK, (), two[:MIB])
    assert damage.blobs == {second.infos[1].id}
    assert report.damaged_manifests == {second.manifest_id: frozenset({second.infos[1].id})}
    assert report.whole == (first.manifest_id,)


def test_a_shared_blob_hurts_both(stored):
    path, first, second, (shared, _, _) = stored
    file, at = find(path, shared[:64])
    flip(file, at)
    report = verify(path)
    assert set(report.damaged_manifests) == {first.manifest_id, second.manifest_id}
    assert set(report.damaged_manifests.values()) == {frozenset({first.infos[0].id})}
    assert len(report.damaged) == 1


def test_every_byte_below_the_registered_end_is_covered(path):
    with Repository.open(path) as repository:
        save(repository, [os.urandom(50)])
    (file,) = pack_files(path)
    with (
        Repository.open(path, mode="r") as repository,
        repository._shared().environment.read() as tx,
    ):
        end = tx.pack(1).size
    whole = file.read_bytes()
    for offset in range(0, end, 2):
        flip(file, offset, 0x04)
        assert verify(path).damaged, offset
        flip(file, offset, 0x04)
    assert file.read_bytes() == whole
    assert verify(path).damaged == ()


@pytest.mark.parametrize("level", LEVELS)
def test_a_damaged_header_is_found_at_every_level(stored, level):
    path, first, _, (_, one, _) = stored
    file, at = find(path, one)
    flip(file, at - 96 + 20)
    report = verify(path, level)
    (damage,) = report.damaged
    assert (damage.pack, damage.offset) == (file.name, at - 96)
    assert damage.id == first.infos[1].id
    assert report.damaged_manifests == {first.manifest_id: frozenset({first.infos[1].id})}


def test_a_damaged_manifest_or_list_is_found_by_refs(stored):
    path, first, second, _ = stored
    file, at = find(path, b"first manifest")
    flip(file, at)
    with (
        Repository.open(path, mode="r") as repository,
        repository._shared().environment.read() as tx,
    ):
        row = tx.object(second.infos[1].id)
        assert row.kind == layout.TYPE_LIST
    flip(file, row.offset + 96 + 32 * row.ref_count + 1)
    assert verify(path, "structure").damaged == ()
    for level in ("refs", "bytes"):
        report = verify(path, level)
        assert {damage.id for damage in report.damaged} == {first.manifest_id, second.infos[1].id}
        assert report.damaged_manifests == {
            first.manifest_id: frozenset({first.manifest_id}),
            second.manifest_id: frozenset({second.infos[1].id}),
        }
        assert report.whole == ()


@pytest.mark.parametrize("level", LEVELS)
def test_a_missing_pack_is_named_once(stored, level):
    path, first, second, _ = stored
    (file,) = pack_files(path)
    file.unlink()
    report = verify(path, level)
    (damage,) = report.damaged
    assert (damage.pack, damage.kind) == (file.name, "pack")
    assert "missing" in damage.message
    assert set(report.damaged_manifests) == {first.manifest_id, second.manifest_id}


def test_a_cut_pack_spares_what_stands_before_the_cut(stored):
    path, first, second, (_, _, two) = stored
    file, at = find(path, two[:64])
    os.truncate(file, at + 100)
    report = verify(path)
    assert any("cut off" in damage.message for damage in report.damaged)
    assert report.whole == (first.manifest_id,)
    assert set(report.damaged_manifests) == {second.manifest_id}


@pytest.mark.parametrize("level", LEVELS)
def test_another_stores_pack_under_the_name_is_a_finding(stored, make_store, level):
    path = stored[0]
    with Repository.open(make_store("other")) as repository:
        save(repository, [os.urandom(4 * MIB)])
        repository._shared().own.seal_all()
        (foreign,) = pack_files(repository.path)
    (file,) = pack_files(path)
    shutil.copyfile(foreign, file)
    report = verify(path, level)
    assert [damage.kind for damage in report.damaged] == ["pack"]
    assert report.whole == ()


def test_an_object_that_is_nowhere_is_missing_to_those_who_need_it(stored):
    path, first, second, _ = stored
    lost = first.infos[1].id
    edit_index(path, lambda tx: tx.delete("objects", lost))
    assert verify_trusting(path, "structure").damaged == ()
    report = verify_trusting(path, "refs")
    (damage,) = report.damaged
    assert (damage.kind, damage.id, damage.pack, damage.blobs) == ("missing", lost, "", {lost})
    assert report.damaged_manifests == {first.manifest_id: frozenset({lost})}
    assert report.whole == (second.manifest_id,)


def verify_trusting(path, level="bytes"):
    """Verify without the walk of opening, which would refuse what verify is to find."""
    from casckpt.store import opening

    opening.write_stamp(path / "index.0", 0)
    return verify(path, level)


@pytest.mark.parametrize("level", LEVELS)
def test_damaged_rows_are_findings(stored, level):
    path, first, _second, _ = stored

    def damage(tx):
        tx.put("objects", b"x" * 32, b"short")
        tx.put("objects", b"long" * 10, tx.get("objects", first.infos[1].id))
        row = tx.object(first.infos[1].id)
        tx.put("objects", first.infos[1].id, replace(row, logical=row.logical + 1).encode())

    edit_index(path, damage)
    report = verify_trusting(path, level)
    kinds = sorted(finding.kind for finding in report.damaged)
    assert kinds == ["index", "index", "record"]
    assert set(report.damaged_manifests) == {first.manifest_id}


def test_a_damaged_row_of_a_record_is_no_damage_of_its_pack(stored):
    path, first, second, _ = stored
    edit_index(path, lambda tx: tx.put("objects", first.infos[1].id, b"short"))
    report = verify_trusting(path)
    assert report.whole == (second.manifest_id,)
    assert [(one.kind, one.id) for one in report.damaged] == [("index", first.infos[1].id)]
    assert set(report.damaged_manifests) == {first.manifest_id}


def test_a_row_past_the_registered_end_is_a_finding(stored):
    path, first, _, _ = stored

    def cut(tx):
        row = tx.object(first.infos[1].id)
        pack = tx.pack(row.pack)
        tx.put("packs", rows.pack_key(row.pack), replace(pack, size=row.offset).encode())

    edit_index(path, cut)
    report = verify_trusting(path, "structure")
    assert any("past the registered end" in damage.message for damage in report.damaged)


def test_a_lost_root_row_is_seen_by_the_checksum(stored):
    path, _, second, _ = stored
    edit_index(path, lambda tx: tx.delete("checkpoints", rows.checkpoint_key("run", second.seq)))
    report = verify_trusting(path, "structure")
    assert [damage.kind for damage in report.damaged] == ["index"]
    assert "checksum" in report.damaged[0].message


# ---- what is only garbage


def test_what_nobody_registered_is_garbage_and_no_finding(stored):
    path = stored[0]
    (file,) = pack_files(path)
    with file.open("ab") as stream:
        stream.write(os.urandom(5000))
    foreign = path / "packs" / "ab" / ("ab" * 16 + ".pack")
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_bytes(os.urandom(9000))
    report = verify(path)
    assert report.damaged == ()
    assert report.garbage_bytes >= 14_000


def test_what_a_killed_save_leaves_is_garbage(path):
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd());"
        "from casckpt.store import BlobSource, Repository;"
        "from tests.unit.store.stores import save;"
        "r = Repository.open(sys.argv[1]); save(r, [b'x' * 100]);\n"
        "with r.saver() as s:\n"
        "    s.put_blobs([BlobSource([os.urandom(100_000)], 4)]); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    report = verify(path)
    assert report.damaged == ()
    assert len(report.whole) == 1
    assert report.garbage_bytes > 100_000


def test_a_pack_that_is_only_a_row_is_no_finding(path):
    """A kill between the row and the file; and between the file and its header."""

    def register(tx):
        for number, uuid in enumerate((b"a" * 16, b"b" * 16), 1):
            row = rows.PackRow(uuid, b"s" * 16, size=layout.PACK_HEADER_BYTES)
            tx.put("packs", rows.pack_key(number), row.encode())

    edit_index(path, register)
    (path / "packs" / "62").mkdir()
    (path / "packs" / "62" / ("62" * 16 + ".pack")).write_bytes(b"")
    assert verify(path).damaged == ()


def test_damage_that_nobody_needs_is_a_finding_without_checkpoints(path):
    with Repository.open(path) as repository:
        kept = save(repository, [b"kept" * 100])
        dead = os.urandom(1000)
        with repository.saver() as saver:
            from casckpt.store import BlobSource

            saver.put_blobs([BlobSource([dead], 4)])
    file, at = find(path, dead)
    flip(file, at)
    report = verify(path)
    (damage,) = report.damaged
    assert damage.blobs == frozenset()
    assert report.damaged_manifests == {}
    assert report.whole == (kept.manifest_id,)


# ---- deltas, other kinds, other roots


def delta_store(repository):
    """Save a chunk, and one stored against it; return (base, both chunks' bytes, checkpoint)."""
    base = os.urandom(40_000)
    new = bytearray(base)
    new[::1000] = bytes(len(new[::1000]))
    new = bytes(new)
    save(repository, [base], step=1)
    encoded = codec.encode_chunk(new, 4, "balanced", base)
    assert encoded.uses_base
    base_id = records.object_id(layout.TYPE_CHUNK, (), base)
    new_id = records.object_id(layout.TYPE_CHUNK, (), new)
    add_record(
        repository, layout.TYPE_CHUNK, encoded.encoding, encoded.payload,
        identity=new_id, logical=len(new), refs=(base_id,), depth=1,
    )  # fmt: skip
    saved = save(repository, [new], step=2)
    assert saved.infos[0].new_bytes == 0
    return base, saved


def test_deltas_are_checked_with_their_bases(path):
    with Repository.open(path) as repository:
        base, saved = delta_store(repository)
        check(repository, saved)
        assert repository.verify("bytes").damaged == ()
    file, at = find(path, base)
    flip(file, at + 5)
    report = verify(path)
    assert len(report.damaged) == 1
    assert len(report.damaged_manifests) == 2


def test_a_wrong_id_is_found_though_the_payload_check_holds(path):
    with Repository.open(path) as repository:
        identity = os.urandom(32)
        add_record(
            repository,
            layout.TYPE_CHUNK,
            layout.ENCODING_RAW,
            b"bytes",
            identity=identity,
            logical=5,
        )
        for level in ("structure", "refs"):
            assert repository.verify(level).damaged == ()
        (damage,) = repository.verify("bytes").damaged
        assert damage.id == identity


def test_a_record_type_of_a_newer_version_is_no_damage(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"chunk"])
        add_record(
            repository, 77, 99, b"payload", identity=os.urandom(32), logical=7,
            refs=(saved.infos[0].id,),
        )  # fmt: skip
        assert repository.verify("bytes").damaged == ()


def test_roots_that_are_no_checkpoints_are_followed_too(path):
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(1000)])
        row = rows.Row("live", (os.urandom(32), saved.infos[0].id), b"")
        repository._shared().writer.run(lambda tx: tx.put("progress", b"key", row.encode()))
        report = repository.verify("refs")
        assert [damage.kind for damage in report.damaged] == ["missing"]
        assert report.damaged_manifests == {}
        assert report.whole == (saved.manifest_id,)


def test_trash_is_checked_and_tombstones_are_not(path):
    with Repository.open(path) as repository:
        kept = save(repository, [os.urandom(1000)], run="a")
        data = os.urandom(1000)
        gone = save(repository, [data], run="b")
        repository.trash([("b", gone.seq)])
        file, at = find(path, data)
        flip(file, at)
        assert set(repository.verify().damaged_manifests) == {gone.manifest_id}
        flip(file, at)
        repository.gc(now=True)
        report = repository.verify()
        assert report.damaged == ()
        assert report.whole == (kept.manifest_id,)


def test_a_pack_that_a_collector_takes_meanwhile_is_no_finding(path, monkeypatch):

    with Repository.open(path) as repository:
        gone = save(repository, [os.urandom(1000)], run="b")
        repository._shared().own.seal_all()
        kept = save(repository, [os.urandom(1000)], run="a")
        repository.trash([("b", gone.seq)])
        whole = pack_check.PackCheck._check_pack
        swept: list[int] = []

        def sweep_first(self, pack):
            if not swept:
                swept.append(repository.gc(now=True).dropped_packs)
            return whole(self, pack)

        monkeypatch.setattr(pack_check.PackCheck, "_check_pack", sweep_first)
        report = repository.verify()
        assert swept[0] >= 1
        assert report.damaged == ()
        assert kept.manifest_id in report.whole
        assert report.damaged_manifests == {}
