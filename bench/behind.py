"""Where casckpt is larger or slower than the best of its peers, and why."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Document = dict[str, Any]

OURS = "casckpt balanced"

# Why it is so, by question, and of sizes by input
REASONS = {
    "save": "two cores take longer to code than the disk takes for the bytes that saves "
    "(ADR 0013); level `fast` codes nothing",
    "restore": "each chunk is decoded with the chain it stands on, and checked by BLAKE3; the "
    "peers read bytes as they are and check nothing, or little",
    "random bytes": "the index, of which some 100 KB are pages that LMDB keeps free",
    "zeros": "manifests, facts and the index, some 10 KB a save; there is nothing else to store",
}
_SIZES = ("size", "others")
_SPEEDS = ("save", "restore", "unchanged")


def lines(documents: list[Document]) -> list[str]:
    """Return a line for each input, and way of restoring, in which a peer is ahead."""
    found = []
    for document in documents:
        question = document["question"]
        if question not in (*_SIZES, *_SPEEDS) or document["quick"]:
            continue
        measure, better = ("ratio", min) if question in _SIZES else ("gb_per_s", max)
        groups: dict[str, dict[str, float]] = defaultdict(dict)
        for row in document["rows"]:
            if measure in row:
                group = ", ".join(row[key] for key in ("input", "way") if key in row)
                groups[group][row["name"]] = row[measure]
        for group, values in groups.items():
            peers = {name: value for name, value in values.items() if "casckpt" not in name}
            if OURS not in values or not peers:
                continue
            best = better(peers, key=peers.__getitem__)
            if better(values[OURS], peers[best]) != values[OURS]:
                unit = "of the logical bytes" if question in _SIZES else "GB/s"
                why = REASONS.get(group, REASONS.get(question, "no reason is known"))
                ahead = f"{best} {peers[best]:.3g}"
                found.append(f"{question}, {group}: {values[OURS]:.3g} {unit}, {ahead}: {why}.")
    return found
