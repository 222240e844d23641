"""What counts the kills sees an end that is wrong, and says so."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import kills as campaign
from tests.adapters import kills

# Killed and run again it ends at once: with other bytes in the first store, not in those after.
WRONG_ONCE = """
import pathlib, sys, time
store = pathlib.Path(sys.argv[1])
resumed = store.exists()
store.mkdir(exist_ok=True)
print("begin", flush=True)
if not resumed:
    time.sleep(1)
wrong = resumed and store.name == "killed-0"
pathlib.Path(sys.argv[2]).write_text("wrong" if wrong else "right")
"""


def test_an_end_before_the_last_is_compared_too(tmp_path, monkeypatch):
    program = tmp_path / "wrong_once.py"
    program.write_text(WRONG_ONCE)
    journal = tmp_path / "journal"
    monkeypatch.setattr(kills, "JOURNAL", str(journal))
    with pytest.raises(AssertionError, match=r"1 of [2-9] ends"):
        kills.check(program, tmp_path, 3, framework="a test")
    assert json.loads(journal.read_text())["other"] == 1


def test_a_run_in_which_a_program_fails_is_published(tmp_path, monkeypatch):
    line = {"framework": "a", "program": "b", "kills": 2, "starts": 3, "ends": 1, "other": 1}

    def run(command, **options):
        report = next(one for one in command if one.startswith("--junit-xml="))
        with Path(report.removeprefix("--junit-xml=")).open("w") as file:
            file.write('<s><testcase classname="t" name="x"><failure/></testcase></s>')
        with Path(options["env"]["CASCKPT_TEST_KILLS_JOURNAL"]).open("w") as file:
            file.write(json.dumps(line) + "\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(campaign, "RESULT", tmp_path / "kills.json")
    monkeypatch.setattr(campaign, "_commit", lambda: "0" * 12)
    monkeypatch.setattr(campaign.subprocess, "run", run)
    assert campaign.main([]) == 1
    document = json.loads((tmp_path / "kills.json").read_text())
    assert document["failed"] == ["t::x"]
    assert document["programs"][0]["other"] == 1
