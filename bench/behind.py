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
    "random bytes, larger": "the index, and 128 bytes of head and list for each record",
    "zeros": "manifests, facts and the index, some 10 KB a save; there is nothing else to store",
}
_SMALL_TENSORS = "casckpt looks at each tensor in Python, torch.save in C; what it gains is size"
_SHORT_HASHES = "a call through cffi; the store hashes many pieces in one call (`many in one call`)"
_SIZES = ("size", "others")
_SPEEDS = ("save", "restore", "unchanged")


def lines(documents: list[Document]) -> list[str]:
    """Return a line for each input, and way of restoring, in which a peer is ahead."""
    found = []
    for document in documents:
        question = document["question"]
        if document["quick"]:
            continue
        found += _scale(document) if question == "scale" else []
        found += _hashes(document) if question == "native" else []
        if question not in (*_SIZES, *_SPEEDS):
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
                ahead = f"{best} {_shown(peers[best])}"
                found.append(f"{question}, {group}: {_shown(values[OURS])} {unit}, {ahead}: {why}.")
    return found


def _scale(document: Document) -> list[str]:
    return [
        f"scale, {row['tensors']:,} small tensors: {row['save_s']:.3g} s, torch.save "
        f"{row['torch_save_s']:.3g}: {_SMALL_TENSORS}."
        for row in document["rows"]
        if row.get("torch_save_s", row.get("save_s", 0)) < row.get("save_s", 0)
    ]


def _hashes(document: Document) -> list[str]:
    speeds: dict[str, dict[str, float]] = defaultdict(dict)
    for row in document["rows"]:
        if row["group"].startswith("hash"):
            speeds[row["group"]][row["name"]] = row["gb_per_s"]
    return [
        f"native, {group}: {by['casckpt']:.3g} GB/s, the blake3 package "
        f"{by['blake3 package']:.3g}: {_SHORT_HASHES}."
        for group, by in speeds.items()
        if by.get("blake3 package", 0.0) > by.get("casckpt", 0.0)
    ]


def _shown(value: float) -> str:
    """Return a number with the digits that tell 1.001 from 1."""
    return f"{value:.5g}" if 0.99 < value < 1.01 else f"{value:.3g}"
