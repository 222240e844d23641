"""The same goals on other machines, whose results lie in folders beside those of this one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def lines(documents: list[Document], folder: Path, number: Callable[[float], str]) -> list[str]:
    """Return a Markdown table of the goals that were measured on more machines than one.

    Args:
        documents: the results of the folder itself.
        folder: its subfolders hold results of other machines, by the name of the question.
        number: writes a number as the other tables do.
    """
    here = {document["question"]: document for document in documents}
    rows = []
    for path in sorted(folder.glob("*/*.json")):
        there = json.loads(path.read_text())
        if there.get("question") not in here:
            continue
        mine = {goal["name"]: goal for goal in here[there["question"]]["goals"]}
        for goal in there["goals"]:
            if goal["name"] in mine:
                rows.append((here[there["question"]], mine[goal["name"]], there, goal))
    if not rows:
        return []
    table = [
        "| question | goal | | measured | on | measured | on |",
        "|---|---|---|---|---|---|---|",
    ]
    for one, mine, other, its in rows:
        sign = "<=" if mine["less_is_better"] else ">="
        cells = [one["question"], mine["name"], f"{sign} {number(mine['target'])} {mine['unit']}"]
        for document, goal in ((one, mine), (other, its)):
            machine = document["machine"]
            cells += [
                number(goal["measured"]) + ("" if goal["met"] else " missed"),
                f"{machine['processor']}, {machine['date']}",
            ]
        table.append("| " + " | ".join(cells) + " |")
    return table
