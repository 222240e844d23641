"""What was promised to a program that saved until it was killed, and whether it holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

Place = tuple[str, int]
Line = dict[str, Any]


def state(seed: int) -> dict[str, Any]:
    """Return the state of a seed; those of a hundred seeds are near each other, as in training."""
    base = np.random.default_rng(seed // 100).standard_normal(20_000).astype(np.float32)
    step = np.random.default_rng(seed).standard_normal(20_000).astype(np.float32)
    text = np.random.default_rng(seed % 7).bytes(70_000)
    return {"weights": base + step * np.float32(1e-5), "text": text, "seed": seed}


def same(found: Any, seed: int) -> bool:
    """Tell whether what was restored is the state of a seed, to the bit."""
    wanted = state(seed)
    return (
        isinstance(found, dict)
        and found.keys() == wanted.keys()
        and found["seed"] == seed
        and found["text"] == wanted["text"]
        and found["weights"].dtype == np.float32
        and found["weights"].tobytes() == wanted["weights"].tobytes()
    )


class Expected:
    """For each place, the seeds of which one must be there; None stands for nothing.

    Lines are what a worker says: `{"begin": [verb, run, step, seed]}` before it asks for something
    and `{"done": ...}` once that has returned.
    """

    def __init__(self, lines: Iterable[Line]) -> None:
        self.is_open = False
        self.acknowledged = 0
        self._allowed: dict[Place, set[int | None]] = {}
        for line in lines:
            for word, (verb, run, step, seed) in line.items():
                self._take(word == "done", verb, (run, step), seed)

    def _take(self, is_done: bool, verb: str, place: Place, seed: int) -> None:
        if verb == "open":
            self.is_open |= is_done
            return
        after = seed if verb == "save" else None
        if verb not in ("save", "delete"):
            return
        if is_done:
            self._allowed[place] = {after}
            self.acknowledged += verb == "save"
        else:
            self._allowed.setdefault(place, {None}).add(after)

    def problems(self, store: Any) -> list[str]:
        """Return what does not hold in an open store, one line each."""
        found = {(ck.run, ck.step): ck for ck in store.checkpoints("*")}
        said = []
        for place, allowed in self._allowed.items():
            checkpoint = found.pop(place, None)
            name = f"{place[0]}@{place[1]}"
            if checkpoint is None:
                if None not in allowed:
                    said.append(f"{name} was acknowledged and is gone")
                continue
            seeds = [seed for seed in allowed if seed is not None]
            if not seeds:
                said.append(f"{name} was removed and is back")
            elif not any(same(store.restore(checkpoint), seed) for seed in seeds):
                said.append(f"{name} came back as something else")
        return said + [f"{run}@{step}: nobody saved it" for run, step in found]


def parse(text: str) -> list[Line]:
    """Return the whole lines that a worker said; the last may be cut off."""
    return [json.loads(line) for line in text.split("\n")[:-1]]
