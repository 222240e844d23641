"""The loss of any one chunk is reported as exactly the checkpoints that it touches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import casckpt
from casckpt.errors import Corrupt
from casckpt.store import layout, packs

STEPS = 6


def states() -> list[dict[str, object]]:
    """Return states that rest on one another: numbers, a table, a log, and a part that stays."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(30_000).astype(np.float32)
    kept = generator.standard_normal(20_000)
    table = generator.integers(-128, 127, (200, 512), np.int8)
    lines = [b"%024d\n" % number for number in generator.integers(0, 10**18, 900)]
    found = []
    for step in range(STEPS):
        weights = weights + generator.standard_normal(30_000).astype(np.float32) * np.float32(1e-5)
        table = table.copy()
        table[step] += np.int8(1)
        lines.append(b"step %d\n" % step)
        log = b"".join(lines)
        found.append({"w": weights, "kept": kept, "table": table, "log": log, "step": step})
    return found


def touched(store: casckpt.Store) -> dict[bytes, set[str]]:
    """Return of each chunk the checkpoints that reach it, through bases too."""
    repository = store._repository
    found: dict[bytes, set[str]] = {}
    for checkpoint in store.checkpoints("r"):
        for identity in repository.closure([bytes.fromhex(checkpoint.id)]):
            found.setdefault(identity, set()).add(checkpoint.ref)
    return found


@pytest.mark.parametrize("compacted", [False, True])
def test_it_is_exactly_the_checkpoints_that_need_it(tmp_path: Path, compacted: bool) -> None:
    path = tmp_path / "s"
    expected = states()
    with casckpt.open(path) as store:
        for state in expected:
            store.save("r", state, state["step"])
        if compacted:
            store.compact()
        reached = touched(store)
        everything = {checkpoint.ref for checkpoint in store.checkpoints("r")}
        shared = store._repository._shared()
        with shared.environment.read() as tx:
            places = {
                identity: (packs.pack_path(path, tx.pack(row.pack).uuid), row)
                for identity in reached
                if (row := tx.object(identity)).kind == layout.TYPE_CHUNK
            }
    bases = {row.base for _, row in places.values()} - {b""}
    assert len(bases) >= 4
    assert any(1 < len(reached[base]) < STEPS for base in bases)
    for identity, (pack, row) in places.items():
        whole = pack.read_bytes()
        # The last byte of the record's payload
        at = row.offset + row.total_bytes - 1
        pack.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with casckpt.open(path, mode="r") as store:
            result = store.verify()
            assert set(result.lost) == reached[identity]
            assert set(result.whole) == everything - reached[identity]
            for ref in result.lost[:1]:
                with pytest.raises(Corrupt):
                    store.restore(ref)
            for ref in result.whole[:2]:
                state = expected[store.get(ref).step]
                back = store.restore(ref)
                assert back["w"].tobytes() == state["w"].tobytes()
                assert back["log"] == state["log"]
        pack.write_bytes(whole)
