from __future__ import annotations

import errno
import os

import pytest

from casckpt.errors import (
    BadRequest,
    CasckptError,
    NoSpace,
    OperationFailed,
)
from casckpt.store import (
    BlobRead,
    BlobSource,
    Repository,
    StoreOptions,
    files,
    layout,
    records,
)
from casckpt.store.commits import RowWrite
from casckpt.store.saving import SaveAgain
from tests.unit.store.stores import MIB, check, pack_files, read, request, save

DATA_OPERATIONS = ("reserve", "write", "fdatasync")


def test_what_is_saved_comes_back_and_is_listed(repository):
    data = [os.urandom(100), b"", os.urandom(3 * MIB + 17), b"z" * MIB]
    saved = save(repository, data, step=7, payload=b"\x01mine")
    check(repository, saved)
    (row,) = repository.checkpoint_rows()
    assert (row.run, row.step, row.line, row.batch, row.state) == ("run", 7, 0, 0, "live")
    assert (row.manifest_id, row.seq, row.payload) == (saved.manifest_id, saved.seq, b"\x01mine")
    assert repository.head("run", 0) == saved.seq


@pytest.mark.parametrize("item_size", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("level", ["fast", "balanced", "small"])
def test_every_item_size_and_level(repository, item_size, level):
    data = [(b"\x00\x3c\x81\x3f" * 300_000)[: MIB + 5], os.urandom(2000)]
    check(repository, save(repository, data, item_size=item_size, level=level))


def test_a_blob_of_several_buffers_is_their_concatenation(repository):
    parts = [os.urandom(700_000), b"", bytearray(os.urandom(900_000)), memoryview(b"tail")]
    whole = b"".join(parts)
    with repository.saver() as saver:
        apart, together = saver.put_blobs([BlobSource(parts, 4), BlobSource([whole], 4)])
        assert apart.id == together.id
        assert together.new_bytes == 0
        manifest = saver.put_manifest([apart.id], b"m")
        saver.commit(request(manifest.id, None))
    assert read(repository, apart) == whole


def test_the_same_bytes_are_stored_once(repository):
    data = os.urandom(5 * MIB)
    first = save(repository, [data, data], step=1)
    assert sum(info.new_bytes for info in first.infos) == 5 * MIB
    with repository.saver() as saver:
        (info,) = saver.put_blobs([BlobSource([data], 4)])
        assert (info.new_bytes, info.stored_bytes, saver.new_bytes) == (0, 0, 0)
    changed = bytearray(data)
    changed[2 * MIB] ^= 1
    second = save(repository, [bytes(changed)], step=2)
    assert second.infos[0].new_bytes == MIB


def test_opaque_bytes_that_moved_are_found_again(repository):
    data = os.urandom(2 * MIB)
    save(repository, [data], step=1, opaque=True)
    moved = save(repository, [b"inserted in front" + data], step=2, opaque=True)
    assert moved.infos[0].new_bytes < MIB // 4
    check(repository, moved)


def test_ids_are_those_of_the_format(repository):
    saved = save(repository, [b"one chunk"])
    assert saved.infos[0].id == records.object_id(layout.TYPE_CHUNK, (), b"one chunk")
    expected = records.object_id(layout.TYPE_MANIFEST, (saved.infos[0].id,), b"run 1")
    assert saved.manifest_id == expected


def test_a_manifest_names_only_what_its_save_put(repository):
    with repository.saver() as saver, pytest.raises(ValueError, match="not put by this save"):
        saver.put_manifest([bytes(32)], b"m")


# ---- saves that end otherwise


def test_a_save_that_is_left_leaves_nothing_and_its_packs_sealed(repository):
    with repository.saver() as saver:
        saver.put_blobs([BlobSource([os.urandom(MIB)], 4)])
    assert repository.checkpoint_rows() == []
    with repository._shared().environment.read() as tx:
        assert tx.count("objects") == 0
        assert all(value[33] for _, value in tx.scan("packs"))  # sealed
    check(repository, save(repository, [b"next"]))


def test_an_exception_inside_a_save_ends_its_lease(repository):
    from casckpt.store.sessions import NO_LEASE, list_sessions

    def leave() -> None:
        with repository.saver():
            (info,) = list_sessions(repository.path)
            assert info.epoch == 0
            raise KeyError

    with pytest.raises(KeyError):
        leave()
    (info,) = list_sessions(repository.path)
    assert info.epoch == NO_LEASE


def operations_of_a_save(repository) -> list[tuple[str, str]]:
    seen: list[tuple[str, str]] = []
    files.set_crash_hook(lambda name, where: seen.append((name, where)))
    save(repository, [os.urandom(2 * MIB)], run="probe")
    files.set_crash_hook(None)
    return seen


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_operation_loses_nothing_and_the_next_save_works(repository, number):
    kept = save(repository, [os.urandom(2 * MIB)], run="kept")
    for fatal in range(len(operations_of_a_save(repository))):
        counter = iter(range(10_000))
        failed: list[str] = []

        def fail(name, where, fatal=fatal, counter=counter, failed=failed):
            if next(counter) == fatal:
                failed.append(name)
                raise OSError(number, os.strerror(number))

        before = len(repository.checkpoint_rows())
        saved = error = None
        data = os.urandom(2 * MIB)
        files.set_crash_hook(fail)
        try:
            saved = save(repository, [data], run=f"run{fatal}")
        except (CasckptError, OSError) as exc:
            error = exc
        finally:
            files.set_crash_hook(None)
        if error is not None and number == errno.ENOSPC and failed[0] in DATA_OPERATIONS:
            assert isinstance(error, NoSpace)
        rows = repository.checkpoint_rows()
        assert len(rows) == before + (saved is not None)
        if saved is not None:
            check(repository, saved)
        check(repository, save(repository, [data], run=f"run{fatal}", step=2))
    check(repository, kept)
    assert repository.verify("bytes").damaged == ()


def test_a_full_disk_is_reported_before_anything_is_reserved(repository, monkeypatch):
    (repository.path / "ballast").unlink()

    def full(name: str, where: str) -> None:
        if name == "allocate":
            raise OSError(errno.ENOSPC, "full")

    files.set_crash_hook(full)
    with pytest.raises(NoSpace, match="full"), repository.saver():
        pass
    files.set_crash_hook(None)
    check(repository, save(repository, [b"x"]))
    assert (repository.path / "ballast").exists()


def test_a_failed_write_of_one_thread_makes_the_other_save_again(repository):
    """Both append to one pack: the failure of either ends it for both."""
    with repository.saver() as victim:
        (info,) = victim.put_blobs([BlobSource([os.urandom(1000)], 4)])
        manifest = victim.put_manifest([info.id], b"victim")

        def fail(name: str, where: str) -> None:
            if name == "write" and where.endswith(".pack"):
                raise OSError(errno.EIO, "injected")

        files.set_crash_hook(fail)
        with repository.saver() as other, pytest.raises(OperationFailed):
            other.put_blobs([BlobSource([os.urandom(1000)], 4)])
        files.set_crash_hook(None)
        with pytest.raises(SaveAgain):
            victim.commit(request(manifest.id, None))
    assert repository.checkpoint_rows() == []
    check(repository, save(repository, [b"again"]))


def test_a_state_that_changes_while_it_is_saved_is_noticed_not_stored(repository, monkeypatch):
    from casckpt.errors import Corrupt
    from casckpt.store import codec

    whole = codec.encode_chunk

    def change_under(chunk, *arguments):
        encoded = whole(chunk, *arguments)
        memoryview(data)[5:6] = b"\xff"
        return encoded

    monkeypatch.setattr(codec, "encode_chunk", change_under)
    data = bytearray(400_000)
    with repository.saver() as saver, pytest.raises(Corrupt, match="changed while"):
        saver.put_blobs([BlobSource([data], 4)])


def test_a_save_of_more_rows_than_one_transaction_takes(repository):
    data = [b"%06d" % number for number in range(2500)]
    saved = save(repository, data)
    dests = [bytearray(6) for _ in data]
    wishes = [BlobRead(info.id, 6, 0, dest) for info, dest in zip(saved.infos, dests, strict=True)]
    repository.read_blobs(wishes)
    assert dests == data


def test_a_full_pack_is_sealed_and_the_save_goes_on(path, monkeypatch):
    monkeypatch.setattr(layout, "PACK_SEAL_BYTES", MIB)
    with Repository.open(path) as repository:
        saved = save(repository, [os.urandom(6 * MIB)])
        assert len(pack_files(path)) >= 3
        check(repository, saved)
    with Repository.open(path) as repository:
        check(repository, saved)


def test_a_row_may_only_name_a_manifest_of_its_own_save(repository):
    """Whoever brings a root has the lease that keeps what it reaches."""
    stranger = save(repository, [b"other"]).manifest_id
    write = RowWrite("cache", b"key", b"payload", (stranger,))
    with repository.saver() as saver, pytest.raises(ValueError, match="has not put"):
        saver.add_rows([write])
    for call in (repository.add_rows, repository.write_rows):
        with pytest.raises(ValueError, match="committed by Saver"):
            call([write])
    assert repository.row("cache", b"key") is None


def test_a_chunk_that_a_collector_took_meanwhile_makes_the_save_begin_anew(repository):
    kept = save(repository, [b"kept"], step=1)
    shared = repository._shared()
    with repository.saver() as saver:
        (info,) = saver.put_blobs([BlobSource([b"kept"], 4)])
        assert info.id == kept.infos[0].id
        manifest = saver.put_manifest([info.id], b"again")

        def take(tx):
            tx.delete("objects", info.id)
            tx.set_number("gc_epoch", tx.number("gc_epoch") + 1)

        shared.writer.run(take, facts=False)
        with pytest.raises(SaveAgain, match="a collector freed"):
            saver.commit(request(manifest.id, kept.seq, step=2))
    assert [row.step for row in repository.checkpoint_rows()] == [1]


def test_options_that_cannot_work_are_refused(path):
    for wrong in (
        {"level": "best"},
        {"memory_bytes": 1 << 20},
        {"max_delta_depth": -1},
        {"max_delta_depth": 501},
        {"workers": 0},
    ):
        with pytest.raises(BadRequest):
            StoreOptions(**wrong)
    with pytest.raises(BadRequest, match="bad mode 'w'"):
        Repository.open(path, mode="w")
