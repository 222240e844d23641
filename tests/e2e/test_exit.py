"""How the command line ends: exit codes, three-line errors, interrupted, cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import casckpt
from casckpt.cli import root
from casckpt.store import Repository


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["ls", "--bogus"], 2),
        (["lss"], 2),
        (["show"], 2),
        (["show", "bpm/nn@"], 2),
        (["show", "bpm/nn@best:val_loss"], 2),
        (["ls", "--best", "x", "--sort", "y"], 2),
        (["ls", "--mode", "max"], 2),
        (["ls", "--sort", "nonsense"], 2),
        (["gc", "--keep-last", "0"], 2),
        (["gc", "--keep-newer-than", "soon"], 2),
        (["export", "bpm/nn"], 2),
        (["ls", "--store", "/nonexistent/store"], 10),
        (["ls", "bpm/n"], 12),
        (["show", "bpm/nn@31"], 12),
        (["show", "id:0000"], 12),
        (["history", "bpm/nn", "nonsense"], 12),
        (["ls", "--best", "nonsense"], 12),
        (["ls", "--best", ":min"], 2),
        (["ls", "--best", "val_loss:min", "--mode", "max"], 2),
        (["rm", "bpm/n", "--yes"], 12),
    ],
)
def test_errors_have_a_code_and_at_most_three_lines(cli, words, code):
    answer = cli(*words)
    assert answer.code == code, answer.err
    assert answer.out == ""
    lines = answer.err.splitlines()
    assert lines[0].startswith("casckpt: ")
    assert 1 < len(lines) <= 3
    assert lines[-1].startswith("    try: ")
    assert "Traceback" not in answer.err


def test_an_error_under_json_is_json_on_stderr(cli):
    for words in (["--json", "show", "bpm/nn@31"], ["ls", "--json", "--bogus"]):
        answer = cli(*words)
        assert answer.out == ""
        assert json.loads(answer.err)["exit_code"] == answer.code


def test_a_folder_that_is_no_store_and_no_store_at_all(cli, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    assert cli("ls", "--store", tmp_path / "folder").code == 10
    assert cli("ls", CASCKPT_STORE="").code == 10
    assert cli("tag", "a", "b", "--store", tmp_path / "none").code == 10
    assert not (tmp_path / "none").exists()


def test_a_reader_that_leaves_gets_no_complaint(cli):
    run = subprocess.Popen(
        [sys.executable, "-m", "casckpt", "ls", "--json", "--store", str(cli.store)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert run.stdout is not None
    run.stdout.close()
    _, errors = run.communicate(timeout=60)
    assert errors == b""
    assert run.returncode == 141


@pytest.mark.parametrize("words", [("show", "none"), ("show", "none", "--json")])
def test_an_error_that_nobody_can_read_keeps_its_code(cli, words):
    words = [sys.executable, "-m", "casckpt", *words, "--store", str(cli.store)]
    run = subprocess.Popen(words, stderr=subprocess.PIPE)
    assert run.stderr is not None
    run.stderr.close()
    assert run.wait(timeout=60) == 12
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(words, stderr=full, check=False, timeout=60).returncode == 12


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_stream_that_is_closed_is_no_file_of_the_store(cli, stream):
    program = (
        "import os\n"
        "from casckpt.cli.root import run\n"
        f"code = run(['ls', '--store', {str(cli.store)!r}])\n"
        f"assert os.readlink('/proc/self/fd/{stream}') == os.devnull\n"
        "os._exit(code)\n"
    )
    words = ["sh", "-c", f'exec "$@" {stream}>&-', "sh", sys.executable, "-c", program]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert bool(run.stdout) == (stream != 1)


def test_what_a_terminal_has_no_characters_for_is_replaced(cli):
    run = subprocess.run(
        [sys.executable, "-m", "casckpt", "history", "bpm/nn", "--plot", "--store", str(cli.store)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert b"val_loss" in run.stdout
    assert b"?" in run.stdout


def test_ctrl_c_is_130_without_a_traceback(tmp_path):
    program = (
        "import sys, casckpt.cli.root as root\n"
        "from casckpt.cli import main\n"
        "def stop(*a, **k): raise KeyboardInterrupt\n"
        "root.casckpt.invoke = stop\n"
        "main(['ls'])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 128 + signal.SIGINT
    assert run.stderr == "casckpt: interrupted\n"


@pytest.mark.parametrize(
    ("words", "remark"),
    [
        (["verify"], "`casckpt verify --resume` goes on from here"),
        (["verify", "--sample", "5%"], "nothing was changed"),
        (["verify", "--older-than", "1d"], "what was read has had its turn, the same command"),
        (["compact"], "nothing is lost, the same command goes on from here"),
    ],
)
def test_ctrl_c_says_what_is_left_and_how_to_go_on(cli, monkeypatch, capsys, words, remark):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(casckpt.Store, "compact", stop)
    monkeypatch.setattr(Repository, "verify", stop)
    assert root.run([*words, "--store", str(cli.store)]) == 130
    assert capsys.readouterr().err.startswith(f"casckpt: interrupted; {remark}")


def test_help_and_version_are_no_errors(cli):
    assert cli("--help").code == 0
    assert cli().out == cli("--help").out
    assert cli("gc", "-h").code == 0
    assert cli("--version").out.startswith("casckpt, version ")


def test_a_bug_is_70_and_debug_shows_where(cli):
    program = (
        "import sys, casckpt.cli.ls as ls\n"
        "from casckpt.cli import main\n"
        "ls.ls.callback = lambda **k: 1 / 0\n"
        "main(sys.argv[1:])\n"
    )

    def run(*words):
        return subprocess.run(
            [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
        )

    assert run("ls").returncode == 70
    assert "Traceback" not in run("ls").stderr
    assert "Traceback" in run("ls", "--debug").stderr


def test_ls_imports_neither_numpy_nor_rich_nor_a_framework(cli):
    program = (
        "import sys\n"
        "from casckpt.cli.root import run\n"
        f"assert run(['ls', '--best', 'val_loss', '--store', {str(cli.store)!r}]) == 0\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loaded = run.stderr.splitlines()[-1]
    for name in ("numpy", "rich", "torch", "xgboost", "asyncio"):
        assert f"'{name}'" not in loaded


def test_list_of_commands_fits_the_commands():
    from casckpt.cli import root

    listed = [name for _, names in root._SECTIONS for name in names]
    assert sorted(listed) == sorted(root._COMMANDS)
    for name in listed:
        assert root.casckpt.get_command(None, name).name == name  # type: ignore[arg-type]
