"""The grace of the trash, and what is due, beside clocks that were wrong."""

from __future__ import annotations

import time

import pytest

from casckpt.errors import NotFound
from casckpt.store import Repository, autocollect, clock, layout
from tests.unit.store.stores import check, save

HOUR_NS = 3600 * 10**9
YEAR_NS = 365 * 24 * HOUR_NS
_GRACE_NS = int(layout.GRACE_S * 1e9)


class Clocks:
    """A machine whose wall clock, boot clock and boot a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall_ns = time.time_ns()
        self.boot_ns = 50 * HOUR_NS
        self.boot = b"first boot".ljust(16)
        monkeypatch.setattr(time, "time_ns", lambda: self.wall_ns)
        monkeypatch.setattr(clock, "boot_ns", lambda: self.boot_ns)
        monkeypatch.setattr(clock, "boot_id", lambda: self.boot)

    def pass_by(self, nanoseconds: int) -> None:
        self.wall_ns += nanoseconds
        self.boot_ns += nanoseconds

    def reboot(self) -> None:
        self.boot = b"second boot".ljust(16)
        self.boot_ns = 10**9


@pytest.fixture
def clocks(monkeypatch) -> Clocks:
    return Clocks(monkeypatch)


def due(repository: Repository) -> bool:
    with repository._shared().environment.read() as tx:
        return autocollect.is_due(tx, time.time_ns())


def number(repository: Repository, name: str) -> int:
    with repository._shared().environment.read() as tx:
        return tx.number(name)


@pytest.mark.parametrize("jump_ns", [-5 * YEAR_NS, 5 * YEAR_NS])
def test_a_wall_clock_that_jumps_neither_shortens_nor_lengthens_the_grace(
    repository, clocks, jump_ns
):
    saved = save(repository, [b"x" * 1000])
    clocks.wall_ns -= jump_ns  # wrong when it came into the trash
    repository.trash([("run", saved.seq)])
    clocks.wall_ns += jump_ns
    clocks.pass_by(_GRACE_NS - 10**9)
    assert repository.gc().expired == 0
    repository.untrash([("run", saved.seq)])
    check(repository, saved)
    repository.trash([("run", saved.seq)])
    clocks.wall_ns += jump_ns  # wrong when it is collected
    assert repository.gc().expired == 0
    clocks.pass_by(_GRACE_NS + 10**9)
    assert repository.gc().expired == 1
    with pytest.raises(NotFound):
        repository.untrash([("run", saved.seq)])


def test_trash_of_another_boot_whose_clock_was_ahead_gets_a_grace_from_now_on(repository, clocks):
    saved = save(repository, [b"x" * 1000])
    clocks.wall_ns += 5 * YEAR_NS
    repository.trash([("run", saved.seq)])
    clocks.wall_ns -= 5 * YEAR_NS
    clocks.reboot()
    clocks.pass_by(2 * HOUR_NS)
    assert repository.gc().expired == 0
    clocks.pass_by(_GRACE_NS - 10**9)
    assert repository.gc().expired == 0
    clocks.pass_by(2 * 10**9)
    assert repository.gc().expired == 1


def test_trash_of_another_boot_goes_by_the_wall_clock(repository, clocks):
    saved = save(repository, [b"x" * 1000])
    repository.trash([("run", saved.seq)])
    clocks.reboot()
    clocks.wall_ns += _GRACE_NS - 1
    assert repository.gc().expired == 0
    clocks.wall_ns += 1
    assert repository.gc().expired == 1


def test_a_collection_whose_clock_was_ahead_does_not_keep_off_the_next(
    repository, clocks, monkeypatch
):
    monkeypatch.setattr(autocollect, "LEAST_BYTES", 100_000)
    clocks.wall_ns += 5 * YEAR_NS
    repository.gc()
    clocks.wall_ns -= 5 * YEAR_NS
    saved = save(repository, [bytes(range(256)) * 4000], level="fast")
    repository.bury([("run", saved.seq, b"\x01payload")])
    assert due(repository)
    repository.gc()
    assert number(repository, "gc_at") == clocks.wall_ns


def test_trash_that_came_while_the_clock_was_ahead_does_not_keep_other_trash(repository, clocks):
    first, second = (save(repository, [b"x" * 1000], run=run) for run in ("a", "b"))
    clocks.wall_ns += 5 * YEAR_NS
    repository.trash([("a", first.seq)])
    clocks.wall_ns -= 5 * YEAR_NS
    assert due(repository)
    repository.trash([("b", second.seq)])
    assert number(repository, "trash_since") == clocks.wall_ns
    repository.gc()
    assert number(repository, "trash_since") == clocks.wall_ns
    assert not due(repository)
    clocks.pass_by(_GRACE_NS + 10**9)
    assert due(repository)
    assert repository.gc().expired == 2
    assert number(repository, "trash_since") == 0
