"""Size: how many bytes of disk does a whole training history take?

Every contender keeps all checkpoints of the trajectory, in order; after each save the blocks its
files take on the disk are read. Beside them stands the order-0 entropy of the same byte planes,
the practical limit of coders that see one byte at a time. A growing booster and a growing study
are kept the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench import limits
from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import Context, Goal, Result, disk_bytes
from bench.inputs import booster, study, trajectory
from bench.peers import Borg, Dcp, Orbax, PlainFile, Restic, Safetensors, TorchSave, ZipNn, ZstdFile
from bench.trees import logical_bytes

GOALS = {"fp32": 0.755, "bf16": 0.475}
States = Iterator[tuple[int, dict[str, Any]]]


def run(context: Context) -> Result:
    """Keep every input with every contender; one row each, with the disk used after each save."""
    result = Result("size", context.quick)
    recipes = (trajectory.QUICK_FP32, trajectory.QUICK_BF16)
    if not context.quick:
        recipes = (trajectory.FP32, trajectory.BF16)
    for recipe in recipes:
        name = recipe.name.removeprefix("quick-")
        _keep_all(context, result, name, lambda r=recipe: trajectory.states(r, context.cache))
        result.limits[name] = entropy(trajectory.states(recipe, context.cache))
        ratio = _ratio(result, name, "casckpt balanced")
        result.goals.append(Goal(f"stored / logical, {name}", GOALS[name], ratio, "", True))
    for name, module in (("booster", booster), ("study", study)):
        if reason := module.missing():
            result.missing[f"input {name}"] = reason
        else:
            _keep_all(context, result, name, lambda m=module: m.states(context.cache))
    result.notes.append(
        "disk: blocks of all files of a contender, its index and logs included; the ratio leaves "
        "out empty_bytes, what an empty store takes (casckpt reserves 64 MiB for a full disk)"
    )
    return result


def _contenders(quick: bool, *, tensors: bool) -> list[Contender]:
    levels = ("fast", "balanced") if quick else ("fast", "balanced", "small")
    peers: list[Contender] = [PlainFile()]
    if tensors:
        peers = [TorchSave(), Dcp(), Safetensors(), Orbax(), ZipNn()]
    ours = [Casckpt(level) for level in levels]
    return [*ours, *peers, ZstdFile(), Restic(), Borg()]


def _keep_all(context: Context, result: Result, name: str, states: Callable[[], States]) -> None:
    """Save every state with every contender and check that the last one comes back."""
    contenders, missing = split_missing(_contenders(context.quick, tensors=name in GOALS))
    result.missing |= missing
    rows = {c.name: _row(name, c.name) for c in contenders}
    with context.folder("size") as base:
        for contender in contenders:
            contender.open(_folder(base, contender))
            rows[contender.name]["empty_bytes"] = disk_bytes(contender.kept)
        logical, last = 0, None
        for step, state in states():
            logical += logical_bytes(state)
            for contender in contenders:
                contender.save(step, state)
                used = disk_bytes(contender.kept)
                rows[contender.name]["disk"].append([step, logical, used])
            last = (step, state)
        assert last is not None
        for contender in contenders:
            contender.check(*last)
            contender.close()
    for row in rows.values():
        _, logical, used = row["disk"][-1]
        grown = used - row["empty_bytes"]
        row |= {"logical_bytes": logical, "grown_bytes": grown, "ratio": grown / logical}
        result.rows.append(row)


def _row(input_name: str, contender: str) -> dict[str, Any]:
    return {"input": input_name, "name": contender, "disk": []}


def _folder(base: Path, contender: Contender) -> Path:
    path = base / contender.name.replace(" ", "-")
    path.mkdir(exist_ok=True)
    return path


def entropy(states: States) -> dict[str, float]:
    """Return the limits of a trajectory as ratios of its logical bytes."""
    plain = delta = logical = 0.0
    parent = None
    for _, state in states:
        found = limits.entropy_of_state(state, parent)
        plain += found["plain"]
        delta += found["delta"]
        logical += logical_bytes(state)
        parent = state
    return {"order0_planes": plain / logical, "order0_best_of_planes_and_delta": delta / logical}


def _ratio(result: Result, input_name: str, contender: str) -> float:
    for row in result.rows:
        if row["input"] == input_name and row["name"] == contender:
            return float(row["ratio"])
    return float("nan")
