"""Child processes run this package, whatever lies in the folder that they are started in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import casckpt
from casckpt.programs import command_of, environment_of


@pytest.fixture
def booby_trapped(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    (folder / "casckpt").mkdir(parents=True)
    (folder / "casckpt" / "__init__.py").write_text("raise ImportError('a checkout, not built')")
    for name in ("random", "json", "lmdb"):
        (folder / f"{name}.py").write_text("raise ImportError('a file of the project')")
    monkeypatch.chdir(folder)


def test_nothing_is_imported_from_the_working_folder(booby_trapped):
    run = subprocess.run(
        command_of("casckpt", "--version"), env=environment_of(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert casckpt.__version__ in run.stdout


def test_paths_of_the_user_stay(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    assert environment_of()["PYTHONPATH"].endswith(":/of/the/user")
    assert environment_of(A="1")["A"] == "1"


def test_an_index_is_walked_after_a_crash(booby_trapped, tmp_path):
    path = tmp_path / "store"
    with casckpt.open(path) as store:
        store.save("run", {"a": 1}, step=1)
    (stamp,) = path.rglob("clean")
    stamp.unlink()
    with casckpt.open(path, mode="r") as store:
        assert store.restore("run") == {"a": 1}


def test_a_child_finds_packages_where_this_process_has_found_them(tmp_path):
    # An interpreter without them, as of a bundle that makes its path itself.
    bare = getattr(sys, "_base_executable", sys.executable)
    if not subprocess.run([bare, "-c", "import lmdb"], capture_output=True).returncode:
        pytest.skip("needs an environment apart from the interpreter's own packages")
    path = tmp_path / "store"
    with casckpt.open(path) as store:
        store.save("run", {"a": 1}, step=1)
    (stamp,) = path.rglob("clean")
    stamp.unlink()
    script = (
        f"import sys; sys.path += {sys.path!r}; import casckpt;"
        f"print(casckpt.open({str(path)!r}, mode='r').restore('run'))"
    )
    done = subprocess.run([bare, "-I", "-c", script], capture_output=True, text=True)
    assert done.stdout == "{'a': 1}\n", done.stderr
    other = script.replace("import casckpt", "import casckpt.programs; casckpt.programs._START = "
                           "'raise ImportError(1)'")  # fmt: skip
    stamp.unlink(missing_ok=True)
    done = subprocess.run([bare, "-I", "-c", other], capture_output=True, text=True)
    assert "OperationFailed" in done.stderr
    assert "cannot be looked at" in done.stderr
