from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import casckpt
from casckpt import supervised
from casckpt.errors import CasckptError, NotFound
from casckpt.training.programs import commands

SCRIPT = """
import sys, casckpt
config = {"lr": float(sys.argv[2])}
with casckpt.open(sys.argv[1]) as store, store.run("net", config=config, world_size=1) as run:
    for _ in run.epochs(1, {}):
        pass
    run.child("part").close()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def start(script: Path, lr: str = "0.1", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, script.name, "store", lr],
        cwd=script.parent,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_records_how_it_was_started(script, tmp_path):
    done = start(script, CUDA_VISIBLE_DEVICES="0", SECRET_KEY="x")
    assert done.returncode == 0, done.stderr
    command = commands.read(tmp_path / "store", "net")
    assert command.argv == (sys.executable, "train.py", "store", "0.1")
    assert command.cwd == str(tmp_path)
    assert command.environment["CUDA_VISIBLE_DEVICES"] == "0"
    assert "SECRET_KEY" not in command.environment


def test_a_script_that_changes_its_folder_is_started_where_it_was(tmp_path):
    """As those of Hydra do, after their imports."""
    moving = SCRIPT.replace(
        "config =", "import os; os.chdir(os.path.dirname(sys.argv[1])); config ="
    )
    path = tmp_path / "train.py"
    path.write_text(moving)
    (tmp_path / "outputs").mkdir()
    done = subprocess.run(
        [sys.executable, "train.py", str(tmp_path / "outputs" / "store"), "0.1"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert commands.read(tmp_path / "outputs" / "store", "net").cwd == str(tmp_path)


def test_it_is_outside_the_store_and_for_its_owner_only(script, tmp_path):
    start(script)
    path = commands.path_of(tmp_path / "store", "net")
    assert not path.is_relative_to(tmp_path / "store")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_file_that_others_may_write_is_not_trusted(script, tmp_path):
    start(script)
    commands.path_of(tmp_path / "store", "net").chmod(0o622)
    with pytest.raises(CasckptError, match="not trusted"):
        commands.read(tmp_path / "store", "net")


def test_a_refused_command_does_not_replace_the_one_that_worked(script, tmp_path):
    start(script)
    assert "ConfigMismatch" in start(script, "0.2").stderr
    assert commands.read(tmp_path / "store", "net").argv[-1] == "0.1"


def test_children_and_unknown_runs_have_none_and_the_error_names_the_parent(script, tmp_path):
    start(script)
    with pytest.raises(NotFound, match="casckpt resume net"):
        commands.read(tmp_path / "store", "net/part")
    with pytest.raises(NotFound, match="casckpt run other"):
        commands.read(tmp_path / "store", "other")


def test_one_of_many_processes_of_a_launcher_is_not_recorded(script, tmp_path):
    assert start(script, WORLD_SIZE="2", RANK="0").returncode == 0
    with pytest.raises(NotFound):
        commands.read(tmp_path / "store", "net")


def test_under_a_supervisor_what_was_typed_counts_and_the_error_is_told(script, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    typed = {"argv": ["bash", "train.sh"], "cwd": "/somewhere"}
    (shared / supervised.COMMAND_FILE).write_text(json.dumps(typed))
    start(script, CASCKPT_SUPERVISOR=str(shared))
    command = commands.read(tmp_path / "store", "net")
    assert (command.argv, command.cwd) == (("bash", "train.sh"), "/somewhere")
    assert not (shared / supervised.REPORT_FILE).exists()
    assert start(script, "0.2", CASCKPT_SUPERVISOR=str(shared)).returncode == 1
    told = json.loads((shared / supervised.REPORT_FILE).read_text())
    assert (told["error"], told["exit_code"], told["ppid"]) == ("ConfigMismatch", 2, os.getpid())


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("""
import argparse
parser = argparse.ArgumentParser()
casckpt.add_arguments(parser)
casckpt.resume_choice(parser.parse_args(["--resume", "--ignore-checkpoint"]))
""", "BadRequest"),
        ("casckpt.open(sys.executable)", "NoStore"),
    ],
)  # fmt: skip
def test_an_error_before_any_run_is_told_as_well(tmp_path, code, error):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, casckpt\n{code}"],
        env={**os.environ, "CASCKPT_SUPERVISOR": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert json.loads((tmp_path / supervised.REPORT_FILE).read_text())["error"] == error


def test_a_home_that_cannot_be_written_is_no_reason_not_to_train(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with casckpt.open(tmp_path / "store") as store:
        store.run("net").close()


SPAWNED = """
import multiprocessing, sys, casckpt
def work():
    with casckpt.open(sys.argv[1]) as store, store.run("net") as run:
        list(run.epochs(1, {}))
if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[2]).Process(target=work)
    process.start()
    process.join()
    sys.exit(process.exitcode)
"""


@pytest.mark.parametrize("how", ["spawn", "forkserver"])
def test_what_a_library_started_its_worker_by_is_no_command(script, tmp_path, how):
    script.write_text(SPAWNED)
    done = start(script, how)
    assert done.returncode == 0, done.stderr
    with pytest.raises(NotFound, match="no command"):
        commands.read(tmp_path / "store", "net")


def test_a_program_that_was_piped_in_is_gone(tmp_path):
    done = subprocess.run(
        [sys.executable, "-", "store", "0.1"],
        cwd=tmp_path, input=SCRIPT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with pytest.raises(NotFound, match="no command"):
        commands.read(tmp_path / "store", "net")
