"""One place turns errors into exit codes and three lines; each class is documented."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import click
import pytest

from casckpt import errors as library
from casckpt.cli import errors, root

DOCS = Path(__file__).parents[3] / "docs" / "errors.md"


def classes(root=library.CasckptError):
    yield root
    for child in root.__subclasses__():
        if child.__module__ == library.__name__:
            yield from classes(child)


@pytest.mark.parametrize("cls", list(classes()), ids=lambda cls: cls.__name__)
def test_every_error_is_documented_with_its_exit_code(cls):
    lines = [
        line for line in DOCS.read_text().splitlines() if line.startswith(f"| `{cls.__name__}`")
    ]
    assert len(lines) == 1, f"docs/errors.md has no row for {cls.__name__}"
    assert lines[0].split("|")[2].strip() == str(cls.exit_code)


def test_no_documented_error_has_gone():
    documented = {
        line.split("`")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `")
    }
    assert documented == {cls.__name__ for cls in classes()}


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (library.StepExists("a", "b"), 2),
        (library.OperationFailed("a"), 3),
        (library.FilesLeftOut("a"), 3),
        (library.NoStore("a"), 10),
        (library.StoreBusy("a"), 11),
        (library.Ambiguous("a"), 12),
        (library.Corrupt("a"), 13),
        (library.NewerFormat("a"), 14),
        (library.NoSpace("a"), 16),
        (click.UsageError("a"), 2),
        (OSError(errno.ENOSPC, "No space left on device"), 16),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 16),
        (OSError(errno.EIO, "Input/output error", "x"), 3),
        (ZeroDivisionError("division by zero"), 70),
        (RuntimeError(""), 70),
    ],
)
def test_exit_codes(error, code):
    assert errors.report(error).exit_code == code


def test_an_error_is_three_lines_on_stderr_without_a_traceback(capsys):
    error = library.NotFound("no run 'x'", "the store has 2 runs", "see `casckpt tree`")
    assert errors.show(error, as_json=False, debug=False, color="never") == 12
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "casckpt: no run 'x'\n    why: the store has 2 runs\n    try: see `casckpt tree`\n"
    )


def test_a_damaged_checkpoint_is_answered_with_a_ref_and_not_with_an_argument_of_python():
    hint = "take r@2, the newest whole checkpoint, or pass fallback=True"
    damaged = library.Corrupt("r@3 is damaged: w", "bits", hint, newest_whole="r@2")
    assert errors.report(damaged).hint == "the newest whole checkpoint is r@2"
    alone = library.Corrupt("r@3 is damaged: w", "bits", "no other is whole", newest_whole=None)
    assert errors.report(alone).hint == "no other is whole"


def test_what_takes_many_lines_stands_below_its_first(capsys):
    errors.show(
        library.FilesLeftOut("a", "one\ntwo", "b"), as_json=False, debug=False, color="never"
    )
    assert capsys.readouterr().err == "casckpt: a\n    why: one\n         two\n    try: b\n"


def test_an_error_under_json_is_one_document(capsys):
    errors.show(library.NoStore("none"), as_json=True, debug=False, color="never")
    shown = json.loads(capsys.readouterr().err)
    assert shown["error"] == "NoStore"
    assert shown["exit_code"] == 10
    assert shown["schema"] == 1


def test_an_error_under_json_is_json_in_any_encoding(monkeypatch):
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding="ascii", errors="backslashreplace")
    monkeypatch.setattr("sys.stderr", stream)
    errors.show(library.NotFound("no run 'nö\udcff'"), as_json=True, debug=False, color="never")
    stream.flush()
    assert json.loads(file.getvalue())["what"] == "no run 'nö\udcff'"


def test_only_debug_shows_the_traceback(capsys):
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError as error:
        errors.show(error, as_json=False, debug=False, color="never")
        assert "Traceback" not in capsys.readouterr().err
        errors.show(error, as_json=False, debug=True, color="never")
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "what", "why", "hint"),
    [
        (
            ["cache"],
            "cache: a command of it has to be named",
            "it is used as `casckpt cache [OPTIONS] COMMAND [ARGS]...`",
            "see `casckpt cache --help`",
        ),
        (
            ["completion"],
            "completion: Missing argument '{bash|zsh|fish}'.",
            "it is used as `casckpt completion [OPTIONS] {bash|zsh|fish}`",
            "choose from bash, zsh, fish",
        ),
        (
            ["restore"],
            "restore: Missing argument 'REF'.",
            "it is used as `casckpt restore [OPTIONS] REF`",
            "see `casckpt restore --help`",
        ),
        (
            ["gc", "--keep-last", "none"],
            "gc: Invalid value for '--keep-last'",
            "'none' is no number from 1 on",
            "see `casckpt gc --help`",
        ),
        (
            ["gc", "--keep-last"],
            "Option '--keep-last' requires an argument.",
            "a value has to follow it: `--keep-last VALUE`",
            "see `casckpt --help`",
        ),
        (
            ["gc", "--yes=3"],
            "Option '--yes' does not take a value.",
            "it is on when it is named, and off when it is not",
            "see `casckpt --help`",
        ),
    ],
)
def test_what_the_parser_refuses_takes_three_lines(words, what, why, hint):
    with pytest.raises(click.UsageError) as caught:
        root.casckpt.main(words, standalone_mode=False, prog_name="casckpt")
    shown = errors.report(caught.value)
    assert (shown.what, shown.why, shown.hint) == (what, why, hint)
