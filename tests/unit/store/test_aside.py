"""Stores that may not be written are read, from a copy of their index."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import casckpt
from casckpt.errors import (
    Corrupt,
    Deleted,
    NoStore,
    OperationFailed,
    PermissionRefused,
    StoreBusy,
)
from casckpt.programs import environment_of
from casckpt.store import Repository, aside, files, opening
from tests.unit.store.stores import check, save

NOBODY = 65534
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
# For an interpreter in a folder that is closed to others: to read all, and write nothing
AND_READ = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv"
)


@pytest.fixture
def stored(path):
    with Repository.open(path) as repository:
        saved = save(repository, [b"x" * 100_000, os.urandom(2000)])
    return path, saved


@pytest.fixture
def unwritable(monkeypatch):
    monkeypatch.setattr(aside, "may_write", lambda index: False)


def test_a_copy_reads_like_the_index_and_leaves_nothing(stored, unwritable, tmp_path, monkeypatch):
    path, saved = stored
    (tmp_path / "t").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "t"))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    with Repository.open(path, mode="r") as repository:
        check(repository, saved)
        assert list((tmp_path / "t").iterdir()) == []
        assert repository.verify().damaged == ()
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before


def test_what_came_later_is_not_in_it_and_what_went_is_no_damage(stored, unwritable):
    path, saved = stored
    with Repository.open(path, mode="r") as repository:
        script = (
            "import sys\n"
            "from casckpt.store import Repository\n"
            "from tests.unit.store.stores import save\n"
            f"with Repository.open({str(path)!r}) as repository:\n"
            f"    repository.trash([('run', {saved.seq})])\n"
            "    repository.gc(now=True)\n"
            "    save(repository, [b'new'], run='new')\n"
        )
        subprocess.run([sys.executable, "-c", script], env=environment_of(), check=True)
        assert [row.run for row in repository.checkpoint_rows()] == ["run"]
        with pytest.raises(Deleted, match="open it again"):
            check(repository, saved)
    with Repository.open(path, mode="r") as repository:
        assert [row.run for row in repository.checkpoint_rows()] == ["new"]


def test_a_damaged_index_is_found_before_it_is_used(stored, unwritable):
    path, _ = stored
    (path / "index.0" / "clean").unlink()
    data = path / "index.0" / "data.mdb"
    content = bytearray(data.read_bytes())
    content[2 * 4096 : 4 * 4096] = os.urandom(2 * 4096)
    data.write_bytes(content)
    with pytest.raises(Corrupt, match=r"index\.0 is damaged"):
        Repository.open(path, mode="r")
    data.unlink()
    with pytest.raises(Corrupt):
        Repository.open(path, mode="r")


def test_an_index_that_is_never_still_is_busy(stored, tmp_path, monkeypatch):
    path, _ = stored
    calls = 0

    def heads(data: bytes) -> list[bytes]:
        nonlocal calls
        calls += 1
        return [str(calls).encode()]

    monkeypatch.setattr(aside, "_heads", heads)
    monkeypatch.setattr(aside, "_WAIT_S", 0)
    with pytest.raises(StoreBusy, match="all the time"):
        aside.copy_index(path / "index.0", tmp_path)
    assert calls == 2 * aside._ATTEMPTS


def open_up(path: Path) -> None:
    """Let everybody read a store, and every folder on the way to it."""
    for place in (path, *path.rglob("*")):
        place.chmod(0o755 if place.is_dir() else 0o644)
    for folder in path.parents:
        if folder.stat().st_mode & stat.S_IXOTH == 0 and folder.is_relative_to("/tmp"):
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)


def is_reachable() -> bool:
    """Tell whether other users can start this interpreter."""
    command = [*AS_NOBODY, "sh", "-c", 'exec "$0" -c ""', sys.executable]
    return subprocess.run(command, capture_output=True, cwd="/").returncode == 0


def as_nobody(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AS_NOBODY, *(() if is_reachable() else AND_READ), sys.executable, *words],
        env=environment_of(HOME="/nonexistent"),
        capture_output=True,
        text=True,
        cwd="/",
    )


@needs_root
@pytest.mark.parametrize("stamped", [True, False])
def test_another_user_reads_the_store(tmp_path, stamped):
    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"v": 41})
    if is_reachable():
        refused = as_nobody("-m", "casckpt", "ls", "--store", str(tmp_path / "s"))
        assert refused.returncode == 10
    open_up(tmp_path / "s")
    if not stamped:
        (tmp_path / "s" / "index.0" / "clean").unlink()
    listed = as_nobody("-m", "casckpt", "ls", "-q", "--store", str(tmp_path / "s"))
    assert listed.returncode == 0, listed.stderr
    assert len(listed.stdout.split()) == 1
    whole = as_nobody("-m", "casckpt", "verify", "--store", str(tmp_path / "s"))
    assert whole.returncode == 0, whole.stderr
    script = (
        f"import casckpt; store = casckpt.open({str(tmp_path / 's')!r}, mode='r');"
        "assert store.restore('r')['v'] == 41"
    )
    assert as_nobody("-c", script).returncode == 0
    saving = as_nobody("-m", "casckpt", "tag", "r@0", "x", "--store", str(tmp_path / "s"))
    assert saving.returncode == 10
    assert len(saving.stderr.splitlines()) >= 3


@needs_root
def test_a_read_only_mount_is_read(tmp_path):
    with casckpt.open(tmp_path / "s") as store:
        store.save("r", {"v": 41})
    command = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"'
    arguments = ["unshare", "-m", "sh", "-c", command, "sh", str(tmp_path / "s"), sys.executable]
    if subprocess.run([*arguments, "-c", ""], capture_output=True).returncode:
        pytest.skip("mounts are not allowed here")
    script = (
        f"import casckpt; store = casckpt.open({str(tmp_path / 's')!r}, mode='r');"
        "assert store.restore('r')['v'] == 41"
    )
    done = subprocess.run([*arguments, "-c", script], env=environment_of(), capture_output=True)
    assert done.returncode == 0, done.stderr


# ---- who may read, and what is never followed


def test_a_store_is_its_owners_alone(tmp_path):
    old = os.umask(0)
    try:
        with casckpt.open(tmp_path / "s") as store:
            store.save("r", {"v": 1})
            store.gc(now=True)
    finally:
        os.umask(old)
    for place in ((tmp_path / "s"), *(tmp_path / "s").rglob("*")):
        allowed = 0o700 if place.is_dir() else 0o600
        assert stat.S_IMODE(place.stat().st_mode) == allowed, place


def test_a_folder_that_is_shared_makes_a_store_that_is_shared_but_never_with_all(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s").chmod(0o777)
    old = os.umask(0)
    try:
        with casckpt.open(tmp_path / "s") as store:
            store.save("r", {"v": 1})
    finally:
        os.umask(old)
    for place in (tmp_path / "s").rglob("*"):
        allowed = 0o775 if place.is_dir() else 0o664
        assert stat.S_IMODE(place.stat().st_mode) == allowed, place


def pack_folder(path: Path) -> Path:
    return next((path / "packs").iterdir())


@pytest.mark.parametrize(
    "place",
    ["format.json", "CURRENT", "lock", "packs", "sessions", "index.0", "index.0/data.mdb",
     "index.0/lock.mdb", "ballast", "reserve", "pack folder"],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["r", "a"])
def test_symbolic_links_are_not_followed(stored, tmp_path, place, mode):
    path, _ = stored
    target = pack_folder(path) if place == "pack folder" else path / place
    target.rename(tmp_path / "elsewhere")
    target.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NoStore) as caught:
        Repository.open(path, mode=mode)
    assert caught.value.hint.startswith("put back what belongs there")


def test_a_pack_that_is_a_link_is_damage(stored, tmp_path):
    path, saved = stored
    pack = next(pack_folder(path).iterdir())
    pack.rename(tmp_path / "elsewhere")
    pack.symlink_to(tmp_path / "elsewhere")
    with Repository.open(path, mode="r") as repository:
        with pytest.raises(NoStore, match="symbolic link"):
            check(repository, saved)
        assert [one.kind for one in repository.verify().damaged] == ["pack"]


@pytest.mark.parametrize(
    "place", ["format.json", "CURRENT", "index.0/data.mdb", "sessions", "lock"]
)
def test_pipes_are_neither_opened_nor_waited_for(stored, place):
    path, _ = stored
    target = path / place
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    os.mkfifo(target)
    with pytest.raises(NoStore) as caught:
        Repository.open(path, mode="r")
    assert "init" not in caught.value.hint


def test_open_file_refuses_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with pytest.raises(NoStore, match="not a regular file"):
            files.open_file(tmp_path / "pipe", flags)
    with pytest.raises(NoStore, match="not a regular file"):
        files.open_file(Path("/dev/null"), os.O_RDONLY)


# ---- after a crash, the first reader pays


def test_a_reader_alone_walks_once_and_stamps(stored, monkeypatch):
    path, saved = stored
    clean = path / "index.0" / "clean"
    clean.unlink()
    walks = []
    walk = opening.walk_index

    def counted(index: Path) -> bool:
        walks.append(index)
        return walk(index)

    monkeypatch.setattr(opening, "walk_index", counted)
    for _ in range(3):
        with Repository.open(path, mode="r") as repository:
            check(repository, saved)
    assert len(walks) == 1
    with Repository.open(path) as repository:
        save(repository, [b"more"], run="more")
        assert not clean.exists()
    with Repository.open(path, mode="r"):
        pass
    assert len(walks) == 1


def test_a_reader_does_not_stamp_an_index_older_than_its_packs(stored):
    path, _ = stored
    shutil.copytree(path / "index.0", path.parent / "old")
    with Repository.open(path) as repository:
        save(repository, [b"more"], run="more")
    shutil.copy(path.parent / "old" / "data.mdb", path / "index.0" / "data.mdb")
    with Repository.open(path, mode="r") as repository:
        assert len(repository.checkpoint_rows()) == 1
    assert not opening.stamp_fits(path / "index.0")
    with pytest.raises(Corrupt, match="older than its packs"):
        Repository.open(path)


def test_nobody_may_write_is_said_in_three_lines(stored, unwritable, monkeypatch):
    path, _ = stored

    def refuse(*args: object, **values: object) -> tuple[int, bool]:
        raise PermissionRefused("cannot open lock", "Read-only file system (errno 30)")

    monkeypatch.setattr(opening, "take_store_lock", refuse)
    with pytest.raises(PermissionRefused) as caught:
        Repository.open(path)
    assert len(str(caught.value).splitlines()) == 3


def test_where_no_copy_can_be_made_it_is_said(stored, unwritable, monkeypatch):
    path, _ = stored
    monkeypatch.setattr("tempfile.tempdir", str(path / "none"))
    with pytest.raises(OperationFailed, match="from a copy"):
        Repository.open(path, mode="r")
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(OperationFailed, match="cannot start"):
        Repository.open(path, mode="r")


@pytest.mark.parametrize(
    ("status", "said", "kind", "why"),
    [
        (StoreBusy.exit_code, "it is written all the time", StoreBusy, None),
        (PermissionRefused.exit_code, "Permission denied (errno 13)", PermissionRefused, None),
        (Corrupt.exit_code, "a traceback\nand what it ends with", Corrupt, "and what it ends with"),
        (1, "", Corrupt, "reading it ended with status 1"),
    ],
)
def test_what_ends_the_reader_of_an_index_is_the_error(
    stored, unwritable, tmp_path, monkeypatch, status, said, kind, why
):
    path, _ = stored
    (path / "index.0" / "clean").unlink()
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nprintf '%s' '{said}' >&2\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(kind) as caught:
        Repository.open(path, mode="r")
    assert type(caught.value) is kind
    assert "index.0" in caught.value.what
    assert caught.value.why == (why or said)
    assert len(str(caught.value).splitlines()) == 3
