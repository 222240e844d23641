from __future__ import annotations

import errno
import os
import threading

import pytest

from casckpt.errors import (
    BadRequest,
    CasckptError,
    NoSpace,
    NotFound,
    OperationFailed,
    RunMoved,
    StepExists,
)
from casckpt.store import (
    BlobRead,
    BlobSource,
    CommitRequest,
    Repository,
    StoreOptions,
    files,
    layout,
    records,
)
from casckpt.store.commits import RowWrite
from casckpt.store.saving import SaveAgain
from tests.unit.store.stores import MIB, check, pack_files, read, save

DATA_OPERATIONS = ("reserve", "write", "fdatasync")


def request(manifest_id: bytes, head: int | None, step: int = 1, **more) -> CommitRequest:
    return CommitRequest("run", 0, step, 0, manifest_id, b"p", head, **more)


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


# ---- the head of a line


def test_a_line_that_moved_refuses_the_commit(repository):
    first = save(repository, [b"1"], step=1)
    for expected in (None, first.seq + 1):
        with repository.saver() as saver:
            manifest = saver.put_manifest([], b"m")
            with pytest.raises(RunMoved) as caught:
                saver.commit(request(manifest.id, expected, step=2))
            assert caught.value.run == "run"
    assert len(repository.checkpoint_rows()) == 1
    save(repository, [b"2"], step=2)
    other_line = save(repository, [b"3"], step=1, line=1)
    assert repository.head("run", 1) == other_line.seq
    assert repository.head("other", 0) is None


def test_replacing_puts_the_old_row_into_the_trash_at_once(repository):
    first = save(repository, [b"1"], step=1)
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"again")
        seq = saver.commit(request(manifest.id, first.seq, replace_seq=first.seq))
    assert [row.seq for row in repository.checkpoint_rows()] == [seq]
    assert [row.seq for row in repository.checkpoint_rows(states=("trash",))] == [first.seq]
    with pytest.raises(StepExists, match="at its place"):
        repository.untrash([("run", first.seq)])
    repository.trash([("run", seq)])
    repository.untrash([("run", first.seq)])
    check(repository, first)
    with pytest.raises(NotFound):
        repository.untrash([("run", first.seq)])


def test_what_comes_back_to_its_step_is_found_there_when_what_came_later_is_forgotten(repository):
    """The row of `steps` names whoever is live, not whoever was last."""
    first = save(repository, [b"1"], step=1)
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"again")
        later = saver.commit(request(manifest.id, first.seq, replace_seq=first.seq))
    repository.trash([("run", later)])
    repository.untrash([("run", first.seq)])
    for _ in range(2):
        assert repository.head("run", None) == first.seq
        assert repository.commit_at("run", 0, 1, 0) == first.seq
        repository.gc(now=True)
    assert [row.seq for row in repository.checkpoint_rows(states=("live", "trash"))] == [first.seq]
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"third")
        with pytest.raises(RunMoved):
            saver.commit(request(manifest.id, None))


def test_rows_at_one_step_that_are_all_forgotten_leave_no_row_of_the_step(repository):
    first = save(repository, [b"1"], step=1)
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"again")
        later = saver.commit(request(manifest.id, first.seq, replace_seq=first.seq))
    repository.trash([("run", later)])
    repository.untrash([("run", first.seq)])
    repository.trash([("run", first.seq)])
    repository.gc(now=True)
    assert repository.head("run", None) is None
    assert repository.checkpoint_rows(states=("live", "trash", "tombstone")) == []


def test_removing_and_bringing_back_is_all_or_none_as_a_guard_in_the_transaction_says(repository):
    saves = [save(repository, [bytes([step])], run=run, step=step)
             for run, step in (("a", 1), ("a", 2), ("b", 1))]  # fmt: skip
    places = [(run, one.seq) for run, one in zip("aab", saves, strict=True)]
    seen = []

    def guard(view):
        seen.append((view.run, [row.seq for row in view.checkpoints], view.records))
        if view.run == "b":
            raise RunMoved("run b has moved")

    repository.edit_run("b", lambda old: b"record")
    for call in (
        lambda: repository.trash(places, guard),
        lambda: repository.bury([(*place, b"\x01payload") for place in places], guard),
        lambda: repository.edit_checkpoint(*places[2], lambda old: b"new", guard),
    ):
        with pytest.raises(RunMoved):
            call()
        assert [(row.run, row.seq) for row in repository.checkpoint_rows()] == places
    assert seen[0] == ("a", [saves[0].seq, saves[1].seq], {"b": b"record"})
    repository.trash(places)
    with pytest.raises(RunMoved):
        repository.untrash(places, guard)
    assert repository.checkpoint_rows() == []
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"m")
        with pytest.raises(RunMoved, match="run b"):
            saver.commit(CommitRequest("b", 0, 5, 0, manifest.id, b"", places[2][1], guard=guard))


def test_a_replaced_row_that_is_gone_fails_the_whole_commit(repository):
    first = save(repository, [b"1"], step=1)
    repository.trash([("run", first.seq)])
    with repository.saver() as saver:
        manifest = saver.put_manifest([], b"again")
        with pytest.raises(NotFound):
            saver.commit(request(manifest.id, first.seq, replace_seq=first.seq))
    assert repository.checkpoint_rows() == []


def test_commits_of_threads_that_share_a_transaction_keep_their_rows(repository):
    def work(run: str) -> None:
        for step in range(4):
            save(repository, [os.urandom(50)], run=run, step=step)

    threads = [threading.Thread(target=work, args=(f"run{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = repository.checkpoint_rows()
    assert len({(row.run, row.seq) for row in found}) == len(found) == 16
    for run in range(4):
        steps = [row.step for row in repository.checkpoint_rows(f"run{run}")]
        assert steps == [0, 1, 2, 3]


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


# ---- rows


def test_payloads_are_edited_and_survive_reopening(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x"], payload=b"one")
        assert repository.edit_checkpoint("run", saved.seq, lambda old: old + b" two") == b"one two"
        with pytest.raises(NotFound):
            repository.edit_checkpoint("run", saved.seq + 9, lambda old: old)
        assert repository.edit_run("run", lambda old: b"first" if old is None else b"") == b"first"
        repository.edit_run("other/run", lambda old: b"second")
    with Repository.open(path, mode="r") as repository:
        assert [row.payload for row in repository.checkpoint_rows()] == [b"one two"]
        assert repository.run_rows() == [("other/run", b"second"), ("run", b"first")]
        assert repository.run_rows("other") == [("other/run", b"second")]


def test_edits_of_several_threads_all_count(repository):
    saved = save(repository, [b"x"], payload=b"")

    def work() -> None:
        for _ in range(10):
            repository.edit_checkpoint("run", saved.seq, lambda old: old + b".")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (row,) = repository.checkpoint_rows()
    assert row.payload == b"." * 40


def test_trash_is_all_or_none(repository):
    saved = save(repository, [b"x"])
    with pytest.raises(NotFound):
        repository.trash([("run", saved.seq), ("run", saved.seq + 1)])
    assert len(repository.checkpoint_rows()) == 1
    repository.trash([("run", saved.seq)])
    assert repository.checkpoint_rows() == []
    check(repository, saved)


def test_long_run_names_do_not_mix(repository):
    names = ["a" * 200, "a" * 199 + "b", "a" * 128, "a" * 129]
    for name in names:
        save(repository, [name.encode()], run=name)
    for name in names:
        (row,) = repository.checkpoint_rows(name)
        assert row.run == name


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


def test_a_step_that_another_writer_took_below_a_trashed_one_is_not_overwritten(repository):
    """The head says nothing of it: the largest step of the line stands in the trash."""
    save(repository, [b"a"], step=1)
    top = save(repository, [b"b"], step=5)
    repository.trash([("run", top.seq)])
    head = repository.head("run", 0)
    with repository.saver() as saver:
        (info,) = saver.put_blobs([BlobSource([b"mine"], 4)])
        manifest = saver.put_manifest([info.id], b"mine")
        with pytest.raises(RunMoved, match="has moved"):
            saver.commit(request(manifest.id, head, step=1))


def test_what_is_buried_must_be_there_live_and_unchanged(repository):
    saved = save(repository, [b"a"], step=1)
    repository.bury([("run", saved.seq + 99, b"\x01payload"), ("run", saved.seq, b"tagged")])
    assert [row.state for row in repository.checkpoint_rows()] == ["live"]
    repository.bury([("run", saved.seq, b"\x01payload")])
    assert repository.checkpoint_rows() == []


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


def test_an_edit_that_another_writer_overtakes_is_made_again(repository):
    shared, seen = repository._shared(), []

    def edit(old):
        seen.append(old)
        if len(seen) == 1:
            repository.write_rows([RowWrite("progress", b"key", b"theirs")])
        return (old or b"") + b"+mine"

    assert repository.edit_row("progress", b"key", edit) == b"theirs+mine"
    assert seen == [None, b"theirs"]
    with shared.environment.read() as tx:
        assert tx.get("progress", b"key").endswith(b"theirs+mine")
