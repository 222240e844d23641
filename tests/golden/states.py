"""What golden stores hold: every kind of leaf that needs numpy only, small, and always the same."""

from __future__ import annotations

from typing import Any

import numpy as np

STEPS = 3
GROWN_STEPS = 7


def state(step: int) -> dict[str, Any]:
    """Return the state of a step; weights drift, so later steps are stored as differences."""
    generator = np.random.default_rng(7)
    weights = generator.standard_normal(20_000).astype(np.float32)
    half = (generator.integers(0, 1 << 14, 20_000)).astype(np.uint16)
    drift = np.arange(20_000) % 5 == step
    return {
        "weights": weights + np.float32(1e-6) * drift.astype(np.float32) * step,
        "half": half + drift.astype(np.uint16),
        "moments": {"m": np.full((3, 5), step, np.float64), "v": np.zeros(0, np.float32)},
        "fortran": np.asfortranarray(np.arange(12, dtype=np.int64).reshape(3, 4)),
        "big_endian": np.arange(5, dtype=">f8"),
        "when": np.array(["2026-01-01"], dtype="datetime64[D]"),
        "words": np.array(["ä", "bc"]),
        "record": np.array([(1, 2.5)], dtype=[("a", "i4"), ("b", "f8")]),
        "text": "line\n" * (1000 + step),
        "bytes": bytes(range(256)) * (20 + step),
        1: [1, True, None, -0.0, float("inf"), 2**100, 3 + 4j],
        (1, "x"): ("tuple", {"nested": {}}),
    }


def grown(step: int) -> dict[str, Any]:
    """Return a state of opaque bytes that grow, and of a table of bytes of which rows change."""
    generator = np.random.default_rng(8)
    lines = [b"%024d\n" % number for number in generator.integers(0, 10**18, 3000 + 50 * step)]
    table = generator.integers(-128, 127, (300, 256), np.int8)
    table[: 2 * step] += np.int8(step)
    return {"log": b"".join(lines), "table": table, "step": step}
