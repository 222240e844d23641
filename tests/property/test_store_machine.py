"""A Store and a dict are driven by the same random calls and must agree after each.

Steps: save (new content, same content, replaced), delete, undelete, tag, gc with and without grace,
compaction, loss of the index, closing and opening again. After each, every checkpoint that the
dict knows restores to what was saved, and nothing else is listed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import casckpt
from casckpt.errors import StepExists

RUNS = ("a", "b/c")
SEEDS = st.integers(0, 5)


def _state(seed: int) -> dict[str, object]:
    """Return a state that shares most bytes with its neighbours: chunks recur, deltas pay."""
    weights = np.arange(40_000, dtype=np.float32) * np.float32(0.001)
    weights[seed * 100 : seed * 100 + 50] += np.float32(1e-3)
    return {"w": weights, "seed": seed, "text": "x" * (3000 + seed), "small": np.full(9, seed)}


def _equal(state: object, seed: int) -> bool:
    expected = _state(seed)
    return (
        isinstance(state, dict)
        and list(state) == list(expected)
        and np.array_equal(state["w"], expected["w"])
        and np.array_equal(state["small"], expected["small"])
        and (state["seed"], state["text"]) == (seed, expected["text"])
    )


class StoreMachine(RuleBasedStateMachine):
    """The rules; `live` and `trash` say what the store must hold.

    At each (run, step) at most one (id, seed) is live, and several may be in the trash.
    """

    @initialize()
    def start(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="casckpt-machine-"))
        self.live: dict[tuple[str, int], tuple[str, int]] = {}
        self.trash: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self.tags: set[tuple[str, int]] = set()
        self.tag_count = 0
        self.store = casckpt.open(self.folder / "s")

    def _last(self, run: str) -> int:
        return max((step for name, step in self.live if name == run), default=-1)

    def _drop(self, place: tuple[str, int]) -> None:
        self.trash.setdefault(place, []).append(self.live.pop(place))
        self.tags.discard(place)

    @rule(run=st.sampled_from(RUNS), seed=SEEDS, gap=st.integers(1, 3))
    def save(self, run: str, seed: int, gap: int) -> None:
        step = self._last(run) + gap
        checkpoint = self.store.save(run, _state(seed), step=step, metrics={"m": seed})
        assert checkpoint.step == step
        self.live[run, step] = checkpoint.id, seed

    @precondition(lambda self: self.live)
    @rule(data=st.data(), seed=SEEDS, replace=st.booleans())
    def save_again(self, data: st.DataObject, seed: int, replace: bool) -> None:
        run, step = data.draw(st.sampled_from(sorted(self.live)))
        place = (run, step)
        same = seed == self.live[place][1]
        allowed = same or (replace and place not in self.tags)
        try:
            checkpoint = self.store.save(run, _state(seed), step=step, replace=replace)
        except StepExists:
            assert not allowed
            return
        assert allowed
        if not same:
            self._drop(place)
            self.live[place] = checkpoint.id, seed

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.live)))
        self.store.delete(f"{place[0]}@{place[1]}")
        self._drop(place)

    @precondition(lambda self: set(self.trash) - set(self.live))
    @rule(data=st.data())
    def undelete(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(set(self.trash) - set(self.live))))
        found = self.trash[place]
        which = data.draw(st.integers(0, len(found) - 1))
        # Of several at one step the name means the one that was removed last.
        is_last = which == len(found) - 1
        self.store.undelete(f"{place[0]}@{place[1]}" if is_last else f"id:{found[which][0]}")
        self.live[place] = found.pop(which)
        if not found:
            del self.trash[place]
        # A tag goes into the trash and comes back with its checkpoint.
        if self.store.get(f"{place[0]}@{place[1]}").tags:
            self.tags.add(place)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def tag(self, data: st.DataObject) -> None:
        run, step = data.draw(st.sampled_from(sorted(self.live)))
        if (run, step) not in self.tags:
            self.tag_count += 1
            self.store.tag(f"{run}@{step}", f"t{self.tag_count}")
            self.tags.add((run, step))

    @rule(now=st.booleans())
    def collect(self, now: bool) -> None:
        self.store.gc(now=now)
        if now:
            self.trash.clear()

    @rule(level=st.sampled_from(("balanced", "small")))
    def compact(self, level: str) -> None:
        before = self._needed_bytes()
        result = self.store.compact(level=level)
        for run in result.runs:
            assert run.checkpoint_count == sum(name == run.run for name, _ in self.live)
        # Not run by run: what two runs share may move to a base that only one of them had.
        assert self._needed_bytes() <= before * 1.01

    def _needed_bytes(self) -> int:
        roots = [bytes.fromhex(checkpoint.id) for checkpoint in self.store.checkpoints()]
        return sum(stored for _, stored in self.store._repository.closure(roots).values())

    @precondition(lambda self: self.live)
    @rule(run=st.sampled_from(RUNS), count=st.integers(1, 3))
    def keep_last(self, run: str, count: int) -> None:
        steps = sorted(step for name, step in self.live if name == run)
        if not steps:
            return
        plan = self.store.plan_gc(casckpt.KeepLast(count), run)
        kept = {checkpoint.step for checkpoint in plan.keep}
        expected = set(steps[-count:]) | {step for name, step in self.tags if name == run}
        assert kept == expected
        self.store.gc(plan)
        for step in set(steps) - kept:
            self._drop((run, step))

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = casckpt.open(self.folder / "s")

    @rule()
    def lose_the_index(self) -> None:
        self.store.close()
        for index in (self.folder / "s").glob("index.*/data.mdb"):
            index.unlink()
        casckpt.api.repair_store(self.folder / "s", rebuild_index=True, accept=True)
        self.store = casckpt.open(self.folder / "s")

    @invariant()
    def agrees(self) -> None:
        listed = {(checkpoint.run, checkpoint.step) for checkpoint in self.store.checkpoints()}
        assert listed == set(self.live)
        for (run, step), (_, seed) in self.live.items():
            assert _equal(self.store.restore(f"{run}@{step}"), seed)
        for run in {run for run, _ in self.live}:
            newest = self.live[run, self._last(run)]
            assert self.store.latest(run).id == newest[0]
            assert _equal(self.store.restore(run), newest[1])

    def teardown(self) -> None:
        if hasattr(self, "store"):
            assert not self.store.verify().damaged
            self.store.close()
            shutil.rmtree(self.folder)


StoreMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestStoreMachine = StoreMachine.TestCase
