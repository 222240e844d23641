"""A child of a fork keeps no lock that its parent held, whatever call that was in the midst of."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from casckpt.errors import StoreBusy
from casckpt.store import (
    Repository,
    collection,
    collectors,
    files,
    layout,
    lock_files,
    rebuilding,
    sessions,
)
from tests.unit.store.stores import save

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*")


@contextlib.contextmanager
def forked(work: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Fork; the child does `work` and lives as long as the body of the `with`."""
    done, go_on = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()
            os.write(done[1], b"x")
            os.close(go_on[1])
            os.read(go_on[0], 1)
        finally:
            os._exit(0)
    os.close(done[1])
    try:
        assert os.read(done[0], 1) == b"x"
        yield
    finally:
        os.close(go_on[1])
        os.waitpid(child, 0)
        for descriptor in (done[0], go_on[0]):
            os.close(descriptor)


@contextlib.contextmanager
def in_the_midst(monkeypatch, owner, name: str, call: Callable[[], object]) -> Iterator[None]:
    """Run the body while a thread is in `call`, about to do `owner.name`; then let it go on."""
    inside, go_on = threading.Event(), threading.Event()
    real = getattr(owner, name)

    def wait(*given: object, **named: object) -> object:
        inside.set()
        assert go_on.wait(20)
        return real(*given, **named)

    monkeypatch.setattr(owner, name, wait)
    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert inside.wait(20)
        yield
    finally:
        go_on.set()
        thread.join()
        monkeypatch.setattr(owner, name, real)


def test_a_fork_beside_a_collection_keeps_nobody_from_collecting(repository, monkeypatch):
    save(repository, [os.urandom(1000)])
    fork = contextlib.ExitStack()
    with in_the_midst(monkeypatch, collection._Collector, "_compact", repository.gc):
        fork.enter_context(forked())
    with fork:
        repository.gc()
        assert repository.repair().lost == ()


def test_a_fork_beside_a_rebuild_keeps_nobody_from_the_store(path, monkeypatch):
    fork = contextlib.ExitStack()
    rebuild = lambda: Repository.rebuild_index(path)  # noqa: E731
    with in_the_midst(monkeypatch, rebuilding._Rebuild, "_index_objects", rebuild):
        fork.enter_context(forked())
    with fork, Repository.open(path) as repository:
        repository.accept_rebuild()
    Repository.rebuild_index(path)


def test_a_fork_beside_a_session_that_begins_leaves_it_to_the_parent(repository, monkeypatch):
    """The child got the file before it was locked: it would hold the lock of it all the same."""
    fork = contextlib.ExitStack()
    shared = repository._shared()
    with in_the_midst(monkeypatch, files, "try_lock", shared.session):
        fork.enter_context(forked())
    with fork:
        (info,) = sessions.list_sessions(repository.path)
        assert info.alive
        lock_files.close_lock(shared.session()._descriptor)
        (info,) = sessions.list_sessions(repository.path)
        assert not info.alive


def test_a_child_that_leaves_the_call_it_was_made_in_closes_nothing_else(repository):
    path = repository.path / layout.GC_LOCK_FILE
    descriptor = lock_files.open_to_lock(path, os.O_RDWR)
    assert files.try_lock(descriptor, exclusive=True)

    def leave() -> None:
        other = os.open(path, os.O_RDONLY)
        lock_files.close_lock(descriptor)
        os.fstat(other)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)

    with forked(leave):
        with pytest.raises(StoreBusy, match="another collector"):
            repository.gc()
        lock_files.close_lock(descriptor)
        repository.gc()


def test_locks_end_in_a_child_without_descriptors_too(repository, monkeypatch):
    path = repository.path / layout.GC_LOCK_FILE
    descriptor = lock_files.open_to_lock(path, os.O_RDWR)
    assert files.try_lock(descriptor, exclusive=True)

    def fail(value: int) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "eventfd", fail)
    with forked():
        lock_files.close_lock(descriptor)
        repository.gc()


@pytest.mark.parametrize(
    ("owner", "name"), [(os, "eventfd"), (os, "dup2"), (lock_files, "_give_up")]
)
def test_a_child_without_memory_ends_no_lock_of_its_parent(repository, monkeypatch, owner, name):
    path = repository.path / layout.GC_LOCK_FILE
    descriptor = lock_files.open_to_lock(path, os.O_RDWR)
    assert files.try_lock(descriptor, exclusive=True)

    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, fail)
        with forked(lambda: lock_files.close_lock(descriptor)):
            pass
    with (
        Repository.open(repository.path) as other,
        pytest.raises(StoreBusy, match="another collector"),
    ):
        other.gc()
    lock_files.close_lock(descriptor)


@contextlib.contextmanager
def another_has_the_descriptors() -> Iterator[None]:
    """Run the body while a program has all that is locked open, as each has before its exec."""
    with subprocess.Popen(["sleep", "100"], pass_fds=sorted(lock_files._noted)) as program:
        try:
            yield
        finally:
            program.kill()


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_program_that_begins_while_a_store_is_open_keeps_nobody_from_it(path, mode):
    with contextlib.ExitStack() as programs:
        with Repository.open(path) as repository:
            save(repository, [b"bytes" * 1000])
            programs.enter_context(another_has_the_descriptors())
        with Repository.open(path, mode=mode) as repository:
            repository.verify()
            programs.enter_context(another_has_the_descriptors())
        for later in ("r", "a"):
            with Repository.open(path, mode=later) as repository:
                repository.verify()
        assert all(not info.alive for info in sessions.list_sessions(path))
        Repository.rebuild_index(path)


def test_a_program_that_begins_beside_readers_keeps_no_writer_out(path):
    with Repository.open(path, mode="r") as reader:
        reader.verify()
        with another_has_the_descriptors(), Repository.open(path) as repository:
            save(repository, [b"bytes" * 1000])
            reader.verify()


def test_a_program_that_begins_beside_a_collection_or_a_rebuild_keeps_nobody_from_the_next(path):
    with contextlib.ExitStack() as programs:
        with Repository.open(path) as repository:
            with collectors.gc_lock(repository._shared()):
                programs.enter_context(another_has_the_descriptors())
            repository.gc()
        with rebuilding._alone(path):
            programs.enter_context(another_has_the_descriptors())
        Repository.rebuild_index(path)


_IS_FREE = """
import os, sys
from casckpt.store import files
for name, start, length in (("lock", 0, 0), ("index.0/lock.mdb", 0, 1),
                            ("index.0/lock.mdb", int(sys.argv[2]), 1)):
    descriptor = os.open(f"{sys.argv[1]}/{name}", os.O_RDWR)
    assert not files.try_lock(descriptor, exclusive=True, start=start, length=length), name
"""


@pytest.mark.parametrize("has_descriptors", [True, False])
def test_a_child_that_closes_what_it_inherits_ends_no_lock_of_its_parent(
    path, monkeypatch, has_descriptors
):
    with Repository.open(path) as repository:
        save(repository, [b"bytes" * 1000])
        shared = repository._shared()
        if not has_descriptors:

            def fail(value: int) -> int:
                raise OSError(24, "Too many open files")

            monkeypatch.setattr(os, "eventfd", fail)

        def close() -> None:
            repository.close()
            shared.session().close()
            shared.environment.close()
            lock_files.close_lock(shared._lock)

        with forked(close):
            command = [sys.executable, "-c", _IS_FREE, str(path), str(os.getpid())]
            subprocess.run(command, check=True)


def test_a_file_that_cannot_be_noted_is_closed(repository, monkeypatch):
    class Full(set):
        def add(self, one: int) -> None:
            raise MemoryError

    monkeypatch.setattr(lock_files, "_noted", Full())
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MemoryError):
        lock_files.open_to_lock(repository.path / layout.GC_LOCK_FILE, os.O_RDWR)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_session_does_not_wait_for_its_own_lock_for_ever(repository, monkeypatch):
    monkeypatch.setattr(sessions, "_LOCK_WAIT_S", 0.02)
    monkeypatch.setattr(files, "try_lock", lambda descriptor, *, exclusive: False)
    with pytest.raises(StoreBusy, match="cannot begin a session") as error:
        sessions.Session(repository.path)
    monkeypatch.undo()
    assert "try again" in error.value.hint
    assert list((repository.path / "sessions").iterdir()) == []
