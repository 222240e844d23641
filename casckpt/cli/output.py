"""Where commands write: data to stdout, everything else to stderr, in text, JSON or ids."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import click

from casckpt.cli import formatting

SCHEMA = 1
"""Number of the JSON documents' shape: fields may be added under it, never changed."""


@dataclass
class Settings:
    """The global options, as they stand after those before and after the command are read."""

    store: str | None = None
    json: bool = False
    quiet: bool = False
    color: str = "auto"
    debug: bool = False


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Args:
        title: its heading.
        right: whether values stand at the right edge, as numbers do.
        color: name of the colour of its values, on a terminal.
        rank: columns of the highest rank are left out first where a terminal is too narrow;
            0 stays.
    """

    title: str
    right: bool = False
    color: str | None = None
    rank: int = 0


class Output:
    """One command's way to the outside.

    A command calls `document` under `--json`, `ids` under `-q`, and tables and lines otherwise;
    `note` may be called in each.
    """

    def __init__(self, settings: Settings) -> None:
        """Look at the settings, and at what stdout is."""
        self.settings = settings
        self.json = settings.json
        self.quiet = settings.quiet and not settings.json
        self.is_terminal = sys.stdout.isatty()
        self.color = wants_color(settings.color, sys.stdout)

    def document(self, command: str, **fields: Any) -> None:
        """Write the command's one JSON document; `fields` hold plain values only."""
        document = {"schema": SCHEMA, "command": command, **fields}
        # Indentation takes the slow encoder: only for eyes.
        indent = 2 if self.is_terminal else None
        sys.stdout.write(_as_json(document, indent) + "\n")

    def ids(self, identifiers: Iterable[str]) -> None:
        """Write checkpoints as REFs, one a line: `id:` and the whole hexadecimal id."""
        sys.stdout.write("".join(f"id:{identifier}\n" for identifier in identifiers))

    def lines(self, lines: Iterable[str]) -> None:
        """Write lines of data."""
        sys.stdout.write("\n".join((*lines, "")))

    def line(self, text: str = "") -> None:
        """Write one line of data."""
        sys.stdout.write(text + "\n")

    def note(self, text: str) -> None:
        """Say something beside the data, on stderr; silent with -q."""
        if not self.settings.quiet:
            sys.stdout.flush()  # keep the order of a terminal that shows both streams
            text = formatting.printable_lines(text)
            style = {"dim": True} if wants_color(self.settings.color, sys.stderr) else {}
            print(click.style(text, **style) if style else text, file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Hand everything to the reader now, for commands that go on for long."""
        sys.stdout.flush()

    def style(self, text: str, **style: Any) -> str:
        """Return the text with colour where colour is wanted."""
        return click.style(text, **style) if self.color else text

    def table(
        self,
        columns: Sequence[Column],
        rows: Sequence[Sequence[str]],
        *,
        bold_rows: frozenset[int] = frozenset(),
        dim_rows: frozenset[int] = frozenset(),
    ) -> None:
        """Write aligned columns under a line of headings; no heading when there are no rows."""
        if not rows:
            return
        width = terminal_columns() if self.is_terminal else None
        self.lines(layout(columns, rows, self.color, width, bold_rows, dim_rows))


def json_line(command: str, **fields: Any) -> None:
    """Write one of the JSON lines of a long command, at once; `fields` hold plain values only."""
    document = {"schema": SCHEMA, "command": command, **fields}
    sys.stdout.write(_as_json(document) + "\n")
    sys.stdout.flush()


def _as_json(document: dict[str, Any], indent: int | None = None) -> str:
    """Return a document as JSON in characters that stdout has: what it lacks is escaped.

    Left to the stream it would become a question mark, and two names one.
    """
    text = json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(document, indent=indent, allow_nan=False)
    return text


def wants_color(choice: str, stream: Any) -> bool:
    """Return whether to colour: --color, then NO_COLOR, then whether a terminal reads it."""
    if choice != "auto":
        return choice == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def terminal_columns() -> int:
    """Return the width of the terminal."""
    import shutil

    return shutil.get_terminal_size().columns


def layout(
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    color: bool = False,
    width: int | None = None,
    bold_rows: frozenset[int] = frozenset(),
    dim_rows: frozenset[int] = frozenset(),
) -> list[str]:
    """Return the lines of a table.

    Args:
        columns: the columns; those of the highest rank go first when `width` is too small.
        rows: one text per column each; at least one.
        color: whether to colour.
        width: columns of the terminal, or None where lines may have any length.
        bold_rows: numbers of rows that stand out.
        dim_rows: numbers of rows that stand back.
    """
    titles = [formatting.printable(column.title) for column in columns]
    # By column, so that the lengths of 10,000 rows are taken without a loop in Python.
    cells = zip(*rows, strict=True)
    widths = [
        max(len(title), max(map(len, texts))) for title, texts in zip(titles, cells, strict=True)
    ]
    shown = list(range(len(columns)))
    while width is not None and sum(widths[i] + 2 for i in shown) - 2 > width:
        last = max(shown, key=lambda i: (columns[i].rank, i))
        if columns[last].rank == 0:
            break
        shown.remove(last)
    if len(shown) < len(columns):
        titles, *rows = ([row[i] for i in shown] for row in (titles, *rows))
        columns, widths = [columns[i] for i in shown], [widths[i] for i in shown]
    # The operator, since str.format takes four times as long, and a list may have 10,000 rows.
    pattern = "  ".join(
        f"%{'' if column.right else '-'}{width}s"
        for column, width in zip(columns, widths, strict=True)
    )
    heading = (pattern % tuple(titles)).rstrip()
    if not color:
        lines = [(pattern % tuple(row)).rstrip() for row in rows]
        if not all(map(str.isprintable, lines)):
            lines = [formatting.printable(line) for line in lines]
        return [heading, *lines]
    lines = [click.style(heading, dim=True)]
    for number, row in enumerate(rows):
        if number in dim_rows:
            lines.append(
                click.style(formatting.printable((pattern % tuple(row)).rstrip()), dim=True)
            )
            continue
        bold = number in bold_rows
        padded = []
        for i, column in enumerate(columns):
            text = formatting.printable(row[i])
            if column.right:
                text = text.rjust(widths[i])
            elif i < len(columns) - 1:
                text = text.ljust(widths[i])
            if text and (bold or column.color):
                text = click.style(text, fg=column.color, bold=bold or None)
            padded.append(text)
        lines.append("  ".join(padded).rstrip())
    return lines
