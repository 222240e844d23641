"""`cache ls`, `cache rm`, `rm --stage` and `export --results`, on a run that was killed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

import casckpt

SCRIPT = str(Path(__file__).with_name("train_stages.py"))


@pytest.fixture
def cli(new_cli):
    """A run with stages that was killed in each of them, and then finished."""
    for die in ("features-b", "speech-c"):
        killed = new_cli("run", "nas", "--max-restarts", "0", "--", *command("--die", die))
        assert killed.code == 137, killed.err
    assert new_cli("run", "nas", "--", *command()).code == 0
    assert set(calls(new_cli).values()) == {1}
    return new_cli


def command(*words: str) -> list[str]:
    return [sys.executable, SCRIPT, *words]


def calls(cli) -> Counter[str]:
    return Counter((cli.folder / "calls").read_text().split())


def test_cache_lists_and_drops_what_runs_share(cli):
    entries = json.loads(cli("cache", "ls", "--json").out)["entries"]
    shown = {(entry["name"], entry["kind"], entry["count"]) for entry in entries}
    assert {("table", "value", 1), ("speech", "stage", 3)} <= shown
    assert cli("cache", "ls").out.splitlines()[0].split() == ["NAME", "KIND", "COUNT", "STORED"]
    assert cli("cache", "rm", "nonsense", "--yes").code == 12
    asked = cli("cache", "rm", "speech")
    assert asked.code == 2
    assert "nobody to ask" in asked.err
    assert "Nothing" not in cli("cache", "rm", "speech", "-n").err.replace("nothing", "")
    dropped = json.loads(cli("cache", "rm", "speech", "--yes", "--json").out)
    assert [entry["name"] for entry in dropped["drop"]] == ["speech"]
    assert cli("cache", "ls", "-q").out == "table\n"
    assert cli("run", "nas", "--", *command()).code == 0
    assert calls(cli)["speech-a"] == 2
    assert calls(cli)["features-a"] == calls(cli)["table"] == 1


def test_a_stage_is_dropped_by_itself_and_done_again(cli):
    assert "of stages, for good\n" in cli("rm", "nas", "-n").out
    plan = cli("rm", "nas", "--stage", "features", "-n")
    assert plan.out == "nas  stage features: 3 results\n"
    assert cli("rm", "nas", "--stage", "features").code == 2
    assert cli("rm", "nas", "--stage", "nonsense", "--yes").code == 12
    assert (
        json.loads(cli("rm", "nas", "--stage", "features", "--yes", "--json").out)["results"] == 3
    )
    assert cli("rm", "nas", "--stage", "features", "--yes").code == 12
    assert cli("run", "nas", "--", *command()).code == 0
    assert calls(cli)["features-a"] == 2
    assert calls(cli)["speech-a"] == 1


def test_results_of_a_run_and_its_children_in_one_folder(cli):
    answer = cli("export", "nas", "--results", "results")
    assert answer.code == 0
    document = json.loads((cli.folder / "results" / "results.json").read_text())
    assert [one["name"] for one in document["runs"]] == ["nas", "nas/model-0", "nas/model-1"]
    assert (cli.folder / "results/histories/nas.model-1.csv").read_text().startswith("step,score")
    files = json.loads(cli("export", "nas", "--results", "results", "--json").out)["files"]
    assert all((cli.folder / file).is_file() for file in files)
    assert cli("export", "nas", "--results", "r", "--format", "npz").code == 2
    assert cli("export", "nonsense", "--results", "r").code == 12


def test_status_counts_children(cli):
    (about,) = json.loads(cli("status", "--json").out)["runs"]
    (group,) = about["children"]
    assert (group["pattern"], group["counts"], group["total"]) == ("model-*", {"finished": 2}, 2)
    assert "2 of 2 model-* finished" in cli("status", "nas").out


def test_status_names_children_of_no_pattern(new_cli):
    with casckpt.open(new_cli.store) as store, store.run("net") as run:
        for name, done in (("a", ["1 other run finished"]), ("b", ["2 other runs finished"])):
            list(run.child(name).epochs(1, {"n": 0}))
            assert done[0] in new_cli("status", "net").out


def test_status_does_not_wait_for_what_was_only_saved_below_a_run(new_cli):
    with casckpt.open(new_cli.store) as store, store.run("net") as run:
        list(run.epochs(1, {"n": 0}))
        store.save("net/predictions", {"y": 1})
    assert "other run" not in new_cli("status").out
    assert "children   other runs: 1 saved" in new_cli("status", "net").out


def test_tree_shows_runs_without_checkpoints_and_where_lines_began(cli):
    with (
        casckpt.open(cli.store) as store,
        store.run("nas/model-0", resume="nas/model-0@1") as run,
    ):
        for _ in run.epochs(3, {"n": 0}, save_every=1):
            pass
    runs = json.loads(cli("tree", "nas*", "--json").out)["runs"]
    facts = {(run["run"], run["line"]): run for run in runs}
    assert facts["nas", 0]["checkpoints"] == 0
    assert facts["nas", 0]["status"] == "finished"
    assert facts["nas/model-0", 1]["parent"].startswith("nas/model-0")
    text = cli("tree").out
    assert text.splitlines()[0].split(None, 1) == ["nas", "no checkpoints, finished"]
    assert "from nas/model-0" in text
