"""Turn result files into tables and plots: `python -m bench.report [--out DIR] [--docs FILE]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import behind, distance, machines, plots
from bench.harness import RESULTS

Document = dict[str, Any]
HIDDEN = frozenset({"disk", "seconds", "min_s", "max_s", "disk_bytes", "parts"})
START, END = "<!-- results: begin -->", "<!-- results: end -->"


def read(path: Path) -> Document:
    """Return one result file, with the distance of its rows to their limits."""
    document: Document = json.loads(path.read_text())
    if "machine" in document:
        distance.add(document, path.parent)
    return document


def read_all(folder: Path) -> list[Document]:
    """Return every result file of the runner in a folder, by name."""
    documents = [read(path) for path in sorted(folder.glob("*.json"))]
    return [document for document in documents if "machine" in document]


def as_text(document: Document) -> str:
    """Return a result as plain text: one table for each set of columns, limits, goals, gaps."""
    lines = [_title(document), ""]
    for rows in _same_columns(document["rows"]):
        lines += [_table(rows), ""]
    lines += _facts(document)
    return "\n".join(lines)


def as_markdown(document: Document) -> str:
    """Return a result as a Markdown section."""
    lines = [f"### {_title(document)}", ""]
    for rows in _same_columns(document["rows"]):
        columns = _columns(rows)
        lines.append("| " + " | ".join(columns) + " |")
        lines.append("|" + "---|" * len(columns))
        lines += ["| " + " | ".join(_cell(c, row.get(c)) for c in columns) + " |" for row in rows]
        lines.append("")
    lines += [f"- {line}" for line in _facts(document)]
    return "\n".join(lines) + "\n"


def _title(document: Document) -> str:
    machine = document["machine"]
    quick = ", quick" if document["quick"] else ""
    return (
        f"{document['question']} ({machine['processor']}, {machine['cores']} cores, "
        f"{machine['file_system']}, {machine['date']}{quick})"
    )


def _facts(document: Document) -> list[str]:
    lines = []
    for name, value in document["limits"].items():
        lines += [f"limit {name}: {_limit(value)}"]
    for goal in document["goals"]:
        sign = "<=" if goal["less_is_better"] else ">="
        verdict = "met" if goal["met"] else "MISSED"
        number, target = _number(goal["measured"]), _number(goal["target"])
        if number == target and goal["measured"] != goal["target"]:
            number = f"{goal['measured']:.6g}"
        lines.append(f"goal {goal['name']}: {number} {sign} {target} {goal['unit']} {verdict}")
    lines += [f"missing {name}: {reason}" for name, reason in document["missing"].items()]
    lines += [f"note: {note}" for note in document["notes"]]
    return lines


def _limit(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_number(item)}" for key, item in value.items())
    return _number(value)


def _same_columns(rows: list[Document]) -> Iterable[list[Document]]:
    """Group neighbouring rows that show the same columns."""
    group: list[Document] = []
    for row in rows:
        if group and _columns([row]) != _columns([group[-1]]):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _columns(rows: list[Document]) -> list[str]:
    return [name for name in rows[0] if name not in HIDDEN]


def _table(rows: list[Document]) -> str:
    columns = _columns(rows)
    cells = [columns] + [[_cell(name, row.get(name)) for name in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if isinstance(rows[0][name], str) else text.rjust(width)
            for name, text, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(column: str, value: Any) -> str:
    if isinstance(value, str) or value is None:
        return value or "-"
    if isinstance(value, list):
        return ", ".join(_cell(column, item) for item in value)
    if column.endswith("per_s"):
        return _number(value)
    if column.endswith("_s") or column == "gc_s_per_checkpoint":
        return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.3g} ms"
    if "bytes" in column or column in ("disk_before", "disk_after"):
        return f"{value / 1e6:,.1f} MB" if abs(value) >= 1e5 else f"{value / 1e3:,.1f} kB"
    return _number(value)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def update_docs(page: Path, folder: Path) -> None:
    """Replace the part of a page between the two markers by the current results."""
    before, rest = page.read_text().split(START)
    _, after = rest.split(END)
    documents = read_all(folder)
    sections = "\n".join(as_markdown(document) for document in documents)
    ahead = "\n".join(f"- {line}" for line in behind.lines(documents))
    listed = f"### Where a peer is smaller or faster\n\n{ahead}\n\n"
    if elsewhere := machines.lines(documents, folder, _number):
        listed += "### The same goals on another machine\n\n" + "\n".join(elsewhere) + "\n\n"
    page.write_text(f"{before}{START}\n\n{listed}{sections}\n{END}{after}")


def main() -> None:
    """Print all results, draw the plots and, if asked, bring a page up to date."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON results")
    parser.add_argument("--docs", type=Path, help="a page with result markers to bring up to date")
    options = parser.parse_args()
    for document in read_all(options.out):
        print(as_text(document), end="\n\n")
    plots.draw(options.out)
    if options.docs:
        update_docs(options.docs, options.out)


if __name__ == "__main__":
    main()
