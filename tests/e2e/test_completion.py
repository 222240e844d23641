"""What a real bash makes of TAB: it cuts words at `@` and `:`, which stand within REFs."""

from __future__ import annotations

import os
import pty
import select
import shutil
import sys
import time
from pathlib import Path

import pytest

import casckpt

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def press(new_cli):
    """Return what types a line, ends it with TAB, and returns the line as bash has it then."""
    with casckpt.open(new_cli.store) as store:
        for step in (5, 70):
            tags = ["paper"] if step == 5 else []
            store.save("bpm/nn", {"a": step}, step, metrics={"val_loss": 1 / step}, tags=tags)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process, terminal = pty.fork()
    if process == 0:
        about = {"TERM": "dumb", "PS1": "$ ", "PATH": path, "CASCKPT_STORE": str(new_cli.store)}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], {**os.environ, **about})

    def read(until: str) -> str:
        said, ends = "", time.monotonic() + 20
        while until not in said and time.monotonic() < ends:
            if select.select([terminal], [], [], 0.1)[0]:
                said += os.read(terminal, 4096).decode(errors="replace")
        return said

    def typed(line: str) -> str:
        # What the line is in the end is said by an `echo` in front of it: ^A, and ^E for its end.
        os.write(terminal, f"{line}\t\x01echo '<<' \x05 '>>'\n".encode())
        said = read(" >>\r\n")
        return said.rpartition("<< ")[2].partition(" >>")[0].strip()

    os.write(terminal, b'eval "$(casckpt completion bash)"; echo re""ady\n')
    assert "ready\r\n" in read("ready\r\n")
    yield typed
    os.write(terminal, b"\x15exit\n")
    os.waitpid(process, 0)
    os.close(terminal)


@pytest.mark.parametrize(
    ("begun", "whole"),
    [
        ("casckpt sho", "casckpt show"),
        ("casckpt show bpm/n", "casckpt show bpm/nn"),
        ("casckpt show bpm/nn@pap", "casckpt show bpm/nn@paper"),
        ("casckpt show bpm/nn@7", "casckpt show bpm/nn@70"),
        ("casckpt show bpm/nn@best:va", "casckpt show bpm/nn@best:val_loss:m"),
        ("casckpt show bpm/nn@best:val_loss:mi", "casckpt show bpm/nn@best:val_loss:min"),
        ("casckpt ls --best val", "casckpt ls --best val_loss"),
    ],
)
def test_tab_completes(press, begun, whole):
    assert press(begun) == whole
