"""How far the short form of a row came, by what it printed."""

from __future__ import annotations

import re

from tests.crash.rows import Row

# A slow machine runs fewer points within the time; fewer than these say nothing about the code.
_ENOUGH = 0.1


def too_few(row: Row, said: str) -> str:
    """Return what a short row lacks, for whoever reads the summary; nothing if it ran enough."""
    for line in said.splitlines():
        if line.startswith(f"row {row.number}: "):
            found = re.search(rf"\b{re.escape(row.unit)} ([\d,]+)", line)
            reached = int(found[1].replace(",", "")) if found else 0
            if reached >= _ENOUGH * row.short:
                return ""
            return f"row {row.name}: {reached:,} of {row.short:,} {row.unit} within its time"
    return f"row {row.name}: it did not say how far it came"
