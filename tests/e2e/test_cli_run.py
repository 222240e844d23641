"""`run`, `resume` and `stop` on a real training script that is killed."""

from __future__ import annotations

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import casckpt

SCRIPT = str(Path(__file__).with_name("train_counter.py"))


def script(*words: object) -> list[str]:
    return [sys.executable, SCRIPT, *map(str, words)]


def epochs(text: str) -> list[int]:
    return [int(line.split()[1]) for line in text.splitlines() if line.startswith("epoch ")]


def wait_for_epoch(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline().split()[1])


@pytest.mark.crash
def test_a_killed_command_is_started_again_and_goes_on(new_cli):
    answer = new_cli("run", "net", "--", *script(8, 0.01, "--die", 3, "--die", 6))
    assert answer.code == 0, answer.err
    assert epochs(answer.out) == list(range(1, 9))
    assert answer.err.count("it was killed by SIGKILL; starting it again in") == 2
    with casckpt.open(new_cli.store) as store:
        assert store.restore("net")["seen"] == list(range(1, 9))
        assert store.runs("net")[0].status == "finished"


@pytest.mark.crash
def test_a_command_that_begins_anew_does_so_once(new_cli):
    assert new_cli("run", "net", "--", *script(2)).code == 0
    answer = new_cli("run", "net", "--", *script(6, 0.01, "--die", 4, "--never"))
    assert answer.code == 0, answer.err
    assert epochs(answer.out) == [1, 2, 3, 4, 5, 6]
    assert new_cli("run", "net", "--", *script(2, "--never")).code == 0
    with casckpt.open(new_cli.store) as store:
        assert [store.latest(f"net~{line}").step for line in range(3)] == [2, 6, 2]


@pytest.mark.crash
def test_restarts_have_an_end_and_the_signal_comes_back(new_cli):
    answer = new_cli("run", "net", "--max-restarts", "0", "--", *script(8, 0.01, "--die", 3))
    assert answer.code == 128 + signal.SIGKILL
    assert "killed by SIGKILL, and restarts are off" in answer.err


def test_json_lines_tell_what_happens_and_the_output_moves_to_stderr(new_cli):
    answer = new_cli(
        "run", "x", "--max-restarts", "1", "--json", "--", "sh", "-c", "echo out; exit 7"
    )
    assert answer.code == 7
    events = [json.loads(line) for line in answer.out.splitlines()]
    assert [event["event"] for event in events] == [
        "start", "exit", "restart", "start", "exit", "end",
    ]  # fmt: skip
    assert {(event["schema"], event["command"], event["run"]) for event in events} == {
        (1, "run", "x")
    }
    assert events[1]["exit_code"] == 7
    assert events[2]["delay_s"] == 1.0
    assert answer.err.count("out") == 2


def test_a_wrong_setting_is_never_tried_again(new_cli):
    assert new_cli("run", "net", "--", *script(1)).code == 0
    answer = new_cli("run", "net", "--", *script(1, "--lr", 0.5))
    assert answer.code == 1  # Python's own for an exception; it is passed through
    assert "lr: 0.1 -> 0.5" in answer.err
    assert "a bad request" in answer.err
    assert "starting it again in" not in answer.err
    usage = new_cli("run", "net", "--", *script("--bogus"))
    assert usage.code == 2
    assert "starting it again in" not in usage.err


def test_a_command_that_opens_another_run_is_remarked_on(new_cli):
    answer = new_cli("run", "nett", "--", *script(1))
    assert answer.code == 0
    assert "There is no run nett: while the command ran, net changed" in answer.err
    again = new_cli("run", "net", "--", *script(1))
    assert "There is no run" not in again.err
    assert (
        "There is no run nett: while the command ran, net changed"
        in new_cli("run", "nett", "--", *script(1)).err
    )
    assert "opened no run in this store" in new_cli("run", "nett", "--", "true").err
    assert "There is no run" not in new_cli("run", "net", "--", "true").err
    assert "opened" not in new_cli("run", "nett", "--max-restarts", "0", "--", "false").err


def test_a_command_that_cannot_be_started_is_a_bad_request(new_cli):
    answer = new_cli("run", "net", "--", "no-such-program")
    assert answer.code == 2
    assert answer.err.splitlines()[0] == "casckpt: cannot start no-such-program"
    assert len(answer.err.splitlines()) == 3


def test_stop_saves_and_leaves_with_75_and_resume_goes_on(new_cli):
    process = new_cli.begin("run", "net", "--", *script(60, 0.1))
    first = wait_for_epoch(process)
    stopped = new_cli("stop", "net", "--wait")
    assert (stopped.code, stopped.out) == (0, "net has stopped\n")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "stopped by request; its state is saved" in err
    done = [first, *epochs(out)]
    shown = new_cli("resume", "net", "-n")
    assert shown.out.endswith(f"{sys.executable} {SCRIPT} 60 0.1\n")
    again = new_cli.begin("resume", "net")
    assert wait_for_epoch(again) == done[-1] + 1
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=20)
    assert again.returncode == 75
    with casckpt.open(new_cli.store) as store:
        assert store.runs("net")[0].reason == "SIGTERM"


def test_a_group_that_gets_sigterm_together_saves_once_and_leaves(new_cli):
    process = new_cli.begin("run", "net", "--", *script(60, 0.1), start_new_session=True)
    wait_for_epoch(process)
    os.killpg(process.pid, signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert "stopped by SIGTERM, saved as net@" in err


def test_a_group_that_gets_sigint_together_saves_once_and_leaves(new_cli):
    process = new_cli.begin("run", "net", "--", *script(60, 0.4), start_new_session=True)
    wait_for_epoch(process)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    with casckpt.open(new_cli.store) as store:
        assert "stop" in store.latest("net").reasons


def test_ctrl_c_of_a_terminal_reaches_the_command_once(new_cli):
    master, terminal = pty.openpty()
    process = new_cli.begin(
        "run",
        "net",
        "--",
        *script(60, 0.1),
        stdin=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: __import__("fcntl").ioctl(0, __import__("termios").TIOCSCTTY, 0),
    )
    os.close(terminal)
    wait_for_epoch(process)
    os.write(master, b"\x03")
    process.communicate(timeout=20)
    assert process.returncode in (128 + signal.SIGINT, 130)
    with casckpt.open(new_cli.store) as store:
        info = store.runs("net")[0]
    assert (info.status, info.reason) == ("stopped", "Ctrl+C")
    assert info.last is not None
    os.close(master)


def test_stop_reaches_a_supervisor_that_waits_to_start_again(new_cli):
    always = f"rm -f died-1; {shlex.join(script(3, 0, '--die', 1))}"
    process = new_cli.begin("run", "net", "--max-restarts", "9", "--", "sh", "-c", always)
    assert process.stderr is not None
    assert any("starting it again in 4.0 s" in line for line in process.stderr)
    assert json.loads(new_cli("stop", "net", "--json").out)["was_running"] == []
    _, err = process.communicate(timeout=20)
    assert process.returncode == 75, err


def test_stop_reaches_a_command_that_is_starting_again(new_cli, tmp_path):
    slow = "if test -f died-2; then touch again; sleep 2; fi"
    words = f"{slow}; {shlex.join(script(60, 0.1, '--die', 2))}"
    process = new_cli.begin("run", "net", "--", "sh", "-c", words)
    while not (tmp_path / "again").exists():
        assert process.poll() is None
        time.sleep(0.02)
    answer = new_cli("stop", "net")
    assert "Nobody is at work on net: it is lost" in answer.err
    assert "starting it now heeds the request" in answer.err
    out, err = process.communicate(timeout=20)
    assert process.returncode == 75, err
    assert len(epochs(out)) <= 2
    # It was meant for that supervision, whatever becomes of the next one.
    assert new_cli("run", "net", "--max-restarts", "1", "--", "sh", "-c", "exit 7").code == 7
    assert new_cli("run", "net", "--", *script(4)).code == 0


def test_a_second_supervisor_of_a_run_is_refused(new_cli):
    process = new_cli.begin("run", "net", "--", *script(60, 0.1))
    wait_for_epoch(process)
    for words in (["run", "net", "--", "true"], ["resume", "net"]):
        answer = new_cli(*words)
        assert answer.code == 11
        assert "being trained already" in answer.err
    process.terminate()
    process.communicate(timeout=20)


def test_resume_knows_only_commands_of_this_user_here(new_cli, own_cli):
    answer = own_cli("resume", "bpm/nn")
    assert answer.code == 12
    assert "no command of bpm/nn is recorded" in answer.err
    assert new_cli("run", "net", "--", *script(1)).code == 0
    document = json.loads(new_cli("resume", "net", "--json").out)
    assert document["command"] == "resume"
    assert document["argv"] == script(1)
    assert document["exit_code"] == 0


def test_resume_trains_in_the_store_of_the_run_whatever_is_set_now(new_cli, tmp_path):
    """CASCKPT_STORE was not set when it was recorded, and names another store now."""
    train = tmp_path / "train.py"
    train.write_text(
        "import os, sys, casckpt\n"
        "path = os.environ.get('CASCKPT_STORE', 'ckpts')\n"
        "with casckpt.open(path) as store, store.run('net') as run:\n"
        "    for epoch in run.epochs(int(sys.argv[1]), {}):\n"
        "        pass\n"
    )
    bare = {key: value for key, value in new_cli.environment.items() if key != "CASCKPT_STORE"}
    done = subprocess.run([sys.executable, "train.py", "2"], cwd=tmp_path, env=bare, check=False)
    assert done.returncode == 0
    with casckpt.open(tmp_path / "ckpts") as store:
        store.delete("net")
    words = ("--store", "ckpts", "resume", "net")
    shown = new_cli(*words, "-n", CUDA_VISIBLE_DEVICES="0").out
    assert " && env -u CASCKPT_STORE -u CUDA_VISIBLE_DEVICES PYTHONPATH=" in shown
    answer = new_cli(*words)
    assert answer.code == 0, answer.err
    assert not new_cli.store.exists()
    with casckpt.open(tmp_path / "ckpts") as store:
        assert store.latest("net").step == 2
        store.delete("net")
    assert subprocess.run(["sh", "-c", shown], env=new_cli.environment, check=False).returncode == 0
    assert not new_cli.store.exists()


def test_a_reader_that_leaves_does_not_end_the_supervision(new_cli):
    for words in (["--json"], []):
        process = new_cli.begin(
            "run", "net", *words, "--max-restarts", "1",
            "--", "sh", "-c", "echo x >> starts; sleep 0.3; exit 7",
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=20) == 7
        assert (new_cli.folder / "starts").read_text() == "x\nx\n"
        (new_cli.folder / "starts").unlink()


def test_the_command_gets_the_store_that_was_found(new_cli, tmp_path):
    (tmp_path / "project").mkdir()
    assert new_cli("init", str(tmp_path / "project" / ".casckpt")).code == 0
    answer = new_cli("run", "net", "--store", "project", "--", *script(2))
    assert answer.code == 0, answer.err
    assert "There is no run" not in answer.err
    with casckpt.open(tmp_path / "project" / ".casckpt", mode="r") as store:
        assert store.latest("net").step == 2


def test_stop_takes_a_pattern(new_cli, tmp_path):
    program = tmp_path / "two.py"
    program.write_text(
        "import sys, time, casckpt\n"
        "with casckpt.open(sys.argv[1]) as store, store.run(sys.argv[2]) as run:\n"
        "    for epoch in run.epochs(600, {}):\n"
        "        print(epoch, flush=True)\n"
        "        time.sleep(0.05)\n"
    )
    names = ["a/one", "a/two", "b"]
    trainings = [
        subprocess.Popen(
            [sys.executable, program, new_cli.store, name], stdout=subprocess.PIPE, text=True
        )
        for name in names
    ]
    try:
        for one in trainings:
            assert one.stdout.readline() == "1\n"
        answer = new_cli("stop", "a/*", "--wait")
        assert (answer.code, answer.out) == (0, "a/* has stopped\n")
        assert [one.wait(20) for one in trainings[:2]] == [75, 75]
        assert trainings[2].poll() is None
    finally:
        for one in trainings:
            one.kill()
            one.communicate()


def test_stop_of_nobody_and_of_nothing(own_cli):
    answer = own_cli("stop", "bpm/nn")
    assert answer.code == 0
    assert "Nobody is at work on bpm/nn" in answer.err
    assert own_cli("stop", "nonsense").code == 12
