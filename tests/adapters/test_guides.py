"""The code in the guides runs, twice: the second time as after a kill, when all is done."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import casckpt

ROOT = Path(__file__).parents[2]
GUIDES = (
    "torch", "dcp", "xgboost", "optuna", "sklearn", "fsspec", "lightning", "transformers",
    "accelerate", "ignite", "keras", "lightgbm",
)  # fmt: skip
HOMES = {"dcp": "torch"}
"""Module and extra of adapters that are not called like it."""

WITHOUT_A_FRAMEWORK = ("files", "piles", "policies", "saving")


@pytest.mark.parametrize("guide", [*GUIDES, *WITHOUT_A_FRAMEWORK])
def test_the_code_of_a_guide_runs_and_runs_again(guide, tmp_path):
    # Not importorskip: keras looks for its backend when it is imported.
    known = guide in WITHOUT_A_FRAMEWORK or importlib.util.find_spec(HOMES.get(guide, guide))
    if not known:
        pytest.skip(f"{guide} is not installed")
    check_guide(guide, tmp_path, [sys.executable])


def test_the_code_of_the_guide_for_several_processes_runs(tmp_path):
    pytest.importorskip("torch")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    check_guide("ddp", tmp_path, [sys.executable, "-W", "ignore", *launcher])


def check_guide(guide, tmp_path, command):
    text = (ROOT / "docs" / "guides" / f"{guide}.md").read_text()
    program = tmp_path / "guide.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    environment = {**os.environ, "PYTHONPATH": str(Path(casckpt.__file__).parents[1])}
    for _ in range(2):
        done = subprocess.run(
            [*command, str(program)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    with casckpt.open(tmp_path / "ckpts") as store:
        assert store.checkpoints()


@pytest.mark.parametrize(
    "name",
    GUIDES,
)
def test_a_framework_that_is_missing_is_named_with_its_extra(name):
    module = HOMES.get(name, name)
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "import casckpt\n"
        "try:\n"
        f"    casckpt.{name}\n"
        "except casckpt.errors.MissingExtra as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False
    )
    assert f"casckpt[{module}]" in done.stdout, done.stderr
