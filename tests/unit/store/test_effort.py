"""How hard verify works, what it remembers between two runs, and how a finding is put."""

from __future__ import annotations

import json
import os
import time

import pytest

from casckpt.errors import BadRequest, Corrupt
from casckpt.store import Repository, effort, findings, pack_check
from casckpt.store.effort import Effort, Journal
from tests.unit.store.stores import MIB, flip, pack_files, save

STORE = b"s" * 16


def test_what_was_found_whole_is_remembered_although_nobody_says_goodbye(tmp_path, monkeypatch):
    """A kill loses what was noted in the last seconds, not all of it."""
    path = tmp_path / "journal"
    journal = effort.Journal(path, STORE, resume=False)
    journal.note(b"p" * 16, 4096)
    assert effort.Journal(path, STORE, resume=True).end(b"p" * 16) == 0
    monkeypatch.setattr(effort, "_SAVE_EVERY_S", 0.0)
    journal.note(b"q" * 16, 8192)
    again = effort.Journal(path, STORE, resume=True)
    assert [again.end(pack * 16) for pack in (b"p", b"q", b"r")] == [4096, 8192, 0]
    assert effort.Journal(path, b"t" * 16, resume=True).end(b"q" * 16) == 0
    assert effort.Journal(path, STORE, resume=False).end(b"q" * 16) == 0


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Corrupt("damaged record", "its bytes have another id"), "its bytes have another id"),
        (Corrupt("the index is damaged"), "the index is damaged"),
        (FileNotFoundError(2, "No such file", "x.pack"), "its pack file is missing"),
        (OSError("odd"), "odd"),
    ],
)
def test_a_finding_says_why_in_one_line(error, said):
    assert findings.reason(error) == said


# ---- how hard it works


def verified(path, journal=None, **values):
    """Return (report, payload bytes that were read)."""
    with Repository.open(path, mode="r") as repository:
        marks = None
        if journal is not None:
            file, resume = journal
            marks = Journal(file, repository.uuid, resume=resume)
        report = repository.verify("bytes", None, Effort(journal=marks, **values))
    return report, report.checked_bytes


@pytest.fixture
def many(path):
    """Return the folder of a store with five packs of 1 MiB."""
    for step in range(1, 6):
        with Repository.open(path) as repository:
            save(repository, [os.urandom(MIB)], step=step)
    return path


def test_a_sample_reads_its_share(many):
    _, everything = verified(many)
    assert everything > 5 * MIB
    halves = [verified(many, sample=0.5)[1] for _ in range(12)]
    assert min(halves) < everything * 0.75
    assert max(halves) > everything * 0.1
    assert len(set(halves)) > 3


def test_a_rate_holds_it_back(many, monkeypatch):
    slept: list[float] = []
    clock = [100.0]
    monkeypatch.setattr(effort.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    monkeypatch.setattr(effort.time, "sleep", sleep)
    _, read = verified(many, max_rate=MIB)
    # What may be read in a quarter of a second begins at once, if a chunk is no larger.
    assert (read - MIB) / MIB * 0.99 < sum(slept) < read / MIB
    assert max(slept) <= 0.25


def held_back(path, monkeypatch, file, until_s, resume=False):
    """Verify at 1 MiB/s by a clock of our own; return what progress said by then, and the report.

    Who sleeps gives the workers time to read: what the disk does takes none by that clock.
    """
    clock, said, now = [100.0], [], time.sleep
    monkeypatch.setattr(effort.time, "monotonic", lambda: clock[0])

    def sleep(seconds: float) -> None:
        now(0.05)
        clock[0] += seconds

    monkeypatch.setattr(effort.time, "sleep", sleep)

    def progress(done: int, total: int) -> None:
        said.append((clock[0] - 100, done, total))
        if clock[0] - 100 > until_s:
            raise KeyboardInterrupt

    with Repository.open(path, mode="r") as repository:
        marks = Journal(file, repository.uuid, resume=resume)
        if until_s < 60:
            with pytest.raises(KeyboardInterrupt):
                repository.verify("bytes", progress, Effort(max_rate=MIB, journal=marks))
            return said, None
        report = repository.verify("bytes", progress, Effort(max_rate=MIB, journal=marks))
    return said, report


def test_what_is_held_back_says_how_far_it_is_and_goes_on_from_there(many, tmp_path, monkeypatch):
    """Although five packs are less than what is under way where nothing is held back."""
    file = tmp_path / "journal.json"
    said, _ = held_back(many, monkeypatch, file, 3.0)
    total = said[0][2]
    assert total > 5 * MIB
    for at_s, done, _ in said:
        assert at_s - 0.6 < done / MIB < at_s + 2.1
    kept = Journal(file, bytes.fromhex(json.loads(file.read_text())["store"]), resume=True)
    whole = [kept.end(bytes.fromhex(pack.stem)) for pack in pack_files(many)]
    assert sum(end > MIB for end in whole) >= 2
    # What is left is what the second one counts, and all that it reads.
    said, report = held_back(many, monkeypatch, file, 60.0, resume=True)
    assert said[0][2] == pytest.approx(total - sum(whole), abs=1000)
    assert report.checked_bytes == pytest.approx(said[0][2], abs=1000)
    assert said[-1][1:] == (said[0][2], said[0][2])
    assert report.damaged == ()


def test_a_pack_that_was_left_in_its_midst_is_read_from_there(path, tmp_path, monkeypatch):
    with Repository.open(path) as repository:
        save(repository, [os.urandom(6 * MIB)])
    file = tmp_path / "journal.json"
    held_back(path, monkeypatch, file, 3.0)
    _, report = held_back(path, monkeypatch, file, 60.0, resume=True)
    assert 2 * MIB < report.checked_bytes < 5 * MIB
    # Stopped again before anything new was read, it has forgotten nothing.
    held_back(path, monkeypatch, file, 3.0)
    before = json.loads(file.read_text())
    held_back(path, monkeypatch, file, -1.0, resume=True)
    assert json.loads(file.read_text()) == before


@pytest.mark.parametrize("values", [{"sample": 0}, {"sample": 1.5}, {"max_rate": 0}])
def test_an_effort_that_cannot_be_is_refused(values):
    with pytest.raises(BadRequest):
        Effort(**values)


def test_it_goes_on_where_it_was_stopped(many, tmp_path, monkeypatch):
    file = tmp_path / "journal.json"
    monkeypatch.setattr(pack_check, "_UNITS_MAX", 2)
    _, everything = verified(many)

    class Stop(Exception):
        pass

    calls = 0

    def stop(done: int, total: int) -> None:
        nonlocal calls
        calls += done > total // 2
        if calls:
            raise Stop

    with Repository.open(many, mode="r") as repository:
        marks = Journal(file, repository.uuid, resume=False)
        with pytest.raises(Stop):
            repository.verify("bytes", stop, Effort(journal=marks))
    assert file.exists()
    report, rest = verified(many, journal=(file, True))
    assert report.damaged == ()
    assert everything * 0.2 < rest < everything * 0.8
    # Done: the next one begins anew.
    assert not file.exists()
    assert verified(many, journal=(file, True))[1] == everything


def test_what_was_damaged_is_found_again_and_what_grew_is_read(many, tmp_path):
    file = tmp_path / "journal.json"
    with Repository.open(many, mode="r") as repository:
        marks = Journal(file, repository.uuid, resume=False)
        for pack in pack_files(many)[:4]:
            marks.note(bytes.fromhex(pack.name.removesuffix(".pack")), pack.stat().st_size)
        marks.save()
    last = pack_files(many)[4]
    flip(last, MIB // 2)
    report, read = verified(many, journal=(file, True))
    assert [damage.pack for damage in report.damaged] == [last.name]
    assert read < 2 * MIB


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "store": "x"}'])
def test_a_journal_that_says_nothing_is_passed_over(many, tmp_path, text):
    file = tmp_path / "journal.json"
    file.write_text(text)
    assert verified(many, journal=(file, True))[1] > 5 * MIB
