from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from casckpt import errors
from casckpt.store import file_systems, files


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    descriptor = files.open_file(path, os.O_RDWR | os.O_CREAT)
    yield path, descriptor
    files.close_file(descriptor)


def test_short_writes_go_on_where_they_stopped(file, monkeypatch):
    path, descriptor = file
    whole_write, whole_writev = os.pwrite, os.pwritev
    monkeypatch.setattr(os, "pwrite", lambda d, v, o: whole_write(d, v[:3], o))
    monkeypatch.setattr(os, "pwritev", lambda d, v, o: whole_writev(d, [v[0][:2]], o))
    files.write_at(descriptor, b"0123456789", 5, path)
    assert path.read_bytes() == bytes(5) + b"0123456789"
    files.write_vector(descriptor, [b"abcd", memoryview(b"efgh")], 0, path)
    assert path.read_bytes()[:8] == b"abcdefgh"


def test_a_write_that_makes_no_progress_fails(file, monkeypatch):
    path, descriptor = file
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(errors.OperationFailed, match="no progress"):
        files.write_at(descriptor, b"x", 0, path)


def test_short_reads_go_on_and_end_with_the_file(file, monkeypatch):
    path, descriptor = file
    files.write_at(descriptor, b"0123456789", 0, path)
    whole_read, whole_readv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda d, n, o: whole_read(d, min(n, 4), o))
    monkeypatch.setattr(os, "preadv", lambda d, v, o: whole_readv(d, [v[0][:4]], o))
    assert files.read_at(descriptor, 100, 2, path) == b"23456789"
    dest = bytearray(12)
    assert files.read_into(descriptor, memoryview(dest), 1, path) == 9
    assert dest[:9] == b"123456789"


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, errors.NoSpace),
        (errno.EDQUOT, errors.NoSpace),
        (errno.EACCES, errors.PermissionRefused),
        (errno.EROFS, errors.PermissionRefused),
        (errno.EPERM, errors.PermissionRefused),
        (errno.EIO, errors.OperationFailed),
        (errno.EMFILE, errors.OperationFailed),
    ],
)
def test_errors_of_the_system_become_ours(file, number, kind, tmp_path):
    path, descriptor = file

    def fail(operation: str, where: str) -> None:
        raise OSError(number, os.strerror(number))

    files.set_crash_hook(fail)
    for call in (
        lambda: files.write_at(descriptor, b"x", 0, path),
        lambda: files.write_vector(descriptor, [b"x"], 0, path),
        lambda: files.sync_data(descriptor, path),
        lambda: files.sync_file(descriptor, path),
        lambda: files.sync_folder(tmp_path),
        lambda: files.rename(path, path),
        lambda: files.unlink(path),
        lambda: files.truncate(descriptor, 0, path),
        lambda: files.reserve(descriptor, 0, 100, path),
        lambda: files.allocate(descriptor, 100, path),
        lambda: files.open_file(path, os.O_RDONLY),
        lambda: files.make_folder(tmp_path / "folder"),
        lambda: files.free_bytes(tmp_path),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert f"errno {number}" in caught.value.why


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EIO, errors.Corrupt), (errno.EMFILE, errors.OperationFailed)],
)
def test_a_bad_sector_is_damage_and_not_a_failed_call(file, number, kind):
    path, descriptor = file

    def fail(operation: str, where: str) -> None:
        raise OSError(number, os.strerror(number))

    files.set_crash_hook(fail)
    with pytest.raises(kind):
        files.read_at(descriptor, 1, 0, path)
    with pytest.raises(kind):
        files.read_into(descriptor, memoryview(bytearray(1)), 0, path)


def test_write_whole_leaves_the_old_file_or_the_new_one(tmp_path):
    target, temporary = tmp_path / "CURRENT", tmp_path / "CURRENT.new"
    files.write_whole(target, b"old", temporary)
    operations: list[str] = []
    files.set_crash_hook(lambda operation, _: operations.append(operation))
    files.write_whole(target, b"old", temporary)
    assert operations == ["open", "write", "fsync", "rename", "fsync folder"]
    for fatal in range(len(operations)):
        count = iter(range(100))

        def fail(operation: str, where: str, fatal=fatal, count=count) -> None:
            if next(count) == fatal:
                raise OSError(errno.EIO, "injected")

        files.set_crash_hook(fail)
        with pytest.raises(errors.OperationFailed):
            files.write_whole(target, b"new", temporary)
        assert target.read_bytes() == (b"new" if fatal == 4 else b"old")
        files.set_crash_hook(None)
        files.write_whole(target, b"old", temporary)


def test_read_whole_has_a_limit(tmp_path):
    (tmp_path / "big").write_bytes(bytes(101))
    assert len(files.read_whole(tmp_path / "big", 101)) == 101
    with pytest.raises(errors.NoStore, match="larger"):
        files.read_whole(tmp_path / "big", 100)


def test_links_and_devices_are_refused(tmp_path):
    (tmp_path / "target").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(errors.NoStore, match="symbolic link"):
        files.open_file(tmp_path / "link", os.O_RDONLY)
    with pytest.raises(errors.NoStore, match="regular"):
        files.open_file(tmp_path / "pipe", os.O_RDWR)


def test_reserved_space_changes_no_size_and_can_be_given_back(file):
    path, descriptor = file
    files.reserve(descriptor, 0, 1 << 20, path)
    assert path.stat().st_size == 0
    files.truncate(descriptor, 0, path)
    assert files.allocated_bytes(path) < 1 << 20
    assert files.allocated_bytes(Path("/nowhere/at/all")) == 0


def test_locks_are_between_descriptors_and_end_by_close(tmp_path):
    def descriptor() -> int:
        return files.open_file(tmp_path / "lock", os.O_RDWR | os.O_CREAT)

    one, two, three = descriptor(), descriptor(), descriptor()
    assert files.try_lock(one, exclusive=True)
    assert not files.try_lock(two, exclusive=True)
    assert not files.try_lock(two, exclusive=False)
    assert files.try_lock(one, exclusive=False)  # turned to shared
    assert files.try_lock(two, exclusive=False)
    assert not files.try_lock(three, exclusive=True)
    files.close_file(one)
    files.close_file(two)
    assert files.try_lock(three, exclusive=True)
    files.close_file(three)


def test_remote_file_systems_are_refused(tmp_path, monkeypatch):
    file_systems.refuse_remote(tmp_path)
    monkeypatch.setattr(files, "file_system_type", lambda _: 0x6969)
    with pytest.raises(errors.FileSystemRefused, match="NFS") as caught:
        file_systems.refuse_remote(tmp_path)
    assert "local disk" in caught.value.hint
