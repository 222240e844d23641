"""Several processes at work on one store at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from casckpt.errors import StoreBusy
from casckpt.store import Repository, writer_lock
from tests.unit.store.stores import check, save

SAVER = """
import os, sys
sys.path.insert(0, os.getcwd())
from casckpt.errors import RunMoved
from casckpt.store import Repository
from casckpt.store.saving import SaveAgain
from tests.unit.store.stores import save
path, run, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
shared = bytes(range(256)) * 2000
with Repository.open(path) as repository:
    print("open", flush=True)
    sys.stdin.readline()
    step = done = 0
    while done < count:
        step += 1
        try:
            save(repository, [shared, os.urandom(20_000)], run=run, step=step + os.getpid() * 1000)
            done += 1
            print("saved", flush=True)
        except (RunMoved, SaveAgain):
            continue
"""


def start(path, run: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SAVER, str(path), run, str(count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(children) -> None:
    for child in children:
        assert child.stdout.readline() == "open\n"
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()


def contents(repository, row) -> None:
    """Read a checkpoint that another process saved; every chunk is checked against its id."""
    from casckpt.store import BlobRead

    refs, _ = repository.read_manifest(row.manifest_id)
    sizes = repository.closure([row.manifest_id])
    for ref in refs:
        length = sizes[ref][0] if len(refs) else 0
        if length in (512_000, 20_000):
            repository.read_blobs([BlobRead(ref, length, 0, bytearray(length))])


def test_savers_of_several_processes_and_a_reader_beside_them(path):
    children = [start(path, f"run{number}", 10) for number in range(2)]
    with Repository.open(path) as repository:
        begin(children)
        seen = 0
        while any(child.poll() is None for child in children):
            rows = repository.checkpoint_rows()
            assert len(rows) >= seen
            seen = len(rows)
            for row in rows[-2:]:
                contents(repository, row)
        for child in children:
            output, _ = child.communicate()
            assert child.returncode == 0
            assert output.count("saved") == 10
        assert len(repository.checkpoint_rows()) == 20
        report = repository.verify("bytes")
        assert report.damaged == ()
        assert len(report.whole) == 20


def test_savers_of_one_run_take_turns(path):
    children = [start(path, "shared", 8) for _ in range(2)]
    begin(children)
    for child in children:
        child.communicate()
        assert child.returncode == 0
    with Repository.open(path) as repository:
        rows = repository.checkpoint_rows("shared")
        assert len(rows) == 16
        assert len({row.seq for row in rows}) == 16


def test_a_killed_saver_loses_nothing_that_it_said_was_saved(path):
    child = start(path, "killed", 1000)
    begin([child])
    with Repository.open(path) as repository:
        said = 0
        while said < 5:
            assert child.stdout.readline() == "saved\n"
            said += 1
        child.send_signal(signal.SIGKILL)
        said += child.communicate()[0].count("saved\n")
        rows = repository.checkpoint_rows("killed")
        assert len(rows) in (said, said + 1)
        for row in rows:
            contents(repository, row)
        # Its locks died with it: the next save needs no person.
        check(repository, save(repository, [os.urandom(1000)], run="next"))
    with Repository.open(path) as repository:
        report = repository.verify("bytes")
        assert report.damaged == ()
        assert len(report.whole) == len(rows) + 1


@pytest.mark.parametrize("rounds", [6])
def test_a_collector_beside_savers_of_other_processes(path, rounds):
    children = [start(path, f"run{number}", 15) for number in range(2)]
    with Repository.open(path) as repository:
        kept = save(repository, [os.urandom(100_000)], run="kept")
        begin(children)
        dropped = 0
        for number in range(rounds):
            gone = save(repository, [os.urandom(100_000)], run="gone", step=number)
            repository.trash([("gone", gone.seq)])
            dropped += repository.gc(now=True, force=True).dropped_packs
        for child in children:
            output, _ = child.communicate()
            assert child.returncode == 0
            assert output.count("saved") == 15
        assert dropped > 0
        check(repository, kept)
        assert len(repository.checkpoint_rows()) == 31
        report = repository.verify("bytes")
        assert report.damaged == ()
        assert len(report.whole) == 31


INSIDE = """
import sys
from casckpt.store import Repository
with Repository.open(sys.argv[1]) as repository:
    def stay(tx):
        print("inside", flush=True)
        sys.stdin.readline()
    repository._shared().writer.run(stay, facts=False)
"""


def test_nobody_waits_without_end_for_a_process_that_stands_still(path, monkeypatch):
    with Repository.open(path) as repository:
        saved = save(repository, [b"before"])
    command = [sys.executable, "-c", INSIDE, str(path)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "inside\n"
        child.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(writer_lock, "OPEN_WAIT_S", 0.1)
        with pytest.raises(StoreBusy, match=f"process {child.pid} has held"):
            Repository.open(path)
        with Repository.open(path, mode="r") as reader:
            check(reader, saved)
            with pytest.raises(StoreBusy):
                Repository.open(path)
            check(reader, saved)
    finally:
        child.kill()
        child.communicate()
    with Repository.open(path) as repository:
        check(repository, save(repository, [b"after"], step=2))
