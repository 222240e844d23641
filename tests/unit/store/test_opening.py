from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

import casckpt
from casckpt.errors import (
    Corrupt,
    FileSystemRefused,
    NewerFormat,
    NoStore,
    OperationFailed,
    PermissionRefused,
    StoreBusy,
)
from casckpt.store import Repository, files, layout, opening
from tests.unit.store.stores import check, save


def change_format(path, **changes) -> None:
    document = json.loads((path / "format.json").read_text())
    (path / "format.json").write_text(json.dumps(document | changes))


# ---- not a store


def test_what_is_not_a_store_says_so(tmp_path):
    with pytest.raises(NoStore, match="no such folder"):
        Repository.open(tmp_path / "missing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NoStore, match="not a casckpt store") as caught:
        Repository.open(tmp_path / "folder")
    assert "casckpt init" in caught.value.hint
    (tmp_path / "file").write_text("x")
    with pytest.raises(NoStore):
        Repository.open(tmp_path / "file")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"version": "x"}',
        b'{"version": 1e999}',
        b"1" * 70_000,
        b"[" * 60_000,
    ],
    ids=["empty", "cut", "list", "no keys", "not utf-8", "text", "infinite", "huge", "deep"],
)
def test_a_format_file_that_does_not_decode_is_no_store(path, text):
    (path / "format.json").write_bytes(text)
    with pytest.raises(NoStore):
        Repository.open(path)


def test_a_store_without_its_lock_is_read_and_not_written(path):
    (path / "lock").unlink()
    Repository.open(path, "r").close()
    with pytest.raises(Corrupt, match="lock"):
        Repository.open(path)
    (path / "lock").touch()
    Repository.open(path).close()


@pytest.mark.parametrize("folder", ["packs", "sessions"])
def test_a_file_where_a_folder_belongs_is_refused(path, folder):
    (path / folder).rename(path.with_name("elsewhere"))
    (path / folder).write_bytes(b"noise")
    for mode in ("r", "a"):
        with pytest.raises(NoStore, match=folder):
            Repository.open(path, mode)


def test_making_a_store_refuses_what_is_there(path, tmp_path):
    with pytest.raises(OperationFailed, match="already"):
        Repository.init(path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(NoStore, match="not empty"):
        Repository.init(tmp_path / "full")
    with pytest.raises(NoStore, match="does not exist"):
        Repository.init(tmp_path / "a" / "b")
    assert [entry.name for entry in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_making_a_store_that_was_killed_midway_can_be_done_again(tmp_path):
    class Killed(BaseException):
        pass

    operations: list[str] = []
    files.set_crash_hook(lambda name, where: operations.append(name))
    Repository.init(tmp_path / "whole")
    for fatal in range(0, len(operations), 3):
        counter = iter(range(10_000))

        def kill(name, where, fatal=fatal, counter=counter):
            if next(counter) == fatal:
                raise Killed

        store = tmp_path / f"store{fatal}"
        files.set_crash_hook(kill)
        with pytest.raises(Killed):
            Repository.init(store)
        files.set_crash_hook(None)
        if not (store / "format.json").exists():
            Repository.init(store)
        opening.write_stamp(opening.current_index(store), 0)  # spares the walk
        with Repository.open(store) as repository:
            assert repository.checkpoint_rows() == []


@pytest.mark.parametrize("mode", ["a", "r"])
def test_a_store_whose_folder_was_removed_closes_all_the_same(path, mode):
    with Repository.open(path) as repository:
        save(repository, [b"gone"])
    repository = Repository.open(path, mode=mode)
    if mode == "a":
        save(repository, [b"gone too"], step=2)
    shutil.rmtree(path)
    repository.close()
    assert not path.exists()


# ---- file systems, features, permissions


@pytest.mark.parametrize("folder", ["packs", "index.0"])
def test_a_folder_that_may_not_be_looked_into_is_refused(path, monkeypatch, folder):
    scan = os.scandir

    def deny(place):
        if Path(place).name == folder:
            raise PermissionError(errno.EACCES, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", deny)
    for mode in ("r", "a"):
        with pytest.raises(PermissionRefused, match=f"cannot look into .*{folder}"):
            Repository.open(path, mode)


def test_a_store_that_lost_its_format_file_is_never_made_anew(path, tmp_path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"kept"])
    (path / layout.FORMAT_FILE).rename(tmp_path / "aside")
    before = sorted(path.rglob("*"))
    with pytest.raises(Corrupt, match=r"has lost its format\.json"):
        Repository.init(path)
    with pytest.raises(Corrupt, match=r"has lost its format\.json"):
        casckpt.open(path)
    assert sorted(path.rglob("*")) == before
    (tmp_path / "aside").rename(path / layout.FORMAT_FILE)
    with Repository.open(path) as repository:
        check(repository, saved)


def test_network_file_systems_are_refused(path, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "file_system_type", lambda _: 0x6969)
    with pytest.raises(FileSystemRefused, match="NFS"):
        Repository.open(path)
    with pytest.raises(FileSystemRefused):
        Repository.init(tmp_path / "new")


def test_a_save_to_an_older_store_names_what_its_records_may_need(path):
    change_format(path, read=["packs-1", "planes-1"], created="long ago")
    with Repository.open(path) as repository:
        assert repository.checkpoint_rows() == []
        assert json.loads((path / "format.json").read_text())["read"] == ["packs-1", "planes-1"]
        save(repository, [b"x"])
    described = json.loads((path / "format.json").read_text())
    assert set(described["read"]) == layout.READ_FEATURES
    assert described["created"] == "long ago"
    assert list(path.glob("*.new")) == []
    Repository.open(path, mode="r").close()


def test_newer_features_stop_what_needs_them(path):
    change_format(path, read=[*layout.READ_FEATURES, "wavelets-1"])
    with pytest.raises(NewerFormat, match="wavelets-1"):
        Repository.open(path, mode="r")
    change_format(path, read=["packs-1"], write=["packs-1", "facts-2"])
    with pytest.raises(NewerFormat, match="facts-2"):
        Repository.open(path)
    Repository.open(path, mode="r").close()
    change_format(path, read=["packs-1"], write=["packs-1"], collect=["packs-1", "remote-1"])
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        with pytest.raises(NewerFormat, match="remote-1"):
            repository.gc()
    change_format(path, version=2)
    with pytest.raises(NewerFormat, match="version 2"):
        Repository.open(path)


def test_a_store_opened_for_reading_cannot_be_written(path):
    with Repository.open(path, mode="r") as repository:
        with pytest.raises(PermissionRefused):
            repository.saver()
        with pytest.raises(PermissionRefused):
            repository.gc()
    assert not list((path / "sessions").iterdir())


# ---- locks


def test_who_opens_waits_out_a_walk_but_not_for_ever(path, monkeypatch):
    monkeypatch.setattr(opening, "_LOCK_WAIT_S", 0.05)
    other = files.open_file(path / layout.LOCK_FILE, os.O_RDWR)
    assert files.try_lock(other, exclusive=True)
    with pytest.raises(StoreBusy):
        Repository.open(path)
    files.close_file(other)
    Repository.open(path).close()


def test_opening_twice_in_a_process_shares_one_store(path):
    with Repository.open(path) as one:
        with Repository.open(path, mode="r") as two:
            saved = save(one, [b"x"])
            check(two, saved)
        check(one, saved)
        assert one._shared().users == 1


def test_a_reader_of_a_process_does_not_keep_it_from_writing(path):
    with Repository.open(path, mode="r") as reader, Repository.open(path) as writer:
        check(reader, save(writer, [b"x"]))


def test_a_closed_store_says_so(path):
    repository = Repository.open(path)
    repository.close()
    repository.close()
    with pytest.raises(OperationFailed, match="closed"):
        repository.checkpoint_rows()


def test_a_failed_opening_leaves_nothing_open(path):
    (path / "CURRENT").write_text("index.9\n")
    before = _open_files()
    with pytest.raises(Corrupt):
        Repository.open(path)
    assert _open_files() == before
    (path / "CURRENT").write_text("index.0\n")
    Repository.open(path).close()


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_format_file_with_a_uuid_of_another_length_is_no_store(path):
    change_format(path, uuid="abcd")
    with pytest.raises(NoStore, match="does not decode"):
        Repository.open(path)


def test_a_reader_goes_on_when_the_store_cannot_be_opened_for_writing(path, monkeypatch):
    """The process keeps what it had, and its lock keeps nobody else out."""
    with Repository.open(path) as repository:
        saved = save(repository, [b"x" * 9000])
    reader = Repository.open(path, mode="r")
    (path / "index.0" / layout.CLEAN_FILE).unlink()  # else nobody looks whether it is old

    def old(*given):
        raise Corrupt("the index is older than its packs")

    with monkeypatch.context() as patched:
        patched.setattr(opening, "refuse_old_index", old)
        with pytest.raises(Corrupt):
            Repository.open(path)
    check(reader, saved)
    other = files.open_file(path / layout.LOCK_FILE, os.O_RDWR)
    assert files.try_lock(other, exclusive=False)
    files.close_file(other)
    reader.close()
