"""Lock files of a store that is open: read, removed, made anew, put back from a backup."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading

import pytest

from casckpt.errors import Corrupt, StoreBusy
from casckpt.store import Repository, files, rebuilding
from casckpt.store.engine_locks import EngineLocks
from tests.unit.store.stores import check, save

# What each opening does for readers that died, and what a save does to pages nobody reads
_OTHER = (
    "import sys\nfrom pathlib import Path\n"
    "from casckpt.store.environment import Environment\n"
    "index = Environment(Path(sys.argv[1]), readonly=False)\n"
    "for n in range(40):\n"
    "    index.write(lambda tx: tx.put('meta', b'other', bytes([n]) * 3000))\n"
    "print(index._handle.readers())\n"
)


def write_elsewhere(path) -> str:
    """Have another process open the index and write to it; return the readers that it sees."""
    command = [sys.executable, "-c", _OTHER, str(path / "index.0")]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read_by_hand(path, tmp_path) -> None:
    """Do what drops the POSIX locks of this process on each file of a store."""
    shutil.copytree(path, tmp_path / f"copy of {path.name}")


@pytest.mark.parametrize("mode", ["a", "r"])
def test_a_process_that_copies_its_own_store_is_not_taken_for_dead(path, tmp_path, mode):
    with Repository.open(path) as first:
        save(first, [b"x" * 5000])
    with Repository.open(path, mode) as repository:
        with repository._shared().environment.read() as tx:
            before = dict(tx.scan("objects"))
            read_by_hand(path, tmp_path)
            assert str(os.getpid()) in write_elsewhere(path)
            assert dict(tx.scan("objects")) == before
        if mode == "a":
            check(repository, save(repository, [b"y" * 5000], step=2))


def test_the_table_of_readers_is_not_made_anew_under_a_process_that_copied_its_store(
    path, tmp_path
):
    with Repository.open(path) as repository:
        read_by_hand(path, tmp_path)
        with repository._shared().environment.read():
            # Whoever finds no lock on the first byte of lock.mdb takes itself for the first
            assert str(os.getpid()) in write_elsewhere(path)


def test_a_lock_file_that_was_removed_ends_saves_and_loses_none(path):
    with Repository.open(path) as repository:
        saved = [save(repository, [b"x"])]
        (path / "index.0" / "lock.mdb").unlink()
        write_elsewhere(path)
        with pytest.raises(StoreBusy, match="another put in its place"):
            save(repository, [b"y"], step=2)
        with pytest.raises(StoreBusy, match="cannot open the store"):
            Repository.open(path)
    with Repository.open(path) as repository:
        saved.append(save(repository, [b"z"], step=2))
        for each in saved:
            check(repository, each)


@pytest.mark.parametrize("is_reading", [True, False])
def test_an_older_index_copied_into_the_files_of_the_newer_is_not_written(
    path, tmp_path, is_reading
):
    with Repository.open(path) as repository:
        save(repository, [b"x"])
    shutil.copytree(path, tmp_path / "backup")
    with Repository.open(path) as repository:
        saved = save(repository, [b"y"], step=2)
        for name in ("data.mdb", "lock.mdb"):  # as `cp -a`: the same file, other bytes
            data = (tmp_path / "backup" / "index.0" / name).read_bytes()
            with (path / "index.0" / name).open("r+b") as file:
                file.write(data)
        environment = repository._shared().environment
        use = repository.checkpoint_rows if is_reading else lambda: environment.write(id)
        with pytest.raises(StoreBusy, match="another put in its place"):
            use()
        with pytest.raises(StoreBusy):
            save(repository, [b"z"], step=3)
        with pytest.raises(StoreBusy):
            repository.gc()
    with pytest.raises(Corrupt, match="older than its packs"):
        Repository.open(path)
    rebuilding.rebuild(path)
    with Repository.open(path) as repository:
        check(repository, saved)


def test_other_writers_count_by_another_lock_file(path, monkeypatch):
    """Should its identity say nothing, as on file systems that use numbers again at once."""
    monkeypatch.setattr(EngineLocks, "are_of", lambda self, path: True)
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        (path / "index.0" / "lock.mdb").unlink()
        write_elsewhere(path)
        with pytest.raises(StoreBusy, match="another put in its place"):
            save(repository, [b"y"], step=2)


def test_a_process_of_the_same_number_elsewhere_keeps_the_index(path):
    locks = path / "index.0" / "lock.mdb"
    descriptor = files.open_file(locks, os.O_RDWR)
    try:
        assert files.try_lock(descriptor, exclusive=True, start=0, length=1)
        with pytest.raises(StoreBusy, match="another process has a lock"):
            EngineLocks(path / "index.0")
    finally:
        files.close_file(descriptor)
    EngineLocks(path / "index.0").close()


def test_a_forked_child_leaves_the_locks_to_its_parent(path, tmp_path):
    with Repository.open(path) as repository:
        save(repository, [b"x"])
        child = os.fork()
        if child == 0:
            os._exit(0 if repository.checkpoint_rows() else 1)
        assert os.waitpid(child, 0)[1] == 0
        with repository._shared().environment.read():
            assert str(os.getpid()) in write_elsewhere(path)


def test_a_rebuild_beside_one_who_has_the_store_open_by_another_lock_loses_no_save(path):
    with Repository.open(path) as trainer:
        saved = [save(trainer, [os.urandom(5000)])]
        (path / "lock").unlink()
        (path / "lock").touch()
        refused = []

        def train() -> None:
            try:
                saved.append(save(trainer, [os.urandom(5000)], step=2))
            except StoreBusy as exc:
                refused.append(str(exc))

        thread = threading.Thread(target=train)

        def beside(operation: str, where: str) -> None:
            if operation == "index rebuilt":  # every pack was read
                thread.start()
                thread.join(0.5)  # what it waits for is the end of this

        files.set_crash_hook(beside)
        rebuilding.rebuild(path)
        thread.join()
        assert len(saved) + len(refused) == 2
        assert not refused or "rebuilt while this process had the store open" in refused[0]
    with Repository.open(path) as repository:
        assert len(repository.checkpoint_rows()) >= len(saved)
        for each in saved:
            check(repository, each)
