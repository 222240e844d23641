"""`casckpt torture` passes here, and would not if something were wrong."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import casckpt
from casckpt.cli import root
from casckpt.cli.torture import probes, rounds, trace
from casckpt.cli.torture.expected import Expected, same, state
from casckpt.cli.torture.replay import Replay
from casckpt.errors import NoSpace
from casckpt.programs import environment_of
from casckpt.store import files

pytestmark = pytest.mark.skipif(bool(trace.why_not()), reason=trace.why_not() or "traced")


def nothing(tally):
    pass


@pytest.mark.slow
def test_the_verdict_is_one_line_of_json_for_each_result(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "casckpt", "torture", tmp_path, "--minutes", "0.05", "--json"],
        env=environment_of(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["command"] for line in lines} == {"torture"}
    by_event = {line["event"]: line for line in lines}
    assert by_event["verdict"]["passed"]
    assert by_event["kills"]["tried"] >= 1
    assert by_event["power"]["tried"] >= 1
    assert {line["name"] for line in lines if line["event"] == "probe"} == set(probes._PROBES)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_said(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "casckpt", "torture", tmp_path / "none"],
        env=environment_of(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 10


def test_too_little_room_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "free_bytes", lambda folder: 20 << 20)
    assert root.run(["torture", str(tmp_path)]) == 16
    what, why, remedy = capsys.readouterr().err.splitlines()
    assert "no room to torture" in what
    assert "20.0 MiB are free; 64.0 MiB" in why
    assert "nothing is wrong with this one" in remedy
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("said", ["NoSpace: cannot save a", "OSError: [Errno 28] No space left"])
@pytest.mark.parametrize("where", ["_one_kill", "look", "_record"])
def test_room_that_others_take_meanwhile_is_no_verdict(tmp_path, monkeypatch, capsys, said, where):
    def full(*args, **kwargs):
        rounds._refuse_full(tmp_path, f"Traceback:\n{said}\n")

    monkeypatch.setattr(probes, "_PROBES", {})
    if where == "look":
        monkeypatch.setattr(rounds.Looker, "look", full)
    else:
        monkeypatch.setattr(rounds, where, full)
    assert root.run(["torture", str(tmp_path), "--minutes", "0.05"]) == 16
    told = capsys.readouterr()
    assert "no room to torture" in told.err
    assert said in told.err
    assert "FAILED" not in told.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kills", "power", "said"),
    [
        (1, rounds.Tally(5, 5), "passed, 0 s"),
        (1, rounds.Tally(skipped="no tracing"), "passed, 0 s"),
        (1, rounds.Tally(5, 0), "passed, but no power failure came after a save: give it more"),
        (0, rounds.Tally(5, 0), "passed, but no kill and no power failure came after a save"),
        (0, rounds.Tally(skipped="no tracing"), "passed, but no kill came after a save"),
    ],
)
def test_a_test_that_came_before_every_save_is_no_proof(
    tmp_path, monkeypatch, capsys, kills, power, said
):
    monkeypatch.setattr(probes, "_PROBES", {})
    monkeypatch.setattr(rounds, "kills", lambda *_: rounds.Tally(3, kills))
    monkeypatch.setattr(rounds, "power", lambda *_: power)
    assert root.run(["torture", str(tmp_path)]) == 0
    assert said in capsys.readouterr().out


def test_a_full_disk_fails_no_probe(tmp_path, monkeypatch):
    def refuse(place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(probes, "_PROBES", {"flush": refuse})
    with pytest.raises(NoSpace):
        list(probes.run(tmp_path))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
)
def test_whoever_ends_it_has_the_folder_removed(tmp_path, number, code):
    process = subprocess.Popen(
        [sys.executable, "-m", "casckpt", "torture", tmp_path, "--minutes", "5", "--json"],
        env=environment_of(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert json.loads(process.stdout.readline())["event"] == "place"
    assert list(tmp_path.iterdir()) != []
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []
    if number == signal.SIGINT:
        assert told == "casckpt: interrupted; its folder is removed\n"


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    return folder, rounds._record(folder, 12)


def test_the_tracer_sees_every_change(recorded):
    folder, log = recorded
    replay = Replay(folder / "traced")
    for operation in log:
        if operation.kind != "said":
            replay.step(operation)
    disk = replay._now
    real = {
        str(path.relative_to(folder / "traced")): path.read_bytes()
        for path in (folder / "traced").rglob("*")
        if path.is_file() and path.name not in ("lock.mdb", "ballast")
    }
    replayed = {
        name: disk.files.get(inode, b"")
        for name, inode in disk.names.items()
        if inode >= 0 and not name.endswith(("lock.mdb", "ballast"))
    }
    assert replayed.keys() == real.keys()
    assert [name for name in real if real[name] != replayed[name]] == []
    assert any(operation.kind == "wsync" for operation in log)  # LMDB's head


def power(folder, log, monkeypatch):
    monkeypatch.setattr(rounds, "_record", lambda folder, seed: log)
    # To the first problem, or through a whole recording
    tally = rounds.power(folder, time.monotonic() + 120, random.Random(3), nothing)
    return tally


@pytest.mark.slow
def test_a_store_whose_packs_are_not_flushed_is_caught(recorded, tmp_path, monkeypatch):
    folder, log = recorded
    shutil.copytree(folder / "traced", tmp_path / "traced")
    place = str(folder / "traced")
    moved = [
        trace.Operation(
            one.kind,
            one.path.replace(place, str(tmp_path / "traced")),
            one.other.replace(place, str(tmp_path / "traced")),
            one.offset,
            one.data,
        )
        for one in log
        if not (one.kind == "sync" and one.path.endswith(".pack"))
    ]
    tally = power(tmp_path, moved, monkeypatch)
    assert tally.problems


def test_what_was_acknowledged_and_is_not_there_is_a_problem(tmp_path):
    with casckpt.open(tmp_path / "s") as store:
        store.save("a", state(1), 0)
        store.save("a", state(2), 1)
        store.save("b", state(3), 0)

        def problems(*lines):
            return Expected(lines).problems(store)

        right = [
            {"done": ["save", "a", 0, 1]},
            {"begin": ["save", "a", 1, 2]},
            {"begin": ["save", "b", 0, 3]},
        ]
        assert problems(*right) == []
        assert problems(*right, {"begin": ["save", "b", 1, 4]}) == []
        assert problems(*right, {"done": ["save", "b", 1, 4]}) == [
            "b@1 was acknowledged and is gone"
        ]
        assert problems(*right, {"done": ["save", "a", 0, 9]}) == [
            "a@0 came back as something else"
        ]
        assert problems(*right, {"done": ["delete", "a", 1, 0]}) == ["a@1 was removed and is back"]
        assert problems(*right[:2]) == ["b@0: nobody saved it"]
        assert not same(store.restore("a@0"), 2)


def test_a_looker_that_dies_is_a_problem_and_the_next_look_goes_on(tmp_path, monkeypatch):
    with casckpt.open(tmp_path / "s") as store:
        store.save("a", state(1), 0)
    looker = rounds.Looker()
    try:
        lines = [{"done": ["save", "a", 0, 1]}]
        assert looker.look(tmp_path / "s", lines, thorough=False) == []
        looker._child.kill()
        (problem,) = looker.look(tmp_path / "s", lines, thorough=False)
        assert "-9" in problem
        assert looker.look(tmp_path / "s", lines, thorough=True) == []
    finally:
        looker.close()


# ---- probes say what does not hold


def one(name, folder):
    (folder / "probe").mkdir()
    try:
        return probes._PROBES[name](folder / "probe")
    except (probes.NotHeld, OSError) as exc:
        return "fails", str(exc)
    finally:
        shutil.rmtree(folder / "probe")


def test_probes_hold_here(tmp_path):
    assert {found.verdict for found in probes.run(tmp_path)} <= {"holds", "note"}
    assert list(tmp_path.iterdir()) == []


def test_a_creation_that_two_win_fails(tmp_path, monkeypatch):
    real = os.open

    def careless(path, flags, *rest, **others):
        return real(path, flags & ~os.O_EXCL, *rest, **others)

    monkeypatch.setattr(os, "open", careless)
    assert one("exclusive creation", tmp_path)[0] == "fails"


def test_a_rename_that_is_not_atomic_fails(tmp_path, monkeypatch):
    def replace(self, target):
        Path(target).unlink()
        time.sleep(0.001)
        self.rename(target)

    monkeypatch.setattr(Path, "replace", replace)
    assert one("atomic rename", tmp_path)[0] == "fails"


def test_locks_that_do_not_lock_fail(tmp_path, monkeypatch):
    monkeypatch.setattr("casckpt.store.files.try_lock", lambda descriptor, **options: True)
    assert one("locks", tmp_path)[0] == "fails"


def test_times_that_stand_still_fail(tmp_path, monkeypatch):
    first = []

    real = Path.stat

    def stat(self, **_):
        first.append(real(self))
        return first[0]

    monkeypatch.setattr(Path, "stat", stat)
    (tmp_path / "probe").mkdir()
    with pytest.raises(probes.NotHeld):
        probes._PROBES["file times"](tmp_path / "probe")


def test_a_disk_that_cannot_flush_fails(tmp_path, monkeypatch):
    def broken(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", broken)
    found = {one.name: one for one in probes.run(tmp_path)}
    assert found["flush"].verdict == "fails"
    assert found["locks"].verdict == "holds"


def test_a_flush_faster_than_any_disk_is_noted(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: None)
    assert one("flush", tmp_path)[0] == "note"
