from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
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
from casckpt.store import Repository, files, layout, opening, rows
from casckpt.store.environment import Environment
from tests.unit.store.stores import check, save


def change_format(path, **changes) -> None:
    document = json.loads((path / "format.json").read_text())
    (path / "format.json").write_text(json.dumps(document | changes))


def counts_walks(monkeypatch) -> list[str]:
    walked: list[str] = []
    whole = opening.walk_index
    monkeypatch.setattr(
        opening, "walk_index", lambda index: (walked.append(index.name), whole(index))
    )
    return walked


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


# ---- the index


@pytest.mark.parametrize("mode", ["a", "r"])
def test_a_missing_or_empty_index_is_never_taken_for_an_empty_store(path, mode):
    with Repository.open(path) as repository:
        save(repository, [b"x"])
    data = path / "index.0" / "data.mdb"
    data.write_bytes(b"")
    with pytest.raises(Corrupt, match="cut off") as caught:
        Repository.open(path, mode=mode)
    assert "--rebuild-index" in caught.value.hint
    data.unlink()
    with pytest.raises(Corrupt):
        Repository.open(path, mode=mode)
    assert not data.exists()
    shutil.rmtree(path / "index.0")
    with pytest.raises(Corrupt):
        Repository.open(path, mode=mode)
    assert not (path / "index.0").exists()


@pytest.mark.parametrize("text", [None, "", "index.x\n", "../elsewhere\n", "index.5\n"])
def test_a_damaged_current_is_corrupt(path, text):
    if text is None:
        (path / "CURRENT").unlink()
    else:
        (path / "CURRENT").write_text(text)
    with pytest.raises(Corrupt) as caught:
        Repository.open(path)
    assert "--rebuild-index" in caught.value.hint


def test_the_index_of_another_store_is_refused(path, tmp_path):
    Repository.init(tmp_path / "other")
    shutil.rmtree(path / "index.0")
    shutil.copytree(tmp_path / "other" / "index.0", path / "index.0")
    with pytest.raises(Corrupt, match="does not belong"):
        Repository.open(path)


def test_an_lmdb_file_of_something_else_is_refused(path):
    import lmdb

    for file in (path / "index.0").iterdir():
        file.unlink()
    lmdb.open(str(path / "index.0"), lib_version=0).close()
    with pytest.raises(Corrupt):
        Repository.open(path)


@pytest.mark.parametrize("keep_times", [False, True])
def test_an_index_put_back_from_a_backup_is_refused(path, tmp_path, keep_times):
    with Repository.open(path) as repository:
        first = save(repository, [b"one"], step=1)
    shutil.copytree(path / "index.0", tmp_path / "backup")
    with Repository.open(path) as repository:
        save(repository, [b"two"], step=2)
    for file in ("data.mdb", "clean"):
        copy = shutil.copy2 if keep_times else shutil.copyfile
        copy(tmp_path / "backup" / file, path / "index.0" / file)
    with pytest.raises(Corrupt, match="older than its packs"):
        Repository.open(path)
    # Reading what the old index knows does no harm.
    with Repository.open(path, mode="r") as repository:
        check(repository, first)


def test_an_old_index_is_refused_to_writers_although_a_reader_is_in(path):
    with Repository.open(path) as repository:
        save(repository, [b"one"], step=1)
    backup = (path / "index.0" / "data.mdb").read_bytes()
    with Repository.open(path) as repository:
        save(repository, [b"two"], step=2)
    (path / "index.0" / "data.mdb").write_bytes(backup)
    code = (
        "import sys; from casckpt.store import Repository;"
        "r = Repository.open(sys.argv[1], mode='r'); print('open', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert reader.stdout.readline() == b"open\n"
        with pytest.raises(Corrupt, match="older than its packs"):
            Repository.open(path)
    finally:
        reader.communicate()


def test_a_damaged_index_is_found_by_the_walk_not_by_the_user(path):
    with Repository.open(path) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    environment = Environment(path / "index.0", readonly=False)

    def lose_a_row(tx):
        key, _ = next(tx.scan("checkpoints"))
        tx.delete("checkpoints", key)

    environment.write(lose_a_row)
    environment.close()
    with pytest.raises(Corrupt, match="damaged"):
        Repository.open(path)


def test_an_index_cut_short_is_found_where_the_lock_is_missing_too(path):
    with Repository.open(path) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    (path / "lock").unlink()
    data = path / "index.0" / "data.mdb"
    os.truncate(data, data.stat().st_size // 2 + 1)
    # In a process of its own: whoever reads such an index is killed by SIGBUS.
    code = "import sys; from casckpt.store import Repository; Repository.open(sys.argv[1], 'r')"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "casckpt.errors.Corrupt" in done.stderr


@pytest.mark.parametrize("where", ["roots", "row", "pages"])
def test_the_walk_survives_damage_of_every_kind(path, where):
    with Repository.open(path) as repository:
        for step in range(5):
            save(repository, [os.urandom(100)], step=step)
    if where == "pages":
        data = path / "index.0" / "data.mdb"
        with data.open("r+b") as stream:
            stream.seek(2 * 4096)
            stream.write(os.urandom(data.stat().st_size - 2 * 4096))
    else:
        environment = Environment(path / "index.0", readonly=False)
        if where == "row":
            environment.write(lambda tx: tx.put("objects", b"x" * 32, b"short"))
        else:
            environment.write(lambda tx: tx.put("meta", b"roots", rows.u64(1) + bytes(16)))
        environment.close()
    with pytest.raises(Corrupt) as caught:
        opening.walk_index(path / "index.0")
    assert "--rebuild-index" in caught.value.hint


# ---- the clean stamp


def test_an_index_closed_in_order_is_not_walked_again(path, monkeypatch):
    walked = counts_walks(monkeypatch)
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        assert not (path / "index.0" / "clean").exists()
    assert (path / "index.0" / "clean").exists()
    Repository.open(path).close()
    assert walked == []


def test_a_killed_process_leaves_no_stamp_and_the_next_walks(path, monkeypatch):
    code = (
        "import os, sys; sys.path.insert(0, os.getcwd());"
        "from casckpt.store import Repository; from tests.unit.store.stores import save;"
        "r = Repository.open(sys.argv[1]); save(r, [b'x']); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, path], check=False).returncode == 9
    assert not (path / "index.0" / "clean").exists()
    walked = counts_walks(monkeypatch)
    with Repository.open(path) as repository:
        assert len(repository.checkpoint_rows()) == 1
        # Others trust those who are in already.
        code = (
            "import sys; from casckpt.store import Repository; Repository.open(sys.argv[1]).close()"
        )
        subprocess.run([sys.executable, "-c", code, path], check=True)
    assert walked == ["index.0"]


def test_a_stamp_of_another_boot_or_file_does_not_fit(path):
    index = path / "index.0"
    assert opening.stamp_fits(index)
    stamp = json.loads((index / "clean").read_text())
    for key in ("boot", "inode", "size", "mtime_ns", "ctime_ns"):
        (index / "clean").write_text(json.dumps(stamp | {key: 0}))
        assert not opening.stamp_fits(index)
    for text in ("", "[]", "{", "\udcff"):
        (index / "clean").write_bytes(text.encode("utf-8", "surrogateescape"))
        assert not opening.stamp_fits(index)


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
