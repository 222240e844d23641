"""Compact through the public Store: what is won, per run, and that every bit stays."""

from __future__ import annotations

import pytest

import casckpt
from casckpt.api import CompactResult
from casckpt.checkpoint.lineages import TURNED_FROM, lineages
from casckpt.errors import BadRequest

np = pytest.importorskip("numpy")

STEPS = 10


def drift(seed, steps=STEPS, items=150_000):
    """Yield states of a training that moves slowly: weights, moments, a frozen part, a step."""
    random = np.random.default_rng(seed)
    frozen = random.standard_normal(30_000)
    weights = random.standard_normal(items).astype(np.float32)
    for step in range(steps):
        yield {"w": weights.copy(), "frozen": frozen, "bias": np.full(9, step), "step": step}
        weights += random.standard_normal(items).astype(np.float32) * np.float32(1e-5)


def same(state, expected):
    return (
        list(state) == list(expected)
        and all(
            state[name].tobytes() == expected[name].tobytes()
            and state[name].dtype == expected[name].dtype
            for name in ("w", "frozen", "bias")
        )
        and state["step"] == expected["step"]
    )


@pytest.fixture
def trained(store):
    for step, state in enumerate(drift(1)):
        store.save("a/b", state, step)
    return store


def whole(store, run, seed, steps=STEPS):
    return all(
        same(store.restore(f"{run}@{step}"), state) for step, state in enumerate(drift(seed, steps))
    )


def test_less_is_stored_and_every_bit_stays(trained):
    planned = trained.plan_compact()
    done = trained.compact()
    assert isinstance(done, CompactResult)
    (run,) = done.runs
    assert (run.run, run.checkpoint_count) == ("a/b", STEPS)
    assert run.logical_bytes == sum(ck.logical_bytes for ck in trained.checkpoints("a/b"))
    assert run.after_bytes < 0.95 * run.before_bytes
    assert done.after_bytes < done.before_bytes
    assert done.recoded_count > STEPS // 2
    assert not done.planned
    assert whole(trained, "a/b", 1)
    assert trained.verify().ok
    # So small a store is sampled whole: the plan is what came of it.
    assert planned.planned
    assert planned.runs == done.runs
    again = trained.compact()
    assert again.recoded_count == 0
    assert again.runs[0].after_bytes == run.after_bytes


def test_a_plan_does_not_count_what_the_trash_still_needs(trained):
    trained.compact()
    for step in range(STEPS - 3, STEPS):  # what the older ones stand on
        trained.delete(f"a/b@{step}")
    held = trained.plan_compact()
    (run,) = held.runs
    assert run.after_bytes < run.before_bytes
    assert held.trash_bytes > 0
    assert held.after_bytes == held.before_bytes - max(
        run.before_bytes - run.after_bytes - held.trash_bytes, 0
    )
    done = trained.compact()
    assert done.after_bytes > held.before_bytes - (run.before_bytes - run.after_bytes)


def test_a_plan_changes_nothing_and_may_be_made_by_a_reader(trained):
    before = sorted((path, path.stat().st_size) for path in trained.path.glob("packs/*/*"))
    with casckpt.open(trained.path, mode="r") as reader:
        assert reader.plan_compact(level="balanced").level == "balanced"
        with pytest.raises(BadRequest, match="reading only"):
            reader.compact()
    assert {path for path, _ in before} == set(trained.path.glob("packs/*/*"))


def test_levels_are_two(trained):
    with pytest.raises(BadRequest, match="bad level"):
        trained.compact(level="fast")


def test_progress_ends_at_all_that_there_is(trained):
    said = []
    trained.compact(level="balanced", progress=lambda done, total: said.append((done, total)))
    assert said
    assert said == sorted(said)
    assert said[-1][0] == said[-1][1] > 0


def test_saves_go_on_and_are_compacted_next_time(trained):
    trained.compact()
    states = list(drift(1, STEPS + 5))
    for step in range(STEPS, STEPS + 5):
        trained.save("a/b", states[step], step)
    assert trained.compact().recoded_count > 0
    assert whole(trained, "a/b", 1, STEPS + 5)


def test_checkpoints_that_went_leave_no_base_behind(trained):
    trained.compact()
    kept = trained.plan_gc(casckpt.KeepEvery(3))
    trained.gc(kept, now=True)
    trained.compact()
    stored = trained._repository.closure([bytes.fromhex(ck.id) for ck in trained.checkpoints()])
    weights = [logical for logical, _ in stored.values() if logical == 150_000 * 4]
    assert len(weights) == len(kept.keep)
    states = list(drift(1))
    for checkpoint in kept.keep:
        assert same(trained.restore(checkpoint), states[checkpoint.step])


def test_a_short_branch_stays_on_what_it_began_at_and_a_long_one_does_not(tmp_path):
    branches = {f"tuned-{length}": length for length in (2, TURNED_FROM)}
    with casckpt.open(tmp_path / "store") as store:
        for step, state in enumerate(drift(1)):
            store.save("a/b", state, step)
        for name, length in branches.items():
            with store.run(name, resume="a/b@4") as run:
                for step, state in enumerate(drift(2, length), 5):
                    run.save(state, step=step)
        lengths = {len(one.blobs) for one in lineages(store._catalog) if one.length == 600_000}
        # Ten of the run; the short branch's two with its parent; the long one by itself.
        assert lengths == {STEPS, 3, TURNED_FROM}
        store.compact()
        assert whole(store, "a/b", 1)
        for name, length in branches.items():
            for step, state in enumerate(drift(2, length), 5):
                assert same(store.restore(f"{name}@{step}"), state)


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", "<c8", "<c16", "<i2", "|u1", "<M8[us]"])
def test_any_bits_of_any_type_survive(store, dtype):
    random = np.random.default_rng(5)
    bits = random.integers(0, 256, 400_000, dtype=np.uint8)
    states = []
    for step in range(4):
        bits = bits.copy()
        bits[random.integers(0, len(bits), 500)] ^= 255  # NaN payloads and infinities among them
        states.append({"x": bits.view(dtype), "few": bits[:96].view(dtype)})
        store.save("r", states[-1], step)
    store.compact()
    for step, state in enumerate(states):
        back = store.restore(f"r@{step}")
        assert back["x"].tobytes() == state["x"].tobytes()
        assert back["few"].tobytes() == state["few"].tobytes()


def test_opaque_bytes_are_tried_too(store):
    text = "".join(f"line {number % 977} of many\n" for number in range(60_000))
    store.save("r", {"log": text}, 0, level="fast")
    assert store.compact().runs[0].after_bytes < len(text) / 4
    assert store.restore("r")["log"] == text


def test_an_empty_store_has_nothing_to_win(store):
    done = store.compact()
    assert done.runs == ()
    assert done.looked_count == 0
