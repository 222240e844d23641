from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import casckpt
from casckpt.checkpoint.tree import flatten
from casckpt.training.results import _encode_json, _plain_text

ROOT = Path(__file__).parents[3]


def test_the_code_of_the_guide_runs_and_the_second_time_does_nothing(tmp_path):
    text = (ROOT / "docs" / "guides" / "stages.md").read_text()
    program = tmp_path / "guide.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
    answers = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(program)],
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(casckpt.__file__).parents[1])},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)
    assert answers[0] == answers[1]
    assert answers[0].startswith("20 of 20 {'bytes': 80000}\nSENTENCE 0 ")
    assert "20 of 20 are done" in done.stderr


def test_the_short_way_writes_what_the_long_one_does():
    value = {"a": [1, 2.5, None, True, "é", "\ud800"], "t": (1, (2,)), "d": {"x": {"y": -(2**70)}}}
    odd = {'"\\/\n\x00\x7f': False, "é": 2**53, "\udfff": 1 - 2**53, "\U0001f600": -0.0, "": ""}
    for one in (value, odd, 1, "x" * 200, [], {}, (), [[[1]]], float("nan"), float("-inf")):
        assert _plain_text(one, 0) == _encode_json(flatten(one).tree)
