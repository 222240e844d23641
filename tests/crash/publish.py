"""Write what the result files hold into docs/reliability.md: `python -m tests.crash.publish`."""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.crash.ledger import RESULTS, ROOT, digest_of
from tests.crash.rows import ROWS, Row

_PAGE = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- counts -->\n", "<!-- end of counts -->\n"


def main() -> int:
    """Replace the table between the marks; return 0."""
    text = _PAGE.read_text()
    head, _, rest = text.partition(_BEGIN)
    _, _, tail = rest.partition(_END)
    lines = [
        "| # | tried on this code | before | bad | figure to reach | commit and date |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in sorted(ROWS, key=lambda row: row.number)),
    ]
    _PAGE.write_text(head + _BEGIN + "\n".join(lines) + "\n" + _END + tail)
    return 0


def _line(row: Row) -> str:
    path = RESULTS / row.file
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
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
