"""No memory, a stopped holder of locks, forks, clocks that jump."""

from __future__ import annotations

import pytest

from tests.crash import hardship

pytestmark = pytest.mark.crash
_EVENT = "threading.py wait, threading.py wait"
_WOKEN = f"threading.py wait {hardship._TAKES_BACK[1]}"


def test_hardship_loses_nothing_acknowledged(row):
    row("hardship")


@pytest.mark.parametrize(
    ("threads", "waits"),
    [
        ("threading.py wait, threading.py start, own_packs.py append; thread.py run", True),
        ("threading.py wait, _base.py result, saving.py put; index_writer.py _loop", True),
        ("threading.py wait, _base.py result, saving.py put; packs.py seal, thread.py run", False),
        ("threading.py wait, index_writer.py run, saving.py put; index_writer.py _loop", False),
        (
            f"{_EVENT}, index_writer.py run; {_WOKEN}, index_writer.py _take; thread.py x",
            True,
        ),
        (f"{_EVENT}, index_writer.py run; threading.py wait, index_writer.py _take", False),
        (f"files.py sync, index_writer.py run; {_WOKEN}, index_writer.py _take", False),
    ],
)
def test_a_wait_of_pythons_own_is_told_from_ours(threads, waits, tmp_path):
    stack = tmp_path / "said.stack"
    lines = []
    for number, frames in enumerate(threads.split("; ")):
        lines.append(f"Thread 0x{number:016x} (most recent call first):")
        for frame in frames.split(", "):
            file, function, *line = frame.split()
            lines.append(f'  File "/somewhere/{file}", line {[*line, 7][0]} in {function}')
    stack.write_text("\n".join(lines))
    assert hardship._waits_for_python(stack) is waits
