"""Packs where memory fails: in the middle of a write, or while it is said to be over."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading

import pytest

from casckpt.store import files, pack_writer
from casckpt.store.pack_writer import PackFailed, PackWriter
from tests.unit.store.stores import append, scan


@pytest.fixture
def pack(tmp_path):
    (tmp_path / "packs").mkdir()
    return PackWriter(tmp_path, b"p" * 16, 1, b"s" * 16, b"e" * 16)


class NoMemory:
    """What a program with no memory meets: any use of it raises."""

    def __call__(self, *arguments):
        raise MemoryError

    __le__ = __add__ = __radd__ = __call__


@pytest.mark.parametrize("step", ["_WRITEBACK_BYTES", "_TAIL_BYTES", "encode_header"])
def test_a_record_for_which_memory_fails_keeps_nobody_waiting(pack, monkeypatch, step):
    append(pack, b"before")
    with monkeypatch.context() as patched:
        place = pack_writer.records if step == "encode_header" else pack_writer
        patched.setattr(place, step, NoMemory())
        with pytest.raises(MemoryError):
            append(pack, b"after")
    if step == "encode_header":  # its place was taken: what follows would stand behind a hole
        with pytest.raises(PackFailed):
            append(pack, b"more")
        pack.seal()
        return
    append(pack, b"more")
    assert [record.logical for record in scan(pack)] == [6, 4]
    assert pack.seal() == pack.end
    assert pack._records == 2


@pytest.mark.parametrize("waits", ["seal", "sync", "release_reserved"])
def test_who_waits_looks_again_where_nobody_says_that_a_write_is_over(pack, monkeypatch, waits):
    append(pack, b"before")
    inside, go_on = threading.Event(), threading.Event()
    write = files.write_vector

    def slow(*arguments):
        inside.set()
        assert go_on.wait(20)
        write(*arguments)

    monkeypatch.setattr(pack_writer, "_LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(files, "write_vector", slow)
    monkeypatch.setattr(pack._changed, "notify_all", NoMemory(), raising=False)
    failed = []

    def write_slowly():
        try:
            append(pack, b"x" * 100)
        except MemoryError:
            failed.append(True)

    writer = threading.Thread(target=write_slowly)
    writer.start()
    assert inside.wait(20)

    def wait():
        with contextlib.suppress(MemoryError):  # it has something to say itself
            getattr(pack, waits)()

    waiter = threading.Thread(target=wait)
    waiter.start()
    go_on.set()
    for thread in (writer, waiter):
        thread.join(20)
        assert not thread.is_alive()
    assert failed == [True]


_EACH_ALLOCATION = """
import itertools, sys, threading
from pathlib import Path
import _testcapi
from casckpt.errors import CasckptError
from casckpt.store import layout
from casckpt.store.pack_writer import PackWriter

def waits(timeout=None):
    raise SystemExit(f"allocation {number} of {call} fails, and {after} waits")

arguments = (layout.TYPE_CHUNK, layout.ENCODING_RAW, bytes(32), 7, (), b"payload")
append = lambda pack: pack.append(*arguments)
calls = {"append": append, "sync": PackWriter.sync, "seal": PackWriter.seal}
folder = Path(sys.argv[1])
(folder / "packs").mkdir()
uuids = (number.to_bytes(16, "big") for number in itertools.count())
for call, do in calls.items():
    for number in itertools.count(1):
        pack, failed = PackWriter(folder, next(uuids), 1, bytes(16), bytes(16)), False
        pack.append(*arguments)
        _testcapi.set_nomemory(number, number + 1)
        try:
            do(pack)
        except (MemoryError, CasckptError, RuntimeError, SystemError, TypeError):
            failed = True
        _testcapi.remove_mem_hooks()
        pack._changed.wait = waits
        for after in ("sync", "seal"):
            try:
                calls[after](pack)
            except CasckptError:
                pass
        pack.path.unlink()
        if number > 40 and not failed:
            break
    print(call, number)
"""


def test_whichever_allocation_of_a_call_fails_later_calls_do_not_wait(tmp_path):
    pytest.importorskip("_testcapi", reason="this Python comes without its test helpers")
    command = [sys.executable, "-c", _EACH_ALLOCATION, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 3
