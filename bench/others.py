"""Others: sizes on states that nothing here was tuned to, and where a peer is smaller.

Each input is kept by every contender; ratios are stored over logical bytes. Where casckpt is larger
than the best peer, the result says so by name.
"""

from __future__ import annotations

from typing import Any

from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import Context, Goal, Result, disk_bytes
from bench.inputs import others
from bench.peers import Borg, Restic, TorchSave, ZipNn, ZstdFile
from bench.trees import assert_equal, logical_bytes

OURS = "casckpt balanced"
# What bookkeeping may cost on bytes that do not compress (codec goal).
INCOMPRESSIBLE = 1.001


def run(context: Context) -> Result:
    """Keep every input with every contender."""
    result = Result("others", context.quick)
    for name, states in others.all_inputs().items():
        rows = _keep(context, result, name, list(states(context.quick)))
        result.rows += rows
        ratios = {row["name"]: row["ratio"] for row in rows}
        best = min((one for one in ratios if not one.startswith("casckpt")), key=ratios.__getitem__)
        if ratios[OURS] > ratios[best]:
            result.notes.append(
                f"larger than a peer: {name}: {OURS} {ratios[OURS]:.4f}, {best} {ratios[best]:.4f}"
            )
        if name == "random bytes":
            goal = "stored / logical of random bytes"
            result.goals.append(Goal(goal, INCOMPRESSIBLE, ratios[OURS], "", True))
    return result


def _keep(
    context: Context, result: Result, name: str, states: list[tuple[int, Any]]
) -> list[dict[str, Any]]:
    contenders, missing = split_missing(
        [Casckpt("balanced"), Casckpt("small"), TorchSave(), ZstdFile(), ZipNn(), Restic(), Borg()]
    )
    result.missing |= missing
    logical = sum(logical_bytes(state) for _, state in states)
    rows = []
    with context.folder("others") as base:
        for number, contender in enumerate(contenders):
            grown = _grown(contender, base / str(number), states)
            rows.append(
                {"input": name, "name": contender.name, "logical_bytes": logical,
                 "grown_bytes": grown, "ratio": grown / logical}
            )  # fmt: skip
    return rows


def _grown(contender: Contender, folder: Any, states: list[tuple[int, Any]]) -> int:
    folder.mkdir()
    contender.open(folder)
    empty = disk_bytes(contender.kept)
    for step, state in states:
        contender.save(step, state)
    assert_equal(states[-1][1], contender.load(states[-1][0]), contender.name)
    contender.close()
    return disk_bytes(contender.kept) - empty
