"""Single points and samples of them: `python -m tests.crash.campaign --kind kill --minutes 5`.

    --replay POINT...      carry out single points, as a failure printed them
    --kind NAME            none, kill, again, lost, error, short, lie, beside, power, flip,
                           swarm; several, or all by default
    --workload NAME        only these
    --sample N             of each kind and workload, N points drawn by --seed; all by default
    --seed-range A:B       seeds of the kinds that draw (power, flip), and of --sample
    --minutes M            stop when the time is over
    --seconds S            how long each seed of swarm lasts (20)
    --mutant NAME          with a rule of the code switched off; a violation is then success

The status is 0 if nothing was found. What counts is `rows.py`; this repeats what it found.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.crash import shim

ROOT = Path(__file__).resolve().parents[2]
POINT_KINDS = ("none", "kill", "again", "lost", "error", "short", "lie")
KINDS = (*POINT_KINDS, "beside", "power", "flip", "swarm")


def main(arguments: list[str]) -> int:
    """Run what the arguments say and return 0 if nothing was found."""
    options = _parse(arguments)
    if why := shim.missing():
        sys.stdout.write(f"SKIPPED: {why}\n")
        return 0
    if not shim.is_loaded():
        os.chdir(ROOT)
        command = [sys.executable, "-m", "tests.crash.campaign", *arguments]
        os.execve(sys.executable, command, shim.environment())
    from tests.crash import scale

    scale.shrink()
    return _Campaign(options).run()


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replay", nargs="+", default=[])
    parser.add_argument("--kind", nargs="+", default=[], choices=KINDS)
    parser.add_argument("--workload", nargs="+", default=[])
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed-range", default="0:1")
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--mutant", default="")
    parser.add_argument("--first", action="store_true", help="stop at the first finding")
    return parser.parse_args(arguments)


class _Campaign:
    def __init__(self, options: argparse.Namespace) -> None:
        from tests.crash import mutants
        from tests.crash.points import Lab

        self.options = options
        self.lab = Lab(mutant=mutants.MUTANTS[options.mutant] if options.mutant else None)
        self.deadline = time.monotonic() + options.minutes * 60 if options.minutes else None
        self.counts: dict[str, int] = {}
        self.states: dict[str, int] = {}
        self.bad: list[tuple[str, str]] = []
        low, _, high = options.seed_range.partition(":")
        self.seeds = range(int(low), int(high or int(low) + 1))

    def run(self) -> int:
        began = time.monotonic()
        try:
            for kind, point in self._points():
                self._one(kind, point)
                if self.options.first and self.bad:
                    break
                if self.deadline is not None and time.monotonic() > self.deadline:
                    sys.stdout.write("the time is over\n")
                    break
        finally:
            self.lab.close()
        words = ", ".join(f"{kind} {count}" for kind, count in self.counts.items())
        sys.stdout.write(
            f"{sum(self.counts.values())} points ({words}), {len(self.bad)} bad, "
            f"{time.monotonic() - began:.0f} s\n"
        )
        return 1 if self.bad else 0

    def _one(self, kind: str, point: str) -> None:
        from tests.crash import bits, blocklog, damage, full, hardship, hostile, powerloss, swarm

        if kind == "power":
            found, states = powerloss.run(self.lab, point, self.deadline, first=self.options.first)
        elif kind == "blocks":
            found, states = blocklog.replay(self.lab, point)
        elif kind == "flip":
            found, states = damage.run(self.lab, point, self.deadline, first=self.options.first)
        elif kind == "rot":
            found, states = damage.rot(self.lab, point)
        elif kind == "bits":
            found, states = bits.replay(self.lab, point), 1
        elif kind == "hostile":
            found, states = hostile.replay(self.lab, point), 1
        elif kind in ("alloc", "oom", "stop", "clock", "fork"):
            said = hardship.point(self.lab, point)
            found, states = [(point, said)] if said else [], 1
        elif kind == "full":
            said = full.point(self.lab, point)
            found, states = [(point, said)] if said else [], 1
        elif kind == "swarm":
            found, states = swarm.run(self.lab, point, self.options.seconds)
        else:
            said = self.lab.point(point)
            found, states = [(point, said)] if said else [], 1
        self.counts[kind] = self.counts.get(kind, 0) + states
        for where, said in found:
            self.bad.append((where, said))
            mutant = f" --mutant {self.options.mutant}" if self.options.mutant else ""
            sys.stdout.write(
                f"BAD {said}\n    replay: python -m tests.crash.campaign --replay {where}{mutant}\n"
            )
            sys.stdout.flush()

    def _points(self) -> Iterator[tuple[str, str]]:
        if self.options.replay:
            for point in self.options.replay:
                kind = point.partition(":")[0]
                yield kind, point
            return
        rows = [list(self._of(kind)) for kind in self.options.kind or KINDS]
        # By turns, so that every kind has its share when the time runs out.
        for turn in itertools.zip_longest(*rows):
            yield from (entry for entry in turn if entry is not None)

    def _of(self, kind: str) -> Iterator[tuple[str, str]]:
        from tests.crash import interleave, powerloss
        from tests.crash.points import points_of
        from tests.crash.workloads import WORKLOADS

        if kind in ("flip", "swarm"):
            yield from ((kind, f"{kind}:{seed}") for seed in self.seeds)
            return
        if kind == "beside":
            yield from ((kind, f"beside:{name}") for name in interleave.SCENARIOS)
            return
        every = powerloss.POWER_WORKLOADS if kind == "power" else WORKLOADS
        names = self.options.workload or every
        if kind == "power":
            yield from ((kind, f"power:{name}:{seed}") for seed in self.seeds for name in names)
            return
        chosen: list[str] = []
        for name in names:
            points = points_of(kind, self.lab, name)
            if self.options.sample and self.options.sample < len(points):
                draw = random.Random(f"{self.options.seed_range} {kind} {name}")
                points = draw.sample(points, self.options.sample)
            chosen += points
        random.Random(kind).shuffle(chosen)
        yield from ((kind, point) for point in chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
