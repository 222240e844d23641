"""What every reading command prints, as text and as JSON, to the letter."""

from __future__ import annotations

import json

import pytest

COMMANDS = {
    "ls": ["ls"],
    "ls-best": ["ls", "--best", "val_loss"],
    "ls-best-max-limit": ["ls", "bpm/nn", "--best", "accuracy", "--mode", "max", "--limit", "2"],
    "ls-sort": ["ls", "--sort", "-size", "--limit", "3"],
    "ls-tag": ["ls", "--tag", "paper-v1"],
    "ls-trash": ["ls", "--trash"],
    "show": ["show", "bpm/nn@20"],
    "history": ["history", "bpm/nn"],
    "history-metric": ["history", "bpm/nn", "val_loss"],
    "history-plot": ["history", "bpm/nn", "val_loss", "--plot"],
    "diff": ["diff", "bpm/nn@20", "bpm/nn@40"],
    "tree": ["tree"],
    "gc-plan": ["gc", "--keep-last", "2", "--keep-best", "val_loss:min", "-n"],
    "gc-plan-every": ["gc", "bpm/nn", "--keep-every", "20", "-n"],
    "rm-plan": ["rm", "bpm/nn", "-n"],
    "verify-structure": ["verify", "--level", "structure"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_text(cli, golden, name):
    answer = cli(*COMMANDS[name])
    assert answer.code == 0
    golden(f"{name}.txt", f"{answer.out}--- stderr\n{answer.err}")


@pytest.mark.parametrize("name", COMMANDS)
def test_json(cli, golden, name):
    answer = cli(*COMMANDS[name], "--json")
    assert answer.code == 0
    document = json.loads(answer.out)
    assert document["schema"] == 1
    assert document["command"] == COMMANDS[name][0]
    assert answer.out.count("\n") == 1
    golden(f"{name}.json", json.dumps(document, indent=1) + "\n")


@pytest.mark.parametrize("name", ["verify", "repair", "torture"])
def test_help(cli, golden, name):
    answer = cli(name, "--help")
    assert answer.code == 0
    golden(f"help-{name}.txt", answer.out)


def test_csv(cli, golden):
    golden("history.csv", cli("history", "bpm/nn", "--csv").out)


@pytest.mark.parametrize("name", COMMANDS)
def test_pipes_get_no_escape_and_no_line_ends_in_spaces(cli, name):
    answer = cli(*COMMANDS[name])
    assert "\x1b" not in answer.out + answer.err
    assert all(line == line.rstrip() for line in answer.out.splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_colour_on_demand_changes_no_text(cli, name):
    import click

    plain, colored = cli(*COMMANDS[name]), cli(*COMMANDS[name], "--color", "always")
    lines = [line.rstrip() for line in click.unstyle(colored.out).splitlines()]
    assert lines == plain.out.splitlines()


@pytest.mark.parametrize("name", [n for n in COMMANDS if n.startswith(("ls", "gc", "rm"))])
def test_quiet_prints_refs_only_and_no_remark(cli, name):
    answer = cli(*COMMANDS[name], "-q")
    assert answer.err == ""
    assert all(line.startswith("id:") and len(line) == 67 for line in answer.out.splitlines())


def test_what_quiet_prints_is_taken_as_a_ref(cli):
    (line,) = cli("ls", "--tag", "paper-v1", "-q").out.splitlines()
    assert json.loads(cli("show", line, "--json").out)["checkpoint"]["ref"] == "bpm/nn@20"


def test_global_options_stand_before_or_after_the_command(cli):
    before, after = cli("--json", "ls"), cli("ls", "--json")
    assert before.out == after.out
    assert json.loads(before.out)["command"] == "ls"


def test_help_of_every_command_has_examples(cli):
    from casckpt.cli.root import _COMMANDS

    for name in _COMMANDS:
        answer = cli(name, "--help")
        assert answer.code == 0, name
        assert "Examples:" in answer.out, name
        assert "Everywhere:" in answer.out, name


@pytest.mark.parametrize("words", [["--tag", "nope"], ["nothing*"]])
def test_a_list_of_nothing_by_a_metric_is_none(cli, words):
    answer = cli("ls", *words, "--best", "val_loss")
    assert answer.code in (0, 12)
    assert "internal error" not in answer.err


def test_a_new_store_has_no_best(new_cli):
    assert new_cli("init", "-q").code == 0
    answer = new_cli("ls", "--best", "loss")
    assert (answer.code, "No checkpoints yet" in answer.err + answer.out) == (0, True)


def test_the_end_that_is_good_may_stand_behind_the_metric(cli):
    for mode in ("min", "max"):
        apart = cli("ls", "--best", "accuracy", "--mode", mode)
        assert cli("ls", "--best", f"accuracy:{mode}").out == apart.out
        assert cli("ls", "--best", f"accuracy:{mode}", "--mode", mode).out == apart.out
