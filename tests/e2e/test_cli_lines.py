"""What `ls` and `tree` say of a run with several lines, and `diff` and `verify` in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import casckpt


def train(store, total, **options):
    with store.run("br", **options) as run:
        state = casckpt.State(a=0)
        for _ in run.epochs(total, state, save_every=2):
            state.a += 1


def notes(text: str) -> dict[str, str]:
    """Return the last word of the line of each checkpoint."""
    rows = [line.split() for line in text.splitlines() if " br~" in line]
    return {f"{row[1]}@{row[2]}": row[-1] for row in rows}


def test_each_line_counts_in_a_tree_and_a_name_alone_has_one_newest(new_cli):
    with casckpt.open(new_cli.store) as store:
        train(store, 4)
        train(store, 4, resume="br@2")
    listed = notes(new_cli("ls", "br").out)
    assert [ref for ref, note in listed.items() if note == "latest"] == ["br~1@4"]
    listed = notes(new_cli("ls", "br~*").out)
    assert [ref for ref, note in listed.items() if note == "latest"] == ["br~0@4", "br~1@4"]
    assert new_cli("tree", "br").out == new_cli("tree").out
    assert new_cli("tree", "br").out.startswith("br      2 checkpoints, steps 2 to 4")


def test_values_that_look_like_dtypes_are_shown_as_they_are(new_cli):
    with casckpt.open(new_cli.store) as store:
        rows = np.zeros(2, [("a", "i4")])
        store.save("r", {"p": Path("a"), "e": [], "b": b"x", "z": rows, "f": np.zeros(3, "f4")}, 0)
        after = {"p": "a", "e": {}, "b": b"y", "z": rows[:1], "f": np.zeros((), "f4")}
        store.save("r", after, 1)
    said = new_cli("diff", "r@0", "r@1").out
    for line in (
        '~  b     {"b": "78"} -> {"b": "79"}',
        "~  e     [] -> {}",
        '~  p     {"p": ["posix", "a"]} -> "a"',
        "~  z     structured [2] -> structured [1]",
        "~  f     float32 [3] -> float32 []",
    ):
        assert line in said


def test_a_sample_is_not_said_to_be_the_whole(new_cli):
    with casckpt.open(new_cli.store) as store:
        store.save("r", {"w": np.arange(100_000)})
    assert new_cli("verify").out.startswith("whole: 1 checkpoint, ")
    said = new_cli("verify", "--sample", "0.001%").out
    assert said.startswith("no damage met: 1 checkpoint, ")
    assert "checked, a sample of 0.001 %" in said
