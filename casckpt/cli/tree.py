"""`casckpt tree`: the runs, nested as their names are, and where each line began."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from casckpt.cli import completers, formatting, stores
from casckpt.cli.options import command
from casckpt.cli.output import Output

if TYPE_CHECKING:
    from casckpt.api import Store
    from casckpt.checkpoint.records import Checkpoint
    from casckpt.training.lines import Line


@dataclass
class Node:
    """A part of a run name: the lines of the run that ends here, and the parts below."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    parts: dict[str, Node] = field(default_factory=dict)


@command("tree", examples=("casckpt tree", "casckpt tree 'bpm/*'"))
@click.argument("pattern", default="*", shell_complete=completers.runs)
def tree(output: Output, pattern: str) -> None:
    """Show the runs that match PATTERN, and for each line of a run its steps and its parent."""
    (pattern,) = stores.split(output.settings, pattern)
    with stores.opened(output.settings) as store:
        # A name alone is the line that is open, and what it began with; here all of them count.
        found = store.checkpoints(pattern if "~" in pattern else f"{pattern}~*")
        everywhere = {checkpoint.id: checkpoint.ref for checkpoint in store.checkpoints()}
        known = _known(store, pattern)
        if not found and not known and pattern != "*":
            raise store._catalog.no_run(pattern)
    lines: dict[tuple[str, int], list[Checkpoint]] = defaultdict(list)
    for checkpoint in found:
        lines[checkpoint.run, checkpoint.line].append(checkpoint)
    runs = [
        _facts(name, line, lines.get((name, line), []), known.get((name, line)), everywhere)
        for name, line in {**lines, **known}
    ]
    runs.sort(key=lambda facts: (_natural(facts["run"]), facts["line"]))
    if output.json:
        output.document("tree", runs=runs)
    elif output.quiet:
        output.lines(f"{facts['run']}~{facts['line']}" for facts in runs)
    else:
        root = Node()
        for facts in runs:
            node = root
            for part in facts["run"].split("/"):
                node = node.parts.setdefault(part, Node())
            node.lines.append(facts)
        rows = list(_draw(root))
        width = max((len(label) for label, _ in rows), default=0)
        output.lines(
            f"{label.ljust(width)}  {output.style(facts, dim=True)}" if facts else label
            for label, facts in rows
        )
        if not rows:
            output.note("No runs yet.")


def _natural(name: str) -> list[list[tuple[str, int]]]:
    """Return what sorts names of runs as people count: trial-2 before trial-10."""
    return [
        [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", part)]
        for part in name.split("/")
    ]


def _known(store: Store, pattern: str) -> dict[tuple[str, int], tuple[Line, str]]:
    """Return the lines that runs themselves know of, with how each stands."""
    from fnmatch import fnmatchcase

    from casckpt.training.lines import read_records
    from casckpt.training.watching.status import status_of

    repository = store._repository
    return {
        (name, line.number): (line, status_of(repository, name, line))
        for name, record in read_records(repository).items()
        if fnmatchcase(name, pattern)
        for line in record.lines.values()
    }


def _facts(
    name: str,
    line: int,
    group: list[Checkpoint],
    known: tuple[Line, str] | None,
    everywhere: dict[str, str],
) -> dict[str, Any]:
    """Return what is said of one line of a run."""
    began = None
    if known is not None and known[0].branch is not None:
        branch = known[0].branch
        began = f"{branch.store}::{branch.ref}" if branch.store else branch.ref
    elif group:
        parent = everywhere.get(group[0].parent or "", "")
        # Within a line the parent of the first one left is an older step, or is gone.
        if parent and parent.partition("@")[0] != group[0].ref.partition("@")[0]:
            began = parent
    return {
        "run": name,
        "line": line,
        "status": known[1] if known is not None else "",
        "reason": known[0].reason if known is not None else "",
        "checkpoints": len(group),
        "first_step": group[0].step if group else None,
        "last_step": group[-1].step if group else None,
        "last_created": formatting.rfc3339(group[-1].created) if group else None,
        "parent": began,
        "logical_bytes": sum(checkpoint.logical_bytes for checkpoint in group),
        "new_bytes": sum(checkpoint.new_bytes for checkpoint in group),
    }


def _sentence(facts: dict[str, Any]) -> str:
    """Return the facts of a line in words."""
    from casckpt.training.watching.outlook import standing

    number = facts["checkpoints"]
    words = [formatting.count(number, "checkpoint") if number else "no checkpoints"]
    if number == 1:
        words.append(f"step {facts['last_step']}")
    elif number:
        words.append(f"steps {facts['first_step']} to {facts['last_step']}")
    if number:
        words.append(f"{formatting.size(facts['logical_bytes'])} logical")
    if facts["parent"]:
        words.append(f"from {facts['parent']}")
    if facts["status"]:
        words.append(standing(facts["status"], facts["reason"])[0])
    return ", ".join(words)


def _draw(node: Node, indent: str = "", *, top: bool = True) -> Iterator[tuple[str, str]]:
    """Yield a label and its facts for every part of a run name, and every further line of a run."""
    items = [(f"~{facts['line']}", Node([facts])) for facts in node.lines[1:]]
    items += list(node.parts.items())
    for name, child in items:
        last = name == items[-1][0]
        branch, stem = ("", "") if top else ("└── ", "    ") if last else ("├── ", "│   ")
        yield f"{indent}{branch}{name}", _sentence(child.lines[0]) if child.lines else ""
        yield from _draw(child, indent + stem, top=False)
