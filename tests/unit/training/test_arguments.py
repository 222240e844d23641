from __future__ import annotations

import argparse

import pytest

from casckpt import add_arguments, resume_choice
from casckpt.errors import BadRequest


def parsed(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(
    ("arguments", "choice"),
    [
        ([], "auto"),
        (["--resume"], "auto"),
        (["--resume", "bpm/nn@20"], "bpm/nn@20"),
        (["--resume-from", "old"], "old"),
        (["--resume_from", "old"], "old"),
        (["--resume", "--resume-from", "old"], "old"),
        (["--ignore-checkpoint"], "never"),
        (["--ignore_checkpoint"], "never"),
    ],
)
def test_choice(arguments, choice):
    assert resume_choice(parsed(*arguments)) == choice


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ignore-checkpoint", "--resume"],
        ["--ignore-checkpoint", "--resume-from", "old"],
        ["--resume", "a", "--resume-from", "b"],
    ],
)
def test_contradictions_are_usage_errors(arguments):
    with pytest.raises(BadRequest) as caught:
        resume_choice(parsed(*arguments))
    assert caught.value.exit_code == 2


def test_the_other_options():
    args = parsed("--checkpoint-dir", "x", "--checkpoint_freq", "20")
    assert (args.checkpoint_dir, args.checkpoint_freq) == ("x", 20)
    assert resume_choice(argparse.Namespace()) == "auto"
