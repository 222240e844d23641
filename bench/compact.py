"""Compact: how small do old checkpoints get, and what does restoring them then cost?

The trajectory is saved twice with default settings, and one of the two stores is compacted. Size
before and after stands beside the order-0 entropy of the same planes. Then both stores restore,
by turns: the newest checkpoint, the oldest with an optimizer, the one on the longest chains, and
one tensor of that: the worst case, since each link is one more record to read and to decode. Every
checkpoint of the compacted store is compared with what was saved.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench import limits
from bench.contenders import Casckpt
from bench.harness import Context, Goal, Result, disk_bytes, measure, speed_row
from bench.inputs import trajectory
from bench.size import entropy
from bench.trees import logical_bytes

GOALS = {"fp32": 0.73, "bf16": 0.41}
ONE_TENSOR = "*blocks.1.up.weight"
STORES = ("as saved", "compacted")


def run(context: Context) -> Result:
    """Compact both trajectories; rows of size, of chains, and of restores before and after."""
    result = Result("compact", context.quick)
    recipes = (trajectory.QUICK_FP32, trajectory.QUICK_BF16)
    if not context.quick:
        recipes = (trajectory.FP32, trajectory.BF16)
    for recipe in recipes:
        name = recipe.name.removeprefix("quick-")
        ratio = _compact(context, result, name, recipe)
        result.limits[name] = entropy(trajectory.states(recipe, context.cache))
        result.goals.append(
            Goal(f"stored / logical after compact, {name}", GOALS[name], ratio, "", True)
        )
    result.limits["machine"] = limits.machine_limits(context.work, quick=context.quick)
    result.notes.append(
        "ratio: blocks on the disk less those of an empty store, over logical bytes"
    )
    result.notes.append("restores are warm and verified; every one of both stores in each round")
    return result


def _compact(context: Context, result: Result, name: str, recipe: trajectory.Recipe) -> float:
    """Fill two stores, compact one, and add the rows; return its size over the logical bytes."""
    stores = {label: Casckpt() for label in STORES}
    with context.folder("compact") as base:
        empty = {label: _open(stores[label], base / label.replace(" ", "-")) for label in STORES}
        logical, sizes = 0, {}
        for step, state in trajectory.states(recipe, context.cache):
            sizes[step] = logical_bytes(state)
            logical += sizes[step]
            for contender in stores.values():
                contender.save(step, state)
        began_s = time.monotonic()
        said = stores["compacted"].store.compact()
        took_s = time.monotonic() - began_s
        ratios = {}
        for label, contender in stores.items():
            contender.close()
            grown = disk_bytes(contender.kept) - empty[label]
            ratios[label] = grown / logical
            contender.open(contender.folder)
            depths = _depths(contender.store, recipe.saved_steps)
            result.rows.append(
                {
                    "input": name,
                    "name": label,
                    "logical_bytes": logical,
                    "grown_bytes": grown,
                    "ratio": ratios[label],
                    "longest_chain": max(longest for longest, _ in depths.values()),
                    "mean_chain": sum(mean for _, mean in depths.values()) / len(depths),
                    "newest_chain": depths[recipe.saved_steps[-1]][0],
                }
            )
        result.rows[-1] |= {
            "compact_s": took_s,
            "looked_gb_per_s": logical / took_s / 1e9,
            "recoded_count": said.recoded_count,
            "looked_count": said.looked_count,
        }
        for step, state in trajectory.states(recipe, context.cache):
            stores["compacted"].check(step, state)
        _restore(context, result, name, stores, sizes)
        for contender in stores.values():
            contender.close()
    return float(ratios["compacted"])


def _open(contender: Casckpt, folder: Path) -> int:
    """Open a store in a new folder; return what it takes while it is empty."""
    folder.mkdir()
    contender.open(folder)
    return disk_bytes(contender.kept)


_WISHES = ("newest", "oldest", "deepest", "one tensor")


def _restore(
    context: Context,
    result: Result,
    name: str,
    stores: dict[str, Casckpt],
    sizes: dict[int, int],
) -> None:
    """Time restores of both stores, interleaved."""
    steps = list(sizes)
    depths = _depths(stores["compacted"].store, steps)
    deepest = max(steps, key=lambda step: (depths[step][1], sizes[step]))
    # The first of all has no optimizer, so it is no measure for the others.
    places = dict(zip(_WISHES, (steps[-1], steps[1], deepest, deepest), strict=True))

    def restore(label: str, wish: str) -> Any:
        only = ONE_TENSOR if wish == "one tensor" else None
        return stores[label].store.restore(f"bench@{places[wish]}", only=only)

    seconds = measure(
        {
            f"{wish}, {label}": lambda number, label=label, wish=wish: restore(label, wish)
            for wish in _WISHES
            for label in STORES
        },
        context.rounds,
    )
    for wish in _WISHES:
        size = logical_bytes(restore("compacted", wish))
        for label in STORES:
            row = speed_row(f"{wish}, {label}", size, seconds[f"{wish}, {label}"])
            result.rows.append({"input": name, **row, "step": places[wish], "restored_bytes": size})


def _depths(store: Any, steps: Iterable[int]) -> dict[int, tuple[int, float]]:
    """Return by step the longest and the mean base chain of a checkpoint's chunks, in links."""
    from casckpt.store.reading import Reader

    repository = store._repository
    shared, reader = repository._shared(), Reader(repository._shared(), repository._workers())
    found = {}
    for step in steps:
        refs, _ = repository.read_manifest(bytes.fromhex(store.get(f"bench@{step}").id))
        ids = [identity for blob in refs for identity, _ in reader.chunks_of(blob)]
        with shared.environment.read() as tx:
            links = [len(tx.chain(identity)) - 1 for identity in ids]
        found[step] = (max(links), sum(links) / len(links))
    return found
