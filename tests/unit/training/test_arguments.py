from __future__ import annotations

import argparse

import pytest

import casckpt
from casckpt import add_arguments, resume_choice
from casckpt.errors import BadRequest, ConfigMismatch


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


def test_the_options_are_no_settings_of_the_run(tmp_path):
    def program(*arguments):
        parser = argparse.ArgumentParser()
        parser.add_argument("--lr", type=float, default=0.1)
        add_arguments(parser)
        args = parser.parse_args(["--checkpoint-dir", str(tmp_path / "store"), *arguments])
        with (
            casckpt.open(args.checkpoint_dir) as store,
            store.run("reg", config=vars(args), resume=casckpt.resume_choice(args)) as run,
        ):
            for _ in run.epochs(2, {"n": []}, save_every=args.checkpoint_freq or 1):
                pass
            return run.line

    first = program()
    assert program("--resume", "--checkpoint-freq", "2") == first
    assert program("--ignore-checkpoint") != first
    program()
    program("--resume-from", "reg@1")
    with pytest.raises(ConfigMismatch, match=r"lr: 0\.1 -> 0\.2"):
        program("--lr", "0.2")
