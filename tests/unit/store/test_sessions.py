from __future__ import annotations

import errno
import subprocess
import sys
import time

import pytest

from casckpt.errors import CasckptError
from casckpt.store import files, sessions
from casckpt.store.sessions import NO_LEASE, Session, list_sessions
from tests.unit.store.stores import flip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sessions").mkdir()
    return tmp_path


def epoch(folder) -> int:
    (info,) = list_sessions(folder)
    return info.epoch


def test_a_session_says_who_it_is_and_goes_with_its_file(folder):
    import os

    session = Session(folder)
    (info,) = list_sessions(folder)
    assert (info.uuid, info.pid, info.alive, info.epoch) == (
        session.uuid,
        os.getpid(),
        True,
        NO_LEASE,
    )
    assert abs(info.heartbeat_ns - time.time_ns()) < 60e9
    assert info.host
    session.close()
    assert list_sessions(folder) == []


def take(session: Session, number: int) -> sessions.Lease:
    def read() -> int:
        assert epoch(session.path.parent.parent) == 0
        return number

    return session.take_lease(read)


def test_the_smallest_lease_shows_and_taking_one_shows_as_zero(folder):
    session = Session(folder)
    one = take(session, 7)
    assert epoch(folder) == 7
    two = take(session, 5)
    assert epoch(folder) == 5
    session.end_lease(two)
    assert epoch(folder) == 7
    session.end_lease(one)
    session.end_lease(one)
    assert epoch(folder) == NO_LEASE
    session.close()


def test_a_lease_that_could_not_be_taken_is_not_held(folder):
    def read() -> int:
        raise RuntimeError("no index")

    session = Session(folder)
    with pytest.raises(RuntimeError):
        session.take_lease(read)
    assert epoch(folder) == NO_LEASE
    session.close()


@pytest.mark.parametrize("failing", [1, 2])
def test_a_lease_whose_write_fails_is_not_held(folder, failing):
    session = Session(folder)
    writes = []

    def fail(name: str, where: str) -> None:
        writes.append(name)
        if len(writes) == failing:
            raise OSError(errno.EIO, "injected")

    files.set_crash_hook(fail)
    with pytest.raises(CasckptError):
        session.take_lease(lambda: 4)
    files.set_crash_hook(None)
    assert len(writes) == failing + 1
    assert epoch(folder) == NO_LEASE
    session.close()


def test_equal_leases_are_two(folder):
    session = Session(folder)
    one, two = take(session, 3), take(session, 3)
    session.end_lease(one)
    assert epoch(folder) == 3
    session.end_lease(two)
    session.close()


def test_a_killed_session_is_dead_and_keeps_its_file(folder):
    code = (
        "import os, sys; from pathlib import Path; from casckpt.store.sessions import Session;"
        "s = Session(Path(sys.argv[1]));\n"
        "s.take_lease(lambda: 4)\n"
        "os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, folder], check=False)
    (info,) = list_sessions(folder)
    assert (info.alive, info.epoch) == (False, 4)


def test_an_unreadable_session_counts_as_a_save_in_flight(folder):
    session = Session(folder)
    flip(session.path, 30)
    (info,) = list_sessions(folder)
    assert (info.epoch, info.alive) == (0, True)
    session.beat()
    assert epoch(folder) == NO_LEASE
    session.close()


def test_strange_names_are_left_alone(folder):
    (folder / "sessions" / "README").write_text("x")
    assert list_sessions(folder) == []


def test_the_heartbeat_moves(folder, monkeypatch):
    session = Session(folder)
    (before,) = list_sessions(folder)
    monkeypatch.setattr(sessions.time, "time_ns", lambda: before.heartbeat_ns + 10**9)
    session.beat()
    (after,) = list_sessions(folder)
    assert after.heartbeat_ns == before.heartbeat_ns + 10**9
    session.close()


def test_a_session_holds_its_lock_though_somebody_looked_at_that_moment(folder, monkeypatch):
    """A listing locks a file for an instant to see whether it is held: a new session waits."""
    from casckpt.store import files

    whole = files.try_lock
    refused = iter([False, False])
    monkeypatch.setattr(
        files,
        "try_lock",
        lambda d, *, exclusive: next(refused, None) is None and whole(d, exclusive=exclusive),
    )
    session = Session(folder)
    monkeypatch.undo()
    (info,) = list_sessions(folder)
    assert info.alive
    session.close()
