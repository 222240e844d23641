"""Frameworks that are missing or broken: asked for, or just looked at from outside."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

LOOK = """
import inspect, pickle, pydoc
import casckpt
assert not hasattr(casckpt, "keras")
inspect.getmembers(casckpt)
assert "save" in pydoc.render_doc(casckpt)
print("listed" if "keras" in dir(casckpt) else "left out")
for ask in (lambda: casckpt.keras, lambda: pickle.loads(pickle.dumps(error))):
    try:
        error = ask()
        raise error
    except casckpt.errors.MissingExtra as exc:
        error = exc
        print(type(exc).__name__, isinstance(exc, AttributeError), exc.exit_code)
        print(exc)
"""

NO_OTHERS = "import sys; sys.modules.update({name: None for name in %r})\n" % [
    "accelerate", "fsspec", "ignite", "lightgbm", "lightning", "optuna", "sklearn", "torch",
    "transformers", "xgboost",
]  # fmt: skip


def look(code, path):
    done = subprocess.run(
        [sys.executable, "-c", NO_OTHERS + code],
        env={**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_framework_that_is_missing_is_left_out(tmp_path):
    told = look("sys.modules['keras'] = None\n" + LOOK, tmp_path)
    lines = [
        "casckpt.keras needs keras, which is not installed",
        "frameworks are optional, and none comes with casckpt itself",
        "pip install 'casckpt[keras]'",
    ]
    assert told == [
        "left out", "MissingExtra True 2", *lines, "MissingExtra False 2", *lines,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (
            "raise OSError('libcudart.so.12: no such file\\nsecond line')",
            "OSError: libcudart.so.12",
        ),
        ("import no_such_backend", "ModuleNotFoundError: No module named 'no_such_backend'"),
    ],
)
def test_a_framework_whose_import_fails_is_not_called_missing(tmp_path, fault, reason):
    (tmp_path / "keras").mkdir()
    (tmp_path / "keras" / "__init__.py").write_text(f"{fault}\n")
    told = look(LOOK, tmp_path)
    assert told[:3] == [
        "listed",
        "MissingExtra True 2",
        "casckpt.keras needs keras, which cannot be imported",
    ]
    assert told[3].startswith(f"it is installed, but its import failed: {reason}")
    assert "import keras" in told[4]


def test_a_from_import_says_the_same(tmp_path):
    code = (
        "sys.modules['keras'] = None\n"
        "try:\n"
        "    from casckpt import keras\n"
        "except Exception as error:\n"
        "    print(error)\n"
    )
    assert look(code, tmp_path)[-1] == "pip install 'casckpt[keras]'"
