"""A comment that names a rule of docs/format.md or docs/protocol.md names one that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ("casckpt/**/*.py", "native/**/*.[ch]", "tests/**/*.py", "bench/**/*.py")
_GAP = r",\s+(?:[#*/]+\s+)?"  # a comment may go on in the next line
_FORMAT = re.compile(rf"format\.md`*{_GAP}(section\s+\d+|[A-Z]\w*)")
_PROTOCOL = re.compile(rf"(?:\(protocol|protocol\.md)`*{_GAP}([A-Z]\w*(?:\s+\d)?)")
_STEPS = {"Save": "SAVE", "Collect": "GC", "Read": "READ"}


def named(pattern: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """Yield where a page is cited, and what of it."""
    for source in SOURCES:
        for path in sorted(ROOT.glob(source)):
            if path == Path(__file__):
                continue
            for found in pattern.finditer(path.read_text()):
                yield str(path.relative_to(ROOT)), " ".join(found[1].split())


def rules_of_format() -> set[str]:
    text = (ROOT / "docs" / "format.md").read_text()
    sections = {f"section {number}" for number in re.findall(r"^## (\d+)\.", text, re.MULTILINE)}
    return sections | set(re.findall(r"^- \*\*([IB]\d)\*\*", text, re.MULTILINE))


def steps_of_protocol() -> set[str]:
    text = (ROOT / "docs" / "protocol.md").read_text()
    found = set()
    for word, name in _STEPS.items():
        (part,) = re.findall(rf"^\*\*{word}\.\*\*.*?(?=\n\n)", text, re.MULTILINE | re.DOTALL)
        found |= {name, *(f"{name} {number}" for number in re.findall(r"\((\d)\)", part))}
    return found


def test_citations_of_the_format_are_there():
    cited = list(named(_FORMAT))
    assert len(cited) > 20
    known = rules_of_format()
    assert [(where, what) for where, what in cited if what not in known] == []


def test_citations_of_the_protocol_are_there():
    cited = list(named(_PROTOCOL))
    assert len(cited) > 10
    known = steps_of_protocol()
    assert {"SAVE 6", "GC 8", "READ"} <= known
    assert [(where, what) for where, what in cited if what not in known] == []
