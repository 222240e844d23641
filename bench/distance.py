"""How far a row is from what the machine or the bytes allow, from the limits of the same result.

Sizes stand against the order-0 entropy of the better of numbers and differences; speeds against the
slowest of what a way cannot do without: writing what it stores, hashing what it verifies, copying
what it restores. Coding is left out: a faster coder is possible, a faster disk is not.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Document = dict[str, Any]


def add(document: Document, folder: Path) -> None:
    """Give each row that has a limit its distance: `over_entropy` (1 is the limit), `of_limit`."""
    limits = document["limits"]
    machine = limits.get("machine", limits)
    stored = _stored(folder)
    for row in document["rows"]:
        entropy = limits.get(row.get("input", ""), {})
        if isinstance(entropy, dict) and "ratio" in row and entropy:
            row["over_entropy"] = row["ratio"] / entropy["order0_best_of_planes_and_delta"]
        if "gb_per_s" in row and "memcpy_touched_gb_per_s" in machine:
            limit = _speed(document["question"], row, machine, stored)
            row["of_limit"] = row["gb_per_s"] / limit if limit else None


def _speed(
    question: str, row: Document, machine: dict[str, float], stored: dict[tuple[str, str], float]
) -> float | None:
    """Return the logical GB/s that this row's way could reach at most on this machine."""
    name = row["name"]
    ours = "casckpt" in name or question == "compact"
    disk, memory = machine["disk_write_gb_per_s"], machine["memcpy_touched_gb_per_s"]
    hashing = max(value for key, value in machine.items() if key.startswith("blake3"))
    if question == "save":
        share = stored.get((row["input"], name), 1.0)
        return min(disk / share, hashing) if ours else disk / share
    if question == "unchanged":
        return hashing if ours else disk
    if question == "stall":
        return memory
    if question == "compact":
        return 1 / (1 / hashing + 1 / memory)
    if question == "restore" and row["way"] != "cold":
        memory = memory if row["way"] == "warm" else machine["memcpy_fresh_gb_per_s"]
        return 1 / (1 / hashing + 1 / memory) if ours else memory
    return None


def _stored(folder: Path) -> dict[tuple[str, str], float]:
    """Return stored / logical of each contender by input, as far as that was measured."""
    path = folder / "size.json"
    if not path.exists():
        return {}
    rows = json.loads(path.read_text())["rows"]
    return {(row["input"], row["name"]): row["ratio"] for row in rows}
