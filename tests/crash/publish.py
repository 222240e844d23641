"""Write what the rows and their files hold into docs/reliability.md.

    python -m tests.crash.publish

The figures of the first table, the table of counts, and what is said of the mutants.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from typing import Any

from tests.crash.ledger import RESULTS, ROOT, digest_of
from tests.crash.mutants import CAUGHT_BY
from tests.crash.rows import ROWS, Row

_PAGE = ROOT / "docs" / "reliability.md"


def main() -> int:
    """Replace what stands between marks, and the last column of the first table; return 0."""
    text = _PAGE.read_text()
    for row in ROWS:
        text = _with_figure(text, row)
    lines = [
        "| # | tried on this code | before | bad | next target | commit and date |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in sorted(ROWS, key=lambda row: row.number)),
    ]
    text = _between(text, "counts", lines)
    _PAGE.write_text(_between(text, "mutants", [_of_the_mutants()]))
    return 0


def _between(text: str, name: str, lines: list[str]) -> str:
    """Return the page with other lines between the two marks of this name."""
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    head, _, rest = text.partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise SystemExit(f"{_PAGE.name} has no marks of {name}")
    return head + begin + "".join(f"{line}\n" for line in lines) + end + tail


def _with_figure(text: str, row: Row) -> str:
    """Return the page with the row's figure for a release in the table of the rows."""
    line = re.compile(rf"^(\| {row.number} \| `{row.name}` \| .* \|) [^|]* \|$", re.MULTILINE)
    text, count = line.subn(rf"\g<1> {row.release:,} {row.unit} |", text)
    if count != 1:
        raise SystemExit(f"{_PAGE.name} has {count} lines of row {row.name}")
    return text


def _of_the_mutants() -> str:
    row = next(one for one in ROWS if one.name == "mutants")
    kept = _kept(row)
    counts = [one["counts"] for one in (*kept.get("before", []), kept) if one.get("counts")]
    last, rules = counts[-1] if counts else {}, len(CAUGHT_BY)
    noticed = last.get(row.unit, 0) - last.get("bad", 0)
    is_now = kept.get("sources") == digest_of(row.sources)
    said = (
        f"The harness is tested by the mutants: {rules} rules of the code can be switched off, "
        f"each alone. In the last run, {'of this code' if is_now else 'which was of earlier code'},"
        f" {noticed} of the {last.get(row.unit, 0)} that were tried were noticed (`caught_by` in "
        f"`{row.file}` names by what)."
    )
    return textwrap.fill(said, 100)


def _kept(row: Row) -> dict[str, Any]:
    path = RESULTS / row.file
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return kept


def _line(row: Row) -> str:
    kept = _kept(row)
    now = kept.get("counts", {}) if kept.get("sources") == digest_of(row.sources) else {}
    earlier = kept.get("before", [])
    if not now and kept:
        earlier = [*earlier, kept]
    before = sum(entry["counts"].get(row.unit, 0) for entry in earlier)
    parts = ", ".join(
        f"{name} {count:,}" for name, count in now.items() if name not in ("bad", row.unit)
    )
    words = f"{now.get(row.unit, 0):,} {row.unit}" + (f" ({parts})" if parts else "")
    run = kept["runs"][-1] if now and kept.get("runs") else None
    where = f"{run['commit'][:9]}, {run['when'][:10]}" if run else ""
    bad = now.get("bad", 0) if now else ""
    return f"| {row.number} | {words} | {before:,} | {bad} | {row.now:,} | {where} |"


if __name__ == "__main__":
    sys.exit(main())
