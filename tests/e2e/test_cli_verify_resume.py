"""`verify-resume` on commands that resume exactly, that forget something, and that are random."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCRIPT = str(HERE / "train_counter.py")
OPENS = "import casckpt, os; casckpt.open(os.environ['CASCKPT_STORE']).close()"


def script(*words: object) -> list[str]:
    return [sys.executable, SCRIPT, *map(str, words)]


@pytest.mark.crash
def test_a_command_that_resumes_exactly(new_cli):
    answer = new_cli("verify-resume", "--kills", "2", "--seed", "5", "--", *script(12, 0.08))
    assert answer.code == 0, answer.err
    assert answer.out.startswith("net@12  same, ")
    assert "2 kills landed" in answer.err
    assert not new_cli.store.exists()


@pytest.mark.crash
def test_a_command_that_forgets_a_part_is_found_out(new_cli):
    words = script(20, 0.15, "--forgets")
    answer = new_cli("verify-resume", "--kills", "1", "--seed", "2", "--json", "--", *words)
    assert answer.code == 1, answer.err
    document = json.loads(answer.out)
    assert (document["same"], document["repeatable"]) == (False, True)
    assert document["kills_landed"] == 1
    (run,) = document["runs"]
    (change,) = run["changed"]
    assert change["path"] == "outside"
    assert float(change["whole"]) > float(change["resumed"])


@pytest.mark.crash
def test_a_command_that_is_never_the_same_is_told_apart(new_cli):
    words = script(6, 0.15, "--random")
    answer = new_cli("verify-resume", "--kills", "1", "--", *words)
    assert answer.code == 1
    assert "it does so when nothing interrupts it, too" in answer.err
    assert "drawn.0" in answer.out


@pytest.mark.crash
@pytest.mark.slow
def test_stages_and_children_are_compared_too(new_cli):
    words = [sys.executable, str(HERE / "train_stages.py"), "--pace", "0.1"]
    answer = new_cli("verify-resume", "--kills", "2", "--scratch", "kept", "--", *words)
    assert answer.code == 0, answer.err
    assert [line.split()[:2] for line in answer.out.splitlines()] == [
        ["nas", "same,"], ["nas/model-0@2", "same,"], ["nas/model-1@2", "same,"],
    ]  # fmt: skip
    assert sorted(path.name for path in (new_cli.folder / "kept").iterdir()) == [
        "calls", "killed", "killed.log", "whole", "whole.log",
    ]  # fmt: skip
    assert new_cli("verify-resume", "--scratch", "kept", "--", "true").code == 2


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["true"], 2, "did not use the store"),
        (["false"], 3, "failed by itself: exit code 1"),
        (["no-such-program"], 2, "cannot start"),
        ([sys.executable, "-c", OPENS], 2, "nothing to compare"),
        (script(1, 0), 0, ""),
    ],
)
def test_commands_that_cannot_be_judged(new_cli, words, code, text):
    answer = new_cli("verify-resume", "--kills", "1", "--", *words)
    if code:
        assert answer.code == code
        assert text in answer.err
    else:  # too short: a kill may land or not, but never silently prove nothing
        assert answer.code in (0, 3)
        assert "no kill landed" in answer.err or "1 kill landed" in answer.err


@pytest.fixture
def unignored():
    """Let programs die of SIGHUP, also where these tests were started by nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_asked_to_end_takes_the_command_and_the_folder_along(new_cli, number, unignored):
    temporary = new_cli.folder / "temporary"
    temporary.mkdir()
    sleeps = "import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)"
    process = new_cli.begin(
        "verify-resume", "--", sys.executable, "-c", sleeps,
        env={**new_cli.environment, "TMPDIR": str(temporary)},
    )  # fmt: skip
    noted = new_cli.folder / "pid"
    while not (noted.exists() and noted.read_text()):
        assert process.poll() is None
        time.sleep(0.01)
    assert len(list(temporary.iterdir())) == 1
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (128 + number, "", "")
    with pytest.raises(ProcessLookupError):
        os.kill(int(noted.read_text()), 0)
    assert list(temporary.iterdir()) == []


def test_nothing_is_left_of_how_scratch_runs_were_started(new_cli):
    new_cli("verify-resume", "--kills", "1", "--", *script(3, 0.2))
    assert list(new_cli.folder.glob(".local/state/casckpt/commands/*")) == []
