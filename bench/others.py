"""Others: sizes on states that nothing here was tuned to, and where a peer is smaller.

Each input is kept by every contender; ratios are stored over logical bytes. Where casckpt is larger
than the best peer, the result says so by name.
"""

from __future__ import annotations

import time
from typing import Any

from bench import behind
from bench.contenders import Casckpt, Contender, split_missing
from bench.harness import Context, Goal, Result, disk_bytes
from bench.inputs import others
from bench.peers import Borg, Restic, TorchSave, ZipNn, ZstdFile
from bench.trees import logical_bytes

# What bookkeeping may cost on bytes that do not compress (codec goal).
INCOMPRESSIBLE = 1.001


class Compacted(Casckpt):
    """Level balanced, and `compact` after the last save."""

    def __init__(self) -> None:
        """Use the default level."""
        super().__init__("balanced")
        self.name = "casckpt compacted"

    def load(self, step: int) -> Any:
        """Compact, then restore: all are loaded once, at the end."""
        self.store.compact()
        return super().load(step)


def run(context: Context) -> Result:
    """Keep every input with every contender."""
    result = Result("others", context.quick)
    for name, states in others.all_inputs().items():
        began_s = time.monotonic()
        rows = _keep(context, result, name, list(states(context.quick)))
        print(f"{name}: {time.monotonic() - began_s:.0f} s", flush=True)
        result.rows += rows
        ratios = {row["name"]: row["ratio"] for row in rows}
        best = min((one for one in ratios if not one.startswith("casckpt")), key=ratios.__getitem__)
        if ratios[behind.OURS] > ratios[best]:
            why = behind.REASONS.get(name, "no reason is known")
            result.notes.append(
                f"larger than a peer: {name}: {behind.OURS} {ratios[behind.OURS]:.4f}, {best} "
                f"{ratios[best]:.4f}: {why}"
            )
        if name.startswith("random bytes"):
            goal = f"stored / logical of {name}"
            result.goals.append(Goal(goal, INCOMPRESSIBLE, ratios[behind.OURS], "", True))
    return result


def _keep(
    context: Context, result: Result, name: str, states: list[tuple[int, Any]]
) -> list[dict[str, Any]]:
    contenders, missing = split_missing(
        [Casckpt("balanced"), Casckpt("small"), Compacted(), TorchSave(), ZstdFile(), ZipNn(),
         Restic(), Borg()]
    )  # fmt: skip
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
    contender.check(*states[-1])
    contender.close()
    return disk_bytes(contender.kept) - empty
