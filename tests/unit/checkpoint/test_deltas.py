"""A save is coded against its parent where that pays, and comes back bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import casckpt

STEPS = 6


def _trajectory() -> list[dict[str, object]]:
    """Return states that drift slowly, as weights do."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(600_000).astype(np.float32)
    small = generator.standard_normal(900).astype(np.float32)
    states = []
    for step in range(STEPS):
        noise = generator.standard_normal(weights.shape).astype(np.float32)
        weights = weights * np.float32(1 + 1e-6) + noise * np.float32(1e-6)
        states.append({"w": weights.copy(), "small": small + step, "random": generator.bytes(5000)})
    return states


def _fill(path: Path, **options: int) -> tuple[casckpt.Store, list[dict[str, object]]]:
    store = casckpt.open(path, options=casckpt.Options(**options))
    states = _trajectory()
    for state in states:
        store.save("r", state)
    return store, states


def _stored(store: casckpt.Store) -> int:
    return sum(checkpoint.stored_bytes for checkpoint in store.checkpoints("r"))


def test_deltas_make_the_store_smaller_and_change_no_byte(tmp_path: Path) -> None:
    with casckpt.open(tmp_path / "whole", options=casckpt.Options(max_delta_depth=0)) as whole:
        for state in _trajectory():
            whole.save("r", state)
        plain_bytes = _stored(whole)
    store, states = _fill(tmp_path / "deltas")
    with store:
        assert _stored(store) < 0.75 * plain_bytes
        for step, state in enumerate(states):
            back = store.restore(f"r@{step}")
            np.testing.assert_array_equal(
                back["w"].view(np.uint32), np.asarray(state["w"]).view(np.uint32)
            )
            np.testing.assert_array_equal(back["small"], state["small"])
            assert back["random"] == state["random"]
        assert not store.verify().damaged


def test_a_table_of_bytes_is_not_stored_whole_again_for_a_changed_row(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    table = generator.integers(-128, 127, (1500, 512), np.int8)
    with casckpt.open(tmp_path / "s") as store:
        for step in range(9):
            table[step] = generator.integers(-128, 127, 512)
            store.save("r", {"table": table}, step)
            np.testing.assert_array_equal(store.restore("r")["table"], table)
        later = [checkpoint.stored_bytes for checkpoint in store.checkpoints("r")[1:]]
    # Past the depth of a chain, too: then it rests on what that ends in.
    assert max(later) < 0.05 * table.nbytes


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_no_chain_is_longer_than_asked(tmp_path: Path, depth: int) -> None:
    store, _ = _fill(tmp_path / "s", max_delta_depth=depth)
    with store, store._repository._shared().environment.read() as tx:
        from casckpt.store.rows import ObjectRow

        depths = {ObjectRow.decode(value).depth for _, value in tx.scan("objects")}
    assert max(depths) == min(depth, STEPS - 1)


def test_dropping_a_parent_keeps_the_bytes_its_child_rests_on(tmp_path: Path) -> None:
    store, states = _fill(tmp_path / "s")
    with store:
        store.gc(store.plan_gc(casckpt.KeepLast(1)), now=True)
        store.gc(now=True)
        assert [checkpoint.step for checkpoint in store.checkpoints("r")] == [STEPS - 1]
        back = store.restore("r")
        np.testing.assert_array_equal(back["w"], states[-1]["w"])
        assert not store.verify().damaged


def test_deltas_survive_the_loss_of_the_index(tmp_path: Path) -> None:
    store, states = _fill(tmp_path / "s")
    store.close()
    for index in (tmp_path / "s").glob("index.*"):
        (index / "data.mdb").unlink()
    casckpt.api.repair_store(tmp_path / "s", rebuild_index=True)
    with casckpt.open(tmp_path / "s") as again:
        for step, state in enumerate(states):
            np.testing.assert_array_equal(again.restore(f"r@{step}")["w"], state["w"])


def test_a_parent_of_another_run_is_a_base(tmp_path: Path) -> None:
    states = _trajectory()
    with casckpt.open(tmp_path / "s") as store:
        origin = store.save("pretrained", states[0])
        plain = store.save("alone", states[1])
        tuned = store.save("tuned", states[2], parent="pretrained")
        assert plain.new_bytes == tuned.new_bytes
        assert tuned.stored_bytes < 0.8 * origin.stored_bytes
        np.testing.assert_array_equal(store.restore("tuned")["w"], states[2]["w"])


def test_every_bit_pattern_survives_a_delta(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for dtype in (np.uint16, np.uint32, np.uint64):
        top = np.iinfo(dtype).max
        base = generator.integers(0, top, 200_000, dtype=dtype, endpoint=True)
        near = base + generator.integers(0, 3, base.shape, dtype=dtype)
        near[::1000] = generator.integers(0, top, near[::1000].shape, dtype=dtype, endpoint=True)
        with casckpt.open(tmp_path / np.dtype(dtype).name) as store:
            first = store.save("r", {"w": base})
            second = store.save("r", {"w": near})
            assert second.stored_bytes < 0.7 * first.stored_bytes
            np.testing.assert_array_equal(store.restore("r")["w"], near)
