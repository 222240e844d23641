from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from casckpt.checkpoint.payloads import make_ref
from casckpt.checkpoint.records import Checkpoint

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def make_checkpoint() -> Callable[..., Checkpoint]:
    """Return a maker of checkpoints; seq counts up, and each is an hour after the one before."""
    count = 0

    def make(run: str = "run", step: int = 0, **fields: Any) -> Checkpoint:
        nonlocal count
        count += 1
        line, batch = fields.get("line", 0), fields.get("batch", 0)
        facts: dict[str, Any] = {
            "ref": make_ref(run, line, step, batch),
            "id": hashlib.sha256(f"{run}/{count}".encode()).hexdigest(),
            "run": run,
            "line": line,
            "step": step,
            "batch": batch,
            "created": START + timedelta(hours=count),
            "metrics": {},
            "tags": (),
            "pinned": False,
            "reasons": (),
            "parent": None,
            "logical_bytes": 1000,
            "new_bytes": 100,
            "stored_bytes": 50,
            "stall_s": 0.0,
            "durable_s": 0.0,
            "seq": count,
        }
        return Checkpoint(**(facts | fields))

    return make
