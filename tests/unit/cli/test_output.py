"""Tables, colours, and what goes where."""

from __future__ import annotations

import io
import json

import pytest

from casckpt.checkpoint.plans import GcPlan, GcResult
from casckpt.cli import errors
from casckpt.cli.gc import _report
from casckpt.cli.output import Column, Output, Settings, json_line, layout, wants_color
from casckpt.errors import NotFound

COLUMNS = [Column("NAME"), Column("SIZE", right=True, rank=2), Column("NOTES", color="cyan")]
ROWS = [("a", "1 B", "latest"), ("longer", "12.5 MiB", "")]


def test_columns_line_up_and_no_line_ends_in_spaces():
    assert layout(COLUMNS, ROWS) == [
        "NAME        SIZE  NOTES",
        "a            1 B  latest",
        "longer  12.5 MiB",
    ]


def test_a_narrow_terminal_loses_the_columns_of_the_highest_rank_first():
    assert layout(COLUMNS, ROWS, width=20)[0] == "NAME    NOTES"
    assert layout(COLUMNS, ROWS, width=5)[0] == "NAME    NOTES"


def test_colour_changes_no_text():
    import click

    colored = layout(COLUMNS, ROWS, color=True, bold_rows=frozenset({0}))
    assert any("\x1b[" in line for line in colored)
    assert [click.unstyle(line).rstrip() for line in colored] == layout(COLUMNS, ROWS)


def test_control_characters_in_cells_are_escaped_with_and_without_colour():
    rows = [("\x1b[31mred", "1 B", "")]
    assert "\x1b" not in "".join(layout(COLUMNS, rows))
    assert "\x1b[31mred" not in "".join(layout(COLUMNS, rows, color=True))


def test_control_characters_in_headings_notes_and_errors_are_escaped(capsys):
    named = [Column("\x1b[31mloss\n"), *COLUMNS[1:]]
    assert len({len(line) for line in layout(named, [("a", "1 B", "-----")] * 2)}) == 1
    assert layout(named, ROWS)[0].startswith("\\x1b[31mloss\\n")
    Output(Settings(color="never")).note("\x1b[31mloss: lowest 1")
    errors.show(
        NotFound("x", "its metrics are \x1b[31mloss"), as_json=False, debug=False, color="never"
    )
    assert "\x1b" not in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("choice", "no_color", "stream", "expected"),
    [
        ("auto", "", Terminal(), True),
        ("auto", "1", Terminal(), False),
        ("auto", "", io.StringIO(), False),
        ("always", "1", io.StringIO(), True),
        ("never", "", Terminal(), False),
    ],
)
def test_who_gets_colour(monkeypatch, choice, no_color, stream, expected):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_color(choice, stream) is expected


def test_a_dumb_terminal_gets_no_colour(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert wants_color("auto", Terminal()) is False


def test_a_document_is_one_line_with_a_schema_number(capsys):
    Output(Settings(json=True)).document("ls", checkpoints=[])
    captured = capsys.readouterr()
    assert captured.out.count("\n") == 1
    assert json.loads(captured.out) == {"schema": 1, "command": "ls", "checkpoints": []}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("write", [Output(Settings(json=True)).document, json_line])
def test_a_document_is_json_in_any_encoding(monkeypatch, encoding, write):
    raw = io.BytesIO()
    stdout = io.TextIOWrapper(raw, encoding=encoding, errors="replace")
    monkeypatch.setattr("sys.stdout", stdout)
    # Half of a pair of surrogates is what no encoding has.
    history = {"précision ✓": 1.5, "précision ✗": 0.5, "\ud800": 2.0}
    write("history", history=history)
    stdout.flush()
    assert json.loads(raw.getvalue().decode(encoding))["history"] == history


def test_notes_go_to_stderr_and_not_at_all_with_quiet(capsys):
    Output(Settings()).note("a remark")
    Output(Settings(quiet=True)).note("no remark")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "a remark\n"


def test_ids_are_refs(capsys):
    Output(Settings(quiet=True)).ids(["ab" * 32])
    assert capsys.readouterr().out == f"id:{'ab' * 32}\n"


def test_a_collection_that_freed_far_less_than_planned_says_why(capsys):
    plan = GcPlan(keep=(), drop=(), reasons={}, freed_bytes=12_000_000)
    little, most = (GcResult((), (), freed, 0) for freed in (4096, 11_900_000))
    _report(Output(Settings()), plan, little, now=True)
    captured = capsys.readouterr()
    assert "freed 4.00 KiB" in captured.out
    assert "less than the 11.4 MiB planned" in captured.err
    _report(Output(Settings()), plan, most, now=True)
    assert capsys.readouterr().err == ""
    _report(Output(Settings()), plan, little, now=False, left=1)
    captured = capsys.readouterr()
    assert "1 checkpoint in the trash can still come back" in captured.err
    assert "room" not in captured.err
